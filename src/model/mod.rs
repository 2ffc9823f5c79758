//! The model: hyper-parameters, dense weights and the forward pass, which is the page to read.
//!
//! Must not know: policies, engines, slots, sampling, text.

pub mod arch;
mod config;
mod dense;
mod finite;
mod kv_cache;
mod missing;
mod moe;
mod rope;
mod scratch;
mod unread;
mod weights;

pub use config::Config;
pub use kv_cache::{KV_TYPES, KvCache, KvView};
pub use missing::{missing_data, refuse_missing};
pub use scratch::{Scratch, ScratchShape};
pub use unread::Unread;
pub use weights::{Touched, Weights, check_dense, is_expert, resident_bytes, touched};

use std::path::PathBuf;

use crate::{
    Error, Result,
    backend::{Attention, Backend, CacheWrite, Product, Rotation, Rows},
    expert::Experts,
    gguf::{Gguf, TensorReader},
    model::{
        rope::Rope,
        scratch::AttentionRows,
        weights::{Ffn, Layer},
    },
    quant::{GgmlType, dequantize_row},
    trace::Phase,
};

/// A model ready to run, apart from its routed experts.
pub struct Model {
    /// Hyper-parameters.
    pub config: Config,
    path: PathBuf,
    weights: Weights,
    rope: Rope,
    embd: Embedding,
}

/// Which rows of a batch the caller wants logits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// Every row.
    All,
    /// The last row.
    Last,
    /// None: the batch only fills the KV cache.
    Nothing,
}

/// One batch of consecutive tokens of one sequence.
#[derive(Clone, Copy)]
pub struct Batch<'a> {
    /// The tokens, each below `n_vocab`; their first position is the KV cache's length.
    pub tokens: &'a [u32],
    /// Prompt or decode: what the expert cache and the prefetcher are told.
    pub phase: Phase,
    /// Which logits to compute.
    pub want: Want,
}

impl Model {
    /// See [`Weights::bytes`].
    pub fn weight_bytes(&self) -> Vec<&[u8]> {
        self.weights.bytes()
    }

    /// Loads the dense weights. `progress` is told the bytes of each tensor as it arrives.
    ///
    /// # Errors
    /// See [`Config::new`] and [`Weights::load`].
    pub fn load(gguf: &Gguf, config: Config, progress: &mut dyn FnMut(u64)) -> Result<Self> {
        let weights = Weights::load(gguf, &config, progress)?;
        let rope = Rope::new(&config, &weights.rope_freqs);
        let embd = Embedding::new(gguf, &config)?;
        Ok(Self { config, path: gguf.path().to_owned(), weights, rope, embd })
    }

    /// Brings the dense weights into the order that the backend likes best.
    pub fn interleave(&mut self, b: &mut impl Backend) {
        self.weights.interleave(b);
    }

