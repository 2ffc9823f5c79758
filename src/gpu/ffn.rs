//! Experts' feed-forward networks on a device: a few rows of activations go up, the rows that come of them come back.
//!
//! A batch is three steps, with nothing of the host between them: gate and up, the activation with the quantiser, and down.
//! Every row has the bits that [`Backend::ffn`](crate::backend::Backend::ffn) of the CPU gives it.

use super::{Arithmetic, Buffer, Device, Kernels, PUSH_WORDS, Place, Step, computes};
use crate::{
    Result,
    backend::{Act, Pair, Rows},
    quant::{
        ActChunk, FfnMats, GgmlType,
        act::{SPANS, WORDS, lane, word},
        block::CHUNK,
    },
};

/// Rows of a batch at most. Longer ones are the CPU's: it reads weights once for many rows.
pub const MAX_ROWS: usize = 16;

/// Bytes of a chunk of activations, as kernels read it.
const ACT_BYTES: usize = CHUNK + 2 * 4 * SPANS + 4 * (CHUNK / 16);

/// Words of a pair, as kernels read it: the addresses of gate, up and down, those of their biases or 0, the row that it reads,
/// what that is multiplied by, and the scales of the three.
const PAIR_WORDS: usize = 20;

/// Rows of a matrix that a workgroup multiplies.
const GROUP_ROWS: usize = 32;

/// Matrices begin at multiples of this.
const ALIGN: u64 = 64;

/// What the experts of a layer have in common.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    /// Types of gate, up and down.
    pub types: [GgmlType; 3],
    /// Width of the input and the output.
    pub n_embd: usize,
    /// Width of the hidden layer.
    pub n_ff: usize,
    /// Between the matrices.
    pub act: Act,
    /// Whether products with gate, up and down have something added.
    pub biased: [bool; 3],
}

impl Shape {
    /// Whether a device can give the CPU's bits.
    ///
    /// # Errors
    /// Why not, as the end of a sentence.
    pub fn check(&self) -> Result<(), String> {
        if let Some(ty) = self.types.iter().find(|&&ty| !computes(ty)) {
            return Err(format!("there is no kernel for weights of type {ty}"));
        }
        match self.act {
            Act::Silu | Act::Relu => Ok(()),
            Act::ReluSquared => Err("there is no kernel for their activation".to_owned()),
            Act::Gelu | Act::SiluClamped { .. } | Act::ClampedSilu { .. } | Act::SwigluOai { .. } => {
                Err("their activation uses an exponential of the system's library, whose bits a device does not have"
                    .to_owned())
            }
        }
    }

    /// (rows, cols) of gate, up or down.
    fn matrix(&self, role: usize) -> (usize, usize) {
        if role == 2 { (self.n_embd, self.n_ff) } else { (self.n_ff, self.n_embd) }
    }

    fn row_bytes(&self, role: usize) -> usize {
        let (ty, (_, cols)) = (self.types[role], self.matrix(role));
        cols / ty.block_len() * ty.block_bytes()
    }

    /// Where gate, up, down and the biases of each begin in an expert's slot, and where it ends.
    fn places(&self) -> [u64; 7] {
        let (mut places, mut at) = ([0; 7], 0u64);
        for (i, place) in places.iter_mut().enumerate() {
            *place = at;
            let bytes = match i {
                // A word is read where a weight's bytes may be the first of it.
                0..3 => self.matrix(i).0 * self.row_bytes(i) + 4,
                3..6 if self.biased[i - 3] => 4 * self.matrix(i - 3).0,
                _ => 0,
            };
            at = (at + bytes as u64).next_multiple_of(ALIGN);
        }
        places
    }

    /// Bytes of an expert's slot.
    pub fn slot_bytes(&self) -> u64 {
        self.places()[6]
    }

    /// Writes an expert to `write(at, bytes)`, as it lies in its slot; padding is left out.
    ///
    /// # Panics
    /// If the matrices or the biases are of another shape, or interleaved, or there is no gate.
    pub fn lay_out(&self, mats: &FfnMats<'_>, bias: [&[f32]; 3], mut write: impl FnMut(u64, &[u8])) {
        let places = self.places();
        let gate = mats.gate.as_ref().expect("a shape is one of experts with a gate");
        for (role, mat) in [gate, &mats.up, &mats.down].into_iter().enumerate() {
            assert!(mat.ty == self.types[role] && (mat.rows, mat.cols) == self.matrix(role), "the layer's shape");
            assert!(!mat.interleaved, "rows as in the file");
            write(places[role], mat.data);
        }
        for (role, bias) in bias.into_iter().enumerate().filter(|(role, _)| self.biased[*role]) {
            assert_eq!(bias.len(), self.matrix(role).0, "a bias for each row");
            let bytes: Vec<u8> = bias.iter().flat_map(|b| b.to_le_bytes()).collect();
            write(places[3 + role], &bytes);
        }
    }
}

/// The most that a batch has.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Rows of activations, at most [`MAX_ROWS`].
    pub rows: usize,
    /// Experts of a row.
    pub n_expert_used: usize,
    /// Width of the rows.
    pub n_embd: usize,
    /// Width of the widest hidden layer.
    pub n_ff: usize,
}

