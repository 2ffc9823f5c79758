//! Attention's tile operations on every instruction set against plain sums in the order that they promise, and whole
//! attention against the reference backend, bit for bit the same in any batch and on any number of threads.

use half::f16;
use hotset::{
    backend::{
        Attention, Backend, CacheWrite, Reference, Rows,
        cpu::{
            kernels::{Isa, Kernels, TILE},
            keys::{KeyTile, is_tiled},
        },
    },
    quant::{GgmlType, QMat, dequantize_row},
};
use proptest::prelude::*;

mod common;
use common::dice::Dice;

const DIMS: [usize; 8] = [16, 64, 80, 128, 256, 1, 20, 35];

fn available() -> Vec<Kernels> {
    let isas = Isa::ALL.iter().filter(|isa| isa.is_available());
    isas.map(|isa| Kernels::for_isa(*isa).unwrap()).collect()
}

fn floats(n: usize, dice: &mut Dice) -> Vec<f32> {
    (0..n).map(|_| (dice.next() >> 40) as f32 / (1 << 23) as f32 - 1.0).collect()
}

fn same(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}

/// Rows of keys, head after head, as the CPU has them.
fn tiled(ty: GgmlType, n_ctx: usize, dim: usize, rows: &[u8]) -> Vec<u8> {
    let (row_bytes, mut tiled) = (dim / ty.block_len() * ty.block_bytes(), rows.to_vec());
    if is_tiled(ty) {
        let heads = tiled.chunks_exact_mut(n_ctx * row_bytes).zip(rows.chunks_exact(n_ctx * row_bytes));
        for (head, rows) in heads {
            for (pos, row) in rows.chunks_exact(row_bytes).enumerate() {
                KeyTile { ty, n_ctx, dim, pos }.write(0, row, head);
            }
        }
    }
    tiled
}

/// Attention over a cache of `n_ctx` positions.
struct Case {
    ty: GgmlType,
    n_head: usize,
    n_head_kv: usize,
    head_k: usize,
    head_v: usize,
    n_ctx: usize,
    /// As the reference has them.
    keys: Vec<u8>,
    values: Vec<u8>,
    /// For all positions. (n_ctx, n_head, head_k)
    q: Vec<f32>,
    window: Option<usize>,
    chunked: bool,
    /// Bits of the positions that each looks at. (n_ctx, words), or empty.
    chosen: Vec<u64>,
    /// (n_head), or empty.
    sinks: Vec<f32>,
    soft_cap: Option<f32>,
}

impl Case {
    fn new(ty: GgmlType, heads: (usize, usize), dims: (usize, usize), n_ctx: usize, dice: &mut Dice) -> Self {
        let ((n_head, n_head_kv), (head_k, head_v)) = (heads, dims);
        let cache = |dim: usize, keys: bool, dice: &mut Dice| {
            let x = &floats(n_ctx * n_head_kv * dim, dice);
            let mut cache = vec![0; n_ctx * n_head_kv * dim / ty.block_len() * ty.block_bytes()];
            let write = CacheWrite { x, cache: &mut cache, keys, ty, heads: n_head_kv, dim, first: 0 };
            Reference.write_cache(write);
            cache
        };
        let (keys, values) = (cache(head_k, true, dice), cache(head_v, false, dice));
        let q = floats(n_ctx * n_head * head_k, dice).iter().map(|x| x * 3.0).collect();
        Self {
            ty,
            n_head,
            n_head_kv,
            head_k,
            head_v,
            n_ctx,
            keys,
            values,
            q,
            window: None,
            chunked: false,
            chosen: Vec::new(),
            sinks: Vec::new(),
            soft_cap: None,
        }
    }

    /// Words of a row's choice.
    fn words(&self) -> usize {
        self.chosen.len() / self.n_ctx
    }

