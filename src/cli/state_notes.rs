//! What a model keeps of a sequence instead of a key and a value of every token, and what it leaves in the file, for people.

use hotset::{blueprint::Blueprint, human_bytes};

/// A line for each kind of layer that keeps less, and for a table that is read row by row.
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
    let blocks = blueprint.compressed().filter(|part| part.blocks.is_some()).count();
    let blocks = (blocks > 0).then(|| {
        let keep = if blocks == 1 { "keeps" } else { "keep" };
        format!("{} {keep} a row of each block of tokens beyond the window", layers(blocks))
    });
    let table = blueprint.ngrams.as_ref().map(|table| {
        let row = table.rows.bytes / table.rows.rows as u64;
        let (bytes, n) = (human_bytes(table.rows.bytes), table.n_row());
        format!("a table of n-grams stays in the file, {bytes}: a token reads {n} rows of {}", human_bytes(row))
    });
    window.into_iter().chain(blocks).chain(memory).chain(table).collect()
}
