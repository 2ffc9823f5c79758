//! The model: dense weights and the forward pass, which is the page to read. What a model is stands in its blueprint.
//!
//! Must not know: policies, engines, slots, sampling, text, names of tensors and architectures.

mod cx;
mod embed;
mod ffn;
mod finite;
mod hyper;
mod load;
mod missing;
mod mixer;
mod ngram;
mod rope;
mod scratch;
mod state;
mod tier;

use std::{ops::Range, path::PathBuf};

pub use cx::Workspace;
pub use missing::{missing_data, refuse_missing};
pub use scratch::{Scratch, ScratchShape};
pub use state::{Checkpoint, KV_TYPES, Sequence};
pub use tier::Tier;

use crate::{
    Error, Result,
    backend::{Backend, Product, soft_cap},
    blueprint::{self, Blueprint, State},
    gguf::Gguf,
    model::{
        cx::{Cx, Target},
        embed::Embed,
        ffn::{Dense, Moe},
        hyper::Connection,
        load::{Linear, Loader, Norm},
        mixer::{Compressed, DeltaNet, Gqa, Mamba2, ShortConv},
        ngram::NGram,
        rope::Rope,
    },
    trace::Phase,
};

/// A model ready to run, apart from its routed experts.
pub struct Model {
    /// What it is.
    pub blueprint: Blueprint,
    path: PathBuf,
    embed: Embed,
    ngrams: Option<ngram::Table>,
    ropes: Vec<Rope>,
    blocks: Vec<Block>,
    head: Head,
}

/// One residual step: `x = scale · (x + post(Σ branch(x)))`.
struct Block {
    /// The layer it belongs to.
    layer: usize,
    connection: Option<Connection>,
    branches: Vec<Branch>,
    post: Option<Norm>,
    scale: f32,
    /// Whether the branches' sum is not added as it is.
    has_sum: bool,
}

/// `scale · post(part(norm(x)))`
struct Branch {
    /// `None`: as the branch before; in the first one, none.
    norm: Option<Norm>,
    part: Part,
    post: Option<Norm>,
    scale: f32,
    has_sum: bool,
}

enum Part {
    Gqa(Box<Gqa>),
    Compressed(Box<Compressed>),
    DeltaNet(DeltaNet),
    Mamba2(Mamba2),
    ShortConv(ShortConv),
    NGram(NGram),
    Dense(Dense),
    Moe(Moe),
}

/// From the residual stream to logits.
struct Head {
    connection: Option<Connection>,
    norm: Option<Norm>,
    /// (n_vocab, n_embd)
    output: Linear,
    scale: f32,
    soft_cap: Option<f32>,
}

/// Which rows of a span the caller wants logits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// Every row.
    All,
    /// The last row.
    Last,
    /// None: they only fill the sequence's state.
    Nothing,
}

/// Tokens that run together: some of each of several sequences. What a sequence's tokens give does not depend, by a bit, on
/// the others, but an expert is read once for all of them.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// Each below `n_vocab`.
    pub tokens: &'a [u32],
    /// Whose they are: all tokens in order, at most one span of a sequence.
    pub spans: &'a [Span],
}

/// Consecutive tokens of one sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Its place among the sequences.
    pub seq: usize,
    /// Position of the first token in it: its length so far.
    pub first_pos: u32,
    /// Which tokens of the batch. Not empty.
    pub rows: Range<usize>,
    /// Whether they are a prompt's, or one that was just sampled.
    pub phase: Phase,
    /// Which logits to compute.
    pub want: Want,
}

impl Span {
    /// Rows of logits that it wants.
    pub fn n_logits(&self) -> usize {
        match self.want {
            Want::All => self.rows.len(),
            Want::Last => 1,
            Want::Nothing => 0,
        }
    }
}

impl Model {
    /// Runs a batch; the wanted rows' logits are in [`Scratch::logits`] then, span by span.
    ///
    /// # Errors
    /// A read that failed; a part of the model that gives no numbers, by name. Every sequence is as before the call then.
    ///
    /// # Panics
    /// If the spans are not the batch's tokens and the sequences' ends, or do not fit: the engine checks that.
    pub fn forward<B: Backend>(
        &self,
        workspace: Workspace<'_, B>,
        batch: &Batch<'_>,
        seqs: &mut [Sequence],
    ) -> Result<()> {
        let (n_stream, n_embd) = (self.blueprint.n_stream, self.blueprint.n_embd);
        let mut cx = Cx::new(workspace, batch, seqs, [n_stream, n_embd]);
        self.gather(&mut cx, batch)?;
        self.check(&cx, || "the token embedding".to_owned())?;
        cx.rotate(&self.ropes);
        for (i, block) in self.blocks.iter().enumerate() {
            block.add(&mut cx, &self.blocks[i + 1..])?;
            if cx.is_done() {
                break;
            }
            self.check(&cx, || block.name())?;
        }
        if let Some(row) = self.head.logits(&mut cx) {
            return Err(self.broken("the output", row));
        }
        batch.spans.iter().for_each(|span| seqs[span.seq].commit(&batch.tokens[span.rows.clone()]));
        Ok(())
    }