    /// Positions `range` as one batch.
    fn attend(&self, backend: &mut impl Backend, range: std::ops::Range<usize>) -> Vec<f32> {
        let width = self.n_head * self.head_k;
        let tiled = tiled(self.ty, self.n_ctx, self.head_k, &self.keys);
        let a = Attention {
            q: &self.q[range.start * width..range.end * width],
            keys: if backend.is_cpu() { &tiled } else { &self.keys },
            values: &self.values,
            ty: self.ty,
            n_ctx: self.n_ctx,
            n_head: self.n_head,
            n_head_kv: self.n_head_kv,
            head_k: self.head_k,
            head_v: self.head_v,
            first: range.start,
            scale: 1.0 / (self.head_k as f32).sqrt(),
            window: self.window,
            chunked: self.chunked,
            chosen: &self.chosen[self.words() * range.start..self.words() * range.end],
            sinks: &self.sinks,
            soft_cap: self.soft_cap,
        };
        let mut out = vec![f32::NAN; range.len() * self.n_head * self.head_v];
        backend.attend(&a, &mut out);
        out
    }

    fn check(&self, dice: &mut Dice) {
        let mut what =
            format!("{} {}/{} {}x{} {}", self.ty, self.n_head, self.n_head_kv, self.head_k, self.head_v, self.n_ctx);
        what += &format!(" {:?} {}", self.window, self.sinks.len());
        // Of a long context the end: it takes long.
        let from = if self.n_ctx > 300 { self.n_ctx - 60 } else { 0 };
        let all = self.attend(&mut common::isa::cpu(1), from..self.n_ctx);
        let truth = self.attend(&mut Reference, from..self.n_ctx);
        for (i, (got, want)) in all.iter().zip(&truth).enumerate() {
            assert!((got - want).abs() <= 2e-5, "{what}: {i}: {got} is not {want}");
        }
        for threads in 1..=3 {
            let mut cpu = common::isa::cpu(threads);
            let (mut at, mut cut) = (from, Vec::new());
            while at < self.n_ctx {
                let most = if dice.below(2) == 0 { 3 } else { 150 };
                // The last ones alone, as in decoding.
                let n = (1 + dice.below(most)).min((self.n_ctx - at).saturating_sub(3).max(1));
                cut.extend(self.attend(&mut cpu, at..at + n));
                at += n;
            }
            assert!(same(&cut, &all), "{what}: other bits in other batches on {threads} threads");
        }
    }
}

#[test]
fn rows_are_right_and_the_same_in_every_batch() {
    use GgmlType::*;
    let dice = &mut Dice(1);
    for (ty, heads, dims, n_ctx) in [
        (F32, (4, 2), (16, 16), 200),
        (F16, (8, 1), (64, 64), 130),
        (F16, (3, 3), (80, 80), 129),
        (F16, (6, 2), (128, 256), 70),
        (F32, (5, 1), (20, 35), 193),
        (F16, (70, 1), (16, 48), 66),
        (Q8_0, (8, 2), (64, 32), 257),
        (Q8_0, (2, 2), (96, 128), 64),
        (Q8_0, (6, 2), (64, 96), 150),
        (Q8_0, (40, 1), (32, 32), 127),
        (F32, (1, 1), (1, 1), 65),
        (F16, (2, 1), (128, 128), 1),
        // Some spans, the last of which begins among the rows; rows that come alone are shared out among threads.
        (F16, (4, 2), (32, 32), 2090),
        (Q8_0, (2, 1), (32, 32), 4140),
        (F32, (65, 1), (16, 20), 2070),
    ] {
        Case::new(ty, heads, dims, n_ctx, dice).check(dice);
    }
}

#[test]
fn windows_and_sinks_are_right_and_the_same_in_every_batch() {
    use GgmlType::*;
    let dice = &mut Dice(6);
    for (ty, heads, dims, n_ctx, windows) in [
        (F32, (4, 2), (16, 16), 200, &[1, 8, 64, 65, 199, 1000][..]),
        (F16, (8, 1), (64, 64), 130, &[2, 128]),
        (Q8_0, (40, 1), (32, 32), 127, &[5, 100]),
        (F16, (4, 2), (32, 32), 2090, &[100, 2050]),
        (Q8_0, (2, 1), (32, 32), 4140, &[2100]),
    ] {
        let mut case = Case::new(ty, heads, dims, n_ctx, dice);
        let everything = case.attend(&mut Reference, n_ctx - 1..n_ctx);
        for &window in windows {
            for sinks in [0, case.n_head] {
                (case.window, case.sinks) = (Some(window), floats(sinks, dice).iter().map(|x| x * 8.0).collect());
                case.check(dice);
                let one = case.attend(&mut Reference, n_ctx - 1..n_ctx);
                assert_eq!(same(&one, &everything), window >= n_ctx && sinks == 0, "{ty}: a window of {window}");
            }
        }
    }
}

