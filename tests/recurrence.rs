//! Memories of heads: the fast backend against the plain one on random shapes, and the same bits in any batch and on any number
//! of threads.

mod common;

use common::dice::Dice;
use hotset::backend::{Backend, Recurrence, Reference};

/// Heads, key heads, elements of keys and values, rows.
const SHAPES: [(usize, usize, usize, usize, usize); 5] =
    [(4, 2, 16, 16, 7), (8, 1, 16, 8, 5), (3, 3, 5, 37, 9), (6, 2, 32, 300, 3), (16, 4, 64, 64, 12)];

struct Case {
    x: Vec<f32>,
    decay: Vec<f32>,
    rate: Vec<f32>,
    from: Vec<f32>,
    shape: (usize, usize, usize, usize, usize),
    in_turn: bool,
    corrects: bool,
}

fn floats(n: usize, dice: &mut Dice) -> Vec<f32> {
    (0..n).map(|_| (dice.next() >> 40) as f32 / (1 << 23) as f32 - 1.0).collect()
}

impl Case {
    fn new(shape: (usize, usize, usize, usize, usize), seed: u64) -> Self {
        let ((heads, key_heads, k, v, n), mut dice) = (shape, Dice(seed));
        let cols = 3 + 2 * key_heads * k + heads * v;
        let x = floats(n * cols, &mut dice).iter().map(|x| x / (k as f32).sqrt()).collect();
        // One for a head, or one for each of a key's elements.
        let each = if seed.is_multiple_of(2) { 1 } else { k };
        let unit = |n, dice: &mut Dice| floats(n, dice).iter().map(|x| 0.5 + x / 2.0).collect::<Vec<_>>();
        let (decay, rate) = (unit(n * heads * each, &mut dice), unit(n * heads, &mut dice));
        let (in_turn, corrects) = (seed & 2 == 0, seed & 4 == 0);
        Self { x, decay, rate, from: floats(heads * k * v, &mut dice), shape, in_turn, corrects }
    }

    /// Rows in batches that end at `ends`: what they give, and the memories then.
    fn run(&self, backend: &mut impl Backend, ends: &[usize]) -> (Vec<f32>, Vec<f32>) {
        let (heads, key_heads, k, v, n) = self.shape;
        let (cols, each) = (self.x.len() / n, self.decay.len() / (n * heads));
        let (mut from, mut out, mut start) = (self.from.clone(), vec![0.0; n * heads * v], 0);
        for &end in ends {
            let mut state = vec![f32::NAN; from.len()];
            let recurrence = Recurrence {
                x: &self.x[start * cols..end * cols],
                cols,
                // Values come first; the elements behind them must not be read.
                at: [heads * v + 3, heads * v + 3 + key_heads * k, 0],
                decay: &self.decay[start * heads * each..end * heads * each],
                rate: &self.rate[start * heads..end * heads],
                heads,
                key_heads,
                in_turn: self.in_turn,
                k,
                v,
                corrects: self.corrects,
                from: &from,
            };
            backend.recur(&recurrence, &mut state, &mut out[start * heads * v..end * heads * v]);
            (from, start) = (state, end);
        }
        (out, from)
    }
}

#[test]
fn heads_remember_the_same_in_every_batch_and_on_any_number_of_threads() {
    for (shape, seed) in SHAPES.into_iter().flat_map(|shape| (0..8).map(move |seed| (shape, seed))) {
        let (case, n) = (Case::new(shape, seed), shape.4);
        let expected = case.run(&mut Reference, &[n]);
        let all = case.run(&mut common::isa::cpu(2), &[n]);
        for (got, expected) in [(&all.0, &expected.0), (&all.1, &expected.1)] {
            let worst = got.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst < 1e-4, "{shape:?}, seed {seed}: {worst}");
        }
        let ones: Vec<usize> = (1..=n).collect();
        for (threads, ends) in [(1, vec![n]), (3, vec![1, n]), (2, ones.clone()), (1, ones)] {
            let got = case.run(&mut common::isa::cpu(threads), &ends);
            let same = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(
                same(&got.0, &all.0) && same(&got.1, &all.1),
                "{shape:?}, seed {seed}, {threads} threads, {ends:?}"
            );
        }
    }
}
