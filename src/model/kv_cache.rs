//! Keys and values of the tokens so far, in F32, F16 or Q8_0. Allocated once for the whole context; pages that no token
//! has reached cost nothing.
//!
//! Layout: for each layer, keys (n_head_kv, n_ctx, n_embd_head_k), then values (n_head_kv, n_ctx, n_embd_head_v): what
//! one head reads is contiguous.

use half::slice::HalfFloatSliceExt;
use memmap2::MmapMut;

use super::config::Config;
use crate::{Error, Result, quant::GgmlType};

/// See the module.
pub struct KvCache {
    ty: GgmlType,
    n_ctx: usize,
    n_head_kv: usize,
    row_k: RowSize,
    row_v: RowSize,
    memory: MmapMut,
    len: usize,
}

/// One head's row: elements and bytes.
#[derive(Clone, Copy)]
struct RowSize {
    n: usize,
    bytes: usize,
}

impl RowSize {
    fn new(ty: GgmlType, n: usize) -> Result<Self> {
        if !KV_TYPES.contains(&ty) {
            let names: Vec<_> = KV_TYPES.iter().map(|t| t.name()).collect();
            return Err(Error::request("the KV cache type", format!("one of {}", names.join(", ")), ty));
        }
        let bytes = ty.row_bytes(n as u64).ok_or_else(|| {
            Error::request(format!("KV cache type {ty}"), format!("heads of a multiple of {}", ty.block_len()), n)
        })?;
        Ok(Self { n, bytes: bytes as usize })
    }
}

/// One layer's keys and values for reading.
#[derive(Clone, Copy)]
pub struct KvView<'a> {
    /// Element type of both.
    pub ty: GgmlType,
    /// Rows between one head's first row and the next head's.
    pub n_ctx: usize,
    /// (n_head_kv, n_ctx, n_embd_head_k)
    pub keys: &'a [u8],
    /// (n_head_kv, n_ctx, n_embd_head_v)
    pub values: &'a [u8],
}

/// The types that `--kv` takes.
pub const KV_TYPES: &[GgmlType] = &[GgmlType::F16, GgmlType::F32, GgmlType::Q8_0];

impl KvCache {
    /// Bytes of a cache for `n_ctx` tokens.
    ///
    /// # Errors
    /// If the type is not one of [`KV_TYPES`], or a head's size is no whole number of its blocks.
    pub fn bytes(config: &Config, ty: GgmlType, n_ctx: usize) -> Result<u64> {
        let token = RowSize::new(ty, config.n_embd_head_k)?.bytes + RowSize::new(ty, config.n_embd_head_v)?.bytes;
        Ok((token as u64).saturating_mul((config.n_head_kv * config.n_layer * n_ctx) as u64))
    }

    /// An empty cache for `n_ctx` tokens.
    ///
    /// # Errors
    /// As [`KvCache::bytes`], or if the system refuses the memory.
    pub fn new(config: &Config, ty: GgmlType, n_ctx: usize) -> Result<Self> {
        let (row_k, row_v) = (RowSize::new(ty, config.n_embd_head_k)?, RowSize::new(ty, config.n_embd_head_v)?);
        let memory = MmapMut::map_anon((Self::bytes(config, ty, n_ctx)? as usize).max(1))
            .map_err(|e| Error::request("memory for the KV cache", "it to be granted", e))?;
        Ok(Self { ty, n_ctx, n_head_kv: config.n_head_kv, row_k, row_v, memory, len: 0 })
    }

    /// Tokens held.
    pub fn len(&self) -> usize {
        self.len
    }
    /// True before the first token.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
    /// Tokens that fit.
    pub fn n_ctx(&self) -> usize {
        self.n_ctx
    }
    /// Element type.
    pub fn ty(&self) -> GgmlType {
        self.ty
    }
    /// Forgets all tokens from position `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }
    /// `n` tokens were stored in every layer.
    pub fn advance(&mut self, n: usize) {
        self.len += n;
    }

    fn layer_bytes(&self) -> (usize, usize) {
        let rows = self.n_head_kv * self.n_ctx;
        (rows * self.row_k.bytes, rows * self.row_v.bytes)
    }

    /// Writes one token's keys and values of a layer. `k`: (n_head_kv, n_embd_head_k), `v`: (n_head_kv, n_embd_head_v).
    pub fn store(&mut self, layer: usize, pos: usize, k: &[f32], v: &[f32]) {
        let (keys, values) = self.layer_bytes();
        let (row_k, row_v, n_ctx, ty) = (self.row_k, self.row_v, self.n_ctx, self.ty);
        let layer = &mut self.memory[layer * (keys + values)..][..keys + values];
        let (keys, values) = layer.split_at_mut(keys);
        for (side, row, from) in [(keys, row_k, k), (values, row_v, v)] {
            for (head, from) in from.chunks_exact(row.n).enumerate() {
                encode_row(ty, from, &mut side[(head * n_ctx + pos) * row.bytes..][..row.bytes]);
            }
        }
    }

    /// A layer's keys and values.
    pub fn view(&self, layer: usize) -> KvView<'_> {
        let (keys, values) = self.layer_bytes();
        let (keys, values) = self.memory[layer * (keys + values)..][..keys + values].split_at(keys);
        KvView { ty: self.ty, n_ctx: self.n_ctx, keys, values }
    }
}

/// Encodes a row in one of [`KV_TYPES`].
fn encode_row(ty: GgmlType, x: &[f32], out: &mut [u8]) {
    match ty {
        GgmlType::F32 => {
            for (x, out) in x.iter().zip(out.as_chunks_mut().0) {
                *out = x.to_le_bytes();
            }
        }
        GgmlType::F16 => {
            let mut halves = [half::f16::ZERO; 64];
            for (x, out) in x.chunks(64).zip(out.chunks_mut(128)) {
                let halves = &mut halves[..x.len()];
                halves.convert_from_f32_slice(x);
                for (h, out) in halves.iter().zip(out.as_chunks_mut().0) {
                    *out = h.to_le_bytes();
                }
            }
        }
        GgmlType::Q8_0 => {
            // A block: an f16 scale, then 32 integers.
            for (x, out) in x.chunks_exact(32).zip(out.as_chunks_mut::<34>().0) {
                let largest = x.iter().fold(0f32, |m, v| m.max(v.abs()));
                let scale = largest / 127.0;
                let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
                out[..2].copy_from_slice(&half::f16::from_f32(scale).to_le_bytes());
                for (x, q) in x.iter().zip(&mut out[2..]) {
                    *q = (x * inverse).round_ties_even() as i8 as u8;
                }
            }
        }
        other => unreachable!("{other} is not in KV_TYPES"),
    }
}
