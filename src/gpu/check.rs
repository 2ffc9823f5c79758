//! Whether a device's arithmetic is the CPU's, bit for bit, before it takes part in anything.

use super::{Arithmetic, Device, Ffns, Job, Kernels, Limits, PUSH_WORDS, Place, Shape, Step, fault};
use crate::{
    Error, Result,
    backend::{
        Backend, FfnExtras, FfnJob, Hidden, Pair, Rows,
        cpu::{
            Cpu,
            kernels::{Isa, Kernels as Cpus},
        },
    },
    quant::{FfnMats, GgmlType, QMat, dequantize_row},
};

/// Numbers that the basic operations are compared on.
const N: usize = 4096;

/// Widths that the test's matrices have at most: whole blocks of every type.
const WIDTH: usize = 512;

/// Kernels for experts of these shapes on a device that computes them as the CPU does; if its own arithmetic does not, in whole
/// numbers.
///
/// # Errors
/// A shape that no device computes; memory or a kernel that the device refuses; other results than the CPU's.
pub fn check(mut device: Box<dyn Device>, shapes: &[Shape], limits: Limits) -> Result<Ffns> {
    for shape in shapes {
        shape.check().map_err(|why| Error::invalid(format!("experts of this model stay on the CPU: {why}")))?;
    }
    let types: Vec<_> = shapes.iter().flat_map(|shape| shape.types).collect();
    let mut wrong = String::new();
    for arithmetic in Arithmetic::ALL {
        match differences(&mut *device, arithmetic)? {
            Some(what) => wrong = what,
            None => {
                let kernels = Kernels::build(&mut *device, &types, arithmetic)?;
                let mut ffns = Ffns::new(device, kernels, limits)?;
                match compare_ffns(&mut ffns, shapes)? {
                    Some(what) => wrong = what,
                    None => return Ok(ffns),
                }
                device = ffns.into_device();
            }
        }
    }
    Err(fault(device.name(), format_args!("does not compute as the CPU does ({wrong}), and so not at all")))
}

/// Random bits of a seed.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        // Steele et al., "Fast splittable pseudorandom number generators", 2014.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// About from -2 to 2.
    fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 22) as f32 - 2.0
    }

    fn operand(&mut self) -> f32 {
        const ENDS: [u32; 12] = [
            0,
            1,
            0x007f_ffff,
            0x0080_0000,
            0x0080_0001,
            0x3f7f_ffff,
            0x3f80_0000,
            0x3f80_0001,
            0x42b0_c0a5,
            0x7f7f_ffff,
            0x7f80_0000,
            0x7fc0_0000,
        ];
        let bits = self.next();
        let sign = (bits as u32) << 31;
        match bits >> 1 & 7 {
            0 => f32::from_bits(sign | ENDS[(bits >> 4) as usize % ENDS.len()]),
            // Any exponent, subnormal numbers too.
            1 | 2 => f32::from_bits((bits >> 32) as u32),
            // Few bits, so that halves of a last place come up.
            3 => (bits >> 50) as f32 * f32::from_bits((((bits >> 8) as u32 & 15) + 120) << 23),
            4 => self.float() * 40.0,
            _ => self.float(),
        }
    }
}

/// Equal bits; one NaN is as good as another.
fn same(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan())
}

/// What the basic operations of a device give otherwise than the CPU's, if anything: of each, how often, and the first case.
///
/// # Errors
/// If the device fails.
pub fn differences(device: &mut dyn Device, arithmetic: Arithmetic) -> Result<Option<String>> {
    let kernel = Kernels::basic(device, arithmetic)?;
    let mut dice = Dice(1);
    let operands: Vec<f32> = (0..3 * N).map(|_| dice.operand()).collect();
    let bytes: Vec<u8> = operands.iter().flat_map(|x| x.to_le_bytes()).collect();
    let (from, to) = (device.allocate(12 * N as u64, Place::Input)?, device.allocate(20 * N as u64, Place::Output)?);
    device.write(from, 0, &bytes);
    let mut push = [0; PUSH_WORDS];
    let words = [from.address, to.address].into_iter().flat_map(|a| [a as u32, (a >> 32) as u32]).chain([N as u32]);
    push.iter_mut().zip(words).for_each(|(push, word)| *push = word);
    device.submit(&[Step::Run { kernel, groups: [N.div_ceil(64) as u32, 1, 1], push }])?;
    device.wait()?;
    let mut bytes = vec![0; 20 * N];
    device.read(to, 0, &mut bytes);
    device.free(from);
    device.free(to);
    let results: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    let cpu = Cpus::for_isa(Isa::Scalar)?;
    let names = ["fused multiply-add", "product", "sum", "quotient", "exponential"];
    // Of each operation: how many differ, and the first that does.
    let mut wrong = names.map(|_| (0, String::new()));
    for (operands, results) in operands.as_chunks::<3>().0.iter().zip(results.as_chunks::<5>().0) {
        let &[a, b, c] = operands;
        let mut power = [a];
        cpu.exp_sum(&mut power, 0.0);
        let expected = [a.mul_add(b, c), a * b, a + b, a / b, power[0]];
        for ((expected, got), (count, first)) in expected.into_iter().zip(*results).zip(&mut wrong) {
            if !same(expected, got) {
                if *count == 0 {
                    *first = format!("of {a:e}, {b:e}, {c:e} is {got:e}, not {expected:e}");
                }
                *count += 1;
            }
        }
    }
    let told = wrong.iter().zip(names).filter(|((count, _), _)| *count > 0);
    let told: Vec<_> = told.map(|((count, first), name)| format!("{count} of {N}: a {name} {first}")).collect();
    Ok((!told.is_empty()).then(|| told.join("; ")))
}