impl Limits {
    fn pairs(&self) -> usize {
        self.rows * self.n_expert_used
    }

    /// Bytes of input, gate and up, hidden rows exact and quantised, and output.
    fn buffers(&self) -> [u64; 5] {
        let (pairs, chunks) = (self.pairs(), |cols: usize| cols.div_ceil(CHUNK) * ACT_BYTES);
        let input = self.rows * (chunks(self.n_embd) + 4 * self.n_embd) + 4 * PAIR_WORDS * pairs;
        let hidden = 4 * pairs * self.n_ff;
        [input, 2 * hidden, hidden, pairs * chunks(self.n_ff), 4 * pairs * self.n_embd].map(|bytes| bytes as u64)
    }

    /// Bytes of a device's memory that a batch works in, the constants of kernels included.
    pub fn scratch_bytes(&self) -> u64 {
        self.buffers().iter().sum::<u64>() + (1 << 16)
    }
}

/// One expert and the rows that take it.
pub struct Job<'a> {
    /// Where its slot begins.
    pub address: u64,
    /// What products with gate, up and down are multiplied by.
    pub scale: [f32; 3],
    /// Its pairs.
    pub pairs: &'a [Pair],
}

/// See the module.
pub struct Ffns {
    device: Box<dyn Device>,
    kernels: Kernels,
    limits: Limits,
    input: Buffer,
    /// Gate, then up.
    gate_up: Buffer,
    hidden: Buffer,
    hidden_acts: Buffer,
    output: Buffer,
    /// The pairs that are computed, and where their rows go.
    outs: Vec<u32>,
    bytes: Vec<u8>,
    n_embd: usize,
}

impl Ffns {
    /// Buffers for batches within `limits`.
    ///
    /// # Errors
    /// If the device has too little memory.
    pub fn new(mut device: Box<dyn Device>, kernels: Kernels, limits: Limits) -> Result<Self> {
        let [input, gate_up, hidden, acts, output] = limits.buffers().map(|bytes| bytes.max(ALIGN));
        Ok(Self {
            input: device.allocate(input, Place::Input)?,
            gate_up: device.allocate(gate_up, Place::Device)?,
            hidden: device.allocate(hidden, Place::Device)?,
            hidden_acts: device.allocate(acts, Place::Device)?,
            output: device.allocate(output, Place::Output)?,
            outs: Vec::with_capacity(limits.pairs()),
            bytes: Vec::with_capacity(input as usize),
            n_embd: limits.n_embd,
            device,
            kernels,
            limits,
        })
    }

    /// The device, for its memory and its copies.
    pub fn device(&mut self) -> &mut dyn Device {
        &mut *self.device
    }

    /// The device alone, with all memory given back.
    pub(super) fn into_device(mut self) -> Box<dyn Device> {
        for buffer in [self.input, self.gate_up, self.hidden, self.hidden_acts, self.output, self.kernels.grids] {
            self.device.free(buffer);
        }
        self.device
    }

    /// Its name, and whether its arithmetic is done in whole numbers.
    pub fn describe(&self) -> String {
        let how = if self.kernels.arithmetic == Arithmetic::Whole { ", its arithmetic in whole numbers" } else { "" };
        format!("{}{how}", self.device.name())
    }

    /// Whether a batch of so many rows fits.
    pub fn fits(&self, rows: usize) -> bool {
        rows <= self.limits.rows
    }

