//! Routed experts, and the one that every token uses.

use super::{
    dense::everyone,
    router::{route, selection_scores, sigmoid, softplus, weigh},
};
use crate::{
    Result,
    backend::{Backend, FfnExtras, FfnJob, Floats, Hidden, Pair, Product, Rows},
    blueprint::{self, Act, Choice, RouterInput, Score, Tensor},
    expert::Experts,
    id::ExpertId,
    model::{
        Block, Part, Scratch,
        cx::Cx,
        hyper::StreamRows,
        load::{Gated, Linear, Loader, Mat, Norm},
    },
    trace::{LayerEvent, Phase, Routed},
};

/// See the module.
pub struct Moe {
    /// Number among the MoE layers.
    pub(super) index: u16,
    choice: Choice,
    /// (n_expert, n_embd)
    router: Linear,
    input: Input,
    /// (n_expert), or empty.
    select_bias: Vec<f32>,
    /// The experts of each token, or empty. (n_vocab, n_expert_used)
    by_token: Vec<u16>,
    act: Act,
    /// To the width of the experts, and back.
    latent: Option<[Linear; 2]>,
    /// Whether weights multiply what experts see, not what they give.
    weighs_input: bool,
    /// Of gate, up and down. (n_expert), or empty.
    scales: [Vec<f32>; 3],
    /// The same. (n_expert, rows), or empty.
    biases: [Vec<f32>; 3],
    shared: Option<Shared>,
}

/// What the router sees.
enum Input {
    /// What the experts see.
    Normed,
    /// The residual stream before the attention.
    Early,
    /// The residual stream behind it, with a norm of its own.
    Own(Norm),
}

/// The expert that every token uses.
struct Shared {
    ffn: Gated,
    /// Its weight: sigmoid of the product with the input. (1, n_embd)
    gate: Option<Mat>,
}

/// The buffers of feed-forward parts. Lengths are maxima; a batch uses the front.
pub struct MoeScratch {
    /// Router scores. (n_batch, n_expert)
    pub scores: Floats,
    /// Scores of the next layer, and of the one behind it. (n_expert)
    pub lookahead: Vec<f32>,
    /// The input of the router that is ahead. (1, n_embd)
    pub ahead: Rows,
    /// (n_batch, n_expert_used)
    pub routed: Vec<Routed>,
    /// Experts' outputs in routing order, (n_batch * n_expert_used, n_embd); before them the rows of an attention.
    pub out: Floats,
    /// The shared expert's or dense part's output. (n_batch, n_embd)
    pub shared: Floats,
    /// (n_batch)
    pub shared_gate: Vec<f32>,
    pub hidden: Hidden,
    pub pairs: Vec<Pair>,
    pub jobs: Vec<FfnJob<'static>>,
    pub ready: Vec<ExpertId>,
    /// First pair of each expert, by counting. (n_expert + 1)
    pub starts: Vec<u32>,
}

impl Moe {
    /// The MoE layer number `index`.
    pub fn load(loader: &mut Loader<'_>, moe: &blueprint::Moe, index: usize) -> Result<Self> {
        let shared = match &moe.shared {
            None => None,
            Some(shared) => Some(Shared {
                ffn: loader.gated(&shared.ffn)?,
                gate: shared.gate.as_ref().map(|gate| loader.mat(gate)).transpose()?,
            }),
        };
        let mut optional = |t: &Option<Tensor>| loader.optional(t.as_ref());
        let [s, b] = [&moe.scales, &moe.biases];
        let scales = [optional(&s[0])?, optional(&s[1])?, optional(&s[2])?];
        let biases = [optional(&b[0])?, optional(&b[1])?, optional(&b[2])?];
        let select_bias = optional(&moe.router.select_bias)?;
        let by_token = match &moe.router.by_token {
            Some(numbers) => loader.expert_numbers(numbers, moe.experts.n_expert)?,
            None => Vec::new(),
        };
        let (router, choice) = (loader.linear(&moe.router.w)?, moe.router.choice);
        let input = match &moe.router.input {
            RouterInput::Normed => Input::Normed,
            RouterInput::LayerInput => Input::Early,
            RouterInput::Own(norm) => Input::Own(loader.norm(norm)?),
        };
        let latent = match &moe.latent {
            Some([down, up]) => Some([loader.linear(down)?, loader.linear(up)?]),
            None => None,
        };
        let (index, act, weighs_input) = (index as u16, moe.act, moe.weighs_input);
        Ok(Self {
            index,
            choice,
            router,
            input,
            select_bias,
            by_token,
            act,
            latent,
            weighs_input,
            scales,
            biases,
            shared,
        })
    }