#[test]
fn chunks_are_right_and_the_same_in_every_batch() {
    use GgmlType::*;
    let dice = &mut Dice(12);
    for (ty, heads, dims, n_ctx, chunks) in [
        (F32, (4, 2), (16, 16), 200, &[1, 7, 64, 100][..]),
        (F16, (8, 1), (64, 64), 130, &[65, 129]),
        (Q8_0, (2, 1), (32, 32), 4140, &[2100]),
    ] {
        let mut case = Case::new(ty, heads, dims, n_ctx, dice);
        for &chunk in chunks {
            (case.window, case.chunked) = (Some(chunk), true);
            case.check(dice);
            // The first of a chunk sees itself alone.
            let first = (n_ctx - 1) / chunk * chunk;
            let alone = case.attend(&mut Reference, first..first + 1);
            case.window = Some(1);
            assert!(same(&alone, &case.attend(&mut Reference, first..first + 1)), "{ty}: chunks of {chunk}");
        }
    }
}

#[test]
fn positions_that_are_chosen_are_right_and_the_same_in_every_batch() {
    use GgmlType::*;
    let dice = &mut Dice(13);
    for (ty, heads, dims, n_ctx, kept) in [
        (F32, (4, 2), (16, 16), 200, 12),
        (F16, (8, 1), (64, 64), 130, 2),
        (F16, (40, 1), (96, 64), 140, 30),
        (Q8_0, (40, 1), (32, 32), 127, 1),
        (F32, (65, 1), (16, 20), 2070, 70),
        (F16, (4, 2), (32, 32), 4140, 5),
    ] {
        let mut case = Case::new(ty, heads, dims, n_ctx, dice);
        let words = n_ctx.div_ceil(64);
        let everything = case.attend(&mut Reference, n_ctx - 1..n_ctx);
        case.chosen = vec![u64::MAX; n_ctx * words];
        assert!(
            same(&case.attend(&mut common::isa::cpu(2), 0..n_ctx), &{
                let mut plain = Case::new(ty, heads, dims, n_ctx, &mut Dice(0));
                (plain.keys, plain.values, plain.q) = (case.keys.clone(), case.values.clone(), case.q.clone());
                plain.attend(&mut common::isa::cpu(2), 0..n_ctx)
            }),
            "{ty}: to choose everything is to choose nothing"
        );
        case.chosen.fill(0);
        for pos in 0..n_ctx {
            for _ in 0..kept {
                let seen = dice.below(pos + 1);
                case.chosen[pos * words + seen / 64] |= 1 << (seen % 64);
            }
        }
        case.check(dice);
        assert!(!same(&case.attend(&mut Reference, n_ctx - 1..n_ctx), &everything), "{ty}: some are left out");
        if ty == F32 {
            case.values.clear();
            case.head_v = case.head_v.min(case.head_k);
            case.check(dice);
        }
    }
}

#[test]
fn capped_scores_are_right_and_the_same_in_every_batch() {
    use GgmlType::*;
    let dice = &mut Dice(8);
    for (ty, heads, dims, n_ctx) in
        [(F32, (4, 2), (16, 16), 130), (F16, (8, 1), (64, 64), 70), (Q8_0, (40, 1), (32, 32), 127)]
    {
        let mut case = Case::new(ty, heads, dims, n_ctx, dice);
        let open = case.attend(&mut Reference, n_ctx - 1..n_ctx);
        for (cap, window) in [(0.5, None), (2.0, Some(9))] {
            (case.soft_cap, case.window) = (Some(cap), window);
            case.check(dice);
            assert!(!same(&case.attend(&mut Reference, n_ctx - 1..n_ctx), &open), "{ty}: a cap of {cap}");
        }
    }
}

