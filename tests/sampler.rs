//! The sampler against a naive implementation of the same steps, and each option by its effect.

use std::collections::HashMap;

use hotset::{
    Error,
    sampler::{Constraint, Sampler, SamplerConfig, log_probs},
};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

/// All steps off.
const PLAIN: SamplerConfig = SamplerConfig {
    temperature: 1.0,
    top_k: 0,
    top_p: 1.0,
    min_p: 0.0,
    repeat_penalty: 1.0,
    presence_penalty: 0.0,
    frequency_penalty: 0.0,
    repeat_last_n: 64,
    seed: 1,
};

/// Probabilities by id, the slow way: full sorts, fresh vectors, f64.
fn naive(config: &SamplerConfig, logits: &[f32], recent: &[u32]) -> HashMap<u32, f64> {
    let mut all: Vec<(u32, f64)> = (0..).zip(logits.iter().map(|&logit| f64::from(logit))).collect();
    let window = &recent[recent.len().saturating_sub(config.repeat_last_n)..];
    for (id, logit) in &mut all {
        let count = window.iter().filter(|recent| *recent == id).count();
        if count > 0 {
            let penalty = f64::from(config.repeat_penalty);
            *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
            *logit -= count as f64 * f64::from(config.frequency_penalty) + f64::from(config.presence_penalty);
        }
    }
    all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    if config.top_k > 0 {
        all.truncate(config.top_k);
    }
    let softmax = |all: &[(u32, f64)], temperature: f64| -> Vec<f64> {
        let weights: Vec<f64> = all.iter().map(|&(_, logit)| ((logit - all[0].1) / temperature).exp()).collect();
        let total: f64 = weights.iter().sum();
        weights.iter().map(|weight| weight / total).collect()
    };
    let shares = softmax(&all, 1.0);
    let mut reached = 0.0;
    let kept = shares.iter().take_while(|&&share| {
        let more = reached < f64::from(config.top_p);
        reached += share;
        more
    });
    let n = kept.count();
    all.truncate(n);
    let shares = softmax(&all, 1.0);
    let n = shares.iter().filter(|&&share| share >= f64::from(config.min_p) * shares[0]).count();
    all.truncate(n);
    let shares = softmax(&all, f64::from(config.temperature));
    all.into_iter().map(|(id, _)| id).zip(shares).collect()
}

fn histogram(config: SamplerConfig, logits: &[f32], recent: &[u32], n: usize) -> HashMap<u32, f64> {
    let mut sampler = Sampler::new(config, logits.len()).expect("the options are in range");
    recent.iter().for_each(|&token| sampler.accept(token));
    let mut counts = HashMap::new();
    for _ in 0..n {
        *counts.entry(sampler.sample(logits)).or_insert(0.0) += 1.0 / n as f64;
    }
    counts
}

fn sequence(config: SamplerConfig, logits: &[f32], n: usize) -> Vec<u32> {
    let mut sampler = Sampler::new(config, logits.len()).expect("the options are in range");
    (0..n).map(|_| sampler.sample(logits)).collect()
}

