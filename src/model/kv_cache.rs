//! Keys and values of the tokens so far, in F32, F16 or Q8_0. Allocated once for the whole context; pages that no token
//! has reached cost nothing.
//!
//! Layout: for each layer, keys (n_head_kv, n_ctx, n_embd_head_k), then values (n_head_kv, n_ctx, n_embd_head_v): what
//! one head reads is contiguous. Keys of F16 and Q8_0 are turned, see [`TurnedKey`](crate::backend::TurnedKey).

use memmap2::MmapMut;

use super::config::Config;
use crate::{Error, Result, human_bytes, quant::GgmlType};

/// See the module.
pub struct KvCache {
    ty: GgmlType,
    n_ctx: usize,
    n_head_kv: usize,
    /// Bytes of one head's key and value.
    row_k: usize,
    row_v: usize,
    memory: MmapMut,
    len: usize,
}

/// Bytes of one head's row of `n` elements.
fn row_bytes(ty: GgmlType, n: usize) -> Result<usize> {
    if !KV_TYPES.contains(&ty) {
        let names: Vec<_> = KV_TYPES.iter().map(|t| t.name()).collect();
        return Err(Error::request("the KV cache type", format!("one of {}", names.join(", ")), ty));
    }
    let bytes = ty.row_bytes(n as u64).ok_or_else(|| {
        Error::request(format!("KV cache type {ty}"), format!("heads of a multiple of {}", ty.block_len()), n)
    })?;
    Ok(bytes as usize)
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
        let token = row_bytes(ty, config.n_embd_head_k)? + row_bytes(ty, config.n_embd_head_v)?;
        Ok((token as u64).saturating_mul((config.n_head_kv * config.n_layer * n_ctx) as u64))
    }

    /// An empty cache for `n_ctx` tokens.
    ///
    /// # Errors
    /// As [`KvCache::bytes`], or if the system refuses the memory.
    pub fn new(config: &Config, ty: GgmlType, n_ctx: usize) -> Result<Self> {
        let (row_k, row_v) = (row_bytes(ty, config.n_embd_head_k)?, row_bytes(ty, config.n_embd_head_v)?);
        let bytes = Self::bytes(config, ty, n_ctx)?;
        let refused = |e| Error::invalid(format!("cannot allocate {} for the KV cache: {e}", human_bytes(bytes)));
        let memory = MmapMut::map_anon((bytes as usize).max(1)).map_err(refused)?;
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
        (rows * self.row_k, rows * self.row_v)
    }

    /// A layer's keys (n_head_kv, n_ctx, n_embd_head_k) and values (n_head_kv, n_ctx, n_embd_head_v), for writing.
    pub fn layer_mut(&mut self, layer: usize) -> (&mut [u8], &mut [u8]) {
        let (keys, values) = self.layer_bytes();
        self.memory[layer * (keys + values)..][..keys + values].split_at_mut(keys)
    }

    /// A layer's keys and values.
    pub fn view(&self, layer: usize) -> KvView<'_> {
        let (keys, values) = self.layer_bytes();
        let (keys, values) = self.memory[layer * (keys + values)..][..keys + values].split_at(keys);
        KvView { ty: self.ty, n_ctx: self.n_ctx, keys, values }
    }
}