#[test]
fn values_that_are_the_beginning_of_keys_are_right_and_the_same_in_every_batch() {
    use GgmlType::*;
    let dice = &mut Dice(9);
    for (ty, n_head, dims, n_ctx) in [
        (F32, 4, (24, 16), 130),
        (F32, 3, (20, 13), 70),
        (F16, 16, (96, 64), 90),
        (Q8_0, 20, (96, 32), 127),
        (F16, 2, (32, 16), 2060),
    ] {
        let mut case = Case::new(ty, (n_head, 1), dims, n_ctx, dice);
        case.values.clear();
        case.check(dice);
        if ty == F32 {
            let got = case.attend(&mut Reference, n_ctx - 1..n_ctx);
            let rows = case.keys.chunks_exact(4 * dims.0).flat_map(|key| key[..4 * dims.1].to_vec());
            case.values = rows.collect();
            assert!(same(&got, &case.attend(&mut Reference, n_ctx - 1..n_ctx)), "values of their own");
        }
    }
}

#[test]
fn each_head_has_a_matrix_of_its_own() {
    let dice = &mut Dice(10);
    for (ty, n_head, cols, each, n) in
        [(GgmlType::F32, 3, 20, 7, 5), (GgmlType::F32, 8, 128, 64, 3), (GgmlType::Q8_0, 5, 96, 33, 9)]
    {
        let floats = floats(n_head * each * cols, dice);
        let mut data = vec![0; floats.len() / ty.block_len() * ty.block_bytes()];
        hotset::quant::encode_row(ty, &floats, &mut data);
        let w = QMat::new(ty, n_head * each, cols, &data);
        let x = self::floats(n * n_head * cols, dice);
        let multiply = |b: &mut dyn FnMut(&mut Rows, &mut [f32]), first: usize, n: usize| {
            let mut rows = Rows::new(n * n_head, cols);
            rows.start(n * n_head).copy_from_slice(&x[first * n_head * cols..(first + n) * n_head * cols]);
            let mut y = vec![f32::NAN; n * n_head * each];
            b(&mut rows, &mut y);
            y
        };
        let truth = multiply(&mut |rows, y| Reference.matmul_per_head(rows, n_head, w, y), 0, n);
        for threads in 1..=3 {
            let mut cpu = common::isa::cpu(threads);
            let mut by_cpu = |rows: &mut Rows, y: &mut [f32]| {
                cpu.prepare(rows);
                cpu.matmul_per_head(rows, n_head, w, y);
            };
            let all = multiply(&mut by_cpu, 0, n);
            for (i, (got, want)) in all.iter().zip(&truth).enumerate() {
                let tolerance = if ty == GgmlType::F32 { 2e-5 } else { 0.05 };
                assert!((got - want).abs() <= tolerance, "{ty}: {i}: {got} is not {want}");
            }
            let one: Vec<f32> = (0..n).flat_map(|row| multiply(&mut by_cpu, row, 1)).collect();
            assert!(same(&one, &all), "{ty}: other bits alone on {threads} threads");
        }
    }
}

/// In batches, into a cache of no whole number of tiles, whose other bytes stay.
#[test]
fn keys_and_values_go_where_the_reference_has_them() {
    let dice = &mut Dice(3);
    use GgmlType::*;
    for (ty, dim) in [(F16, 128), (F16, 300), (F16, 35), (F32, 16), (Q8_0, 64), (Q8_0, 32)] {
        let (heads, n_ctx) = (3, 2 * TILE + 21);
        let x = floats(n_ctx * heads * dim, dice);
        let row_bytes = dim / ty.block_len() * ty.block_bytes();
        for (threads, keys) in [(1, true), (2, true), (2, false)] {
            let (mut cpu, mut reference) = (common::isa::cpu(threads), Reference);
            let (mut got, mut want) = (vec![0xaa; heads * n_ctx * row_bytes], vec![0xaa; heads * n_ctx * row_bytes]);
            let end = n_ctx - 2;
            let mut first = 0;
            while first < end {
                let n = (1 + dice.below(70)).min(end - first);
                let x = &x[first * heads * dim..(first + n) * heads * dim];
                let write = |cache| CacheWrite { x, cache, keys, ty, heads, dim, first };
                cpu.write_cache(write(&mut got));
                reference.write_cache(write(&mut want));
                let want = if keys { &tiled(ty, n_ctx, dim, &want) } else { &want };
                assert!(got == *want, "{ty} by {dim}, keys: {keys}, positions from {first}");
                first += n;
            }
            assert_ne!(got, vec![0xaa; got.len()]);
        }
    }
}

