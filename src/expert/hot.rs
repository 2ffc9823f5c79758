//! How often experts were used: what a user pins, and what a run reads before it is asked for because the last one did.
//!
//! A list is text, a line an expert, the most used first, so that every tool can make, cut and join one:
//!
//! ```text
//! # layer expert uses
//! 0 17 412
//! 3 5 398
//! ```
//!
//! `layer` counts MoE layers from 0, as traces do; `uses` may be left out and then is 1. Empty lines and those that begin
//! with `#` mean nothing. No expert stands there twice.
//!
//! Must not know: files (it is given their text), slots.

use std::{cmp::Reverse, fmt::Write, path::Path};

use crate::{Error, Result, id::ExpertId};

/// An expert and how often it was used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hot {
    /// The expert.
    pub id: ExpertId,
    /// Tokens that used it.
    pub uses: u32,
}

/// See the module. Every expert is one of the model's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HotList {
    list: Vec<Hot>,
}

impl HotList {
    /// The experts that were used, from uses of each. (n_moe_layer, n_expert)
    pub fn from_uses(uses: &[u64], n_expert: usize) -> Self {
        let id = |i: usize| ExpertId { layer: (i / n_expert) as u16, expert: (i % n_expert) as u16 };
        let used = uses.iter().enumerate().filter(|&(_, &n)| n > 0);
        let list = used.map(|(i, &n)| Hot { id: id(i), uses: u32::try_from(n).unwrap_or(u32::MAX) }).collect();
        Self { list }.sorted()
    }

    /// Reads the text of `path`, for a model of so many MoE layers with so many experts.
    ///
    /// # Errors
    /// The first line that is none of a list: two or three numbers, the model's own layers and experts, each once.
    pub fn parse(text: &str, path: &Path, n_layer: usize, n_expert: usize) -> Result<Self> {
        let mut list = Vec::new();
        let mut seen = vec![false; n_layer * n_expert];
        for (i, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let wrong = |expected: String, got: String| Error::format(path, format!("line {}", i + 1), expected, got);
            let numbers: Option<Vec<u32>> = line.split_whitespace().take(4).map(|word| word.parse().ok()).collect();
            let (layer, expert, uses) = match numbers.as_deref() {
                Some(&[layer, expert]) => (layer as usize, expert as usize, 1),
                Some(&[layer, expert, uses]) => (layer as usize, expert as usize, uses),
                _ => {
                    let got: String = line.chars().take(40).collect();
                    return Err(wrong("a layer, an expert and perhaps its uses".to_owned(), format!("{got:?}")));
                }
            };
            if layer >= n_layer {
                return Err(wrong(format!("a MoE layer below {n_layer}"), layer.to_string()));
            }
            if expert >= n_expert {
                return Err(wrong(format!("an expert below {n_expert}"), expert.to_string()));
            }
            let id = ExpertId { layer: layer as u16, expert: expert as u16 };
            if std::mem::replace(&mut seen[layer * n_expert + expert], true) {
                return Err(wrong("each expert once".to_owned(), format!("{id} again")));
            }
            list.push(Hot { id, uses });
        }
        Ok(Self { list })
    }

    /// The text that [`HotList::parse`] reads.
    pub fn to_text(&self) -> String {
        let mut text = "# layer expert uses\n".to_owned();
        for Hot { id, uses } in &self.list {
            writeln!(text, "{} {} {uses}", id.layer, id.expert).expect("a string takes all");
        }
        text
    }

    /// In the list's order.
    pub fn iter(&self) -> impl Iterator<Item = Hot> + '_ {
        self.list.iter().copied()
    }
    /// Number of experts.
    pub fn len(&self) -> usize {
        self.list.len()
    }
    /// True if no expert is listed.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The first `n` of each layer.
    #[must_use]
    pub fn top(mut self, n: usize) -> Self {
        let mut taken = std::collections::HashMap::new();
        self.list.retain(|hot| {
            let layer = taken.entry(hot.id.layer).or_insert(0);
            *layer += 1;
            *layer <= n
        });
        self
    }

    /// These uses and half of the older ones, so that a short run does not wipe out what a long one found.
    #[must_use]
    pub fn after(mut self, older: &HotList) -> Self {
        let mut at: std::collections::HashMap<_, _> = self.list.iter().enumerate().map(|(i, h)| (h.id, i)).collect();
        for &Hot { id, uses } in older.list.iter().filter(|hot| hot.uses > 1) {
            let i = *at.entry(id).or_insert_with(|| {
                self.list.push(Hot { id, uses: 0 });
                self.list.len() - 1
            });
            self.list[i].uses = self.list[i].uses.saturating_add(uses / 2);
        }
        self.sorted()
    }

    fn sorted(mut self) -> Self {
        self.list.sort_unstable_by_key(|hot| (Reverse(hot.uses), hot.id));
        self
    }
}
