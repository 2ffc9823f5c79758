//! The arithmetic that costs time, in a table filled once at run time with the best that the CPU has.
//!
//! Every instruction set adds in the same order, which [`dot`](mod@crate::quant::dot) states. A result therefore has the
//! same bits on every CPU, in every grouping of rows and tokens, on one thread or many.
//!
//! Must not know: threads, models, files.

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod ahead;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod bytes;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod driver;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod expanded;
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "only x86-64 has several makers' CPUs"))]
mod maker;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg_attr(
    not(any(target_arch = "x86_64", target_arch = "aarch64")),
    allow(dead_code, reason = "scalar code reads bfloat16 by itself")
)]
mod ops;
mod scalar;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod table;
mod tile;

use half::f16;

use crate::quant::act::{ActChunk, ActRow, LANES};
use crate::quant::block::CHUNK;
use crate::quant::{Acts, GgmlType, QMat, interleaved};
use crate::{Error, Result};
use ops::Ops;
pub use tile::TILE;

/// `y[t][r] = dot(row r of w, x[t])` for every row and token, where `y[t]` points to `w.rows` floats.
///
/// `then` is a hint: the weights that the same thread reads next, which may be asked of memory meanwhile.
///
/// # Safety
/// The CPU has the kernel's instruction set; each `y[t]` is valid for writing `w.rows` floats and nobody else uses
/// them meanwhile.
pub type MatMul = unsafe fn(w: QMat<'_>, x: &[ActRow<'_>], y: &[*mut f32], then: &[u8]);

/// An instruction set that there are kernels for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// Plain code: the slow truth.
    Scalar,
    /// AVX2, FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// The same with AVX-VNNI's dot product.
    #[cfg(target_arch = "x86_64")]
    AvxVnni,
    /// AVX-512 F, BW, DQ, VL and VNNI.
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
    /// What every aarch64 CPU has.
    #[cfg(target_arch = "aarch64")]
    Neon,
    /// The same with the dot product of Armv8.2.
    #[cfg(target_arch = "aarch64")]
    Dotprod,
    /// The same with the matrix product of Armv8.6, for many tokens.
    #[cfg(target_arch = "aarch64")]
    I8mm,
}

impl Isa {
    /// All, best last.
    pub const ALL: &[Isa] = &[
        Isa::Scalar,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2,
        #[cfg(target_arch = "x86_64")]
        Isa::AvxVnni,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni,
        #[cfg(target_arch = "aarch64")]
        Isa::Neon,
        #[cfg(target_arch = "aarch64")]
        Isa::Dotprod,
        #[cfg(target_arch = "aarch64")]
        Isa::I8mm,
    ];

    /// For people.
    pub const fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni => "avxvnni",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => "avx512vnni",
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => "neon",
            #[cfg(target_arch = "aarch64")]
            Isa::Dotprod => "dotprod",
            #[cfg(target_arch = "aarch64")]
            Isa::I8mm => "i8mm",
        }
    }

    /// Whether this CPU has it.
    pub fn is_available(self) -> bool {
        match self {
            Isa::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => {
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni => Isa::Avx2.is_available() && is_x86_feature_detected!("avxvnni"),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => {
                Isa::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => std::arch::is_aarch64_feature_detected!("neon"),
            #[cfg(target_arch = "aarch64")]
            Isa::Dotprod => Isa::Neon.is_available() && std::arch::is_aarch64_feature_detected!("dotprod"),
            #[cfg(target_arch = "aarch64")]
            Isa::I8mm => Isa::Dotprod.is_available() && std::arch::is_aarch64_feature_detected!("i8mm"),
        }
    }
}

/// Which kernels; by default the best for this CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelChoice {
    /// Of this instruction set; `None`: the best that the CPU has.
    pub isa: Option<Isa>,
    /// Whether rows are interleaved in memory; `None`: where the CPU is faster with it. Elsewhere it is slower: for tests.
    pub interleave: Option<bool>,
}

/// One past the largest number of a type.
const N_TYPE: usize = GgmlType::ALL[GgmlType::ALL.len() - 1] as usize + 1;

