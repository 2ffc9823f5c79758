//! Keys and values of the tokens so far, in F32, F16 or Q8_0. Allocated once for the whole context; pages that no token
//! has reached cost nothing.
//!
//! Layout: for each attention, keys (n_head_kv, n_ctx, k), then values (n_head_kv, n_ctx, v): what one head reads is
//! contiguous. Keys of F16 and Q8_0 are turned, see [`TurnedKey`](crate::backend::TurnedKey).

use memmap2::MmapMut;

use crate::{
    Error, Result,
    blueprint::{Blueprint, Gqa},
    human_bytes,
    quant::GgmlType,
};

/// See the module.
pub struct KvCache {
    ty: GgmlType,
    n_ctx: usize,
    attentions: Vec<Place>,
    memory: MmapMut,
    len: usize,
}

/// Where one attention's keys and values are. Bytes
#[derive(Clone, Copy)]
struct Place {
    start: usize,
    keys: usize,
    values: usize,
}

/// Bytes of an attention's keys and values of one token.
fn token_bytes(ty: GgmlType, gqa: &Gqa) -> Result<[usize; 2]> {
    let n = gqa.heads.n_head_kv;
    Ok([n * row_bytes(ty, gqa.heads.k)?, n * row_bytes(ty, gqa.kept_v())?])
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

/// An attention's keys and values for reading.
#[derive(Clone, Copy)]
pub struct KvView<'a> {
    /// Element type of both.
    pub ty: GgmlType,
    /// Rows between one head's first row and the next head's.
    pub n_ctx: usize,
    /// (n_head_kv, n_ctx, k)
    pub keys: &'a [u8],
    /// (n_head_kv, n_ctx, v)
    pub values: &'a [u8],
}

/// The types that `--kv` takes.
pub const KV_TYPES: &[GgmlType] = &[GgmlType::F16, GgmlType::F32, GgmlType::Q8_0];

impl KvCache {
    /// Bytes of a cache for `n_ctx` tokens.
    ///
    /// # Errors
    /// If the type is not one of [`KV_TYPES`], or a head's size is no whole number of its blocks.
    pub fn bytes(m: &Blueprint, ty: GgmlType, n_ctx: usize) -> Result<u64> {
        let tokens = m.attentions().map(|gqa| token_bytes(ty, gqa)).collect::<Result<Vec<_>>>()?;
        Ok((tokens.as_flattened().iter().sum::<usize>() as u64).saturating_mul(n_ctx as u64))
    }

    /// An empty cache for `n_ctx` tokens.
    ///
    /// # Errors
    /// As [`KvCache::bytes`], or if the system refuses the memory.
    pub fn new(m: &Blueprint, ty: GgmlType, n_ctx: usize) -> Result<Self> {
        let bytes = Self::bytes(m, ty, n_ctx)?;
        let refused = |e| Error::invalid(format!("cannot allocate {} for the KV cache: {e}", human_bytes(bytes)));
        let memory = MmapMut::map_anon((bytes as usize).max(1)).map_err(refused)?;
        let mut start = 0;
        let place = |gqa: &Gqa| {
            let [keys, values] = token_bytes(ty, gqa)?.map(|bytes| bytes * n_ctx);
            let place = Place { start, keys, values };
            start += keys + values;
            Ok(place)
        };
        let attentions = m.attentions().map(place).collect::<Result<_>>()?;
        Ok(Self { ty, n_ctx, attentions, memory, len: 0 })
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

    /// Keys (n_head_kv, n_ctx, k) and values (n_head_kv, n_ctx, v) of an attention, for writing.
    pub fn layer_mut(&mut self, attention: usize) -> (&mut [u8], &mut [u8]) {
        let Place { start, keys, values } = self.attentions[attention];
        self.memory[start..start + keys + values].split_at_mut(keys)
    }

    /// An attention's keys and values.
    pub fn view(&self, attention: usize) -> KvView<'_> {
        let Place { start, keys, values } = self.attentions[attention];
        let (keys, values) = self.memory[start..start + keys + values].split_at(keys);
        KvView { ty: self.ty, n_ctx: self.n_ctx, keys, values }
    }
}
