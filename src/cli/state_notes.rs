//! What a model keeps of a sequence instead of a key and a value of every token, for people.

use hotset::{blueprint::Blueprint, human_bytes};

/// A line for each kind of layer that keeps less.
pub fn state_notes(blueprint: &Blueprint) -> Vec<String> {
    let layers = |n: usize| format!("{n} layer{}", if n == 1 { "" } else { "s" });
    let window = blueprint.windows().map(|(n, window)| {
        let see = if n == 1 { "sees" } else { "see" };
        format!("{} {see} a window of {window} tokens, and of a longer context keep that and a batch", layers(n))
    });
    let memory = blueprint.memories().map(|(n, bytes)| {
        let keep = if n == 1 { "keeps" } else { "keep" };
        format!("{} {keep} a memory instead, {} in all whatever the context", layers(n), human_bytes(bytes))
    });
    window.into_iter().chain(memory).collect()
}