    /// Starts `jobs` of experts of one shape; [`Ffns::finish`] waits for them. What was started before and never finished is
    /// thrown away.
    ///
    /// # Errors
    /// If the device fails.
    ///
    /// # Panics
    /// If the batch is beyond the limits.
    pub fn start(&mut self, shape: &Shape, rows: &Rows, jobs: &[Job<'_>]) -> Result<()> {
        assert!(rows.len() <= self.limits.rows, "rows that fit");
        if !self.outs.is_empty() {
            // Of an event that failed before its end.
            self.outs.clear();
            self.device.wait()?;
        }
        self.outs.extend(jobs.iter().flat_map(|job| job.pairs.iter().map(|pair| pair.out)));
        if self.outs.is_empty() {
            return Ok(());
        }
        let steps = self.plan(shape, rows, jobs);
        self.device.submit(&steps).inspect_err(|_| self.outs.clear())
    }

    /// Writes what the jobs' steps read, and gives the steps.
    pub(super) fn plan(&mut self, shape: &Shape, rows: &Rows, jobs: &[Job<'_>]) -> Vec<Step> {
        let n: usize = jobs.iter().map(|job| job.pairs.len()).sum();
        assert!(n <= self.limits.pairs() && shape.n_ff <= self.limits.n_ff, "pairs that fit");
        let places = self.write_input(shape, rows, jobs);
        self.n_embd = shape.n_embd;
        self.steps(shape, n as u32, places)
    }

    /// Where the pairs, the quantised and the exact rows lie.
    fn write_input(&mut self, shape: &Shape, rows: &Rows, jobs: &[Job<'_>]) -> [u64; 3] {
        let (bytes, places) = (&mut self.bytes, shape.places());
        bytes.clear();
        for job in jobs {
            let bias = |role: usize| if shape.biased[role] { job.address + places[3 + role] } else { 0 };
            let addresses = [0, 1, 2].map(|role| job.address + places[role]).into_iter().chain([0, 1, 2].map(bias));
            for pair in job.pairs {
                let start = bytes.len();
                bytes.extend(addresses.clone().flat_map(u64::to_le_bytes));
                bytes.extend(pair.row.to_le_bytes());
                bytes.extend(
                    [pair.scale, job.scale[0], job.scale[1], job.scale[2]].into_iter().flat_map(f32::to_le_bytes),
                );
                bytes.resize(start + 4 * PAIR_WORDS, 0);
            }
        }
        let acts_at = bytes.len();
        for i in 0..rows.len() {
            rows.row(i).chunks.iter().for_each(|chunk| write_chunk(chunk, bytes));
        }
        let x_at = bytes.len();
        if shape.types.iter().any(|ty| ty.block_len() == 1) {
            bytes.extend(rows.x().iter().flat_map(|x| x.to_le_bytes()));
        }
        self.device.write(self.input, 0, &self.bytes);
        [0, acts_at, x_at].map(|at| self.input.address + at as u64)
    }

    /// The steps of `n` pairs.
    fn steps(&self, shape: &Shape, n: u32, [pairs, acts, x]: [u64; 3]) -> Vec<Step> {
        let gate_up = (4 * n as usize * shape.n_ff) as u64;
        let product = |role: usize, roles: u32, [acts, x, y]: [u64; 3]| {
            let (n_rows, cols) = shape.matrix(role);
            let words = [n_rows as u32, cols as u32, shape.row_bytes(role) as u32, role as u32, n, u32::from(role < 2)];
            let groups = [n_rows.div_ceil(GROUP_ROWS) as u32, n, roles];
            let push = push(&[pairs, acts, x, y, self.kernels.grids.address], &words);
            Step::Run { kernel: self.kernels.product(shape.types[role]), groups, push }
        };
        let mut steps = Vec::with_capacity(7);
        if shape.types[0] == shape.types[1] {
            steps.push(product(0, 2, [acts, x, self.gate_up.address]));
        } else {
            steps.push(product(0, 1, [acts, x, self.gate_up.address]));
            steps.push(product(1, 1, [acts, x, self.gate_up.address + gate_up]));
        }
        let kind = if shape.act == Act::Relu { 1 } else { 0 };
        let addresses = [self.gate_up.address, self.hidden.address, self.hidden_acts.address];
        steps.extend([
            Step::Barrier,
            Step::Run {
                kernel: self.kernels.activate,
                groups: [shape.n_ff.div_ceil(CHUNK) as u32, n, 1],
                push: push(&addresses, &[shape.n_ff as u32, n, kind]),
            },
            Step::Barrier,
            product(2, 1, [self.hidden_acts.address, self.hidden.address, self.output.address]),
        ]);
        steps
    }

    /// Waits for the batch and writes its rows to `out`, (any, n_embd), each where its pair says.
    ///
    /// # Errors
    /// If the device fails; `out` is as before then.
    pub fn finish(&mut self, out: &mut [f32]) -> Result<()> {
        let outs = std::mem::take(&mut self.outs);
        if outs.is_empty() {
            return Ok(());
        }
        self.device.wait()?;
        self.bytes.resize(4 * self.n_embd, 0);
        for (i, &row) in outs.iter().enumerate() {
            self.device.read(self.output, (i * self.bytes.len()) as u64, &mut self.bytes);
            let out = &mut out[row as usize * self.n_embd..][..self.n_embd];
            for (out, bytes) in out.iter_mut().zip(self.bytes.as_chunks::<4>().0) {
                *out = f32::from_le_bytes(*bytes);
            }
        }
        self.outs = outs;
        self.outs.clear();
        Ok(())
    }
}

/// What a kernel is given: addresses, then words.
fn push(addresses: &[u64], words: &[u32]) -> [u32; PUSH_WORDS] {
    let mut push = [0; PUSH_WORDS];
    let all = addresses.iter().flat_map(|a| [*a as u32, (*a >> 32) as u32]).chain(words.iter().copied());
    push.iter_mut().zip(all).for_each(|(push, word)| *push = word);
    push
}

/// A chunk in the order of its elements, which is that of threads on a device.
fn write_chunk(chunk: &ActChunk, bytes: &mut Vec<u8>) {
    for s in 0..SPANS {
        let words = (0..WORDS).map(|k| word(k) + 4 * lane(s));
        bytes.extend(words.flat_map(|at| chunk.q[at..at + 4].iter().map(|q| *q as u8)));
    }
    bytes.extend(chunk.d.iter().chain(&chunk.s).flat_map(|x| x.to_le_bytes()));
    bytes.extend((0..SPANS).flat_map(|s| [lane(s), lane(s) + 4].map(|p| chunk.h[p])).flat_map(i32::to_le_bytes));
}
