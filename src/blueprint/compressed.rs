//! Attention over compressed blocks (DeepSeek-V4, 2026): a token has one row, key and value at once; its queries see the rows of
//! a window, and beyond that blocks of tokens, each of them one row.

use super::{
    IndexKeys, IndexScores, Indexer, LayerReader, Linear, Norm, Part, Reader, Rope, RopeKind, Tensor, TopK,
    reader::MAX_WIDTH,
};
use crate::{Error, Result};

/// Tokens of a block that overlaps the one before, and of which an indexer chooses.
const OVERLAPPING: usize = 4;
/// Tokens of a block that stands alone.
const ALONE: usize = 128;

/// See the module.
#[derive(Clone, Debug)]
pub struct Compressed {
    /// Query heads.
    pub n_head: usize,
    /// Elements of a query and of a row.
    pub head: usize,
    /// To short rows, and from there to queries. (rank, n_embd), (n_head * head, rank)
    pub q: [Linear; 2],
    /// Of the short rows.
    pub q_norm: Norm,
    /// Of each query, without a weight.
    pub head_norm: Norm,
    /// A token's row. (head, n_embd)
    pub row: Linear,
    /// Of a row.
    pub row_norm: Norm,
    /// Of the last elements of queries and rows. What attention gives rotates back.
    pub rope: Rope,
    /// How many rows a token sees, its own among them.
    pub window: usize,
    /// A score of each head that counts in the softmax and has no value. (n_head)
    pub sinks: Tensor,
    /// Scores are multiplied by this before the softmax.
    pub scale: f32,
    /// From the heads of each group to a short row, and from all of those to the output. (groups * rank, n_head / groups * head),
    /// (n_embd, groups * rank)
    pub o: [Linear; 2],
    /// Groups of heads.
    pub groups: usize,
    /// `None`: a token sees the window alone.
    pub blocks: Option<Blocks>,
}

/// Blocks of tokens.
#[derive(Clone, Debug)]
pub struct Blocks {
    /// Tokens of one.
    pub each: usize,
    /// What makes rows of them.
    pub compressor: Compressor,
    /// What chooses among them; `None`: all are seen.
    pub index: Option<Indexer>,
}

/// Makes one row of a block: a sum of its tokens' values, each element weighted by a softmax of its own, or their mean. An
/// overlapping one sums the first half of the values of the block before, too, and the second half of its own.
#[derive(Clone, Copy, Debug)]
pub struct Compressor {
    /// Elements of a row.
    pub dim: usize,
    /// Tokens of a block.
    pub each: usize,
    /// Whether blocks overlap.
    pub overlaps: bool,
    /// (dim or 2 * dim, n_embd)
    pub value: Linear,
    /// Of a token's values.
    pub value_norm: Option<Norm>,
    /// What weighs values; `None`: all weigh the same.
    pub score: Option<BlockScore>,
    /// Of a row, before it rotates by the position of the block's first token.
    pub norm: Option<Norm>,
}

/// Scores of a block's tokens, an element each.
#[derive(Clone, Copy, Debug)]
pub struct BlockScore {
    /// As the values come from theirs. (dim or 2 * dim, n_embd)
    pub w: Linear,
    /// Added, by a token's place in the block. (tokens, dim or 2 * dim)
    pub ape: Tensor,
}

impl Compressor {
    /// Elements of a token's values, or of its scores.
    fn cols(&self) -> usize {
        if self.overlaps { 2 * self.dim } else { self.dim }
    }

    /// Elements of both.
    pub fn token_cols(&self) -> usize {
        if self.score.is_some() { 2 * self.cols() } else { self.cols() }
    }

    /// Tokens of which a sequence keeps values and scores.
    pub fn kept(&self) -> usize {
        if self.overlaps { 2 * self.each } else { self.each }
    }

    /// Floats of these.
    pub fn floats(&self) -> usize {
        self.kept().saturating_mul(self.token_cols())
    }