    /// Runs a batch; the wanted rows' logits are in [`Scratch::logits`] then.
    ///
    /// # Errors
    /// A read that failed; a part of the model that gives no numbers, by name. The KV cache is as before the call then.
    ///
    /// # Panics
    /// If the batch is empty, or larger than scratch or KV cache: the session checks both.
    pub fn forward(
        &mut self,
        b: &mut impl Backend,
        batch: Batch<'_>,
        kv: &mut KvCache,
        experts: &mut Experts,
        s: &mut Scratch,
    ) -> Result<()> {
        let (c, n) = (&self.config, batch.tokens.len());
        let pos = kv.len();
        assert!(n > 0 && n <= s.n_batch() && pos + n <= kv.n_ctx(), "{n} tokens at {pos} fit");
        let eps = c.rms_eps;

        let x = &mut s.x[..n * c.n_embd]; // (n, n_embd), the residual stream
        self.embd.rows(batch.tokens, x, &mut s.embd)?;
        self.check(x, 0, pos, || "the token embedding".to_owned())?;
        let rotation = self.rope.rotation(pos, n, &mut s.turns);

        // Of the last layer nothing but keys and values is anybody's, except in rows whose logits are wanted: a prompt of 512
        // tokens costs a layer less.
        let first = match batch.want {
            Want::All => 0,
            Want::Last => n - 1,
            Want::Nothing => n,
        };
        let last = self.weights.layers.len() - 1;
        let leaves_out = !experts.wants_every_token();

        for (il, layer) in self.weights.layers.iter().enumerate() {
            let is_last = il == last;
            let go_on = if is_last && leaves_out { first } else { 0 };
            attention(b, c, layer, il, go_on, kv, experts, &rotation, &mut s.norm, &mut s.attended, &mut s.moe.out, x);
            if go_on == n {
                break;
            }
            // Rows before that are not read again.
            let matters = if is_last { first } else { 0 };
            self.check(x, matters, pos, || format!("the attention of blk.{il}"))?;

            let (rest, pos) = (&mut x[go_on * c.n_embd..], pos + go_on);
            b.rms_norm(rest, &layer.ffn_norm, eps, s.norm.start(n - go_on));
            b.prepare(&mut s.norm);
            match &layer.ffn {
                Ffn::Dense(ffn) => moe::dense(b, ffn, &s.norm, &mut s.moe, rest),
                Ffn::Moe(moe) => {
                    let ahead = &self.weights.layers[il + 1..];
                    moe::forward(b, c, moe, ahead, batch.phase, pos, &s.norm, &mut s.moe, experts, rest)?;
                }
            }
            self.check(x, matters, pos - go_on, || format!("the feed-forward part of blk.{il}"))?;
        }

        let logits = &mut s.logits[..(n - first) * c.n_vocab];
        if first < n {
            b.rms_norm(&x[first * c.n_embd..], &self.weights.output_norm, eps, s.norm.start(n - first));
            b.prepare(&mut s.norm);
            b.matmul(&s.norm, &mut [Product { w: self.weights.output.view(), y: logits }]);
        }
        // One number is enough to draw a token by.
        if let Some(row) = logits.chunks_exact(c.n_vocab).position(|row| !row.iter().any(|x| x.is_finite())) {
            return Err(self.broken("the output", pos + first + row));
        }
        kv.advance(n);
        Ok(())
    }

    /// Refuses rows of `x` from `first` on that are no numbers any more: from there on, nothing is. `pos` is the position of
    /// row 0, `part` what was added to them last.
    fn check(&self, x: &[f32], first: usize, pos: usize, part: impl FnOnce() -> String) -> Result<()> {
        let n_embd = self.config.n_embd;
        match finite::first_broken_row(&x[first * n_embd..], n_embd) {
            None => Ok(()),
            Some(row) => Err(self.broken(&part(), pos + first + row)),
        }
    }

    fn broken(&self, part: &str, pos: usize) -> Error {
        let message = format!(
            "{part} gives NaN or infinity for the token at position {pos}: the file is damaged, was wrongly quantised, or has \
             changed while it was read"
        );
        Error::file(&self.path, message)
    }
}