/// The table of kernels of one instruction set that this CPU has.
///
/// Every set but the scalar one has a kernel for every computable type. A type without one would fall back to scalar
/// code, which is 20 to 80 times slower.
#[derive(Clone, Copy)]
pub struct Kernels {
    isa: Isa,
    /// What brings rows into order, if there are products with rows that are [`interleaved`].
    interleaves: Option<interleaved::Turn>,
    /// Whether to have rows interleaved. On Zen 4 that made decoding 6 to 14 % faster (Q4_K) or 10 to 30 % (MXFP4), prompts of
    /// Q6_K 20 to 30 %. On Zen 5, whose registers are whole, such rows go 1.3 (Q6_K) to 2.6 times (MXFP4) as fast from caches,
    /// and prompts run 2 to 7 % faster, but memory bounds decoding either way: 0.95 to 1.01 of the rate (Q4_K, MXFP4), 0.86 to
    /// 0.92 (Q6_K). On Intel's CPUs it has not been measured.
    wants_interleaved: bool,
    matmul: [MatMul; N_TYPE],
    ops: Ops,
}

impl Kernels {
    /// Those of an instruction set without products for rows that are interleaved.
    const fn new(isa: Isa, matmul: [MatMul; N_TYPE], ops: Ops) -> Kernels {
        Kernels { isa, interleaves: None, wants_interleaved: false, matmul, ops }
    }

    /// The best for this CPU.
    ///
    /// # Errors
    /// Never, as scalar code runs everywhere.
    pub fn detect() -> Result<Kernels> {
        Kernels::choose(KernelChoice::default())
    }

    /// Those that `choice` asks for.
    ///
    /// # Errors
    /// An instruction set that the CPU lacks, or whose kernels cannot interleave where that is asked for.
    pub fn choose(choice: KernelChoice) -> Result<Kernels> {
        let best = || *Isa::ALL.iter().rev().find(|isa| isa.is_available()).expect("scalar code runs everywhere");
        let kernels = Kernels::for_isa(choice.isa.unwrap_or_else(best))?;
        let wants_interleaved = match choice.interleave {
            None => kernels.interleaves.is_some() && maker::halves_registers(),
            Some(true) if kernels.interleaves.is_none() => {
                return Err(Error::invalid(format!("the {} kernels cannot interleave rows", kernels.isa.name())));
            }
            Some(it) => it,
        };
        Ok(Kernels { wants_interleaved, ..kernels })
    }

    /// The kernels of one instruction set.
    pub fn for_isa(isa: Isa) -> Result<Kernels> {
        if !isa.is_available() {
            let names: Vec<_> = Isa::ALL.iter().filter(|isa| isa.is_available()).map(|isa| isa.name()).collect();
            let (isa, names) = (isa.name(), names.join(", "));
            return Err(Error::invalid(format!("this CPU does not have {isa}, but has {names}")));
        }
        Ok(match isa {
            Isa::Scalar => scalar::KERNELS,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => avx2::AVX2,
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni => avx2::AVX_VNNI,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => avx512::AVX512_VNNI,
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => neon::NEON,
            #[cfg(target_arch = "aarch64")]
            Isa::Dotprod => neon::DOTPROD,
            #[cfg(target_arch = "aarch64")]
            Isa::I8mm => neon::I8MM,
        })
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// What runs, for people: the instruction set, and whether rows are interleaved.
    pub fn name(&self) -> String {
        format!("{}{}", self.isa.name(), if self.wants_interleaved { "-interleaved" } else { "" })
    }

    /// Whether a matrix of rows of `cols` elements of `ty` may be [`interleaved`].
    pub fn can_interleave(&self, ty: GgmlType, cols: usize) -> bool {
        self.interleaves.is_some() && interleaved::is_possible(ty, cols)
    }

    /// Whether it should be, if its products are to be computed many times: bringing a matrix into order takes as long as about
    /// a dozen of them gain (Q4_K out of memory, Zen 4).
    pub fn wants_interleaved(&self, ty: GgmlType, cols: usize) -> bool {
        self.wants_interleaved && self.can_interleave(ty, cols)
    }

    /// Interleaves the rows of `tiles`, sixteen by sixteen.
    ///
    /// # Panics
    /// Unless [`Kernels::can_interleave`] such rows, or where these are not whole tiles.
    pub fn interleave(&self, ty: GgmlType, cols: usize, tiles: &mut [u8]) {
        let turn = self.interleaves.expect("rows are interleaved where there are such products");
        interleaved::interleave_in_place(ty, cols, tiles, turn);
    }

    /// `y[t][r] = dot(row r of w, x[t])` for every row and token; `then` as in [`MatMul`].
    ///
    /// # Panics
    /// Where the lengths of `x` do not fit `w`, or the type is not computable.
    ///
    /// # Safety
    /// Each `y[t]` is valid for writing `w.rows` floats, and nobody else uses them meanwhile.
    pub unsafe fn matmul(&self, w: QMat<'_>, x: &[ActRow<'_>], y: &[*mut f32], then: &[u8]) {
        assert!(w.ty.is_computable(), "{} is not computable: whoever opened the file checks that", w.ty);
        assert_eq!(w.data.len(), w.rows * w.row_bytes(), "bytes of {} rows of {} {}", w.rows, w.cols, w.ty);
        assert!(
            !w.interleaved || self.can_interleave(w.ty, w.cols),
            "rows are interleaved where there are such products"
        );
        assert_eq!(x.len(), y.len(), "tokens in and out");
        let float = matches!(w.ty, GgmlType::F32 | GgmlType::F16 | GgmlType::BF16);
        for x in x {
            let fits = if float { x.x.len() == w.cols } else { x.chunks.len() == w.cols.div_ceil(CHUNK) };
            assert!(fits, "activations do not fit a row of {} {}", w.cols, w.ty);
        }
        // SAFETY: `for_isa` checked the CPU; the caller answers for `y`; the lengths were checked above.
        unsafe { self.matmul[w.ty.id() as usize](w, x, y, then) }
    }

