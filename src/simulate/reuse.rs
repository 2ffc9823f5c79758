//! What a replayed cache hit, by how long ago each expert was used last: where a policy's misses lie.
//!
//! Must not know: clocks, how policies choose.

use serde::Serialize;

use crate::{
    id::ExpertId,
    trace::{LayerEvent, Phase},
};

/// Bins of distances: the first use, then 1, 2 to 3, 4 to 7, … tokens ago, the last one open.
pub const BINS: usize = 12;

/// Experts that decoding wanted, and those of them that were in a slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Hits {
    /// Wanted.
    pub wanted: u64,
    /// In a slot.
    pub hit: u64,
}

impl Hits {
    /// Adds one that was wanted.
    fn add(&mut self, hit: bool) {
        self.wanted += 1;
        self.hit += u64::from(hit);
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Reuse {
    n_expert: usize,
    /// Tokens that each layer has seen. (n_moe_layer)
    tokens: Vec<u64>,
    /// Each expert's last use, 0 for none. (n_moe_layer, n_expert)
    last: Vec<u64>,
    bins: [Hits; BINS],
}

impl Reuse {
    /// For a model of such a shape.
    pub fn new(n_layer: usize, n_expert: usize) -> Self {
        let (tokens, last) = (vec![0; n_layer], vec![0; n_layer * n_expert]);
        Self { n_expert, tokens, last, bins: [Hits::default(); BINS] }
    }

    /// An event, and those of its choices that were not in a slot. Only decoding is counted, if `counts`; prompts are
    /// remembered as uses.
    pub fn add(&mut self, event: LayerEvent<'_>, absent: &[ExpertId], counts: bool) {
        let layer = usize::from(event.layer);
        for row in event.routed.chunks(event.n_used().max(1)) {
            self.tokens[layer] += 1;
            let now = self.tokens[layer];
            for r in row {
                let last = &mut self.last[layer * self.n_expert + usize::from(r.id.expert)];
                let ago = std::mem::replace(last, now);
                if counts && event.phase == Phase::Decode && ago != now {
                    self.bins[bin(ago, now)].add(!absent.contains(&r.id));
                }
            }
        }
    }

    /// By distance; see [`BINS`].
    pub fn bins(&self) -> [Hits; BINS] {
        self.bins
    }
}

fn bin(last: u64, now: u64) -> usize {
    if last == 0 { 0 } else { ((now - last).ilog2() as usize + 1).min(BINS - 1) }
}

/// The name of a bin: the distances that it holds, in tokens.
pub fn name(bin: usize) -> String {
    match bin {
        0 => "first use".to_owned(),
        1 => "1".to_owned(),
        _ if bin + 1 == BINS => format!("{} or more", 1u64 << (bin - 1)),
        _ => format!("{} to {}", 1u64 << (bin - 1), (1u64 << bin) - 1),
    }
}
