//! What a part keeps of a sequence.

use super::{Blueprint, Part};

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
    },
    /// What all tokens so far have left in so many floats.
    Recurrent {
        /// F32 numbers, whatever the context's length.
        floats: usize,
    },
}

/// A key of each token for an indexer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexRows {
    /// Elements of a key.
    pub k: usize,
    /// A context of no more tokens needs none of them: everything is chosen.
    pub top_k: usize,
}

impl Part {
    /// What it keeps of a sequence; `None`: it takes each token for itself.
    pub fn state(&self) -> Option<State> {
        match self {
            Part::Gqa(gqa) => {
                let heads = gqa.heads;
                let index = gqa.indexer.and_then(|i| Some(IndexRows { k: i.own?.k, top_k: i.top_k }));
                Some(State::Rows { heads: heads.n_head_kv, k: heads.k, v: gqa.kept_v(), window: gqa.window, index })
            }
            Part::DeltaNet(net) => Some(State::Recurrent { floats: net.floats() }),
            Part::Mamba2(mamba) => Some(State::Recurrent { floats: mamba.floats() }),
            Part::ShortConv(conv) => Some(State::Recurrent { floats: conv.conv.floats() }),
            Part::Dense(_) | Part::Moe(_) => None,
        }
    }
}

impl Blueprint {
    /// What its parts keep of a sequence, in the order of the blocks.
    pub fn states(&self) -> impl Iterator<Item = State> {
        self.blocks.iter().flat_map(|block| &block.branches).filter_map(|branch| branch.part.state())
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