    /// [`Kernels::matmul`] for one token.
    pub fn matvec(&self, w: QMat<'_>, x: ActRow<'_>, y: &mut [f32]) {
        assert_eq!(w.rows, y.len(), "rows and outputs");
        // SAFETY: `y` is borrowed for writing and has `w.rows` floats.
        unsafe { self.matmul(w, &[x], &[y.as_mut_ptr()], &[]) }
    }

    /// Quantises a row of activations, with the bits of [`crate::quant::act::quantize_row`].
    pub fn quantize_row(&self, x: &[f32], out: &mut [ActChunk]) {
        assert_eq!(out.len(), x.len().div_ceil(CHUNK), "chunks of {} activations", x.len());
        // SAFETY: `for_isa` checked the CPU.
        unsafe { (self.ops.quantize_row)(x, out) }
    }

    /// Quantises `x`, which is `rows` x `cols`, into `acts`.
    pub fn quantize(&self, x: &[f32], rows: usize, cols: usize, acts: &mut Acts) {
        acts.quantize(x, rows, cols, |x, out| self.quantize_row(x, out));
    }

    /// `Σ a[i] * b[i]`.
    pub fn dot(&self, a: &[f32], b: &[f32]) -> f32 {
        assert_eq!(a.len(), b.len(), "factors");
        // SAFETY: `for_isa` checked the CPU.
        unsafe { (self.ops.dot)(a, b) }
    }

    /// `y[i] += a * x[i]`, fused.
    pub fn axpy(&self, a: f32, x: &[f32], y: &mut [f32]) {
        assert_eq!(x.len(), y.len(), "terms and sums");
        // SAFETY: `for_isa` checked the CPU.
        unsafe { (self.ops.axpy)(a, x, y) }
    }

    /// `y[i] = x[i]` rounded to the nearest half, ties to even.
    pub fn to_f16(&self, x: &[f32], y: &mut [f16]) {
        assert_eq!(x.len(), y.len(), "floats and halves");
        // SAFETY: `for_isa` checked the CPU.
        unsafe { (self.ops.to_f16)(x, y) }
    }

    /// The elements of a row of `Q8_0`, as [`crate::quant::dequantize_row`].
    pub fn from_q8_0(&self, x: &[u8], y: &mut [f32]) {
        let (bytes, elements) = ops::Q8_0;
        assert!(x.len().is_multiple_of(bytes) && x.len() / bytes * elements == y.len(), "blocks and elements");
        // SAFETY: `for_isa` checked the CPU.
        unsafe { (self.ops.from_q8_0)(x, y) }
    }

    /// `x[i] *= a`.
    pub fn scale(&self, a: f32, x: &mut [f32]) {
        // SAFETY: `for_isa` checked the CPU.
        unsafe { (self.ops.scale)(a, x) }
    }

    /// `y[i] = a * x[i]`.
    pub fn scaled(&self, a: f32, x: &[f32], y: &mut [f32]) {
        assert_eq!(x.len(), y.len(), "values and results");
        // SAFETY: `for_isa` checked the CPU.
        unsafe { (self.ops.scaled)(a, x, y) }
    }

