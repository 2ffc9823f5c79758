//! What an architecture's file reads of the indexer of sparse attention (arXiv 2512.02556).

use super::{IndexScores, Indexer, LatentSizes, LayerReader, Norm, NormKind, Reader, reader::MAX_WIDTH};
use crate::{Error, Result};

/// Added to the variance in the norm of index keys, where the file does not say.
const EPS: f32 = 1e-6;

/// Sizes of a model's indexers.
#[derive(Clone, Debug)]
pub struct IndexerSizes {
    n_head: usize,
    k: usize,
    top_k: usize,
    /// Which layers have one of their own. (n_layer)
    own: Vec<bool>,
}

impl Reader<'_> {
    /// Sizes of the indexers; `None` where the file has the keys of one and no tensors: it is right for contexts in which all
    /// positions are chosen, to which it is limited.
    ///
    /// # Errors
    /// A key that does not make sense.
    pub fn indexers(&self, latent: LatentSizes) -> Result<Option<IndexerSizes>> {
        let top_k = self.count("attention.indexer.top_k", u32::MAX as usize)?;
        if !(0..self.n_layer).any(|layer| self.layer(layer).has("indexer.proj.weight")) {
            self.limit_to_indexed(top_k);
            return Ok(None);
        }
        let n_head = self.count("attention.indexer.head_count", MAX_WIDTH)?;
        let k = self.count("attention.indexer.key_length", MAX_WIDTH)?;
        if k < latent.rot {
            let key = self.key("attention.indexer.key_length");
            let expected = format!("at least the {} elements that rotate", latent.rot);
            return Err(Error::format(self.gguf().path(), key, expected, k));
        }
        let key = self.key("attention.indexer.types");
        let own = match self.gguf().meta().u32_or_array(&key, self.n_block)? {
            None => vec![true; self.n_layer],
            Some(types) => {
                if let Some(other) = types.iter().find(|&&is| is > 1) {
                    return Err(Error::unsupported(self.gguf().path(), key, "0 or 1 of each layer", other));
                }
                types[..self.n_layer].iter().map(|&is| is == 1).collect()
            }
        };
        if !own[0] {
            let expected = "an indexer in the first layer, which has none to share";
            return Err(Error::format(self.gguf().path(), key, expected, 0));
        }
        Ok(Some(IndexerSizes { n_head, k, top_k, own }))
    }
}

impl LayerReader<'_, '_> {
    /// The layer's indexer with `indexer.attn_q_b`, `indexer.attn_k`, `indexer.k_norm` and `indexer.proj`, or that of a layer
    /// before it.
    ///
    /// # Errors
    /// A tensor that is missing or does not fit; queries that do not come from short rows.
    pub fn indexer(&self, sizes: &IndexerSizes, latent: LatentSizes) -> Result<Indexer> {
        let &IndexerSizes { n_head, k, top_k, .. } = sizes;
        if !sizes.own[self.layer] {
            return Ok(Indexer { top_k, own: None });
        }
        let (m, name) = (self.m, self.name("indexer.k_norm"));
        let Some(rank) = latent.q_rank else {
            let key = m.key("attention.q_lora_rank");
            return Err(Error::unsupported(m.gguf().path(), key, "queries of an indexer from short rows", "none"));
        };
        let norm = Norm {
            kind: NormKind::Layer,
            weight: Some(m.vector(&format!("{name}.weight"), k)?),
            bias: m.vector_if_there(&format!("{name}.bias"), k)?,
            cols: k,
            eps: m.layer_norm_eps()?.unwrap_or(EPS),
            scale: 1.0,
        };
        let scores = IndexScores {
            n_head,
            k,
            q: self.linear("indexer.attn_q_b", rank, n_head * k)?,
            key: self.linear("indexer.attn_k", m.n_embd, k)?,
            norm,
            weights: self.linear("indexer.proj", m.n_embd, n_head)?,
        };
        Ok(Indexer { top_k, own: Some(scores) })
    }
}
