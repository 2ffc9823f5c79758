//! The feed-forward part of a layer: router, routed experts, shared expert.

use super::{
    Config,
    scratch::MoeScratch,
    weights::{DenseFfn, Layer, MoeWeights},
};
use crate::{
    Result,
    backend::{Backend, FfnJob, Hidden, Pair, Product, Rows},
    expert::Experts,
    id::ExpertId,
    model::weights::Ffn,
    trace::{LayerEvent, Phase, Routed},
};

/// The smallest divisor in renormalising weights: the smallest normal f16, as llama.cpp has it.
const MIN_WEIGHT_SUM: f32 = 6.103_515_6e-5;

/// A dense block: every row takes it. `x += ffn(norm)`.
pub(super) fn dense(b: &mut impl Backend, ffn: &DenseFfn, norm: &Rows, s: &mut MoeScratch, x: &mut [f32]) {
    everyone(b, ffn, norm, &mut s.hidden, &mut s.pairs, &mut s.shared);
    b.add_weighted(x, norm.cols(), &s.shared[..x.len()], |_| 1.0);
}

/// `out[i] = ffn(norm[i])` for every row.
fn everyone(
    b: &mut impl Backend,
    ffn: &DenseFfn,
    norm: &Rows,
    hidden: &mut Hidden,
    pairs: &mut [Pair],
    out: &mut [f32],
) {
    let at_once = hidden.pairs(ffn.view().n_ff()).min(pairs.len());
    for start in (0..norm.len()).step_by(at_once) {
        let n = at_once.min(norm.len() - start);
        for (i, pair) in pairs[..n].iter_mut().enumerate() {
            *pair = Pair { row: (start + i) as u32, out: (start + i) as u32 };
        }
        b.ffn(norm, &[FfnJob { mats: ffn.view(), pairs: 0..n, hidden: 0 }], &pairs[..n], hidden, out);
    }
}

/// One MoE layer over the rows of `norm`: `x += Σ weight · expert(norm) + shared(norm)`.
#[expect(clippy::too_many_arguments, reason = "what one layer of one batch consists of")]
pub(super) fn forward(
    b: &mut impl Backend,
    c: &Config,
    w: &MoeWeights,
    ahead: &[Layer],
    phase: Phase,
    pos: usize,
    norm: &Rows,
    s: &mut MoeScratch,
    experts: &mut Experts,
    x: &mut [f32],
) -> Result<()> {
    let n = norm.len();
    let scores = &mut s.scores[..n * c.n_expert];
    b.matmul(norm, &mut [Product { w: w.router.view(), y: scores }]);
    b.softmax(scores, c.n_expert);
    let nobody = Routed { id: ExpertId { layer: w.index as u16, expert: 0 }, weight: 0.0 };
    s.routed.resize(n * c.n_expert_used, nobody);
    b.each_row(&mut s.routed, c.n_expert_used, 16 * c.n_expert, |i, routed| {
        route(c, w.index as u16, &scores[i * c.n_expert..(i + 1) * c.n_expert], routed);
    });
    let horizon = if phase == Phase::Decode { experts.horizon(w.index as u16) } else { 0 };
    let scored = look_ahead(b, c, ahead, horizon, x, s);

    experts.request(LayerEvent {
        phase,
        first_token: pos as u32,
        n_tokens: n as u32,
        layer: w.index as u16,
        routed: &s.routed,
        lookahead: if scored > 0 { &s.lookahead[0] } else { &[] },
        lookahead2: if scored > 1 { &s.lookahead[1] } else { &[] },
    });
    if let Some(shared) = &w.shared {
        // Computes while the disk works.
        everyone(b, shared, norm, &mut s.hidden, &mut s.pairs, &mut s.shared);
        if let Some(gate) = &w.shared_gate {
            b.matmul(norm, &mut [Product { w: gate.view(), y: &mut s.shared_gate[..n] }]);
        }
    }
    sort_pairs(c, s);
    loop {
        experts.next_ready(&mut s.ready)?;
        if s.ready.is_empty() {
            break;
        }
        experts.reorder_kept(&s.ready, |w| b.interleave(w));
        compute(b, norm, experts, s);
    }
    // In routing order, whatever the order of arrival.
    b.add_weighted(x, c.n_embd, &s.out[..n * c.n_expert_used * c.n_embd], |r| s.routed[r].weight);
    if w.shared.is_some() {
        let gate = |i: usize| if w.shared_gate.is_some() { 1.0 / (1.0 + (-s.shared_gate[i]).exp()) } else { 1.0 };
        b.add_weighted(x, c.n_embd, &s.shared[..n * c.n_embd], gate);
    }
    Ok(())
}