    /// `y[i] = a * x[i] * w[i]`: what follows the sum of squares in RMS norm.
    pub fn scale_mul(&self, a: f32, x: &[f32], w: &[f32], y: &mut [f32]) {
        assert!(x.len() == y.len() && w.len() == y.len(), "values, weights and results");
        // SAFETY: `for_isa` checked the CPU.
        unsafe { (self.ops.scale_mul)(a, x, w, y) }
    }

    /// The largest, or minus infinity of none. NaN is passed over or given back, by its place.
    pub fn max(&self, x: &[f32]) -> f32 {
        // SAFETY: `for_isa` checked the CPU.
        unsafe { (self.ops.max)(x) }
    }

    /// `Σ x[i]²`.
    pub fn sum_of_squares(&self, x: &[f32]) -> f32 {
        self.dot(x, x)
    }

    /// `x[i] = exp(x[i] - max)`, and their sum: softmax but for the division.
    ///
    /// Off by at most 2 units in the last place; 0 below -87.3, where the true value is no normal number; NaN stays.
    pub fn exp_sum(&self, x: &mut [f32], max: f32) -> f32 {
        // SAFETY: `for_isa` checked the CPU.
        unsafe { (self.ops.exp_sum)(x, max) }
    }

    /// `gate[i] = silu(gate[i]) * up[i]`, where `silu(x) = x / (1 + exp(-x))`.
    pub fn silu_mul(&self, gate: &mut [f32], up: &[f32]) {
        assert_eq!(gate.len(), up.len(), "gates and values");
        // SAFETY: `for_isa` checked the CPU.
        unsafe { (self.ops.silu_mul)(gate, up) }
    }

    /// `out[d][p] = x[p][d]`: keys of up to a tile of positions, for [`Kernels::scores`]. x: (n, dim), out: (dim, TILE)
    pub fn turn(&self, x: &[f32], dim: usize, out: &mut [f32]) {
        assert!(x.len() <= dim * TILE && out.len() == dim * TILE, "keys of a tile");
        // SAFETY: `for_isa` checked the CPU.
        unsafe { (self.ops.turn)(x, dim, out) }
    }

    /// `y[p] = x[p]`: values, padded for [`Kernels::accumulate`]. x: (n, dim), y: (n, [`Kernels::padded`] dim or more, of
    /// which nothing is written behind that)
    pub fn widen(&self, x: &[f32], dim: usize, y: &mut [f32]) {
        Self::check_widen(x.len(), dim, y.len());
        // SAFETY: `for_isa` checked the CPU.
        unsafe { (self.ops.widen)(x, dim, y) }
    }

    /// [`Kernels::widen`] of halves.
    pub fn widen_f16(&self, x: &[f16], dim: usize, y: &mut [f32]) {
        Self::check_widen(x.len(), dim, y.len());
        // SAFETY: `for_isa` checked the CPU.
        unsafe { (self.ops.widen_f16)(x, dim, y) }
    }

    fn check_widen(x: usize, dim: usize, y: usize) {
        let rows = (x / dim).max(1);
        assert!(x.is_multiple_of(dim) && y.is_multiple_of(rows) && y / rows >= Self::padded(dim), "values and room");
    }

    /// `out[d][p] = keys[d][p]` of a tile of Q8_0 keys of `width` positions, turned as [`crate::backend::TurnedKey`] says;
    /// what stands behind them is nobody's. out: (dim, TILE)
    pub fn widen_keys_q8_0(&self, keys: &[u8], width: usize, out: &mut [f32]) {
        let (bytes, elements) = (width * ops::Q8_0.0, ops::Q8_0.1 * TILE);
        assert!((1..=TILE).contains(&width) && keys.len().is_multiple_of(bytes), "a tile of blocks");
        assert_eq!(keys.len() / bytes * elements, out.len(), "blocks and room");
        // SAFETY: `for_isa` checked the CPU; the lengths were checked above.
        unsafe { (self.ops.widen_keys_q8_0)(keys, width, out) }
    }

    /// Columns of a row of `dim` with whole lanes.
    pub const fn padded(dim: usize) -> usize {
        dim.next_multiple_of(LANES)
    }

