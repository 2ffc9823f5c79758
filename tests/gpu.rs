//! Experts on a device have the bits that they have on the CPU. Without a Vulkan driver these tests say so and pass; Mesa's
//! lavapipe (Debian: mesa-vulkan-drivers) is one that needs no graphics card.

mod common;

use common::dice::Dice;
use hotset::{
    backend::{Act, Backend, FfnExtras, FfnJob, Hidden, Pair, Rows, cpu::Cpu},
    gpu::{self, Arithmetic, Choice, Device, Ffns, Job, Limits, Place, Shape},
    quant::{FfnMats, GgmlType, QMat, dequantize_row},
};

/// The machine's best device, whatever it is.
fn device() -> Option<Box<dyn Device>> {
    gpu::open(Choice::Any).inspect_err(|e| common::not_tested!("experts on a device: {e}")).ok()
}

fn types() -> impl Iterator<Item = GgmlType> {
    GgmlType::ALL.iter().copied().filter(|ty| ty.is_computable())
}

fn float(dice: &mut Dice) -> f32 {
    (dice.next() >> 40) as f32 / (1 << 22) as f32 - 2.0
}

/// Random weights without infinities and NaN, of any size otherwise.
fn weights(ty: GgmlType, rows: usize, cols: usize, dice: &mut Dice) -> Vec<u8> {
    let (mut block, mut values) = (vec![0; ty.block_bytes()], vec![0.0; ty.block_len()]);
    let mut out = Vec::new();
    for _ in 0..rows * cols / ty.block_len() {
        loop {
            block.iter_mut().for_each(|b| *b = dice.next() as u8);
            dequantize_row(ty, &block, &mut values);
            if values.iter().all(|x| x.abs() < 1e6) {
                break;
            }
        }
        out.extend(&block);
    }
    out
}

/// One expert's bytes.
struct Expert {
    bytes: [Vec<u8>; 3],
    bias: [Vec<f32>; 3],
    scale: [f32; 3],
}

impl Expert {
    fn new(shape: &Shape, dice: &mut Dice) -> Self {
        let sizes = [(shape.n_ff, shape.n_embd), (shape.n_ff, shape.n_embd), (shape.n_embd, shape.n_ff)];
        let bytes = [0, 1, 2].map(|role| weights(shape.types[role], sizes[role].0, sizes[role].1, dice));
        let bias = [0, 1, 2].map(|role: usize| {
            let n = if shape.biased[role] { sizes[role].0 } else { 0 };
            (0..n).map(|_| float(dice)).collect()
        });
        let mut scale = || if dice.below(2) == 0 { 1.0 } else { float(dice) };
        let scale = [scale(), scale(), scale()];
        Self { bytes, bias, scale }
    }

    fn mats(&self, shape: &Shape) -> FfnMats<'_> {
        let mat = |role: usize, rows, cols| QMat::new(shape.types[role], rows, cols, &self.bytes[role]);
        let Shape { n_embd, n_ff, .. } = *shape;
        FfnMats { gate: Some(mat(0, n_ff, n_embd)), up: mat(1, n_ff, n_embd), down: mat(2, n_embd, n_ff) }
    }
}

