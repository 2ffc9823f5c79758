//! What a batch is computed with, and which of its rows are still needed.

use super::{
    Batch, Scratch, Sequence, Span, Want,
    finite::first_broken_row,
    hyper::{Connection, StreamRows},
    load::Norm,
    rope::Rope,
};
use crate::{
    backend::{Backend, Floats},
    expert::Experts,
    model::Tier,
    trace::Phase,
};

/// What every forward pass of a model is computed with.
pub struct Workspace<'a, B> {
    /// The arithmetic.
    pub backend: &'a mut B,
    /// The door to the routed experts.
    pub experts: &'a mut Experts,
    /// A device that holds experts too, if there is one.
    pub tier: Option<&'a mut Tier>,
    /// The buffers.
    pub scratch: &'a mut Scratch,
}

/// See the module. The rows that are computed stand at the front of every buffer, one [`Run`] after another.
pub struct Cx<'a, B> {
    pub b: &'a mut B,
    pub seqs: &'a mut [Sequence],
    pub experts: &'a mut Experts,
    pub tier: Option<&'a mut Tier>,
    /// What the device has cost the present event so far, in nanoseconds.
    pub device_ns: u64,
    pub s: &'a mut Scratch,
    /// Width of a residual stream.
    pub n_embd: usize,
    /// Of all streams of a token.
    n_x: usize,
    /// Where parts add what they give.
    pub target: Target,
    /// The MoE layer whose experts were asked for before its mixer ran.
    pub requested: Option<u16>,
    /// Floats of a row that the block's connection has left in [`Scratch::weights`].
    n_weight: usize,
    /// Rows that are computed.
    n: usize,
    /// Whether nothing but the wanted rows is of use, computed or not.
    only_wanted: bool,
}

/// The rows of one span that are computed: its last ones.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// Whose tokens they are: a place among the sequences.
    pub seq: usize,
    /// The first of them among all rows that are computed.
    pub row: usize,
    /// How many.
    pub n: usize,
    /// Position of the first in its sequence.
    pub pos: usize,
    /// How many, the last ones, are wanted.
    wanted: usize,
    phase: Phase,
}

impl Run {
    /// Its rows of `cols` among all that are computed.
    pub fn of<'x, T>(&self, all: &'x [T], cols: usize) -> &'x [T] {
        &all[self.row * cols..(self.row + self.n) * cols]
    }

    /// The same for writing.
    pub fn of_mut<'x, T>(&self, all: &'x mut [T], cols: usize) -> &'x mut [T] {
        &mut all[self.row * cols..(self.row + self.n) * cols]
    }

    fn new(span: &Span) -> Self {
        let n = span.rows.len();
        let wanted = match span.want {
            Want::All => n,
            Want::Last => 1,
            Want::Nothing => 0,
        };
        Self { seq: span.seq, row: span.rows.start, n, pos: span.first_pos as usize, wanted, phase: span.phase }
    }
}

/// Where parts add what they give: to the residual stream, or to a sum beside it that is normed or scaled first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// [`Scratch::x`]
    Stream,
    /// [`Scratch::sum`], of a block's branches.
    Block,
    /// [`Scratch::branch`], of one branch.
    Branch,
}

impl Target {
    /// Its first `n` rows, of the three there are.
    pub fn rows(self, [x, sum, branch]: [&mut Floats; 3], n: usize, n_embd: usize) -> &mut [f32] {
        let all = match self {
            Target::Stream => x,
            Target::Block => sum,
            Target::Branch => branch,
        };
        &mut all[..n * n_embd]
    }
}