    /// `out[i][p] = Σ q[i][d] * keys[d][p]`, fused, in the order of `d`, for the first `n` positions; some after them
    /// are written too. q: (queries, dim), keys: (dim, TILE), out: (queries, TILE)
    pub fn scores(&self, q: &[f32], keys: &[f32], n: usize, out: &mut [f32]) {
        Self::check_scores(q.len(), keys.len(), n, out.len());
        // SAFETY: `for_isa` checked the CPU; the lengths were checked above.
        unsafe { (self.ops.scores)(q, keys, n, out) }
    }

    /// [`Kernels::scores`] of halves.
    pub fn scores_f16(&self, q: &[f32], keys: &[f16], n: usize, out: &mut [f32]) {
        Self::check_scores(q.len(), keys.len(), n, out.len());
        // SAFETY: `for_isa` checked the CPU; the lengths were checked above.
        unsafe { (self.ops.scores_f16)(q, keys, n, out) }
    }

    /// [`Kernels::scores`] of a whole tile of Q8_0, turned as [`crate::backend::TurnedKey`] says.
    pub fn scores_q8_0(&self, q: &[f32], keys: &[u8], n: usize, out: &mut [f32]) {
        let (bytes, elements) = ops::Q8_0;
        assert!(keys.len().is_multiple_of(TILE * bytes), "a tile of blocks");
        Self::check_scores(q.len(), keys.len() / bytes * elements, n, out.len());
        // SAFETY: `for_isa` checked the CPU; the lengths were checked above.
        unsafe { (self.ops.scores_q8_0)(q, keys, n, out) }
    }

    fn check_scores(q: usize, keys: usize, n: usize, out: usize) {
        let dim = keys / TILE;
        assert!(keys == dim * TILE && n <= TILE, "keys of {n} positions");
        assert!(q.is_multiple_of(dim) && out == q / dim * TILE, "queries and scores");
    }

    /// `out[i][d] += Σ p[i][s] * values[s][d]`, fused, in the order of `s`. p: (queries, TILE), where the last row ends
    /// with the last value; values: (n, dim), out: (queries, dim), dim: [`Kernels::padded`]
    pub fn accumulate(&self, p: &[f32], values: &[f32], dim: usize, out: &mut [f32]) {
        Self::check_accumulate(p.len(), values.len(), dim, out.len());
        // SAFETY: `for_isa` checked the CPU; the lengths were checked above.
        unsafe { (self.ops.accumulate)(p, values, dim, out) }
    }

    /// [`Kernels::accumulate`] of halves.
    pub fn accumulate_f16(&self, p: &[f32], values: &[f16], dim: usize, out: &mut [f32]) {
        Self::check_accumulate(p.len(), values.len(), dim, out.len());
        // SAFETY: `for_isa` checked the CPU; the lengths were checked above.
        unsafe { (self.ops.accumulate_f16)(p, values, dim, out) }
    }

    /// [`Kernels::accumulate`] of rows of Q8_0.
    pub fn accumulate_q8_0(&self, p: &[f32], values: &[u8], dim: usize, out: &mut [f32]) {
        let (bytes, elements) = ops::Q8_0;
        assert!(dim.is_multiple_of(elements) && values.len().is_multiple_of(bytes), "rows of blocks");
        Self::check_accumulate(p.len(), values.len() / bytes * elements, dim, out.len());
        // SAFETY: `for_isa` checked the CPU; the lengths were checked above.
        unsafe { (self.ops.accumulate_q8_0)(p, values, dim, out) }
    }

    fn check_accumulate(p: usize, values: usize, dim: usize, out: usize) {
        assert!(
            dim.is_multiple_of(LANES) && values.is_multiple_of(dim) && out.is_multiple_of(dim),
            "rows of whole lanes"
        );
        let (n, queries) = (values / dim, out / dim);
        assert!(queries == 0 || p >= (queries - 1) * TILE + n, "weights of {n} positions for {queries} queries");
    }

    /// `(a[i], b[i]) = (a[i] * cos[i] - b[i] * sin[i], a[i] * sin[i] + b[i] * cos[i])`: rotary embedding by halves.
    pub fn rotate(&self, cos: &[f32], sin: &[f32], a: &mut [f32], b: &mut [f32]) {
        assert!(cos.len() == a.len() && sin.len() == a.len() && b.len() == a.len(), "pairs and angles");
        // SAFETY: `for_isa` checked the CPU; the lengths were checked above.
        unsafe { (self.ops.rotate)(cos, sin, a, b) }
    }
}
