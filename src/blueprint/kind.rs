//! What kinds of parts a model has, for people.

use super::{Blueprint, Part};

/// See the module. In the order of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "each variant is its own name")]
pub enum Kind {
    Attention,
    SlidingWindow,
    LatentAttention,
    SparseAttention,
    CompressedAttention,
    DeltaNet,
    Mamba2,
    ShortConv,
    NGram,
    Dense,
    Moe,
}

impl Kind {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Attention => "attention",
            Kind::SlidingWindow => "sliding-window attention",
            Kind::LatentAttention => "latent attention",
            Kind::SparseAttention => "sparse attention",
            Kind::CompressedAttention => "compressed attention",
            Kind::DeltaNet => "delta net",
            Kind::Mamba2 => "Mamba 2",
            Kind::ShortConv => "short convolution",
            Kind::NGram => "n-gram memory",
            Kind::Dense => "dense feed-forward",
            Kind::Moe => "MoE",
        }
    }
}

impl Part {
    /// What kind of part it is.
    pub fn kind(&self) -> Kind {
        match self {
            Part::Gqa(gqa) if gqa.indexer.is_some() => Kind::SparseAttention,
            Part::Gqa(gqa) if gqa.latent.is_some() => Kind::LatentAttention,
            Part::Gqa(gqa) if gqa.window.is_some() => Kind::SlidingWindow,
            Part::Gqa(_) => Kind::Attention,
            Part::Compressed(_) => Kind::CompressedAttention,
            Part::NGram(_) => Kind::NGram,
            Part::DeltaNet(_) => Kind::DeltaNet,
            Part::Mamba2(_) => Kind::Mamba2,
            Part::ShortConv(_) => Kind::ShortConv,
            Part::Dense(_) => Kind::Dense,
            Part::Moe(_) => Kind::Moe,
        }
    }
}

impl Blueprint {
    /// How many parts of each kind there are; a layer usually has two.
    pub fn kinds(&self) -> Vec<(Kind, usize)> {
        let mut kinds: Vec<Kind> = self.parts().map(Part::kind).collect();
        kinds.sort_unstable();
        kinds.chunk_by(|a, b| a == b).map(|alike| (alike[0], alike.len())).collect()
    }
}
