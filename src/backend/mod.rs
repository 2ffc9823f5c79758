//! The arithmetic of a token, in coarse verbs: no tensor graph.
//!
//! Must not know: files, expert ids, caches. It is given matrices and rows, and gives rows back.
//!
//! Every verb gives the same bits for a row whatever rows, experts and threads are beside it: that is what makes a
//! model's output independent of the memory budget.

use crate::quant::{ActRow, Acts, FfnMats, GgmlType, QMat, QMatMut};

pub mod cpu;
mod floats;
mod reference;
pub use cpu::kernels::KernelChoice;
pub use floats::Floats;
pub use reference::Reference;

/// Positions of the KV cache whose bytes a backend may lay out as it likes among themselves: rows are copied, and a window
/// comes round, by whole groups of so many, the first at position 0.
pub const KV_GROUP: usize = 64;

/// Activations on their way into matrix products: some rows of equal width, exact and (after [`Backend::prepare`])
/// quantised.
pub struct Rows {
    x: Floats,
    acts: Acts,
    n: usize,
    cols: usize,
}

impl Rows {
    /// Room for `n` rows of `cols`.
    pub fn new(n: usize, cols: usize) -> Self {
        Self { x: Floats::zeros(n * cols), acts: Acts::with_capacity(n, cols), n: 0, cols }
    }
    /// Bytes that [`Rows::new`] takes.
    pub fn bytes(n: usize, cols: usize) -> u64 {
        (n * cols * size_of::<f32>() + Acts::bytes(n, cols)) as u64
    }
    /// Starts `n` rows, to be written and then prepared. (n, cols)
    pub fn start(&mut self, n: usize) -> &mut [f32] {
        self.start_wide(n, self.cols)
    }
    /// Starts `n` rows of `cols`.
    ///
    /// # Panics
    /// If they take more room than there is.
    pub fn start_wide(&mut self, n: usize, cols: usize) -> &mut [f32] {
        (self.n, self.cols) = (n, cols);
        &mut self.x[..n * self.cols]
    }
    /// The rows as written. (n, cols)
    pub fn x(&self) -> &[f32] {
        &self.x[..self.n * self.cols]
    }
    /// The same, to be changed before they are prepared.
    pub fn x_mut(&mut self) -> &mut [f32] {
        &mut self.x[..self.n * self.cols]
    }
    /// Number of rows.
    pub fn len(&self) -> usize {
        self.n
    }
    /// The same elements as rows of `cols`, to be prepared anew.
    pub fn reshape(&mut self, cols: usize) {
        (self.n, self.cols) = (self.n * self.cols / cols, cols);
    }
    /// True without rows.
    pub fn is_empty(&self) -> bool {
        self.n == 0
    }
    /// Row `i`, prepared.
    pub(crate) fn row(&self, i: usize) -> ActRow<'_> {
        self.acts.row(i, &self.x[i * self.cols..(i + 1) * self.cols])
    }
    /// Width.
    pub fn cols(&self) -> usize {
        self.cols
    }
}

/// Products that may share an input at once, at most: query, key, value and gate.
pub const MAX_PRODUCTS: usize = 4;

/// One of the products that share their input.
pub struct Product<'a> {
    /// The matrix.
    pub w: QMat<'a>,
    /// Gets the result. (rows of the input, w.rows)
    pub y: &'a mut [f32],
}

/// One row's way through one expert: reads row `row` of the input, writes row `out` of the output.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pair {
    /// Row of the input.
    pub row: u32,
    /// Row of the output.
    pub out: u32,
    /// What the row is multiplied by before it goes through gate and up.
    pub scale: f32,
}

/// What lies between the matrices of a feed-forward network. Without a gate, `up` stands where the gate does below, and is
/// multiplied by nothing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Act {
    /// `silu(gate) * up` (arXiv 2002.05202).
    Silu,
    /// `max(gate, 0) * up`.
    Relu,
    /// `max(gate, 0)² * up` (arXiv 2109.08668).
    ReluSquared,
    /// `gelu(gate) * up`, in the tanh form (arXiv 1606.08415).
    Gelu,
    /// `min(silu(gate), limit) * up`, with up within ± `limit`.
    SiluClamped {
        /// Limit of both.
        limit: f32,
    },
    /// `silu(min(gate, limit)) * up`, with up within ± `limit`.
    ClampedSilu {
        /// Limit of both.
        limit: f32,
    },
    /// gpt-oss's: `g * sigmoid(alpha * g) * (u + 1)`, with g at most `limit` and u within ± `limit`.
    SwigluOai {
        /// Steepness of the sigmoid.
        alpha: f32,
        /// Limit of gate and up.
        limit: f32,
    },
}

impl Act {
    /// [`Act::ClampedSilu`], of which a limit of 0 means none.
    pub fn clamped(limit: f32) -> Act {
        if limit > 0.0 { Act::ClampedSilu { limit } } else { Act::Silu }
    }

