//! What a part keeps of a sequence.

use super::{Blueprint, Compressor, Part, TopK};

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// A key and a value of each token: of all, or of those in the window.
    Rows {
        /// Key/value heads.
        heads: usize,
        /// Elements of a key.
        k: usize,
        /// Elements of a value.
        v: usize,
        /// How many positions a token sees at most, its own among them; `None`: all.
        window: Option<usize>,
        /// Beside them, for an indexer.
        index: Option<IndexRows>,
        /// Tokens of a row: 1 but for rows of blocks.
        each: usize,
    },
    /// What all tokens so far have left in so many floats.
    Recurrent {
        /// F32 numbers, whatever the context's length.
        floats: usize,
    },
}

/// Keys for an indexer, one of each block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexRows {
    /// Elements of a key.
    pub k: usize,
    /// What is chosen by them: a context of which nothing is left out needs none.
    pub top_k: TopK,
}

impl Part {
    /// What it keeps of a sequence; nothing where it takes each token for itself.
    pub fn states(&self) -> Vec<State> {
        match self {
            Part::Gqa(gqa) => {
                let own = gqa.indexer.and_then(|indexer| Some((indexer.top_k, indexer.own?)));
                let index = own.map(|(top_k, own)| IndexRows { k: own.k, top_k });
                let (heads, v, window) = (gqa.heads, gqa.kept_v(), gqa.window);
                let rows = State::Rows { heads: heads.n_head_kv, k: heads.k, v, window, index, each: 1 };
                let pending = own.and_then(|(_, own)| Some(State::Recurrent { floats: own.compressor()?.floats() }));
                [rows].into_iter().chain(pending).collect()
            }
            Part::Compressed(part) => {
                let rows = |v, window, each| State::Rows { heads: 1, k: 0, v, window, index: None, each };
                let mut states = vec![rows(part.head, Some(part.window), 1)];
                if let Some(blocks) = &part.blocks {
                    states.extend(blocks.compressors().map(|compressor| rows(compressor.dim, None, blocks.each)));
                    let floats = blocks.compressors().map(Compressor::floats).fold(0, usize::saturating_add);
                    states.push(State::Recurrent { floats });
                }
                states
            }
            Part::DeltaNet(net) => vec![State::Recurrent { floats: net.floats() }],
            Part::Mamba2(mamba) => vec![State::Recurrent { floats: mamba.floats() }],
            Part::ShortConv(conv) => vec![State::Recurrent { floats: conv.conv.floats() }],
            Part::NGram(ngram) => vec![State::Recurrent { floats: ngram.floats() }],
            Part::Dense(_) | Part::Moe(_) => Vec::new(),
        }
    }
}

impl Blueprint {
    /// What its parts keep of a sequence, in the order of the blocks.
    pub fn states(&self) -> impl Iterator<Item = State> {
        self.blocks.iter().flat_map(|block| &block.branches).flat_map(|branch| branch.part.states())
    }

    /// Layers that see a window and their largest window, in tokens. `None` where every layer sees everything.
    pub fn windows(&self) -> Option<(usize, usize)> {
        let windows = self.states().filter_map(|state| match state {
            State::Rows { window, .. } => window,
            State::Recurrent { .. } => None,
        });
        windows.fold(None, |all, window| {
            let (n, widest) = all.unwrap_or((0, 0));
            Some((n + 1, window.max(widest)))
        })
    }

    /// Layers with a recurrent memory and what the memories of a sequence take, in bytes. `None` where there are none.
    pub fn memories(&self) -> Option<(usize, u64)> {
        let floats = self.states().filter_map(|state| match state {
            State::Recurrent { floats } => Some(floats as u64),
            State::Rows { .. } => None,
        });
        floats.fold(None, |all, floats| {
            let (n, bytes): (usize, u64) = all.unwrap_or((0, 0));
            Some((n + 1, bytes.saturating_add(floats.saturating_mul(size_of::<f32>() as u64))))
        })
    }
}