/// A pseudo-random logit for each of `n` tokens, between -5 and 5.
fn logits(n: u32) -> Vec<f32> {
    (0..n).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 24) as f32 * 10.0 - 5.0).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, rng_seed: RngSeed::Fixed(1), ..ProptestConfig::default() })]

    #[test]
    fn draws_follow_the_naive_distribution(
        steps in prop::collection::vec(-40i32..40, 2..30),
        (temperature, top_k, top_p, min_p) in (0.2f32..2.0, 0usize..12, 0.3f32..=1.0, 0.0f32..0.3),
        (repeat_penalty, repeat_last_n, seed) in (0.8f32..2.0, 0usize..5, any::<u64>()),
        (presence_penalty, frequency_penalty) in (-1.0f32..1.0, -1.0f32..1.0),
        recent in prop::collection::vec(0u32..2, 0..8),
    ) {
        let config = SamplerConfig {
            temperature, top_k, top_p, min_p, repeat_penalty, presence_penalty, frequency_penalty, repeat_last_n, seed,
        };
        // Coarse steps, each a little apart, so that f32 and f64 agree on which side of a threshold a token is.
        let logits: Vec<f32> = steps.iter().enumerate().map(|(i, &s)| s as f32 * 0.25 + i as f32 * 0.0037).collect();
        let expected = naive(&config, &logits, &recent);
        let got = histogram(config, &logits, &recent, 4000);
        for id in 0..logits.len() as u32 {
            let (e, g) = (expected.get(&id).copied().unwrap_or(0.0), got.get(&id).copied().unwrap_or(0.0));
            // Five standard deviations of 4,000 draws; the fixed seed keeps the test from failing by chance.
            prop_assert!((e - g).abs() <= 5.0 * (e * (1.0 - e) / 4000.0).sqrt() + 1e-3, "token {id}: {e} {g}");
        }
    }

    #[test]
    fn hostile_logits_give_a_token(
        logits in prop::collection::vec(prop_oneof![
            Just(f32::NAN), Just(f32::INFINITY), Just(f32::NEG_INFINITY), Just(0.0), Just(f32::MAX), -9.0f32..9.0,
        ], 1..20),
        (temperature, top_k, top_p) in (0.0f32..2.0, 0usize..4, 0.1f32..=1.0),
    ) {
        let config = SamplerConfig { temperature, top_k, top_p, repeat_penalty: 1.5, ..PLAIN };
        let mut sampler = Sampler::new(config, logits.len()).expect("the options are in range");
        sampler.accept(0);
        let token = sampler.sample(&logits);
        prop_assert!((token as usize) < logits.len());
        if logits.iter().any(|&logit| logit > f32::NEG_INFINITY) {
            prop_assert!(logits[token as usize] > f32::NEG_INFINITY, "{token} of {logits:?}");
        }
    }
}

#[test]
fn greedy_takes_the_lowest_of_equals() {
    let mut sampler = Sampler::new(SamplerConfig::greedy(), 5).expect("in range");
    assert_eq!(sampler.sample(&[0.0, 3.0, 3.0, -1.0, 3.0]), 1);
    assert_eq!(sampler.sample(&[f32::NAN, f32::NAN, -2.0, f32::NAN, -3.0]), 2);
    assert_eq!(sampler.sample(&[f32::NAN; 5]), 0);
}

#[test]
fn a_long_nucleus_is_the_naive_one() {
    let logits = logits(3000); // its nucleus is sorted in more than one step
    let config = SamplerConfig { top_p: 0.9, temperature: 50.0, ..PLAIN };
    let expected = naive(&config, &logits, &[]);
    let got = histogram(config, &logits, &[], 20_000);
    assert!(expected.len() > 600, "{}", expected.len());
    assert!(got.keys().all(|id| expected.contains_key(id)));
    assert_eq!(got.len(), expected.len(), "nearly uniform: every token of the nucleus is drawn");
}

#[test]
fn a_seed_fixes_the_sequence() {
    let logits = logits(1000);
    let config = SamplerConfig { seed: 42, ..SamplerConfig::default() };
    assert_eq!(sequence(config, &logits, 100), sequence(config, &logits, 100));
    assert_ne!(sequence(config, &logits, 100), sequence(SamplerConfig { seed: 43, ..config }, &logits, 100));
    let mut sampler = Sampler::new(config, logits.len()).expect("in range");
    let first: Vec<u32> = (0..20).map(|_| sampler.sample(&logits)).collect();
    sampler.reset();
    assert_eq!(first, (0..20).map(|_| sampler.sample(&logits)).collect::<Vec<_>>());
}

#[test]
fn the_sequence_of_a_seed_never_changes() {
    // Computed by a separate implementation of xoshiro256++ and splitmix64: a change breaks the promise on `seed`.
    let config = SamplerConfig { seed: 7, ..PLAIN };
    assert_eq!(sequence(config, &[0.0; 100], 8), [5, 17, 71, 42, 96, 46, 72, 32]);
}

