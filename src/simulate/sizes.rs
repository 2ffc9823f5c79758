//! How many slots a layer has: as it is written, and the sizes of a whole curve.

use crate::{Error, Result};

/// How many slots a layer has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum SlotSpec {
    /// So many.
    Count(usize),
    /// So many percent of the layer's experts, rounded to the nearest number.
    Percent(f64),
}

impl SlotSpec {
    /// The number for a layer of `n_expert` experts.
    pub fn count(self, n_expert: usize) -> usize {
        match self {
            SlotSpec::Count(n) => n.min(n_expert),
            SlotSpec::Percent(p) => ((n_expert as f64 * p / 100.0).round() as usize).min(n_expert),
        }
    }
}

impl std::str::FromStr for SlotSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || Error::request("slots", "a number of experts per layer, or a share such as 25%", text);
        match text.strip_suffix('%') {
            Some(share) => {
                let share: f64 = share.parse().map_err(|_| wrong())?;
                (0.0..=100.0).contains(&share).then_some(SlotSpec::Percent(share)).ok_or_else(wrong)
            }
            None => text.parse().ok().filter(|n| *n > 0).map(SlotSpec::Count).ok_or_else(wrong),
        }
    }
}

/// Shares of a layer's experts, in percent, that most papers give; those that a model cannot run with are left out.
const SHARES: [f64; 12] = [6.25, 12.5, 18.75, 25.0, 31.25, 37.5, 43.75, 50.0, 62.5, 75.0, 87.5, 100.0];

/// Slots a layer for a curve over all sizes, ascending: `SHARES` of the experts and the fewest slots that run, and as many more, each halving the widest gap, as make twelve; fewer only
/// where a layer has fewer experts.
pub fn default_slots(used: usize, n_expert: usize) -> Vec<usize> {
    let mut counts: Vec<usize> = SHARES.iter().map(|&p| SlotSpec::Percent(p).count(n_expert)).collect();
    counts.retain(|n| *n > used);
    counts.push(used);
    counts.sort_unstable();
    counts.dedup();
    while counts.len() < SHARES.len() {
        let widest = (1..counts.len()).max_by_key(|&i| (counts[i] - counts[i - 1], std::cmp::Reverse(i)));
        let Some(i) = widest.filter(|&i| counts[i] - counts[i - 1] > 1) else { break };
        counts.insert(i, (counts[i - 1] + counts[i]) / 2);
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::default_slots;

    #[test]
    fn twelve_sizes_from_the_smallest_that_runs_to_all() {
        assert_eq!(default_slots(8, 128), [8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128]);
        assert_eq!(default_slots(6, 48), [6, 9, 12, 15, 18, 21, 24, 27, 30, 36, 42, 48]);
        assert_eq!(default_slots(2, 8).len(), 7, "2 to 8");
        assert_eq!(default_slots(1, 1), [1]);
        assert_eq!(default_slots(60, 64), [60, 61, 62, 63, 64]);
    }
}