/// Runs `n_rows` rows through some experts on the CPU and on the device, and compares all bits.
fn compare(ffns: &mut Ffns, shape: &Shape, n_rows: usize, dice: &mut Dice) {
    let experts: Vec<Expert> = (0..1 + dice.below(3)).map(|_| Expert::new(shape, dice)).collect();
    let mut cpu = Cpu::new(1).unwrap();
    let mut rows = Rows::new(n_rows, shape.n_embd);
    let wild = dice.below(3) == 0;
    for (i, x) in rows.start(n_rows).iter_mut().enumerate() {
        *x = float(dice);
        if wild && i / 32 % 3 == 1 {
            *x *= f32::from_bits((127 - 100) << 23);
        }
    }
    cpu.prepare(&mut rows);
    // Each row takes each expert, or most of them.
    let (mut pairs, mut ranges) = (Vec::new(), Vec::new());
    for _ in &experts {
        let start = pairs.len();
        for row in 0..n_rows as u32 {
            if row == 0 || dice.below(4) > 0 {
                let scale = if dice.below(2) == 0 { 1.0 } else { float(dice) };
                pairs.push(Pair { row, out: pairs.len() as u32, scale });
            }
        }
        ranges.push(start..pairs.len());
    }
    // Rows of the output in another order than pairs.
    let n = pairs.len();
    pairs.iter_mut().for_each(|pair| pair.out = n as u32 - 1 - pair.out);
    let [mut expected, mut got] = [0; 2].map(|_| vec![f32::NAN; n * shape.n_embd]);
    let mut hidden = Hidden::new(n, shape.n_ff);
    for (expert, range) in experts.iter().zip(&ranges) {
        let extras =
            FfnExtras { act: shape.act, scale: expert.scale, bias: expert.bias.each_ref().map(|b| b.as_slice()) };
        let job = FfnJob { mats: expert.mats(shape), extras, pairs: range.clone(), hidden: 0 };
        cpu.ffn(&rows, &[job], &pairs, &mut hidden, &mut expected);
    }
    let bytes = shape.slot_bytes();
    let device = ffns.device();
    let staging = device.allocate(bytes, Place::Staging).unwrap();
    let slots = device.allocate(bytes * experts.len() as u64, Place::Device).unwrap();
    for (i, expert) in experts.iter().enumerate() {
        let bias = expert.bias.each_ref().map(|b| b.as_slice());
        shape.lay_out(&expert.mats(shape), bias, |at, bytes| device.write(staging, at, bytes));
        device.copy(i, staging, slots, i as u64 * bytes, bytes).unwrap();
        device.wait_copy(i).unwrap();
    }
    let jobs: Vec<_> = experts
        .iter()
        .zip(&ranges)
        .enumerate()
        .map(|(i, (expert, range))| Job {
            address: slots.address + i as u64 * bytes,
            scale: expert.scale,
            pairs: &pairs[range.clone()],
        })
        .collect();
    ffns.start(shape, &rows, &jobs).unwrap();
    ffns.finish(&mut got).unwrap();
    [staging, slots].into_iter().for_each(|buffer| ffns.device().free(buffer));
    for (i, (a, b)) in expected.iter().zip(&got).enumerate() {
        assert!(
            a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()),
            "{shape:?}, {n_rows} rows: output {i} is {b:e}, not {a:e}"
        );
    }
    assert!(expected.iter().any(|x| *x != 0.0 && x.is_finite()), "{shape:?}: something was computed");
}

/// What a device does itself is as it may be; in whole numbers every operation is exact.
#[test]
fn whole_numbers_are_exact_on_any_device() {
    let Some(mut device) = device() else { return };
    for arithmetic in Arithmetic::ALL {
        let differences = gpu::differences(&mut *device, arithmetic).unwrap();
        eprintln!("{}, {arithmetic:?}: {}", device.name(), differences.as_deref().unwrap_or("exact"));
        assert!(arithmetic != Arithmetic::Whole || differences.is_none(), "{differences:?}");
    }
}

/// Measures rather than tests; tools/gpu-check prints what it says.
#[test]
#[ignore = "measures, and wants a graphics card"]
fn rates() {
    let Some(device) = device() else { return };
    let types = [GgmlType::Q4_K, GgmlType::Q6_K, GgmlType::Q8_0, GgmlType::Q4_0, GgmlType::MXFP4, GgmlType::IQ3_XXS];
    let shapes = types.map(|ty| Shape { types: [ty; 3], n_embd: 2048, n_ff: 768, act: Act::Silu, biased: [false; 3] });
    let limits = Limits { rows: 1, n_expert_used: 8, n_embd: 2048, n_ff: 768 };
    let mut ffns = gpu::check(device, &shapes, limits).unwrap();
    eprintln!("on {}; 8 experts of 2048 and 768", ffns.describe());
    for shape in &shapes {
        for gpu::Rate { what, time, bytes } in gpu::rates(&mut ffns, shape, 8).unwrap() {
            let (us, rate) = (time.as_secs_f64() * 1e6, bytes as f64 / time.as_secs_f64() / 1e9);
            eprintln!("{} {what}: {us:.1} us, {rate:.0} GB/s", shape.types[0]);
        }
    }
}

#[test]
fn every_type_has_the_bits_of_the_cpu() {
    let Some(device) = device() else { return };
    let widths = |ty: GgmlType| if ty.block_len() == 1 { 33 } else { ty.block_len() };
    let limits = Limits { rows: 4, n_expert_used: 3, n_embd: 1024, n_ff: 1024 };
    let shape =
        |ty: GgmlType, act, biased| Shape { types: [ty; 3], n_embd: widths(ty) * 2, n_ff: widths(ty), act, biased };
    let shapes: Vec<_> = types().map(|ty| shape(ty, Act::Silu, [false; 3])).collect();
    let mut ffns = gpu::check(device, &shapes, limits).unwrap();
    eprintln!("on {}", ffns.describe());
    let mut dice = Dice(5);
    for ty in types() {
        for (n_embd, n_ff, n_rows) in [(1, 1, 1), (3, 2, 1), (2, 3, 4)] {
            let act = if dice.below(4) == 0 { Act::Relu } else { Act::Silu };
            let biased = [0; 3].map(|_| dice.below(2) == 0);
            let shape = Shape { n_embd: widths(ty) * n_embd, n_ff: widths(ty) * n_ff, ..shape(ty, act, biased) };
            compare(&mut ffns, &shape, n_rows, &mut dice);
        }
    }
}