impl<'a, B: Backend> Cx<'a, B> {
    /// # Panics
    /// If the spans are not one after another the batch's tokens, each of a sequence of its own, where that ends; if the batch
    /// is empty, or larger than scratch or a context.
    pub fn new(
        workspace: Workspace<'a, B>,
        batch: &Batch<'_>,
        seqs: &'a mut [Sequence],
        [n_stream, n_embd]: [usize; 2],
    ) -> Self {
        let (n, Workspace { backend, experts, tier, scratch }) = (batch.tokens.len(), workspace);
        assert!(n > 0 && n <= scratch.n_batch(), "{n} tokens fit");
        scratch.runs.clear();
        let mut end = 0;
        for span in batch.spans {
            assert!(span.rows.start == end && !span.rows.is_empty(), "spans follow one another");
            assert!(scratch.runs.iter().all(|run| run.seq != span.seq), "one span of a sequence");
            end = span.rows.end;
            let (seq, n) = (&mut seqs[span.seq], span.rows.len());
            assert!(span.first_pos as usize == seq.len() && seq.len() + n <= seq.n_ctx(), "{n} tokens at its end fit");
            seq.begin(n);
            scratch.runs.push(Run::new(span));
        }
        assert_eq!(end, n, "spans hold all tokens");
        scratch.tokens[..n].copy_from_slice(batch.tokens);
        let n_x = n_stream * n_embd;
        Self {
            b: backend,
            seqs,
            experts,
            tier,
            device_ns: 0,
            s: scratch,
            n_embd,
            n_x,
            target: Target::Stream,
            requested: None,
            n_weight: 0,
            n,
            only_wanted: false,
        }
    }

    /// Rows that are computed.
    pub fn len(&self) -> usize {
        self.n
    }

    /// Width of all residual streams of a row.
    pub fn n_x(&self) -> usize {
        self.n_x
    }

    /// Whether no row is needed any more.
    pub fn is_done(&self) -> bool {
        self.n == 0
    }

    /// What caches and prefetchers are told of the batch: it decodes if every token of it was just sampled, one of each of
    /// several sequences; beside a prompt's tokens it is a prompt's.
    pub fn phase(&self) -> Phase {
        let decodes = self.s.runs.iter().all(|run| run.phase == Phase::Decode);
        if decodes { Phase::Decode } else { Phase::Prompt }
    }

    /// Position of the first row that is computed, in its sequence.
    pub fn first_pos(&self) -> usize {
        self.s.runs.first().map_or(0, |run| run.pos)
    }

    /// Puts the angles of all rows' positions into [`Scratch::turns`].
    pub fn rotate(&mut self, ropes: &[Rope]) {
        let Scratch { runs, turns, .. } = &mut *self.s;
        for (rope, turns) in ropes.iter().zip(turns) {
            runs.iter().for_each(|run| rope.angles(run.pos, run.n, &mut turns[run.row * rope.width()..]));
        }
    }

    /// Norms the rows that the block reads into [`Scratch::norm`], ready for products; without a norm, as they are.
    pub fn enter(&mut self, norm: Option<&Norm>) {
        let (n, n_embd, s) = (self.n, self.n_embd, &mut *self.s);
        let x = if self.n_x == n_embd { &s.x[..n * n_embd] } else { &s.input[..n * n_embd] };
        let out = s.norm.start(n);
        match norm {
            Some(norm) => norm.apply(self.b, x, out),
            None => out.copy_from_slice(x),
        }
        self.b.prepare(&mut s.norm);
    }

    /// Reads the rows of all residual streams into [`Scratch::input`].
    pub fn read(&mut self, connection: &Connection) {
        let (n, n_embd, s) = (self.n, self.n_embd, &mut *self.s);
        let rows = StreamRows { all: &mut s.streams, low: &mut s.low, gate: &mut s.moe.out, weights: &mut s.weights };
        self.n_weight = connection.n_weight();
        connection.read(self.b, &s.x[..n * self.n_x], rows, &mut s.input[..n * n_embd]);
    }

    /// Adds the block's sum to all residual streams, normed first.
    pub fn pass_on_through(&mut self, connection: &Connection, norm: Option<&Norm>) {
        let (n, n_embd, s) = (self.n, self.n_embd, &mut *self.s);
        self.target = Target::Stream;
        let sum = &mut s.sum[..n * n_embd];
        if let Some(norm) = norm {
            norm.apply_onto(self.b, sum);
        }
        connection.add(self.b, sum, &s.weights, &mut s.x[..n * self.n_x]);
    }

