//! Qwen3.8-Flash-Next 125B-A6B (Qwen, 2026), text only: the parts of Qwen3.5 between four residual streams, and a memory of
//! n-grams whose table, tens of gigabytes, stays in the file. An indexer chooses which blocks of a long context attention looks at.

use super::Arch;
use crate::{
    Result,
    blueprint::{Blueprint, GateAct, Gqa, KeyHeads, Moe, Part, Reader, RopeKind, Score},
};

pub const ARCH: Arch = Arch { name: "qwen4exp", predicts: true, blueprint };

/// One layer of so many attends, where the file does not say.
const PERIOD: usize = 4;

fn blueprint(m: &Reader<'_>) -> Result<Blueprint> {
    m.ignore("rope.dimension_sections", "a text token has the same position in every section");
    let heads = m.heads()?;
    let rope = m.rope(RopeKind::Halves, heads.k)?;
    let indexers = m.block_indexers(rope.n_rot)?;
    let choice = m.choice(Score::Softmax, true)?;
    let recurrent = m.recurrent_layers(PERIOD)?;
    let (n_stream, table) = (m.n_stream()?, m.ngram_table()?);
    let remembers = m.ngram_layers()?;
    let blueprint = m.model_of_streams(n_stream, m.gated_output(n_stream)?, |l| {
        let mut blocks = Vec::new();
        if remembers[l.layer] {
            blocks.push(l.plain_block(l.ngram(&table, n_stream)?));
        }
        let mixer = if recurrent[l.layer] {
            l.delta_net(KeyHeads::InTurn, GateAct::Sigmoid)?
        } else {
            let indexer = indexers.as_ref().map(|indexers| l.block_indexer(indexers)).transpose()?.flatten();
            Part::gqa(Gqa { indexer, ..l.gqa_with_gated_queries(heads, rope)? })
        };
        let moe = Part::moe(Moe { shared: Some(l.gated_shared()?), ..l.moe(choice)? });
        blocks.push(l.plain_block(mixer).connected(l.gated_streams("attn", n_stream)?));
        blocks.push(l.plain_block(moe).connected(l.gated_streams("ffn", n_stream)?));
        Ok(blocks)
    })?;
    Ok(Blueprint { ngrams: Some(table), ..blueprint })
}