#[test]
fn experts_may_mix_types() {
    let Some(device) = device() else { return };
    let limits = Limits { rows: 4, n_expert_used: 3, n_embd: 512, n_ff: 512 };
    use GgmlType::*;
    let shapes: Vec<_> = [[Q4_K, Q4_K, Q6_K], [Q4_0, Q5_K, F16], [F32, Q8_0, Q4_0], [IQ3_XXS, IQ3_XXS, BF16]]
        .map(|types| Shape { types, n_embd: 512, n_ff: 256, act: Act::Silu, biased: [false, true, true] })
        .into();
    let mut ffns = gpu::check(device, &shapes, limits).unwrap();
    for shape in &shapes {
        compare(&mut ffns, shape, 2, &mut Dice(7));
    }
}

#[test]
fn what_a_device_cannot_give_exactly_is_refused() {
    let Some(device) = device() else { return };
    let shape = |ty, act| Shape { types: [ty; 3], n_embd: 32, n_ff: 32, act, biased: [false; 3] };
    let limits = Limits { rows: 1, n_expert_used: 1, n_embd: 32, n_ff: 32 };
    let refused = gpu::check(device, &[shape(GgmlType::F32, Act::Gelu)], limits).err().unwrap().to_string();
    assert!(refused.contains("stay on the CPU") && !refused.contains('\n'), "{refused}");
    assert!(shape(GgmlType::Q8_K, Act::Silu).check().unwrap_err().contains("Q8_K"));
}

#[test]
fn a_device_of_another_number_is_one_sentence() {
    if device().is_none() {
        return;
    }
    let refused = gpu::open(Choice::Number(99)).err().unwrap().to_string();
    assert!(refused.contains("none is number 99") && !refused.contains('\n'), "{refused}");
}

/// The compiled kernels belong to the sources beside them.
#[test]
fn kernels_are_those_of_their_sources() {
    use sha2::{Digest, Sha256};
    use std::{collections::BTreeSet, fmt::Write, path::Path};
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/gpu/shaders");
    let record = std::fs::read_to_string(folder.join("spv/RECORD")).unwrap();
    let mut recorded = BTreeSet::new();
    for line in record.lines().skip(1) {
        let (sum, name) = line.split_once("  ").unwrap();
        let name = name.trim_start_matches("./");
        let digest = Sha256::digest(std::fs::read(folder.join(name)).unwrap());
        let got = digest.iter().fold(String::new(), |mut text, byte| {
            write!(text, "{byte:02x}").unwrap();
            text
        });
        assert_eq!(got, sum, "{name} has changed: run tools/shaders");
        recorded.insert(name.to_owned());
    }
    for (sub, ends) in [(".", &["glsl", "comp"][..]), ("spv", &["spv"])] {
        for entry in std::fs::read_dir(folder.join(sub)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if ends.iter().any(|end| name.ends_with(&format!(".{end}"))) {
                let name = if sub == "." { name } else { format!("{sub}/{name}") };
                assert!(recorded.contains(&name), "{name} is not in the record: run tools/shaders");
            }
        }
    }
    // Where the same compiler is installed, they come out the same.
    let version = std::process::Command::new("glslangValidator").arg("--version").output();
    let same = version.is_ok_and(|v| v.stdout.starts_with(record.lines().next().unwrap().as_bytes()));
    if !same {
        common::not_tested!("shaders compiled again: that needs {}", record.lines().next().unwrap());
        return;
    }
    let out = tempfile::tempdir().unwrap();
    let tool = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/shaders");
    let Ok(run) = std::process::Command::new(tool).arg(out.path()).output() else { return };
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    for name in recorded.iter().filter_map(|name| name.strip_prefix("spv/")) {
        let [kept, made] = [folder.join("spv").join(name), out.path().join(name)].map(|p| std::fs::read(p).unwrap());
        assert!(kept == made, "{name} comes out otherwise: run tools/shaders");
    }
}