    /// All but a shared expert's gate, which is a single row.
    pub fn mats_mut(&mut self) -> impl Iterator<Item = &mut Mat> {
        let shared = self.shared.iter_mut().flat_map(|shared| &mut shared.ffn.mats);
        let latent = self.latent.iter_mut().flatten().map(|linear| &mut linear.w);
        shared.chain([&mut self.router.w]).chain(latent)
    }

    /// `x += Σ weight · expert(norm(x)) + shared(norm(x))`, where the rows have been normed already. `ahead`: the blocks
    /// behind this one.
    pub fn add<B: Backend>(&self, cx: &mut Cx<'_, B>, ahead: &[Block]) -> Result<()> {
        if let Input::Normed = self.input {
            self.score(cx);
        }
        self.route(cx);
        self.request(cx, ahead);
        let sort = |moe: &mut MoeScratch| moe.sort_pairs(self.choice.n_expert_used, self.weighs_input);
        sort(&mut cx.s.moe);
        self.start_on_device(cx);
        if let Some(shared) = &self.shared {
            // Computes while the disk works.
            everyone(&shared.ffn, cx);
            if let Some(gate) = &shared.gate {
                let y = &mut cx.s.moe.shared_gate[..cx.s.norm.len()];
                cx.b.matmul(&cx.s.norm, &mut [Product { w: gate.view(), y }]);
            }
            // It has had pairs of its own in their place.
            sort(&mut cx.s.moe);
        }
        self.narrow(cx);
        loop {
            self.compute_ready(cx)?;
            if self.finish_on_device(cx) {
                break;
            }
        }
        self.sum(cx);
        Ok(())
    }

    /// Computes the experts that come from memory, until all have.
    fn compute_ready<B: Backend>(&self, cx: &mut Cx<'_, B>) -> Result<()> {
        loop {
            cx.experts.next_ready(&mut cx.s.moe.ready)?;
            if cx.s.moe.ready.is_empty() {
                return Ok(());
            }
            self.upload(cx);
            let Cx { b, s, experts, tier, .. } = cx;
            experts.reorder_kept(&s.moe.ready, |w| b.interleave(w));
            let began = experts.now_ns();
            let rows = if self.latent.is_some() { &s.low } else { &s.norm };
            s.moe.compute(*b, rows, experts, |expert| self.extras(expert));
            if let Some(tier) = tier
                && s.norm.len() == 1
            {
                tier.cpu_took(s.moe.ready.len(), experts.now_ns() - began);
            }
        }
    }