#[test]
fn every_option_has_an_effect() {
    let logits = logits(200);
    let distinct = |config| histogram(config, &logits, &[3], 3000).len();
    let all = distinct(PLAIN);
    assert!(distinct(SamplerConfig { temperature: 0.3, ..PLAIN }) < all);
    assert_eq!(distinct(SamplerConfig { top_k: 5, temperature: 2.0, ..PLAIN }), 5);
    assert!(distinct(SamplerConfig { top_p: 0.5, ..PLAIN }) < all / 2);
    assert!(distinct(SamplerConfig { min_p: 0.5, ..PLAIN }) < all / 2);
    let best = sequence(SamplerConfig::greedy(), &logits, 1)[0];
    let mut sampler =
        Sampler::new(SamplerConfig { repeat_penalty: 9.0, repeat_last_n: 2, ..SamplerConfig::greedy() }, 200)
            .expect("in range");
    assert_eq!(sampler.sample(&logits), best);
    sampler.accept(best);
    assert_ne!(sampler.sample(&logits), best, "penalised");
    sampler.accept(0);
    sampler.accept(1);
    assert_eq!(sampler.sample(&logits), best, "forgotten after repeat_last_n tokens");
    sampler.accept(u32::MAX); // outside the vocabulary: ignored
}

#[test]
fn options_out_of_range_are_named() {
    let cases = [
        (SamplerConfig { temperature: -1.0, ..PLAIN }, "temperature"),
        (SamplerConfig { temperature: f32::NAN, ..PLAIN }, "temperature"),
        (SamplerConfig { top_p: 0.0, ..PLAIN }, "top_p"),
        (SamplerConfig { top_p: 1.5, ..PLAIN }, "top_p"),
        (SamplerConfig { min_p: -0.1, ..PLAIN }, "min_p"),
        (SamplerConfig { repeat_penalty: 0.0, ..PLAIN }, "repeat_penalty"),
        (SamplerConfig { repeat_last_n: usize::MAX, ..PLAIN }, "repeat_last_n"),
        (SamplerConfig { presence_penalty: 2.5, ..PLAIN }, "presence_penalty"),
        (SamplerConfig { frequency_penalty: f32::NAN, ..PLAIN }, "frequency_penalty"),
    ];
    for (config, option) in cases {
        let error = Sampler::new(config, 10).err().expect("out of range");
        assert!(error.to_string().starts_with(&format!("{option} must be ")), "{error}");
    }
    assert!(Sampler::new(PLAIN, 0).is_err());
}

/// Ties across the edge of top-k, in a vocabulary long enough that candidates are thrown out on the way.
#[test]
fn top_k_of_a_long_vocabulary_is_the_naive_one() {
    let config = SamplerConfig { top_k: 40, ..PLAIN };
    // Few distinct values, the large ones rare and late as well as early: 0.0 to 4.9.
    let logits: Vec<f32> = (0..20_000u64).map(|i| (((i * i * 2_654_435_761) >> 7) % 50) as f32 / 10.0).collect();
    let expected = naive(&config, &logits, &[]);
    let drawn = histogram(config, &logits, &[], 4000);
    let sorted = |ids: &HashMap<u32, f64>| {
        let mut ids: Vec<u32> = ids.keys().copied().collect();
        ids.sort_unstable();
        ids
    };
    assert_eq!(sorted(&drawn), sorted(&expected));
}

#[test]
fn biases_move_logits_before_all_else() {
    let logits = logits(100);
    let best =
        |bias: &[(u32, f32)], config: SamplerConfig| Sampler::with_bias(config, 100, bias).unwrap().sample(&logits);
    let greedy = SamplerConfig::greedy();
    let plain = best(&[], greedy);
    assert_ne!(best(&[(plain, f32::NEG_INFINITY)], greedy), plain);
    assert_eq!(best(&[(70, 50.0)], greedy), 70);
    assert_eq!(best(&[(70, 50.0), (70, -50.0)], greedy), 70, "the first of two counts");
    // Penalised from where the bias put it.
    let mut sampler =
        Sampler::with_bias(SamplerConfig { repeat_penalty: 1.5, ..greedy }, 100, &[(70, 50.0), (71, 40.0)]).unwrap();
    (0..3).for_each(|_| sampler.accept(70));
    assert_eq!(sampler.sample(&logits), 71, "about 50 / 1.5 to 40");
    for bias in [(100, 0.0), (1, f32::NAN), (1, f32::INFINITY)] {
        let refused = Sampler::with_bias(greedy, 100, &[bias]).err().unwrap().to_string();
        assert!(refused.contains("logit_bias"), "{refused}");
    }
}

