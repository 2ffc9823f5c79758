//! From a router's outputs to the experts of a token and their weights.
//!
//! Must not know: matrices, backends, caches.

use crate::{
    blueprint::{Choice, Groups, MAX_GROUPS, Score},
    id::ExpertId,
    trace::Routed,
};

/// The smallest divisor in renormalising weights: the smallest normal f16, as llama.cpp has it.
const MIN_WEIGHT_SUM: f32 = 6.103_515_6e-5;

/// Logistic function.
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// `ln(1 + exp(x))`, which is x where that overflows.
pub fn softplus(x: f32) -> f32 {
    if x > 20.0 { x } else { x.exp().ln_1p() }
}

/// What lookahead compares experts by, from their outputs in `x`: only the order counts.
pub fn selection_scores(choice: &Choice, bias: &[f32], x: &mut [f32]) {
    // Without a bias or groups, no score function changes the order.
    if !bias.is_empty() || choice.groups.is_some() {
        match choice.score {
            Score::Softmax => {
                let max = x.iter().fold(f32::NEG_INFINITY, |max, &v| max.max(v));
                x.iter_mut().for_each(|v| *v = (*v - max).exp());
                let sum: f32 = x.iter().sum();
                x.iter_mut().for_each(|v| *v /= sum);
            }
            Score::Sigmoid => x.iter_mut().for_each(|v| *v = sigmoid(*v)),
            Score::SqrtSoftplus => x.iter_mut().for_each(|v| *v = softplus(*v).sqrt()),
            Score::SoftmaxOfChosen => {}
        }
        x.iter_mut().zip(bias).for_each(|(v, b)| *v += b);
    }
    if let Some(groups) = choice.groups {
        let stands = best_groups(groups, |expert| x[expert], x.len());
        let each = x.len() / groups.n;
        let out = x.chunks_exact_mut(each).enumerate().filter(|(group, _)| stands >> group & 1 == 0);
        out.for_each(|(_, group)| group.fill(f32::NEG_INFINITY));
    }
}

/// Which groups stand for choice, a bit each: those whose two best scores, biased, have the largest sum (ties: the
/// lower number).
fn best_groups(groups: Groups, score: impl Fn(usize) -> f32, n_expert: usize) -> u64 {
    let (mut sums, each) = ([f32::NEG_INFINITY; MAX_GROUPS], n_expert / groups.n);
    for (group, sum) in sums[..groups.n].iter_mut().enumerate() {
        let (mut best, mut second) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
        for score in (group * each..(group + 1) * each).map(&score) {
            if score > best {
                (best, second) = (score, best);
            } else if score > second {
                second = score;
            }
        }
        *sum = if each > 1 { best + second } else { best };
    }
    let mut stands = 0u64;
    for _ in 0..groups.n_used {
        let left = (0..groups.n).filter(|group| stands >> group & 1 == 0);
        let best = left.reduce(|best, group| if sums[group] > sums[best] { group } else { best });
        stands |= best.map_or(0, |best| 1 << best);
    }
    stands
}