    /// What lies between the matrices of one expert.
    pub(super) fn extras(&self, expert: usize) -> FfnExtras<'_> {
        let n_expert = self.router.w.view().rows;
        let rows = |x: &Vec<f32>| x.len() / n_expert;
        FfnExtras {
            act: self.act,
            scale: self.scales.each_ref().map(|scale| scale.get(expert).copied().unwrap_or(1.0)),
            bias: self.biases.each_ref().map(|bias| &bias[expert * rows(bias)..(expert + 1) * rows(bias)]),
        }
    }

    /// If the router sees the layer's input: scores of the rows as they are now, before the attention.
    pub fn score_early<B: Backend>(&self, cx: &mut Cx<'_, B>) {
        if let Input::Early = self.input {
            cx.enter(None);
            self.score(cx);
        }
    }

    /// If the router has a norm of its own: scores of the rows as they are now.
    pub fn score_by_own_norm<B: Backend>(&self, cx: &mut Cx<'_, B>) {
        if let Input::Own(norm) = &self.input {
            cx.enter(Some(norm));
            self.score(cx);
        }
    }

    /// Scores of all experts for the rows in [`Scratch::norm`](crate::model::Scratch).
    fn score<B: Backend>(&self, cx: &mut Cx<'_, B>) {
        let (n, n_expert) = (cx.len(), self.router.w.view().rows);
        let Cx { b, s, .. } = cx;
        let scores = &mut s.moe.scores[..n * n_expert];
        b.matmul(&s.norm, &mut [Product { w: self.router.w.view(), y: scores }]);
        self.router.finish(*b, scores);
        match self.choice.score {
            Score::Softmax => b.softmax(scores, n_expert),
            Score::Sigmoid => {
                b.each_row(scores, n_expert, 8 * n_expert, |_, row| row.iter_mut().for_each(|x| *x = sigmoid(*x)));
            }
            Score::SqrtSoftplus => {
                b.each_row(scores, n_expert, 12 * n_expert, |_, row| {
                    row.iter_mut().for_each(|x| *x = softplus(*x).sqrt());
                });
            }
            Score::SoftmaxOfChosen => {}
        }
    }

    /// Chooses each row's experts.
    fn route<B: Backend>(&self, cx: &mut Cx<'_, B>) {
        let (n, n_expert_used, n_expert) = (cx.len(), self.choice.n_expert_used, self.router.w.view().rows);
        let Cx { b, s, .. } = cx;
        let scores = &s.moe.scores[..n * n_expert];
        let unset = Routed { id: ExpertId { layer: self.index, expert: 0 }, weight: 0.0 };
        s.moe.routed.resize(n * n_expert_used, unset);
        if !self.by_token.is_empty() {
            self.look_up(&s.tokens[..n], &mut s.moe.routed);
        }
        b.each_row(&mut s.moe.routed, n_expert_used, 16 * n_expert, |i, routed| {
            let scores = &scores[i * n_expert..(i + 1) * n_expert];
            if self.by_token.is_empty() {
                route(&self.choice, self.index, scores, &self.select_bias, routed);
            } else {
                weigh(&self.choice, scores, routed);
            }
        });
    }

    /// The experts of each row's token, not weighted yet.
    fn look_up(&self, tokens: &[u32], routed: &mut Vec<Routed>) {
        let weight = 1.0 / self.choice.n_expert_used as f32;
        let experts = tokens.iter().flat_map(|&token| self.experts_of(token));
        routed.clear();
        routed.extend(experts.map(|&expert| Routed { id: ExpertId { layer: self.index, expert }, weight }));
    }

    fn experts_of(&self, token: u32) -> &[u16] {
        let (n, token) = (self.choice.n_expert_used, token as usize);
        &self.by_token[token * n..(token + 1) * n]
    }

    /// Asks for the experts before the layer's mixer runs, where they are known by then: from the layer's input or from the
    /// tokens alone.
    pub fn request_early<B: Backend>(&self, cx: &mut Cx<'_, B>) {
        if !self.by_token.is_empty() {
            let n = cx.len();
            self.look_up(&cx.s.tokens[..n], &mut cx.s.moe.routed);
        } else if let Input::Early = self.input {
            self.route(cx);
        } else {
            return;
        }
        let (event, experts) = self.event(cx, false);
        experts.request_early(event);
        cx.requested = Some(self.index);
    }

    /// Asks for the experts, and says what the next layer may want.
    fn request<B: Backend>(&self, cx: &mut Cx<'_, B>, ahead: &[Block]) {
        // Scores are of one token: of several sequences' tokens there are none.
        let wanted = cx.phase() == Phase::Decode && cx.len() == 1 && cx.experts.wants_scores(self.index);
        let scored = wanted && look_ahead(cx, ahead);
        let early = cx.requested == Some(self.index);
        let (event, experts) = self.event(cx, scored);
        if early { experts.request_rest(event) } else { experts.request(event) }
    }

    /// The experts that were chosen, with the next layer's scores if it was `scored`; and whom to tell.
    fn event<'x, B: Backend>(&self, cx: &'x mut Cx<'_, B>, scored: bool) -> (LayerEvent<'x>, &'x mut Experts) {
        let (phase, first_token, n_tokens) = (cx.phase(), cx.first_pos() as u32, cx.len() as u32);
        let moe = &cx.s.moe;
        let event = LayerEvent {
            phase,
            first_token,
            n_tokens,
            layer: self.index,
            routed: &moe.routed,
            lookahead: if scored { &moe.lookahead } else { &[] },
        };
        (event, cx.experts)
    }

    /// What the experts read, where that is not what the router does: in [`Scratch::low`].
    fn narrow<B: Backend>(&self, cx: &mut Cx<'_, B>) {
        let Some([down, _]) = &self.latent else { return };
        let Cx { b, s, .. } = cx;
        let (w, n) = (down.w.view(), s.norm.len());
        let y = s.low.start_wide(n, w.rows);
        b.matmul(&s.norm, &mut [Product { w, y }]);
        down.finish(*b, y);
        b.prepare(&mut s.low);
    }

    /// Adds up in routing order, whatever the order of arrival.
    fn sum<B: Backend>(&self, cx: &mut Cx<'_, B>) {
        let (n, n_embd) = (cx.len(), cx.n_embd);
        let Cx { b, s, target, .. } = cx;
        let Scratch { x, sum, branch, moe, low, .. } = &mut **s;
        let x = target.rows([x, sum, branch], n, n_embd);
        let weight = |r: usize| if self.weighs_input { 1.0 } else { moe.routed[r].weight };
        if let Some([_, up]) = &self.latent {
            let w = up.w.view();
            let sums = low.start_wide(n, w.cols);
            sums.fill(0.0);
            b.add_weighted(sums, w.cols, &moe.out[..moe.routed.len() * w.cols], weight);
            b.prepare(low);
            let y = &mut moe.out[..n * n_embd];
            b.matmul(low, &mut [Product { w, y }]);
            up.finish(*b, y);
            b.add_weighted(x, n_embd, y, |_| 1.0);
        } else {
            b.add_weighted(x, n_embd, &moe.out[..moe.routed.len() * n_embd], weight);
        }
        if let Some(shared) = &self.shared {
            let gate = |i: usize| if shared.gate.is_some() { sigmoid(moe.shared_gate[i]) } else { 1.0 };
            b.add_weighted(x, n_embd, &moe.shared[..n * n_embd], gate);
        }
    }
}