#[test]
fn log_probabilities_are_those_of_a_softmax() {
    let mut logits = logits(1000);
    logits[17] = f32::NAN;
    let total: f64 = logits.iter().filter(|x| !x.is_nan()).map(|x| f64::from(*x).exp()).sum();
    let expected = |id: u32| f64::from(logits[id as usize]) - total.ln();
    let (own, top) = log_probs(&logits, 5, 20);
    assert!((f64::from(own) - expected(5)).abs() < 1e-4);
    let mut sorted: Vec<u32> = (0..1000).filter(|id| *id != 17).collect();
    sorted.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b)));
    assert_eq!(top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), sorted[..20]);
    assert!(top.iter().all(|(id, p)| (f64::from(*p) - expected(*id)).abs() < 1e-4), "{top:?}");
    assert_eq!(log_probs(&[1.0, 2.0], 0, 5).1.len(), 2, "no more than there are");
}

/// Allows the tokens with these numbers, and knows what came.
#[derive(Clone, Debug)]
struct Only {
    words: Vec<u32>,
    came: Vec<u32>,
}

impl Only {
    fn of(tokens: &[u32]) -> Box<dyn Constraint> {
        let mut words = vec![0; tokens.iter().max().map_or(1, |most| *most as usize / 32 + 1)];
        tokens.iter().for_each(|token| words[*token as usize / 32] |= 1 << (token % 32));
        Box::new(Only { words, came: Vec::new() })
    }
}

impl Constraint for Only {
    fn allowed(&mut self) -> hotset::Result<&[u32]> {
        Ok(&self.words)
    }

    fn push(&mut self, token: u32) -> hotset::Result<()> {
        self.came.push(token);
        if self.came.len() == 3 { Err(Error::invalid("three are enough")) } else { Ok(()) }
    }

    fn boxed_clone(&self) -> Box<dyn Constraint> {
        Box::new(self.clone())
    }
}

/// What a constraint forbids counts as -infinite before top-k, top-p, min-p and temperature, whatever biases and penalties say.
#[test]
fn a_constraint_comes_before_all_else() {
    let n = 300;
    let all = logits(n);
    let allowed: Vec<u32> = (0..n).filter(|id| id % 7 == 3).collect();
    let masked: Vec<f32> =
        (0..).zip(&all).map(|(id, &x)| if allowed.contains(&id) { x } else { f32::NEG_INFINITY }).collect();
    for config in [
        SamplerConfig::greedy(),
        SamplerConfig { seed: 4, ..SamplerConfig::default() },
        SamplerConfig {
            top_k: 0,
            top_p: 0.7,
            repeat_penalty: 1.3,
            presence_penalty: 0.5,
            seed: 9,
            ..SamplerConfig::default()
        },
        SamplerConfig { top_k: 5, min_p: 0.2, frequency_penalty: -1.0, seed: 2, ..SamplerConfig::default() },
    ] {
        let bias = [(3, 1.5), (5, 100.0)];
        for start in 0..40 {
            let config = SamplerConfig { seed: config.seed + start, ..config };
            let mut held = Sampler::with_bias(config, n as usize, &bias).unwrap();
            let mut plain = Sampler::with_bias(config, n as usize, &bias).unwrap();
            held.constrain(Some(Only::of(&allowed)));
            for i in 0..2 {
                held.accept(5 * i + 3);
                plain.accept(5 * i + 3);
                let token = held.choose(&all).unwrap();
                assert_eq!(token, plain.sample(&masked), "{config:?}");
                assert!(allowed.contains(&token));
            }
            assert_eq!(held.choose(&all).unwrap_err().to_string(), "three are enough");
            held.reset();
            assert_eq!(held.choose(&all).unwrap(), Sampler::with_bias(config, n as usize, &bias).unwrap().sample(&all));
        }
    }
    // Biases and NaN that leave nothing of what is allowed: the constraint is stronger.
    for bias in [&[(17, f32::NEG_INFINITY), (24, f32::NEG_INFINITY)][..], &[]] {
        let mut held = Sampler::with_bias(SamplerConfig::default(), n as usize, bias).unwrap();
        held.constrain(Some(Only::of(&[17, 24])));
        assert_eq!(held.choose(&vec![f32::NAN; n as usize]).unwrap(), 17);
    }
    let mut held = Sampler::new(SamplerConfig::greedy(), n as usize).unwrap();
    held.constrain(Some(Box::new(Only { words: vec![], came: vec![] })));
    assert!(held.choose(&all).unwrap_err().to_string().contains("allows no token"));
}