    /// Reads what the tokens alone decide: rows of the embedding and of the table of n-grams.
    fn gather<B: Backend>(&self, cx: &mut Cx<'_, B>, batch: &Batch<'_>) -> Result<()> {
        let Scratch { x, embd, ngram_ids, ngrams, .. } = &mut *cx.s;
        let (n_stream, n_embd) = (self.blueprint.n_stream, self.blueprint.n_embd);
        self.embed.gather(batch.tokens, n_embd, &mut x[..batch.tokens.len() * n_stream * n_embd], embd)?;
        match &self.ngrams {
            Some(table) => table.gather(cx.b, batch, cx.seqs, (ngram_ids, ngrams, embd)),
            None => Ok(()),
        }
    }

    /// Refuses rows that are no numbers any more: from there on, nothing is. `part` was added to them last.
    fn check<B: Backend>(&self, cx: &Cx<'_, B>, part: impl FnOnce() -> String) -> Result<()> {
        cx.broken().map_or(Ok(()), |pos| Err(self.broken(&part(), pos)))
    }

    fn broken(&self, part: &str, pos: usize) -> Error {
        let message = format!(
            "{part} gives NaN or infinity for the token at position {pos}: the file is damaged, was wrongly quantised, or \
             has changed while it was read"
        );
        Error::file(&self.path, message)
    }