    pub(super) fn tensors(&self, all: &mut Vec<Tensor>) {
        self.value.tensors(all);
        if let Some(score) = &self.score {
            score.w.tensors(all);
            all.push(score.ape);
        }
        self.value_norm.iter().chain(&self.norm).for_each(|norm| norm.tensors(all));
    }
}

impl Blocks {
    /// Its compressors: of rows, and of the indexer's.
    pub fn compressors(&self) -> impl Iterator<Item = &Compressor> {
        let own = self.index.as_ref().and_then(|index| index.own.as_ref());
        [&self.compressor].into_iter().chain(own.and_then(IndexScores::compressor))
    }
}

impl Compressed {
    /// Rows that a token sees at most in a context of `n_ctx`.
    pub fn most_rows(&self, n_ctx: usize) -> usize {
        let blocks = self.blocks.as_ref().map_or(0, |blocks| {
            (n_ctx / blocks.each).min(blocks.index.as_ref().map_or(usize::MAX, |index| index.top_k.blocks()))
        });
        self.window.min(n_ctx) + blocks
    }

    pub(super) fn tensors(&self, all: &mut Vec<Tensor>) {
        self.q.iter().chain([&self.row]).chain(&self.o).for_each(|linear| linear.tensors(all));
        [&self.q_norm, &self.row_norm].into_iter().for_each(|norm| norm.tensors(all));
        all.push(self.sinks);
        if let Some(blocks) = &self.blocks {
            blocks.compressor.tensors(all);
            blocks.index.and_then(|index| index.own).iter().for_each(|scores| scores.tensors(all));
        }
    }
}

/// What the keys say of all layers.
#[derive(Clone, Debug)]
pub struct CompressedShape {
    n_head: usize,
    head: usize,
    rank: usize,
    window: usize,
    groups: usize,
    o_rank: usize,
    /// Of layers without blocks and with them.
    ropes: [Rope; 2],
    /// Tokens of a block; 0: none. (n_layer)
    each: Vec<usize>,
}

impl Reader<'_> {
    /// # Errors
    /// A key that is missing or does not make sense.
    pub fn compressed_shape(&self) -> Result<CompressedShape> {
        let (heads, path) = (self.heads()?, self.gguf().path());
        if heads.n_head_kv != 1 || heads.k != heads.v {
            let got = format!("{} of {} and {}", heads.n_head_kv, heads.k, heads.v);
            let expected = "one key head that is the value head";
            return Err(Error::unsupported(path, "key and value heads", expected, got));
        }
        let groups = self.count("attention.output_group_count", MAX_WIDTH)?;
        if !heads.n_head.is_multiple_of(groups) {
            let key = self.key("attention.output_group_count");
            return Err(Error::format(path, key, format!("a divisor of {} heads", heads.n_head), groups));
        }
        let scaled = self.rope(RopeKind::Interleaved, heads.k)?;
        let plain = Rope { scale: 1.0, yarn: None, magnitude: 1.0, ..scaled };
        let base = self.freq_base("attention.compress_rope_freq_base")?.unwrap_or(scaled.base);
        let key = self.key("attention.compress_ratios");
        let listed = self.gguf().meta().require_u32_or_array(&key, self.n_block)?;
        if let Some(other) = listed.iter().find(|&&n| ![0, OVERLAPPING as u32, ALONE as u32].contains(&n)) {
            let expected = format!("blocks of {OVERLAPPING} or {ALONE} tokens, or 0");
            return Err(Error::unsupported(path, key, expected, other));
        }
        Ok(CompressedShape {
            n_head: heads.n_head,
            head: heads.k,
            rank: self.count("attention.q_lora_rank", MAX_WIDTH)?,
            window: self.count("attention.sliding_window", u32::MAX as usize)?,
            groups,
            o_rank: self.count("attention.output_lora_rank", MAX_WIDTH)?,
            ropes: [plain, Rope { base, magnitude: 1.0, ..scaled }],
            each: listed.iter().take(self.n_layer).map(|&n| n as usize).collect(),
        })
    }
}