    /// `gate = act(gate) * up`, element by element.
    pub fn apply(self, gate: &mut [f32], up: &[f32]) {
        let sigmoid = |x: f32| 1.0 / (1.0 + (-x).exp());
        let each = gate.iter_mut().zip(up);
        match self {
            Act::Silu => each.for_each(|(g, u)| *g = *g * sigmoid(*g) * u),
            Act::Relu => each.for_each(|(g, u)| *g = g.max(0.0) * u),
            Act::ReluSquared => each.for_each(|(g, u)| *g = g.max(0.0) * g.max(0.0) * u),
            Act::Gelu => each.for_each(|(g, u)| *g = gelu(*g) * u),
            Act::SiluClamped { limit } => {
                each.for_each(|(g, u)| *g = (*g * sigmoid(*g)).min(limit) * u.clamp(-limit, limit));
            }
            Act::ClampedSilu { limit } => each.for_each(|(g, u)| {
                let low = g.min(limit);
                *g = low * sigmoid(low) * u.clamp(-limit, limit);
            }),
            Act::SwigluOai { alpha, limit } => each.for_each(|(g, u)| {
                let (low, u) = (g.min(limit), u.clamp(-limit, limit));
                *g = low * sigmoid(alpha * low) * (u + 1.0);
            }),
        }
    }
}

impl Act {
    /// `x = act(x)`, element by element, where there is no gate.
    pub fn apply_alone(self, x: &mut [f32]) {
        let ones = [1.0; 64];
        x.chunks_mut(ones.len()).for_each(|x| self.apply(x, &ones[..x.len()]));
    }
}

/// GELU, approximated with a hyperbolic tangent.
fn gelu(x: f32) -> f32 {
    const ROOT_2_OVER_PI: f32 = 0.797_884_6;
    0.5 * x * (1.0 + (ROOT_2_OVER_PI * x * (1.0 + 0.044_715 * x * x)).tanh())
}

/// `x` within ± `cap`, smoothly.
pub fn soft_cap(cap: f32, x: f32) -> f32 {
    cap * (x / cap).tanh()
}

/// One feed-forward network beside its matrices.
#[derive(Clone, Copy)]
pub struct FfnExtras<'a> {
    /// Between the matrices.
    pub act: Act,
    /// What products with gate, up and down are multiplied by.
    pub scale: [f32; 3],
    /// What is added to them then, or empty. (n_ff), (n_ff), (n_embd)
    pub bias: [&'a [f32]; 3],
}

impl FfnExtras<'_> {
    /// Nothing but an activation.
    pub fn plain(act: Act) -> Self {
        Self { act, scale: [1.0; 3], bias: [&[]; 3] }
    }
}

/// One feed-forward block and the rows that take it.
pub struct FfnJob<'a> {
    /// The matrices.
    pub mats: FfnMats<'a>,
    /// The rest of it.
    pub extras: FfnExtras<'a>,
    /// Which of the call's pairs are this job's.
    pub pairs: std::ops::Range<usize>,
    /// Pairs of the jobs before it: its first row of the hidden scratch.
    pub hidden: usize,
}

/// Scratch of [`Backend::ffn`]: hidden rows of at most `pairs` pairs.
pub struct Hidden {
    rows: Rows,
    up: Floats,
}

impl Hidden {
    /// Room for `pairs` rows of up to `n_ff`.
    pub fn new(pairs: usize, n_ff: usize) -> Self {
        Self { rows: Rows::new(pairs, n_ff), up: Floats::zeros(pairs * n_ff) }
    }
    /// Bytes that [`Hidden::new`] takes.
    pub fn bytes(pairs: usize, n_ff: usize) -> u64 {
        Rows::bytes(pairs, n_ff) + (pairs * n_ff * size_of::<f32>()) as u64
    }
    /// Pairs of width `n_ff` that fit.
    pub fn pairs(&self, n_ff: usize) -> usize {
        self.up.len() / n_ff.max(1)
    }
}

impl Attention<'_> {
    /// The first position that is seen from position `pos`.
    pub fn sees_from(&self, pos: usize) -> usize {
        match self.window {
            None => 0,
            Some(chunk) if self.chunked => pos / chunk * chunk,
            Some(window) => (pos + 1).saturating_sub(window),
        }
    }

    /// Whether a row looks at each of 64 positions, of which `word` is the number in the context.
    pub fn chosen(&self, row: usize, word: usize) -> u64 {
        if self.chosen.is_empty() {
            return u64::MAX;
        }
        let words = self.chosen.len() / (self.q.len() / (self.n_head * self.head_k));
        self.chosen[row * words + word]
    }
}