    /// Loads the dense weights. `progress` is told the bytes of each tensor as it arrives.
    ///
    /// # Errors
    /// Names the tensor whose bytes cannot be read, are not there yet or are no numbers, or for which there is no memory.
    pub fn load(gguf: &Gguf, blueprint: Blueprint, progress: &mut dyn FnMut(u64)) -> Result<Self> {
        refuse_missing(gguf)?;
        let mut loader = Loader { gguf, progress };
        let shapes = blueprint.ropes();
        let ropes = shapes.iter().map(|rope| Rope::load(&mut loader, rope)).collect::<Result<_>>()?;
        let (n_state, mut states) = (blueprint.states().count(), 0);
        let (mut n_attention, mut n_recurrent, mut n_moe) = (0, 0, 0);
        let mut part = |loader: &mut Loader<'_>, part: &blueprint::Part| {
            let of_part = part.states();
            states += of_part.len();
            // Numbers count from 0.
            let is_last = states == n_state;
            let (attention, recurrent) = (n_attention, n_recurrent);
            for state in of_part {
                match state {
                    State::Rows { .. } => n_attention += 1,
                    State::Recurrent { .. } => n_recurrent += 1,
                }
            }
            match part {
                blueprint::Part::Gqa(gqa) => {
                    let numbers = [attention, recurrent];
                    Ok(Part::Gqa(Box::new(Gqa::load(loader, gqa, numbers, is_last, &shapes)?)))
                }
                blueprint::Part::Compressed(part) => {
                    let numbers = [attention, recurrent];
                    Ok(Part::Compressed(Box::new(Compressed::load(loader, part, numbers, is_last, &shapes)?)))
                }
                blueprint::Part::DeltaNet(net) => Ok(Part::DeltaNet(DeltaNet::load(loader, net, recurrent, is_last)?)),
                blueprint::Part::Mamba2(mamba) => Ok(Part::Mamba2(Mamba2::load(loader, mamba, recurrent, is_last)?)),
                blueprint::Part::ShortConv(conv) => {
                    Ok(Part::ShortConv(ShortConv::load(loader, conv, recurrent, is_last)?))
                }
                blueprint::Part::NGram(ngram) => Ok(Part::NGram(NGram::load(loader, ngram, recurrent, is_last)?)),
                blueprint::Part::Dense(ffn) => Ok(Part::Dense(Dense::load(loader, ffn)?)),
                blueprint::Part::Moe(moe) => {
                    n_moe += 1;
                    Ok(Part::Moe(Moe::load(loader, moe, n_moe - 1)?))
                }
            }
        };
        let streams = [blueprint.n_stream, blueprint.n_embd];
        let blocks = blueprint.blocks.iter().map(|block| Block::load(&mut loader, block, streams, &mut part));
        let blocks = blocks.collect::<Result<_>>()?;
        let head = Head::load(&mut loader, &blueprint.head, streams)?;
        let ngrams = blueprint.ngrams.as_ref().map(|table| ngram::Table::new(gguf, table));
        let embed = Embed::new(gguf, &blueprint.embed, blueprint.embed_scale);
        Ok(Self { blueprint, path: gguf.path().to_owned(), embed, ngrams, ropes, blocks, head })
    }

    /// The bytes of the attention's and the output's matrices, most of the dense weights.
    pub fn weight_bytes(&self) -> Vec<&[u8]> {
        let mut mats = Vec::new();
        for branch in self.blocks.iter().flat_map(|block| &block.branches) {
            match &branch.part {
                Part::Gqa(gqa) => mats.extend(gqa.mats()),
                Part::Compressed(part) => mats.extend(part.mats()),
                Part::DeltaNet(net) => mats.extend(net.mats()),
                Part::Mamba2(mamba) => mats.extend(mamba.mats()),
                Part::ShortConv(conv) => mats.extend(conv.mats()),
                Part::NGram(ngram) => mats.extend(ngram.mats()),
                Part::Dense(_) | Part::Moe(_) => {}
            }
        }
        mats.push(&self.head.output.w);
        mats.into_iter().map(|mat| mat.view().data).collect()
    }

    /// Brings the dense weights into the order that the backend prefers.
    pub fn interleave(&mut self, b: &mut impl Backend) {
        let connections = self.blocks.iter_mut().filter_map(|block| block.connection.as_mut());
        for connection in connections.chain(&mut self.head.connection) {
            connection.mats_mut().for_each(|mat| mat.interleave(b));
        }
        for branch in self.blocks.iter_mut().flat_map(|block| &mut block.branches) {
            match &mut branch.part {
                Part::Gqa(gqa) => gqa.mats_mut().for_each(|mat| mat.interleave(b)),
                Part::Compressed(part) => part.mats_mut().for_each(|mat| mat.interleave(b)),
                Part::DeltaNet(net) => net.mats_mut().for_each(|mat| mat.interleave(b)),
                Part::Mamba2(mamba) => mamba.mats_mut().for_each(|mat| mat.interleave(b)),
                Part::ShortConv(conv) => conv.mats_mut().for_each(|mat| mat.interleave(b)),
                Part::NGram(ngram) => ngram.mats_mut().for_each(|mat| mat.interleave(b)),
                Part::Dense(ffn) => ffn.mats_mut().iter_mut().for_each(|mat| mat.interleave(b)),
                Part::Moe(moe) => moe.mats_mut().for_each(|mat| mat.interleave(b)),
            }
        }
        self.head.output.w.interleave(b);
    }
}