/// Estimates the router scores of the next layer from the residual stream as it is before this layer's experts, of one
/// token. False where that layer has no router.
fn look_ahead<B: Backend>(cx: &mut Cx<'_, B>, ahead: &[Block]) -> bool {
    let n_x = cx.n_x();
    let Cx { b, s, .. } = cx;
    let Scratch { tokens, x, streams, low, weights, moe, .. } = &mut **s;
    let x = &x[..n_x];
    let mut ahead = ahead.iter().filter_map(|block| Some((block.feed_forward()?, &block.connection)));
    let Some(((Part::Moe(next), norm), connection)) = ahead.next() else { return false };
    let scores = &mut moe.lookahead;
    if next.by_token.is_empty() {
        let row = moe.ahead.start(1);
        match connection {
            Some(connection) => {
                // The last weights are nobody's else: those before are still to be added with.
                let first = weights.len() - connection.n_weight();
                let weights = &mut weights[first..];
                connection.read(*b, x, StreamRows { all: streams, low, gate: &mut moe.out, weights }, row);
            }
            None => row.copy_from_slice(x),
        }
        match (&next.input, norm) {
            (Input::Normed, Some(norm)) | (Input::Own(norm), _) => norm.apply_onto(*b, row),
            (Input::Normed, None) | (Input::Early, _) => {}
        }
        b.prepare(&mut moe.ahead);
        b.matmul(&moe.ahead, &mut [Product { w: next.router.w.view(), y: scores }]);
        next.router.finish(*b, scores);
        selection_scores(&next.choice, &next.select_bias, scores);
    } else {
        // No estimate: these are its experts.
        scores.fill(0.0);
        next.experts_of(tokens[0]).iter().for_each(|&expert| scores[usize::from(expert)] = 1.0);
    }
    true
}