/// Causal grouped-query attention of some new rows over the cached keys and values, their own included.
pub struct Attention<'a> {
    /// Queries, rotated. (n, n_head, head_k)
    pub q: &'a [f32],
    /// Cached keys, as [`Backend::write_cache`] left them. (n_head_kv, n_ctx, head_k)
    pub keys: &'a [u8],
    /// Cached values. (n_head_kv, n_ctx, head_v) Empty: a value is the first `head_v` elements of its key.
    pub values: &'a [u8],
    /// Element type of keys and values: F32, F16 or Q8_0.
    pub ty: GgmlType,
    /// Rows between heads in the cache. Position p is row p % n_ctx: fewer than the context's positions, and then a multiple of
    /// [`KV_GROUP`], where a window leaves old ones out of sight.
    pub n_ctx: usize,
    /// Query heads.
    pub n_head: usize,
    /// Key/value heads.
    pub n_head_kv: usize,
    /// Elements of a query or key head.
    pub head_k: usize,
    /// Elements of a value head.
    pub head_v: usize,
    /// Position of the first row; row i sees positions up to first + i.
    pub first: usize,
    /// How many positions a row sees at most, its own among them. `None`: all.
    pub window: Option<usize>,
    /// Whether these begin at a multiple of that.
    pub chunked: bool,
    /// Which of these positions each row looks at, at least one: a bit of each position from the context's first on, the
    /// lowest of a word first. (n, words of the context) Empty: all.
    pub chosen: &'a [u64],
    /// A score of each query head that counts in the softmax and has no value, or empty. (n_head)
    pub sinks: &'a [f32],
    /// Scores are multiplied by this before the softmax.
    pub scale: f32,
    /// Then they are [capped](soft_cap).
    pub soft_cap: Option<f32>,
}

/// What attention's own memory depends on.
#[derive(Clone, Copy, Debug)]
pub struct AttentionShape {
    /// Query heads.
    pub n_head: usize,
    /// Elements of a query or key head.
    pub head_k: usize,
    /// Elements of a value head.
    pub head_v: usize,
    /// Positions that are seen at most.
    pub n_ctx: usize,
}

/// [`Backend::attention_bytes`].
pub type AttentionBytes = fn(threads: usize, shape: AttentionShape) -> u64;

/// Which pairs of a head's elements the rotary embedding turns (Su et al., arXiv 2104.09864).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeKind {
    /// (0,1), (2,3), …: as in the paper; GGUF files of the llama architecture are permuted for it.
    Interleaved,
    /// (0, n/2), (1, n/2+1), …: GPT-NeoX.
    Halves,
}

/// The rotary embedding of some rows.
#[derive(Clone, Copy)]
pub struct Rotation<'a> {
    /// Which elements make a pair.
    pub kind: RopeKind,
    /// Elements of a head.
    pub head: usize,
    /// Elements of it before the first that turns.
    pub skip: usize,
    /// Pairs of a head that turn.
    pub pairs: usize,
    /// Cosines, then sines, for each row's position. (n, 2, pairs)
    pub turns: &'a [f32],
}

/// Keys or values of some new rows on their way into the cache.
pub struct CacheWrite<'a> {
    /// The rows. (n, heads, dim)
    pub x: &'a [f32],
    /// The cache. (heads, n_ctx, dim)
    pub cache: &'a mut [u8],
    /// Whether they are keys, which a backend may lay out in a way of its own within groups of [`KV_GROUP`].
    pub keys: bool,
    /// Its element type: F32, F16 or Q8_0.
    pub ty: GgmlType,
    /// Key/value heads.
    pub heads: usize,
    /// Elements of a head.
    pub dim: usize,
    /// Position of the first row; position p is row p % n_ctx.
    pub first: usize,
}

/// New rows of one sequence through the memories of heads, a token after another.
///
/// Each head has a memory S (k, v). A token does `S = decay · S`, then `S += key ⊗ rate · (value − Sᵀkey)` if it corrects, else
/// `S += key ⊗ rate · value`, and gives `Sᵀquery`.
pub struct Recurrence<'a> {
    /// Rows that hold queries, keys and values. (n, cols)
    pub x: &'a [f32],
    /// Width of a row.
    pub cols: usize,
    /// Where the first query, key and value of a row begin; those of the other heads follow.
    pub at: [usize; 3],
    /// What a head's memory is multiplied by, all of it or each key element. (n, heads) or (n, heads, k)
    pub decay: &'a [f32],
    /// (n, heads)
    pub rate: &'a [f32],
    /// Values of a row, each with a memory.
    pub heads: usize,
    /// Queries, and keys, of a row; divides `heads`.
    pub key_heads: usize,
    /// Whether head h reads key head h modulo their number; else heads that read the same one follow each other.
    pub in_turn: bool,
    /// Elements of a query or key.
    pub k: usize,
    /// Elements of a value.
    pub v: usize,
    /// Whether values are compared with what the memory has for their keys.
    pub corrects: bool,
    /// The memories before the first row. (heads, k, v)
    pub from: &'a [f32],
}