impl LayerReader<'_, '_> {
    /// Attention over compressed blocks, by `attn_q_a`, `attn_q_b`, `attn_kv`, `attn_output_a`, `attn_output_b`, and where there
    /// are blocks `attn_compressor_*`, `indexer.*` and `indexer_compressor_*`.
    ///
    /// # Errors
    /// A tensor that is missing or does not fit.
    pub fn compressed(&self, shape: &CompressedShape) -> Result<Part> {
        let &CompressedShape { n_head, head, rank, window, groups, o_rank, ropes, .. } = shape;
        let (m, n_embd, each) = (self.m, self.m.n_embd, shape.each[self.layer]);
        let blocks = if each > 0 { Some(self.blocks(each, [head, rank, ropes[1].n_rot])?) } else { None };
        Ok(Part::Compressed(Box::new(Compressed {
            n_head,
            head,
            q: [self.linear("attn_q_a", n_embd, rank)?, self.linear("attn_q_b", rank, n_head * head)?],
            q_norm: m.norm(&self.name("attn_q_a_norm"), rank)?,
            head_norm: m.plain_norm(head)?,
            row: self.linear("attn_kv", n_embd, head)?,
            row_norm: m.norm(&self.name("attn_kv_a_norm"), head)?,
            rope: ropes[usize::from(each > 0)],
            window,
            sinks: m.vector(&self.name("attn_sinks.weight"), n_head)?,
            scale: 1.0 / (head as f32).sqrt(),
            o: [
                self.linear("attn_output_a", n_head / groups * head, groups * o_rank)?,
                self.linear("attn_output_b", groups * o_rank, n_embd)?,
            ],
            groups,
            blocks,
        })))
    }

    fn blocks(&self, each: usize, [head, rank, n_rot]: [usize; 3]) -> Result<Blocks> {
        let m = self.m;
        let compressor = self.compressor("attn_compressor", each, head)?;
        if !compressor.overlaps {
            return Ok(Blocks { each, compressor, index: None });
        }
        let n_head = m.count("attention.indexer.head_count", MAX_WIDTH)?;
        let dim = m.head_length("attention.indexer.key_length", head)?;
        if dim < n_rot {
            let key = m.key("attention.indexer.key_length");
            return Err(Error::format(m.gguf().path(), key, format!("at least the {n_rot} that rotate"), dim));
        }
        let top_k = m.count("attention.indexer.top_k", u32::MAX as usize)?;
        let own = IndexScores {
            n_head,
            k: dim,
            q: self.linear("indexer.attn_q_b", rank, n_head * dim)?,
            q_norm: None,
            keys: IndexKeys::Blocks(self.compressor("indexer_compressor", each, dim)?),
            weights: Some(self.linear("indexer.proj", m.n_embd, n_head)?),
        };
        let top_k = TopK { n: top_k.saturating_mul(each), each };
        Ok(Blocks { each, compressor, index: Some(Indexer { top_k, own: Some(own) }) })
    }

    fn compressor(&self, name: &str, each: usize, dim: usize) -> Result<Compressor> {
        let overlaps = each == OVERLAPPING;
        let (m, n_embd, cols) = (self.m, self.m.n_embd, if overlaps { 2 * dim } else { dim });
        Ok(Compressor {
            dim,
            each,
            overlaps,
            value: self.linear(&format!("{name}_kv"), n_embd, cols)?,
            value_norm: None,
            score: Some(self.block_score(name, cols, each)?),
            norm: Some(m.norm(&self.name(&format!("{name}_norm")), dim)?),
        })
    }

    /// `NAME_gate` and `NAME_ape`, for blocks of `each` tokens.
    pub(super) fn block_score(&self, name: &str, cols: usize, each: usize) -> Result<BlockScore> {
        let w = self.linear(&format!("{name}_gate"), self.m.n_embd, cols)?;
        Ok(BlockScore { w, ape: self.m.matrix(&self.name(&format!("{name}_ape.weight")), cols, each)? })
    }
}