impl MoeScratch {
    /// Sorts the (row, expert) pairs by expert, so that an expert's rows are contiguous in `pairs` from `starts[expert]`.
    /// `weighs_input`: inputs are multiplied by the expert's weight.
    fn sort_pairs(&mut self, n_expert_used: usize, weighs_input: bool) {
        self.starts.fill(0);
        for r in &self.routed {
            self.starts[r.id.expert as usize + 1] += 1;
        }
        for e in 1..self.starts.len() {
            self.starts[e] += self.starts[e - 1];
        }
        for (i, r) in self.routed.iter().enumerate() {
            let at = &mut self.starts[r.id.expert as usize];
            let scale = if weighs_input { r.weight } else { 1.0 };
            self.pairs[*at as usize] = Pair { row: (i / n_expert_used) as u32, out: i as u32, scale };
            *at += 1;
        }
        // Each start has moved to its end, which is the next one's start.
        self.starts.rotate_right(1);
        self.starts[0] = 0;
    }

    /// Computes the experts in `ready`, as many at once as the hidden rows allow.
    fn compute<'m>(
        &mut self,
        b: &mut impl Backend,
        norm: &Rows,
        experts: &'m Experts,
        extras: impl Fn(usize) -> FfnExtras<'m>,
    ) {
        let mut jobs = recycle(std::mem::take(&mut self.jobs));
        let mut flush = |jobs: &mut Vec<FfnJob<'_>>, hidden: &mut Hidden| {
            if !jobs.is_empty() {
                b.ffn(norm, jobs, &self.pairs, hidden, &mut self.out);
                jobs.clear();
            }
        };
        if norm.len() > 1 {
            // As `Backend::ffn` prefers them.
            let tokens = |id: &ExpertId| self.starts[id.expert as usize + 1] - self.starts[id.expert as usize];
            self.ready.sort_unstable_by_key(|id| std::cmp::Reverse(tokens(id)));
        }
        let mut n_pairs = 0;
        for &id in &self.ready {
            let (mats, extras) = (experts.get(id), extras(usize::from(id.expert)));
            let room = self.hidden.pairs(mats.n_ff());
            let mut pairs = self.starts[id.expert as usize] as usize..self.starts[id.expert as usize + 1] as usize;
            while !pairs.is_empty() {
                if n_pairs == room {
                    flush(&mut jobs, &mut self.hidden);
                    n_pairs = 0;
                }
                let n = pairs.len().min(room - n_pairs);
                jobs.push(FfnJob { mats, extras, pairs: pairs.start..pairs.start + n, hidden: n_pairs });
                (pairs.start, n_pairs) = (pairs.start + n, n_pairs + n);
            }
        }
        flush(&mut jobs, &mut self.hidden);
        self.jobs = recycle(jobs);
    }
}

/// Keeps a vector's memory while its elements' lifetime changes. (Collecting an emptied vector reuses its allocation.)
fn recycle<'b>(mut jobs: Vec<FfnJob<'_>>) -> Vec<FfnJob<'b>> {
    jobs.clear();
    jobs.into_iter().map(|_| unreachable!("cleared")).collect()
}
