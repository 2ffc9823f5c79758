//! What the clock counted.

use std::time::Duration;

use crate::{model::Span, trace::Phase};

/// Time spent in forward passes, and the tokens that came of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timing {
    /// Prompt tokens.
    pub prompt_tokens: u64,
    /// Nanoseconds in prompt batches.
    pub prompt_ns: u64,
    /// Tokens decoded one at a time, each of a sequence.
    pub decode_tokens: u64,
    /// Nanoseconds in decoding.
    pub decode_ns: u64,
}

impl Timing {
    /// A batch took so long. Tokens of both phases share it evenly, since what they cost apart cannot be told.
    pub(super) fn add(&mut self, spans: &[Span], time: Duration) {
        let tokens = |phase: Phase| spans.iter().filter(|s| s.phase == phase).map(|s| s.rows.len() as u64).sum::<u64>();
        let (prompt, decode) = (tokens(Phase::Prompt), tokens(Phase::Decode));
        let ns = time.as_nanos() as u64;
        let decode_ns = (u128::from(ns) * u128::from(decode) / u128::from((prompt + decode).max(1))) as u64;
        self.prompt_tokens += prompt;
        self.prompt_ns += ns - decode_ns;
        self.decode_tokens += decode;
        self.decode_ns += decode_ns;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Want;

    #[test]
    fn the_phases_of_a_batch_share_its_time() {
        let span = |seq, rows, phase| Span { seq, first_pos: 0, rows, phase, want: Want::Last };
        let mut timing = Timing::default();
        timing.add(&[span(0, 0..1, Phase::Decode)], Duration::from_nanos(7));
        timing.add(&[span(0, 0..3, Phase::Prompt), span(1, 3..4, Phase::Decode)], Duration::from_nanos(100));
        assert_eq!((timing.prompt_tokens, timing.prompt_ns), (3, 75));
        assert_eq!((timing.decode_tokens, timing.decode_ns), (2, 32));
    }
}