/// The attention of layer `il` over new rows behind what `kv` holds: `x += wo · attend(norm(x))` for those from `first` on.
#[expect(clippy::too_many_arguments, reason = "what one layer of one batch consists of")]
fn attention(
    b: &mut impl Backend,
    c: &Config,
    layer: &Layer,
    il: usize,
    first: usize,
    kv: &mut KvCache,
    experts: &mut Experts,
    rotation: &Rotation<'_>,
    norm: &mut Rows,
    attended: &mut Rows,
    memory: &mut [f32],
    x: &mut [f32],
) {
    let (n, pos, eps) = (x.len() / c.n_embd, kv.len(), c.rms_eps);
    let AttentionRows { q, k, v, out } = AttentionRows::of(c, n, memory);
    let left = n - first;
    let (q, out) = (&mut q[..left * c.n_head * c.n_embd_head_k], &mut out[..left * c.n_embd]);

    b.rms_norm(x, &layer.attn_norm, eps, norm.start(n));
    b.prepare(norm);
    let (wq, wk, wv) = (layer.wq.view(), layer.wk.view(), layer.wv.view());
    if first == 0 {
        b.matmul(norm, &mut [Product { w: wq, y: q }, Product { w: wk, y: k }, Product { w: wv, y: v }]);
    } else {
        b.matmul(norm, &mut [Product { w: wk, y: k }, Product { w: wv, y: v }]);
        if left > 0 {
            b.rms_norm(&x[first * c.n_embd..], &layer.attn_norm, eps, norm.start(left));
            b.prepare(norm);
            b.matmul(norm, &mut [Product { w: wq, y: q }]);
        }
    }
    experts.meanwhile();
    for (x, bias) in [&mut *q, &mut *k, &mut *v].into_iter().zip(&layer.bias) {
        add_bias(b, x, bias);
    }
    for (x, norm) in [(&mut *q, &layer.q_norm), (&mut *k, &layer.k_norm)] {
        if !norm.is_empty() {
            b.rms_norm_onto(x, norm, eps);
        }
    }
    b.rope(k, rotation);
    let (ty, heads) = (kv.ty(), c.n_head_kv);
    let (keys, values) = kv.layer_mut(il);
    b.write_cache(CacheWrite { x: k, cache: keys, keys: true, ty, heads, dim: c.n_embd_head_k, first: pos });
    b.write_cache(CacheWrite { x: v, cache: values, keys: false, ty, heads, dim: c.n_embd_head_v, first: pos });
    if left == 0 {
        return;
    }

    b.rope(q, &Rotation { turns: &rotation.turns[first * 2 * rotation.pairs..], ..*rotation });
    let KvView { ty, n_ctx, keys, values } = kv.view(il);
    let (n_head, n_head_kv, head_k, head_v) = (c.n_head, c.n_head_kv, c.n_embd_head_k, c.n_embd_head_v);
    let scale = 1.0 / (head_k as f32).sqrt();
    let attention =
        Attention { q, keys, values, ty, n_ctx, n_head, n_head_kv, head_k, head_v, first: pos + first, scale };
    b.attend(&attention, attended.start(left));
    experts.meanwhile();
    b.prepare(attended);
    b.matmul(attended, &mut [Product { w: layer.wo.view(), y: out }]);
    add_bias(b, out, &layer.bias[3]);
    b.add_weighted(&mut x[first * c.n_embd..], c.n_embd, out, |_| 1.0);
}

/// Adds `bias` to every row of `x`, if there is one.
fn add_bias(b: &mut impl Backend, x: &mut [f32], bias: &[f32]) {
    if !bias.is_empty() {
        b.add_bias(x, bias);
    }
}

/// The token embedding, left in the file: a token needs one row, of a matrix that is among the largest of a model.
struct Embedding {
    reader: TensorReader,
    ty: GgmlType,
    n_embd: usize,
    row_bytes: usize,
}

impl Embedding {
    fn new(gguf: &Gguf, c: &Config) -> Result<Self> {
        let tensor = gguf.require("token_embd.weight")?;
        let ty = gguf.computable(tensor, &[c.n_embd, c.n_vocab])?;
        let row_bytes = c.n_embd / ty.block_len() * ty.block_bytes();
        Ok(Self { reader: gguf.reader(tensor), ty, n_embd: c.n_embd, row_bytes })
    }

    /// Gathers the tokens' rows into `x` (n, n_embd). `raw` has room for a row.
    fn rows(&self, tokens: &[u32], x: &mut [f32], raw: &mut [u8]) -> Result<()> {
        let raw = &mut raw[..self.row_bytes];
        for (&token, x) in tokens.iter().zip(x.chunks_exact_mut(self.n_embd)) {
            self.reader.read(u64::from(token) * self.row_bytes as u64, raw)?;
            dequantize_row(self.ty, raw, x);
        }
        Ok(())
    }
}