    /// From here on, parts add to `target`, which is empty.
    pub fn begin(&mut self, target: Target) {
        self.target = target;
        if target != Target::Stream {
            let (n, n_embd) = (self.n, self.n_embd);
            let Scratch { x, sum, branch, .. } = &mut *self.s;
            target.rows([x, sum, branch], n, n_embd).fill(0.0);
        }
    }

    /// `to += scale * norm(target)`; from here on, parts add to `to`.
    pub fn pass_on(&mut self, to: Target, norm: Option<&Norm>, scale: f32) {
        let (from, n, n_embd) = (self.target, self.n, self.n_embd);
        self.target = to;
        if from == to {
            return;
        }
        let Scratch { x, sum, branch, .. } = &mut *self.s;
        let (terms, y) = match from {
            Target::Block => (sum, x),
            Target::Branch if to == Target::Block => (branch, sum),
            Target::Branch => (branch, x),
            Target::Stream => unreachable!("the stream is passed on to nothing"),
        };
        let (terms, y) = [terms, y].map(|all| &mut all[..n * n_embd]).into();
        if let Some(norm) = norm {
            norm.apply_onto(self.b, terms);
        }
        self.b.add_weighted(y, n_embd, terms, |_| scale);
    }

    /// Multiplies the rows of the residual stream.
    pub fn scale(&mut self, scale: f32) {
        let n = self.n_x;
        let x = &mut self.s.x[..self.n * n];
        self.b.each_row(x, n, n, |_, row| row.iter_mut().for_each(|x| *x *= scale));
    }

    /// Whether [`Cx::drop_unneeded`] would drop any row. A trace wants every token's experts.
    pub fn has_unneeded(&self) -> bool {
        self.s.runs.iter().any(|run| run.wanted < run.n) && !self.experts.wants_every_token()
    }

    /// Goes on with the rows whose logits are wanted. For the last part that fills any state of the sequence: behind it no
    /// other row is of use, so a prompt of 512 tokens costs a layer less.
    pub fn drop_unneeded(&mut self) {
        if self.has_unneeded() {
            self.keep_wanted();
        }
        self.only_wanted = true;
    }

    /// Goes on with the rows whose logits are wanted, whoever else wants others: moves all that is known of a row.
    pub fn keep_wanted(&mut self) {
        let (n_embd, n_x, s) = (self.n_embd, self.n_x, &mut *self.s);
        let (scores, n_weight) = (s.moe.scores.len() / s.n_batch, self.n_weight);
        let mut to = 0;
        for run in &mut s.runs {
            let skip = run.n - run.wanted;
            let from = run.row + skip..run.row + run.n;
            if from.start != to {
                let shift = |x: &mut [f32], cols: usize| {
                    x.copy_within(from.start * cols..from.end * cols, to * cols);
                };
                s.tokens.copy_within(from.clone(), to);
                shift(&mut s.x, n_x);
                for added in [&mut s.input, &mut s.sum, &mut s.branch] {
                    if !added.is_empty() {
                        shift(added, n_embd);
                    }
                }
                shift(&mut s.weights, n_weight);
                shift(&mut s.moe.scores, scores);
                let words = s.index.chosen.len() / s.n_batch;
                s.index.chosen.copy_within(from.start * words..from.end * words, to * words);
                for turns in &mut s.turns {
                    let width = turns.len() / s.n_batch;
                    shift(turns, width);
                }
            }
            *run = Run { row: to, n: run.wanted, pos: run.pos + skip, ..*run };
            to += run.n;
        }
        s.runs.retain(|run| run.n > 0);
        self.n = to;
    }

    /// Position, in its sequence, of the first row that is needed and no number any more.
    pub fn broken(&self) -> Option<usize> {
        self.s.runs.iter().find_map(|run| {
            let skip = if self.only_wanted { run.n - run.wanted } else { 0 };
            let rows = &run.of(&self.s.x, self.n_x)[skip * self.n_x..];
            first_broken_row(rows, self.n_x).map(|row| run.pos + skip + row)
        })
    }

    /// Position of a row in its sequence.
    pub fn pos_of(&self, row: usize) -> usize {
        let run = self.s.runs.iter().find(|run| (run.row..run.row + run.n).contains(&row));
        run.map_or(0, |run| run.pos + row - run.row)
    }
}
