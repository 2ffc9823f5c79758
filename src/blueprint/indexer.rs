//! What an architecture's file reads of the indexer of sparse attention (arXiv 2512.02556).

use super::{
    Compressor, IndexKeys, IndexScores, Indexer, LatentSizes, LayerReader, Linear, Norm, NormKind, Reader, TopK,
    reader::MAX_WIDTH,
};
use crate::{Error, Result};

/// Added to the variance in the norm of index keys, where the file does not say.
const EPS: f32 = 1e-6;

/// A limit on what a file may claim: models have blocks of 4 to 128 tokens.
const MAX_BLOCK: usize = 4096;

/// Sizes of a model's indexers.
#[derive(Clone, Debug)]
pub struct IndexerSizes {
    n_head: usize,
    k: usize,
    top_k: usize,
    /// Tokens of a block in each layer; 0: no indexer. (n_layer)
    each: Vec<usize>,
    /// Which layers have one of their own. (n_layer)
    own: Vec<bool>,
}

impl Reader<'_> {
    /// Sizes of the indexers of latent attentions, which choose tokens; `None` where the file has the keys of one and no
    /// tensors: it is right for contexts in which all positions are chosen, to which it is limited.
    ///
    /// # Errors
    /// A key that does not make sense.
    pub fn indexers(&self, latent: LatentSizes) -> Result<Option<IndexerSizes>> {
        self.indexers_of("indexer.proj", latent.rot, || Ok(vec![1; self.n_layer]))
    }

    /// The same of those that choose pools of `attention.indexer.kpool` tokens, and always see the tokens behind the last
    /// whole pool. `without`: layers that do not attend. (n_layer)
    ///
    /// # Errors
    /// As [`Reader::indexers`].
    pub fn pool_indexers(&self, latent: LatentSizes, without: &[bool]) -> Result<Option<IndexerSizes>> {
        self.indexers_of("indexer.proj", latent.rot, || {
            // Without the last tokens, which make no whole pool yet, no context would be short enough.
            self.require_flag("attention.indexer.kpool_select_tail")?;
            let each = self.count("attention.indexer.kpool", MAX_BLOCK)?;
            Ok(without.iter().map(|&without| if without { 0 } else { each }).collect())
        })
    }

    /// The same of those that choose blocks of as many tokens as `attention.compress_ratios` says of a layer. `rot`:
    /// elements of their heads that rotate.
    ///
    /// # Errors
    /// As [`Reader::indexers`].
    pub fn block_indexers(&self, rot: usize) -> Result<Option<IndexerSizes>> {
        let short = "attention.compress_ratios";
        let sizes = self.indexers_of("indexer.q_proj", rot, || {
            let key = self.key(short);
            let listed = self.gguf().meta().require_u32_or_array(&key, self.n_block)?;
            let each = |&n: &u32| if n == 0 { Ok(0) } else { self.within(&key, n as usize, MAX_BLOCK) };
            listed.iter().take(self.n_layer).map(each).collect()
        })?;
        if sizes.is_none() {
            self.ignore(short, "the context is short enough for all of it to be looked at");
        }
        Ok(sizes)
    }

    fn indexers_of(
        &self,
        tensor: &str,
        rot: usize,
        each: impl FnOnce() -> Result<Vec<usize>>,
    ) -> Result<Option<IndexerSizes>> {
        let top_k = self.count("attention.indexer.top_k", u32::MAX as usize)?;
        if !(0..self.n_layer).any(|layer| self.layer(layer).has(&format!("{tensor}.weight"))) {
            self.limit_to_indexed(top_k);
            return Ok(None);
        }
        let n_head = self.count("attention.indexer.head_count", MAX_WIDTH)?;
        let k = self.count("attention.indexer.key_length", MAX_WIDTH)?;
        if k < rot {
            let key = self.key("attention.indexer.key_length");
            return Err(Error::format(self.gguf().path(), key, format!("at least the {rot} elements that rotate"), k));
        }
        let each = each()?;
        if let Some(each) = each.iter().find(|&&each| each > top_k) {
            let key = self.key("attention.indexer.top_k");
            return Err(Error::format(self.gguf().path(), key, format!("at least a block of {each} tokens"), top_k));
        }
        let own = self.own_indexers(&each)?;
        Ok(Some(IndexerSizes { n_head, k, top_k, each, own }))
    }

    /// Which layers have an indexer of their own. (n_layer)
    fn own_indexers(&self, each: &[usize]) -> Result<Vec<bool>> {
        let key = self.key("attention.indexer.types");
        let Some(types) = self.gguf().meta().u32_or_array(&key, self.n_block)? else {
            return Ok(vec![true; self.n_layer]);
        };
        if let Some(other) = types.iter().find(|&&is| is > 1) {
            return Err(Error::unsupported(self.gguf().path(), key, "0 or 1 of each layer", other));
        }
        let first = each.iter().position(|&each| each > 0);
        if first.is_some_and(|first| types[first] == 0) {
            let expected = "an indexer in the first layer with attention, which has none to share";
            return Err(Error::format(self.gguf().path(), key, expected, 0));
        }
        Ok(types[..self.n_layer].iter().map(|&is| is == 1).collect())
    }
}