impl Block {
    fn load(
        loader: &mut Loader<'_>,
        block: &blueprint::Block,
        streams: [usize; 2],
        part: &mut impl FnMut(&mut Loader<'_>, &blueprint::Part) -> Result<Part>,
    ) -> Result<Self> {
        let branches = block.branches.iter().map(|branch| {
            let (has_sum, scale) = (branch.has_sum(), branch.scale);
            let part = part(loader, &branch.part)?;
            let norm = loader.norm_if_there(branch.norm.as_ref())?;
            Ok(Branch { norm, part, post: loader.norm_if_there(branch.post.as_ref())?, scale, has_sum })
        });
        let branches = branches.collect::<Result<_>>()?;
        let post = loader.norm_if_there(block.post.as_ref())?;
        let scale = loader.optional(block.scale.as_ref())?.first().copied().unwrap_or(1.0);
        let connection = Connection::load_if_any(loader, block.connection.as_ref(), streams)?;
        Ok(Self { layer: block.layer, connection, branches, post, scale, has_sum: block.has_sum() })
    }

    /// Adds to the residual stream. `ahead`: the blocks behind this one.
    fn add<B: Backend>(&self, cx: &mut Cx<'_, B>, ahead: &[Block]) -> Result<()> {
        if let Some(connection) = &self.connection {
            cx.read(connection);
        }
        if let (true, Some((Part::Moe(moe), _))) = (self.mixes(), ahead.first().and_then(Block::feed_forward)) {
            moe.score_early(cx);
            // Behind the last part that mixes tokens, those whose logits nobody wants need no experts.
            if !cx.has_unneeded() || ahead.iter().any(Block::mixes) {
                moe.request_early(cx);
            }
        }
        let target = if self.has_sum { Target::Block } else { Target::Stream };
        cx.begin(target);
        for (i, branch) in self.branches.iter().enumerate() {
            if let Part::Moe(moe) = &branch.part {
                moe.score_by_own_norm(cx);
            }
            if i == 0 || branch.norm.is_some() {
                cx.enter(branch.norm.as_ref());
            }
            if branch.has_sum {
                cx.begin(Target::Branch);
            }
            match &branch.part {
                Part::Gqa(gqa) => gqa.add(branch.norm.as_ref(), cx),
                Part::Compressed(part) => part.add(cx),
                Part::DeltaNet(net) => net.add(cx),
                Part::Mamba2(mamba) => mamba.add(cx),
                Part::ShortConv(conv) => conv.add(cx),
                Part::NGram(ngram) => ngram.add(cx),
                Part::Dense(ffn) => ffn.add(cx),
                Part::Moe(moe) => moe.add(cx, ahead)?,
            }
            if cx.is_done() {
                return Ok(());
            }
            cx.pass_on(target, branch.post.as_ref(), branch.scale);
        }
        match &self.connection {
            Some(connection) => cx.pass_on_through(connection, self.post.as_ref()),
            None => cx.pass_on(Target::Stream, self.post.as_ref(), 1.0),
        }
        if self.scale != 1.0 {
            cx.scale(self.scale);
        }
        Ok(())
    }

    /// The feed-forward part, and the norm of its input, if any: its own or that of a branch before it.
    fn feed_forward(&self) -> Option<(&Part, Option<&Norm>)> {
        let mut norm = None;
        self.branches.iter().find_map(|branch| {
            norm = branch.norm.as_ref().or(norm);
            if branch.mixes() { None } else { Some((&branch.part, norm)) }
        })
    }

    /// For people.
    fn name(&self) -> String {
        let part = match self.branches.first().map(|branch| &branch.part) {
            Some(Part::Gqa(_) | Part::Compressed(_)) => "attention",
            Some(Part::DeltaNet(_) | Part::Mamba2(_) | Part::ShortConv(_)) => "recurrent part",
            Some(Part::NGram(_)) => "memory of n-grams",
            Some(Part::Dense(_) | Part::Moe(_)) | None => "feed-forward part",
        };
        format!("the {part} of blk.{}", self.layer)
    }

    /// Whether it mixes a sequence's tokens, instead of taking each for itself.
    fn mixes(&self) -> bool {
        self.branches.iter().any(Branch::mixes)
    }
}

impl Branch {
    fn mixes(&self) -> bool {
        !matches!(self.part, Part::Dense(_) | Part::Moe(_))
    }
}

impl Head {
    fn load(loader: &mut Loader<'_>, head: &blueprint::Head, streams: [usize; 2]) -> Result<Self> {
        Ok(Self {
            connection: Connection::load_if_any(loader, head.connection.as_ref(), streams)?,
            norm: loader.norm_if_there(head.norm.as_ref())?,
            output: loader.linear(&head.output)?,
            scale: head.scale,
            soft_cap: head.soft_cap,
        })
    }

    /// The logits of the wanted rows. Returns the position of the first of them that has no finite logit: one is enough to
    /// draw a token by.
    fn logits<B: Backend>(&self, cx: &mut Cx<'_, B>) -> Option<usize> {
        cx.keep_wanted();
        if cx.is_done() {
            return None;
        }
        if let Some(connection) = &self.connection {
            cx.read(connection);
        }
        cx.enter(self.norm.as_ref());
        let w = self.output.w.view();
        let y = &mut cx.s.logits[..cx.s.norm.len() * w.rows];
        cx.b.matmul(&cx.s.norm, &mut [Product { w, y }]);
        self.output.finish(cx.b, &mut cx.s.logits[..cx.s.norm.len() * w.rows]);
        if self.scale != 1.0 || self.soft_cap.is_some() {
            let Cx { b, s, .. } = cx;
            let logits = &mut s.logits[..s.norm.len() * w.rows];
            b.each_row(logits, w.rows, 8 * w.rows, |_, row| {
                row.iter_mut().for_each(|x| *x *= self.scale);
                if let Some(cap) = self.soft_cap {
                    row.iter_mut().for_each(|x| *x = soft_cap(cap, *x));
                }
            });
        }
        let broken =
            cx.s.logits[..cx.len() * w.rows].chunks_exact(w.rows).position(|row| !row.iter().any(|x| x.is_finite()));
        Some(cx.pos_of(broken?))
    }
}