/// Chooses the experts of one row, best first, from the softmax of the scores of all.
///
/// The `n_expert_used` largest (ties: the lower number), renormalised where the architecture does so.
fn route(c: &Config, layer: u16, probabilities: &[f32], routed: &mut [Routed]) {
    let mut n = 0;
    for (expert, &weight) in (0u16..).zip(probabilities) {
        // Those before it go first unless it is larger.
        let better = |r: &Routed| weight.total_cmp(&r.weight).is_gt();
        if n == routed.len() && !routed.last().is_some_and(better) {
            continue;
        }
        n = routed.len().min(n + 1);
        let mut at = n - 1;
        while at > 0 && better(&routed[at - 1]) {
            routed[at] = routed[at - 1];
            at -= 1;
        }
        routed[at] = Routed { id: ExpertId { layer, expert }, weight };
    }
    if c.arch.renormalise {
        let sum: f32 = routed.iter().map(|r| r.weight).sum();
        let scale = 1.0 / sum.max(MIN_WEIGHT_SUM);
        routed.iter_mut().for_each(|r| r.weight *= scale);
    }
}

/// Estimates the router scores of the next layers, `horizon` of them, from the residual stream as it is before this
/// layer's experts. Returns of how many: it ends at a layer without a router.
fn look_ahead(b: &mut impl Backend, c: &Config, ahead: &[Layer], horizon: u16, x: &[f32], s: &mut MoeScratch) -> usize {
    let mut scored = 0;
    for (layer, scores) in ahead.iter().zip(&mut s.lookahead).take(usize::from(horizon)) {
        let Layer { ffn: Ffn::Moe(moe), ffn_norm, .. } = layer else { break };
        b.rms_norm(x, ffn_norm, c.rms_eps, s.ahead.start(1));
        b.prepare(&mut s.ahead);
        b.matmul(&s.ahead, &mut [Product { w: moe.router.view(), y: scores }]);
        scored += 1;
    }
    scored
}

/// Sorts the (row, expert) pairs by expert, so that an expert's rows are contiguous in `pairs` from `starts[expert]`.
fn sort_pairs(c: &Config, s: &mut MoeScratch) {
    s.starts.fill(0);
    for r in &s.routed {
        s.starts[r.id.expert as usize + 1] += 1;
    }
    for e in 0..c.n_expert {
        s.starts[e + 1] += s.starts[e];
    }
    for (i, r) in s.routed.iter().enumerate() {
        let at = &mut s.starts[r.id.expert as usize];
        s.pairs[*at as usize] = Pair { row: (i / c.n_expert_used) as u32, out: i as u32 };
        *at += 1;
    }
    // Each start has moved to its end, which is the next one's start.
    s.starts.rotate_right(1);
    s.starts[0] = 0;
}

/// Computes the experts in `ready`, as many at once as the hidden rows allow.
fn compute(b: &mut impl Backend, norm: &Rows, experts: &Experts, s: &mut MoeScratch) {
    let mut jobs = recycle(std::mem::take(&mut s.jobs));
    let mut flush = |jobs: &mut Vec<FfnJob<'_>>, hidden: &mut Hidden| {
        if !jobs.is_empty() {
            b.ffn(norm, jobs, &s.pairs, hidden, &mut s.out);
            jobs.clear();
        }
    };
    if norm.len() > 1 {
        // As `Backend::ffn` likes them.
        let tokens = |id: &ExpertId| s.starts[id.expert as usize + 1] - s.starts[id.expert as usize];
        s.ready.sort_unstable_by_key(|id| std::cmp::Reverse(tokens(id)));
    }
    let mut n_pairs = 0;
    for &id in &s.ready {
        let mats = experts.get(id);
        let room = s.hidden.pairs(mats.n_ff());
        let mut pairs = s.starts[id.expert as usize] as usize..s.starts[id.expert as usize + 1] as usize;
        while !pairs.is_empty() {
            if n_pairs == room {
                flush(&mut jobs, &mut s.hidden);
                n_pairs = 0;
            }
            let n = pairs.len().min(room - n_pairs);
            jobs.push(FfnJob { mats, pairs: pairs.start..pairs.start + n, hidden: n_pairs });
            (pairs.start, n_pairs) = (pairs.start + n, n_pairs + n);
        }
    }
    flush(&mut jobs, &mut s.hidden);
    s.jobs = recycle(jobs);
}

/// Keeps a vector's memory while its elements' lifetime changes. (Collecting an emptied vector reuses its allocation.)
fn recycle<'b>(mut jobs: Vec<FfnJob<'_>>) -> Vec<FfnJob<'b>> {
    jobs.clear();
    jobs.into_iter().map(|_| unreachable!("cleared")).collect()
}