impl LayerReader<'_, '_> {
    /// The layer's indexer with `indexer.attn_q_b`, `indexer.attn_k`, `indexer.k_norm` and `indexer.proj`, where it chooses
    /// pools of tokens with `indexer_compressor_*`, or that of a layer before it.
    ///
    /// # Errors
    /// A tensor that is missing or does not fit; queries that do not come from short rows.
    pub fn indexer(&self, sizes: &IndexerSizes, latent: LatentSizes) -> Result<Option<Indexer>> {
        self.indexer_of(sizes, |each| {
            let (m, &IndexerSizes { n_head, k, .. }) = (self.m, sizes);
            let Some(rank) = latent.q_rank else {
                let key = m.key("attention.q_lora_rank");
                let expected = "queries of an indexer from short rows";
                return Err(Error::unsupported(m.gguf().path(), key, expected, "none"));
            };
            let (key, norm) = (self.linear("indexer.attn_k", m.n_embd, k)?, self.index_norm(k)?);
            let keys = if each == 1 {
                IndexKeys::Tokens(key, norm)
            } else {
                let score = Some(self.block_score("indexer_compressor", k, each)?);
                IndexKeys::Blocks(Compressor { score, value_norm: Some(norm), ..plain_blocks(k, each, key) })
            };
            let q = self.linear("indexer.attn_q_b", rank, n_head * k)?;
            let weights = Some(self.linear("indexer.proj", m.n_embd, n_head)?);
            Ok(IndexScores { n_head, k, q, q_norm: None, keys, weights })
        })
    }

    /// The layer's indexer with `indexer.q_proj`, `indexer.k_proj` and their norms, whose keys are those of blocks: the mean
    /// of their tokens', normed.
    ///
    /// # Errors
    /// A tensor that is missing or does not fit.
    pub fn block_indexer(&self, sizes: &IndexerSizes) -> Result<Option<Indexer>> {
        self.indexer_of(sizes, |each| {
            let (m, &IndexerSizes { n_head, k, .. }) = (self.m, sizes);
            let norm = |name: &str| m.norm(&self.name(name), k).map(Some);
            let key = self.linear("indexer.k_proj", m.n_embd, k)?;
            let keys = Compressor { norm: norm("indexer.k_norm")?, ..plain_blocks(k, each, key) };
            let q = self.linear("indexer.q_proj", m.n_embd, n_head * k)?;
            let q_norm = norm("indexer.q_norm")?;
            Ok(IndexScores { n_head, k, q, q_norm, keys: IndexKeys::Blocks(keys), weights: None })
        })
    }

    /// What chooses in this layer, with the scores of `scores` for blocks of so many tokens if it has its own.
    fn indexer_of(
        &self,
        sizes: &IndexerSizes,
        scores: impl FnOnce(usize) -> Result<IndexScores>,
    ) -> Result<Option<Indexer>> {
        let each = sizes.each[self.layer];
        if each == 0 {
            return Ok(None);
        }
        let own = sizes.own[self.layer].then(|| scores(each)).transpose()?;
        Ok(Some(Indexer { top_k: TopK { n: sizes.top_k, each }, own }))
    }

    /// Of keys of `k` elements.
    fn index_norm(&self, k: usize) -> Result<Norm> {
        let (m, name) = (self.m, self.name("indexer.k_norm"));
        Ok(Norm {
            kind: NormKind::Layer,
            weight: Some(m.vector(&format!("{name}.weight"), k)?),
            bias: m.vector_if_there(&format!("{name}.bias"), k)?,
            cols: k,
            eps: m.layer_norm_eps()?.unwrap_or(EPS),
            scale: 1.0,
        })
    }
}

/// Means of blocks of `each` tokens.
fn plain_blocks(dim: usize, each: usize, value: Linear) -> Compressor {
    Compressor { dim, each, overlaps: false, value, value_norm: None, score: None, norm: None }
}