/// What experts of these shapes, made narrow, give otherwise than on the CPU, if anything.
fn compare_ffns(ffns: &mut Ffns, shapes: &[Shape]) -> Result<Option<String>> {
    for (i, shape) in shapes.iter().enumerate() {
        if shapes[..i].contains(shape) {
            continue;
        }
        let narrow = Shape { n_embd: shape.n_embd.min(WIDTH), n_ff: shape.n_ff.min(WIDTH), ..*shape };
        if let Some(what) = compare_ffn(ffns, &narrow, &mut Dice(i as u64))? {
            return Ok(Some(what));
        }
    }
    Ok(None)
}

fn compare_ffn(ffns: &mut Ffns, shape: &Shape, dice: &mut Dice) -> Result<Option<String>> {
    let (n_embd, n_ff) = (shape.n_embd, shape.n_ff);
    let sizes = [(n_ff, n_embd), (n_ff, n_embd), (n_embd, n_ff)];
    let bytes = [0, 1, 2].map(|role| weights(shape.types[role], sizes[role], dice));
    let mat = |role: usize| QMat::new(shape.types[role], sizes[role].0, sizes[role].1, &bytes[role]);
    let mats = FfnMats { gate: Some(mat(0)), up: mat(1), down: mat(2) };
    let bias = [0, 1, 2].map(|role: usize| {
        let n = if shape.biased[role] { sizes[role].0 } else { 0 };
        (0..n).map(|_| dice.float()).collect::<Vec<f32>>()
    });
    let scale = [0; 3].map(|_| dice.float());
    let extras = FfnExtras { act: shape.act, scale, bias: bias.each_ref().map(|b| &b[..]) };
    let mut cpu = Cpu::new(1)?;
    let mut rows = Rows::new(1, n_embd);
    rows.start(1).iter_mut().for_each(|x| *x = dice.float());
    cpu.prepare(&mut rows);
    let pairs = [Pair { row: 0, out: 0, scale: 0.75 }];
    let (mut expected, mut got) = (vec![0.0; n_embd], vec![0.0; n_embd]);
    let job = FfnJob { mats, extras, pairs: 0..1, hidden: 0 };
    cpu.ffn(&rows, &[job], &pairs, &mut Hidden::new(1, n_ff), &mut expected);

    let device = ffns.device();
    let staging = device.allocate(shape.slot_bytes(), Place::Staging)?;
    let slot = device.allocate(shape.slot_bytes(), Place::Device)?;
    shape.lay_out(&mats, extras.bias, |at, bytes| device.write(staging, at, bytes));
    device.copy(0, staging, slot, 0, shape.slot_bytes())?;
    device.wait_copy(0)?;
    ffns.start(shape, &rows, &[Job { address: slot.address, scale, pairs: &pairs }])?;
    ffns.finish(&mut got)?;
    [staging, slot].into_iter().for_each(|buffer| ffns.device().free(buffer));
    let wrong = expected.iter().zip(&got).filter(|(a, b)| !same(**a, **b)).count();
    let [g, u, d] = shape.types;
    Ok((wrong > 0).then(|| format!("{wrong} of {n_embd} outputs of an expert of {g}, {u} and {d} differ")))
}

/// Random weights of moderate size.
fn weights(ty: GgmlType, (rows, cols): (usize, usize), dice: &mut Dice) -> Vec<u8> {
    let (len, bytes) = (ty.block_len(), ty.block_bytes());
    let mut values = vec![0.0; len];
    let mut out = Vec::with_capacity(rows * cols / len * bytes);
    let is_moderate = |x: &f32| *x == 0.0 || (1e-4..1e3).contains(&x.abs());
    while out.len() < rows * cols / len * bytes {
        let start = out.len();
        out.extend((0..bytes.div_ceil(8)).flat_map(|_| dice.next().to_le_bytes()));
        out.truncate(start + bytes);
        dequantize_row(ty, &out[start..], &mut values);
        if !values.iter().all(is_moderate) {
            out.truncate(start);
        }
    }
    out
}