#[test]
#[should_panic = "2 rows at 3 in a cache of 4"]
fn rows_behind_the_context_are_refused() {
    let mut case = Case::new(GgmlType::F16, (2, 1), (16, 16), 4, &mut Dice(4));
    case.q.extend_from_within(..32);
    case.attend(&mut common::isa::cpu(2), 3..5);
}

/// A value that a row must not see may be anything.
#[test]
fn what_lies_ahead_does_not_matter() {
    let dice = &mut Dice(2);
    let mut case = Case::new(GgmlType::F32, (4, 2), (32, 32), 80, dice);
    let cpu = &mut common::isa::cpu(2);
    let want = case.attend(cpu, 0..40);
    for head in 0..2 {
        for side in [&mut case.keys, &mut case.values] {
            for x in side[(head * 80 + 20) * 128..(head + 1) * 80 * 128].as_chunks_mut::<4>().0 {
                *x = f32::NAN.to_le_bytes();
            }
        }
    }
    let got = case.attend(cpu, 0..40);
    assert!(same(&got[..20 * 128], &want[..20 * 128]));
    assert!(got[20 * 128..].iter().all(|x| x.is_nan()));
}

/// The rows of a tile of Q8_0: as floats (n, dim), turned as keys of a tile of `width` positions, and as they are.
fn tile_q8_0(dim: usize, n: usize, width: usize, dice: &mut Dice) -> (Vec<f32>, Vec<u8>, Vec<u8>) {
    let (ty, scales) = (GgmlType::Q8_0, [0.0, -1e-7, 0.01, 3.0, 500.0]); // the second a denormal
    let (mut floats, mut rows) = (vec![0.0; n * dim], Vec::new());
    let mut turned = vec![0x7f; width * dim / 32 * 34]; // scales of nobody are no numbers
    for pos in 0..n {
        let row: Vec<u8> = (0..dim / 32)
            .flat_map(|_| {
                let scale = f16::from_f32(scales[dice.below(scales.len())]).to_le_bytes();
                scale.into_iter().chain((0..32).map(|_| dice.next() as u8)).collect::<Vec<_>>()
            })
            .collect();
        KeyTile { ty, n_ctx: width, dim, pos }.write(0, &row, &mut turned);
        rows.extend(row);
    }
    dequantize_row(ty, &rows, &mut floats);
    (floats, turned, rows)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn tile_operations_keep_their_order(
        dim in 0..DIMS.len(), n in 1..=TILE, queries in 1usize..12, extra in 0usize..40, seed: u64
    ) {
        let (dim, dice) = (DIMS[dim], &mut Dice(seed));
        let (q, x) = (floats(queries * dim, dice), floats(n * dim, dice));
        let halves: Vec<f16> = x.iter().map(|x| f16::from_f32(*x)).collect();
        let rounded: Vec<f32> = halves.iter().map(|x| x.to_f32()).collect();
        let p = floats(queries * TILE, dice);
        let wide = Kernels::padded(dim);
        let start = floats(queries * wide, dice);
        for k in available() {
            let name = k.isa().name();
            let mut keys = vec![0.0; dim * TILE];
            k.turn(&x, dim, &mut keys);
            let wider = wide + extra;
            let (mut rows, mut rows_f16) = (vec![1.0; n * wide], vec![1.0; n * wider]);
            k.widen(&x, dim, &mut rows);
            k.widen_f16(&halves, dim, &mut rows_f16);
            for p in 0..n {
                for d in 0..wide {
                    let at = |x: &[f32]| if d < dim { x[p * dim + d] } else { 0.0 };
                    prop_assert_eq!((rows[p * wide + d], rows_f16[p * wider + d]), (at(&x), at(&rounded)), "{}", name);
                    if d < dim {
                        prop_assert_eq!(keys[d * TILE + p], at(&x), "{}", name);
                    }
                }
                prop_assert!(rows_f16[p * wider..][wide..wider].iter().all(|x| *x == 1.0), "{} wrote behind a row", name);
            }
            let mut scores = vec![0.0; queries * TILE];
            k.scores(&q, &keys, n, &mut scores);
            let mut sums = start.clone();
            k.accumulate(&p, &rows, wide, &mut sums);
            // Halves read as they are do what the floats made of them do.
            let (mut of_halves, mut of_floats) = (vec![0.0; queries * TILE], vec![0.0; queries * TILE]);
            let keys: Vec<f16> = keys.iter().map(|x| f16::from_f32(*x)).collect();
            k.scores_f16(&q, &keys, n, &mut of_halves);
            k.scores(&q, &keys.iter().map(|x| x.to_f32()).collect::<Vec<_>>(), n, &mut of_floats);
            prop_assert!(same(&of_halves, &of_floats), "{} scores of halves", name);
            let rows: Vec<f16> = rows.iter().map(|x| f16::from_f32(*x)).collect();
            let (mut of_halves, mut of_floats) = (start.clone(), start.clone());
            k.accumulate_f16(&p, &rows, wide, &mut of_halves);
            k.accumulate(&p, &rows.iter().map(|x| x.to_f32()).collect::<Vec<_>>(), wide, &mut of_floats);
            prop_assert!(same(&of_halves, &of_floats), "{} sums of halves", name);
            for i in 0..queries {
                for pos in 0..n {
                    let want = (0..dim).fold(0f32, |sum, d| q[i * dim + d].mul_add(x[pos * dim + d], sum));
                    prop_assert_eq!(scores[i * TILE + pos].to_bits(), want.to_bits(), "{} score {} {}", name, i, pos);
                }
                for d in 0..dim {
                    let want = (0..n).fold(start[i * wide + d], |s, pos| p[i * TILE + pos].mul_add(x[pos * dim + d], s));
                    prop_assert_eq!(sums[i * wide + d].to_bits(), want.to_bits(), "{} sum {} {}", name, i, d);
                }
            }
        }
    }

    #[test]
    fn tiles_of_q8_0_read_as_they_are_do_what_their_floats_do(
        blocks in 1usize..6, n in 1..=TILE, queries in 1usize..12, more in 0..TILE, seed: u64
    ) {
        let (dim, dice) = (32 * blocks, &mut Dice(seed));
        let (q, p) = (floats(queries * dim, dice), floats(queries * TILE, dice));
        let start = floats(queries * dim, dice);
        let (x, narrow, rows) = tile_q8_0(dim, n, (n + more).min(TILE), dice);
        let seed = &mut Dice(dice.next());
        let (of_whole, whole, _) = tile_q8_0(dim, n, TILE, seed);
        for k in available() {
            let name = k.isa().name();
            let (mut keys, mut got) = (vec![0.0; dim * TILE], vec![1.0; dim * TILE]);
            k.turn(&x, dim, &mut keys);
            k.widen_keys_q8_0(&narrow, (n + more).min(TILE), &mut got);
            for (d, (got, want)) in got.chunks(TILE).zip(keys.chunks(TILE)).enumerate() {
                prop_assert!(same(&got[..n], &want[..n]), "{} keys' dimension {}", name, d);
            }
            let (mut got, mut want) = (vec![0.0; queries * TILE], vec![0.0; queries * TILE]);
            k.turn(&of_whole, dim, &mut keys);
            k.scores_q8_0(&q, &whole, n, &mut got);
            k.scores(&q, &keys, n, &mut want);
            for (i, (got, want)) in got.chunks(TILE).zip(want.chunks(TILE)).enumerate() {
                prop_assert!(same(&got[..n], &want[..n]), "{} scores of query {}", name, i);
            }
            let (mut got, mut want) = (start.clone(), start.clone());
            k.accumulate_q8_0(&p, &rows, dim, &mut got);
            k.accumulate(&p, &x, dim, &mut want);
            prop_assert!(same(&got, &want), "{} sums", name);
        }
    }
}