impl Recurrence<'_> {
    /// Rows.
    pub fn n(&self) -> usize {
        self.x.len() / self.cols
    }

    /// Query, key and value of a head.
    pub fn vectors(&self, row: usize, head: usize) -> [&[f32]; 3] {
        let key_head = if self.in_turn { head % self.key_heads } else { head / (self.heads / self.key_heads) };
        let (x, [q, k, v]) = (&self.x[row * self.cols..(row + 1) * self.cols], self.at);
        [
            &x[q + key_head * self.k..][..self.k],
            &x[k + key_head * self.k..][..self.k],
            &x[v + head * self.v..][..self.v],
        ]
    }

    /// What element `i` of a head's keys fades by.
    pub fn decay(&self, row: usize, head: usize, i: usize) -> f32 {
        let at = row * self.heads + head;
        if self.decay.len() == self.n() * self.heads { self.decay[at] } else { self.decay[at * self.k + i] }
    }
}

/// See the module.
pub trait Backend: Send {
    /// What runs, for people: "avx512vnni, 2 threads".
    fn describe(&self) -> String;
    /// Whether it gives the CPU's bits, which devices beside it give too.
    fn is_cpu(&self) -> bool {
        false
    }
    /// Makes written rows ready for products. A verb of its own, not a part of the first product: several parts and a device
    /// beside the CPU read what is prepared once.
    fn prepare(&mut self, rows: &mut Rows);
    /// Brings whole tiles of a matrix that is used again and again into the order with which products are fastest, and says
    /// whether they are [`interleaved`](crate::quant::interleaved) now: `false` leaves every byte.
    fn interleave(&mut self, _w: QMatMut<'_>) -> bool {
        false
    }
    /// `y = rows · wᵀ` for each product, of which there are at most [`MAX_PRODUCTS`].
    fn matmul(&mut self, rows: &Rows, products: &mut [Product<'_>]);
    /// `y = rows · wᵀ` of each head with a matrix of its own: row h of `rows` in each `n_head` of them goes with the h-th part
    /// of the rows of `w`. y: (rows / n_head, w.rows)
    fn matmul_per_head(&mut self, rows: &Rows, n_head: usize, w: QMat<'_>, y: &mut [f32]);
    /// `out[p.out] = down(act(gate x) * up x)`, or `down(act(up x))` where there is no gate, with `x = p.scale * rows[p.row]`, for each job and each of its pairs. The jobs'
    /// pairs together are at most `hidden.pairs(n_ff)` of the widest. Best sorted by their number of pairs.
    fn ffn(&mut self, rows: &Rows, jobs: &[FfnJob<'_>], pairs: &[Pair], hidden: &mut Hidden, out: &mut [f32]);
    /// Bytes that attention works in on `threads` threads at most, beside what it is given.
    fn attention_bytes(threads: usize, shape: AttentionShape) -> u64
    where
        Self: Sized;
    /// Attention; `out` is (n, n_head, head_v).
    fn attend(&mut self, a: &Attention<'_>, out: &mut [f32]);
    /// A recurrence; `state` gets the memories after the last row, (heads, k, v), and `out` is (n, heads, v).
    fn recur(&mut self, r: &Recurrence<'_>, state: &mut [f32], out: &mut [f32]);
    /// RMS norm of each row: `out = x / sqrt(mean(x²) + eps) * weight`; rows are as long as `weight`.
    fn rms_norm(&mut self, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]);
    /// The same in place.
    fn rms_norm_onto(&mut self, x: &mut [f32], weight: &[f32], eps: f32);
    /// Turns the pairs of every head of `x`, which is (n, heads, head).
    fn rope(&mut self, x: &mut [f32], rotation: &Rotation<'_>);
    /// Writes new rows into the cache, where [`Backend::attend`] finds them.
    fn write_cache(&mut self, write: CacheWrite<'_>);
    /// Adds `bias` to each row of `x`; rows are as long as `bias`.
    fn add_bias(&mut self, x: &mut [f32], bias: &[f32]);
    /// `x[i] += Σ weight(r) * terms[r]` over row i's terms `r`, in their order. x: (n, cols), terms: (n, any, cols)
    fn add_weighted(&mut self, x: &mut [f32], cols: usize, terms: &[f32], weight: impl Fn(usize) -> f32 + Sync);
    /// Softmax of each row of `cols`.
    fn softmax(&mut self, x: &mut [f32], cols: usize);
    /// Calls `f(i, row i)` for each row of `cols` elements; rows may run at the same time. `cost`: about how many floats
    /// a row has to do with.
    fn each_row<T: Send>(&mut self, x: &mut [T], cols: usize, cost: usize, f: impl Fn(usize, &mut [T]) + Sync);
}