/// Chooses the experts of one row of MoE layer `layer`, best first, from the scores of all.
///
/// Those with the largest score, plus its `bias` if there are any (ties: the lower number), as many as `routed` has.
/// Weights are the scores without the bias, renormalised where the model does so, scaled.
pub fn route(choice: &Choice, layer: u16, scores: &[f32], bias: &[f32], routed: &mut [Routed]) {
    let biased = |expert: usize| if bias.is_empty() { scores[expert] } else { scores[expert] + bias[expert] };
    let stands = choice.groups.map(|groups| (best_groups(groups, biased, scores.len()), scores.len() / groups.n));
    // Until all are chosen, a weight is what experts are compared by.
    let mut n = 0;
    for expert in 0..scores.len() as u16 {
        if stands.as_ref().is_some_and(|(stands, each)| stands >> (usize::from(expert) / each) & 1 == 0) {
            continue;
        }
        let weight = biased(usize::from(expert));
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
    weigh(choice, scores, routed);
}

/// The weights of the experts that were chosen.
pub fn weigh(choice: &Choice, scores: &[f32], routed: &mut [Routed]) {
    routed.iter_mut().for_each(|r| r.weight = scores[usize::from(r.id.expert)]);
    if choice.score == Score::SoftmaxOfChosen {
        let max = routed.iter().fold(f32::NEG_INFINITY, |max, r| max.max(r.weight));
        routed.iter_mut().for_each(|r| r.weight = (r.weight - max).exp());
    }
    let sum: f32 = routed.iter().map(|r| r.weight).sum();
    let renormalise = choice.renormalise || choice.score == Score::SoftmaxOfChosen;
    let scale = choice.scale / if renormalise { sum.max(MIN_WEIGHT_SUM) } else { 1.0 };
    routed.iter_mut().for_each(|r| r.weight *= scale);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(choice: &Choice, scores: &[f32], bias: &[f32]) -> Vec<(u16, f32)> {
        let unset = Routed { id: ExpertId { layer: 3, expert: 0 }, weight: 0.0 };
        let mut routed = vec![unset; choice.n_expert_used];
        route(choice, 3, scores, bias, &mut routed);
        routed.iter().map(|r| (r.id.expert, r.weight)).collect()
    }

    #[test]
    fn the_best_are_chosen_by_biased_and_weighted_by_plain_scores() {
        let plain = Choice { score: Score::Sigmoid, n_expert_used: 2, renormalise: false, scale: 1.0, groups: None };
        let scores = [0.25, 0.75, 0.5, 0.75];
        assert_eq!(chosen(&plain, &scores, &[]), [(1, 0.75), (3, 0.75)]);
        assert_eq!(chosen(&plain, &scores, &[0.0, 0.0, 1.0, 0.0]), [(2, 0.5), (1, 0.75)]);
        let scaled = Choice { renormalise: true, scale: 5.0, ..plain };
        assert_eq!(chosen(&scaled, &scores, &[0.0, 0.0, 1.0, 0.0]), [(2, 2.0), (1, 3.0)]);
        let of_chosen = Choice { score: Score::SoftmaxOfChosen, ..plain };
        let two = 1.0 / (1.0 + (-2.0f32).exp());
        assert_eq!(chosen(&of_chosen, &[-1.0, 3.0, 0.0, 1.0], &[]), [(1, two), (3, (-2.0f32).exp() * two)]);
        // All at zero: the divisor is bounded.
        assert_eq!(chosen(&scaled, &[0.0; 4], &[]), [(0, 0.0), (1, 0.0)]);
    }

    #[test]
    fn only_the_best_groups_stand_for_choice() {
        let groups = Some(Groups { n: 3, n_used: 1 });
        let choice = Choice { score: Score::Sigmoid, n_expert_used: 2, renormalise: false, scale: 1.0, groups };
        // The largest score is in the first group, the largest sum of two in the second, and of three in the third.
        let scores = [0.9, 0.1, 0.1, 0.6, 0.5, 0.0, 0.5, 0.5, 0.5];
        assert_eq!(chosen(&choice, &scores, &[]), [(3, 0.6), (4, 0.5)]);
        let mut bias = [0.0; 9];
        bias[8] = 0.25;
        assert_eq!(chosen(&choice, &scores, &bias), [(8, 0.5), (6, 0.5)]);
        let two = Choice { groups: Some(Groups { n: 3, n_used: 2 }), n_expert_used: 3, ..choice };
        assert_eq!(chosen(&two, &scores, &[]), [(0, 0.9), (3, 0.6), (4, 0.5)], "ties: the lower group");
        let mut x = scores.map(|p: f32| (p / (1.0 - p)).ln());
        selection_scores(&choice, &[], &mut x);
        assert!(x.iter().enumerate().all(|(i, x)| x.is_finite() == (3..6).contains(&i) || i == 5), "{x:?}");
        // Scores that are no numbers choose experts all the same.
        assert_eq!(chosen(&choice, &[f32::NAN; 9], &[]).len(), 2);
    }

    #[test]
    fn lookahead_has_the_order_of_the_choice() {
        for score in [Score::Softmax, Score::Sigmoid, Score::SqrtSoftplus] {
            let choice = Choice { score, n_expert_used: 1, renormalise: true, scale: 1.0, groups: None };
            let mut x = [1.0, 3.0, 2.0, -1.0];
            selection_scores(&choice, &[], &mut x);
            assert_eq!(x, [1.0, 3.0, 2.0, -1.0], "outputs have it already");
            selection_scores(&choice, &[0.0, 0.0, 0.0, 4.0], &mut x);
            assert!(x[3] > x[1] && x[1] > x[2] && x[2] > x[0], "{x:?}");
        }
    }
}
