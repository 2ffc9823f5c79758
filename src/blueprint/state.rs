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
    },
    /// What all tokens so far have left in so many floats.
    Recurrent {
        /// F32 numbers, whatever the context's length.
        floats: usize,
    },
}

impl Part {
    /// What it keeps of a sequence; `None`: it takes each token for itself.
    pub fn state(&self) -> Option<State> {
        match self {
            Part::Gqa(gqa) => {
                let heads = gqa.heads;
                Some(State::Rows { heads: heads.n_head_kv, k: heads.k, v: heads.v, window: gqa.window })
            }
            Part::Dense(_) | Part::Moe(_) => None,
        }
    }
}

impl Blueprint {
    /// What its parts keep of a sequence, in the order of the blocks.
    pub fn states(&self) -> impl Iterator<Item = State> {
        self.blocks.iter().flat_map(|block| &block.branches).filter_map(|branch| branch.part.state())
    }
}
