//! Every kernel of every instruction set that this CPU has, against the scalar truth.
//!
//! The tolerance is zero: integer sums are exact, and every instruction set adds floats in the order that
//! `quant::dot` states. Only NaNs may differ, in their payload.

use half::f16;
use hotset::backend::cpu::kernels::{Isa, KernelChoice, Kernels};
use hotset::quant::act::{ActChunk, TINY, quantize_row};
use hotset::quant::interleaved::{self, TILE_ROWS};
use hotset::quant::{ActRow, Acts, GgmlType, QMat, dequantize_row, dot};
use proptest::prelude::*;

const TYPES: [GgmlType; 28] = {
    use GgmlType::*;
    [
        F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS, MXFP4, IQ2_XXS,
        IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S, IQ1_S, IQ1_M, NVFP4, Q1_0, Q2_0, TQ1_0, TQ2_0,
    ]
};

/// SplitMix64: small, seeded, the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
    /// In -1..1.
    fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}

/// How large scales and activations are.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Size {
    Usual,
    /// Zeros and denormals among usual numbers.
    Small,
    /// Up to the largest half in weights, and 1e30 in activations.
    Large,
}

fn number(random: &mut Random, size: Size) -> f32 {
    let x = random.float();
    match (size, random.next() % 4) {
        (Size::Usual, _) => x,
        (Size::Small, 0) => 0.0,
        (Size::Small, 1) => x * 1e-39,
        (Size::Small, 2) => x * 2.0 * TINY,
        (Size::Small, _) => x * 1e-6,
        (Size::Large, 0) => x * 65504.0,
        (Size::Large, _) => x,
    }
}

/// Random blocks whose scales are numbers. Starts at an odd address.
fn weights(ty: GgmlType, rows: usize, cols: usize, size: Size, random: &mut Random) -> Vec<u8> {
    let n = rows * ty.row_bytes(cols as u64).unwrap() as usize;
    let mut data: Vec<u8> = (0..n + 1).map(|_| random.next() as u8).collect();
    use GgmlType::*;
    let halves: &[usize] = match ty {
        F32 | BF16 | MXFP4 | NVFP4 | IQ1_M => &[],
        Q4_1 | Q5_1 | Q4_K | Q5_K => &[0, 2],
        Q2_K => &[80, 82],
        Q3_K => &[108],
        Q6_K => &[208],
        TQ1_0 => &[52],
        TQ2_0 => &[64],
        _ => &[0],
    };
    for block in data[1..].chunks_exact_mut(ty.block_bytes()) {
        for at in halves {
            let d = f16::from_f32(number(random, size));
            block[*at..*at + 2].copy_from_slice(&d.to_le_bytes());
        }
        match ty {
            F32 => block.copy_from_slice(&number(random, size).to_le_bytes()),
            BF16 => block.copy_from_slice(&number(random, size).to_le_bytes()[2..]),
            NVFP4 if size == Size::Usual => block[..4].iter_mut().for_each(|d| *d = 0x20 | *d & 0x1f),
            IQ1_M => {
                // Four bits of the scale end each word.
                let d = f16::from_f32(number(random, size)).to_bits();
                for (i, word) in block[48..].as_chunks_mut::<2>().0.iter_mut().enumerate() {
                    word[1] = word[1] & 15 | ((d >> (4 * i) & 15) as u8) << 4;
                }
            }
            MXFP4 => block[0] = if size == Size::Usual { 120 + block[0] % 16 } else { block[0] % 160 },
            _ => {}
        }
    }
    data
}

fn activations(n: usize, size: Size, random: &mut Random) -> Vec<f32> {
    let factor = if size == Size::Large { 1e30 } else { 1.0 };
    (0..n).map(|_| number(random, size) * factor).collect()
}

fn available() -> Vec<Kernels> {
    let isas = Isa::ALL.iter().filter(|isa| isa.is_available());
    isas.map(|isa| Kernels::for_isa(*isa).unwrap()).collect()
}

fn same(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan()
}

/// Multiplies with all instruction sets, and in all groupings of rows and tokens that `cut` gives.
/// Returns the number of results that were numbers other than zero.
fn check(ty: GgmlType, rows: usize, cols: usize, tokens: usize, size: Size, cut: usize, seed: u64) -> usize {
    let random = &mut Random(seed);
    let data = weights(ty, rows, cols, size, random);
    let w = QMat::new(ty, rows, cols, &data[1..]);
    let x: Vec<_> = (0..tokens).map(|_| activations(cols, size, random)).collect();
    let chunks: Vec<_> = x
        .iter()
        .map(|x| {
            let mut chunks = vec![ActChunk::ZERO; cols.div_ceil(256)];
            quantize_row(x, &mut chunks);
            chunks
        })
        .collect();
    let x: Vec<_> = x.iter().zip(&chunks).map(|(x, chunks)| ActRow { x, chunks }).collect();
    let want: Vec<f32> = x.iter().flat_map(|x| (0..rows).map(|r| dot(ty, w.row(r), *x))).collect();

    let mut turned = data[1..].to_vec();
    let tiles = rows / TILE_ROWS * TILE_ROWS * w.row_bytes();
    if interleaved::is_possible(ty, cols) {
        interleaved::interleave_in_place(ty, cols, &mut turned[..tiles], interleaved::turn);
    }
    let turned = QMat { data: &turned, interleaved: true, ..w };

    let can_interleave = |kernels: &Kernels| kernels.can_interleave(ty, cols).then_some(turned);
    for (kernels, w) in
        available().iter().flat_map(|k| [Some(w), can_interleave(k)].into_iter().flatten().map(move |w| (k, w)))
    {
        let name = format!("{}{}", kernels.isa().name(), if w.interleaved { " interleaved" } else { "" });
        if w.interleaved {
            let mut tiles = data[1..=tiles].to_vec();
            kernels.interleave(ty, cols, &mut tiles);
            assert!(w.data.starts_with(&tiles), "{name} {ty} {rows}x{cols}: rows in order");
        }
        let cut_rows = if w.interleaved { cut.next_multiple_of(TILE_ROWS) } else { cut };
        let expect = |got: &[f32], how: &str| {
            for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                let (t, r) = (i / rows, i % rows);
                assert!(same(*got, *want), "{name} {how} {ty} {rows}x{cols} y[{t}][{r}]: {got:e} is not {want:e}");
            }
        };
        // A sentinel on both sides of each output shows writes beyond it.
        let mut y = vec![vec![f32::MAX; rows + 2]; tokens];
        let at: Vec<_> = y.iter_mut().map(|y| y[1..].as_mut_ptr()).collect();
        // SAFETY: each pointer has `rows` floats behind it and no other user.
        unsafe { kernels.matmul(w, &x, &at, &[]) };
        assert!(y.iter().all(|y| y[0] == f32::MAX && y[rows + 1] == f32::MAX), "{name} wrote out of bounds");
        expect(&y.iter().flat_map(|y| y[1..=rows].to_vec()).collect::<Vec<_>>(), "at once");

        let mut y = vec![f32::MAX; tokens * rows];
        for (t, x) in x.iter().enumerate() {
            kernels.matvec(w, *x, &mut y[t * rows..(t + 1) * rows]);
        }
        expect(&y, "token by token");

        y.fill(f32::MAX);
        for from in (0..rows).step_by(cut_rows) {
            let to = rows.min(from + cut_rows);
            for t in (0..tokens).step_by(cut) {
                let x = &x[t..tokens.min(t + cut)];
                let at: Vec<_> = y[t * rows..].chunks_mut(rows).map(|y| y[from..].as_mut_ptr()).take(x.len()).collect();
                // SAFETY: each pointer has `to - from` floats behind it and no other user.
                unsafe { kernels.matmul(w.slice(from..to), x, &at, w.data) };
            }
        }
        expect(&y, "in pieces");
    }
    want.iter().filter(|y| y.is_finite() && **y != 0.0).count()
}

#[test]
fn the_tests_see_this_cpu_s_best() {
    assert_eq!(available()[0].isa(), Isa::Scalar);
    #[cfg(target_arch = "x86_64")]
    assert_eq!(is_x86_feature_detected!("avx2"), available().iter().any(|k| k.isa() == Isa::Avx2));
    #[cfg(target_arch = "aarch64")]
    assert!(available().iter().any(|k| k.isa() == Isa::Neon), "every aarch64 CPU has NEON");
    assert!(TYPES.iter().all(|ty| ty.is_computable()));
    assert_eq!(TYPES.len(), GgmlType::ALL.iter().filter(|ty| ty.is_computable()).count());
}

#[test]
fn all_types_on_fixed_shapes() {
    for ty in TYPES {
        let k = ty.block_len() == 256;
        for (i, (rows, cols, tokens)) in
            [(5, 256, 1), (1, 512, 3), (33, 768, 16), (17, 2048, 13), (35, 768, 39), (18, 2816, 75)]
                .into_iter()
                .enumerate()
        {
            let n = check(ty, rows, cols, tokens, Size::Usual, 3, i as u64);
            assert!(n > rows * tokens * 9 / 10, "{ty}: {n} results that say something");
            check(ty, rows, cols, tokens, Size::Small, 2, i as u64);
            check(ty, rows, cols, tokens, Size::Large, 5, i as u64);
        }
        // So long that an odd number of rows would fill what is unpacked ahead.
        assert!(check(ty, 7, 51 * 256, 34, Size::Usual, 7, 7) > 0, "{ty}");
        // More tokens than share what is unpacked, and rows that neither sixteen nor two divides.
        assert!(check(ty, 51, 768, 151, Size::Usual, 50, 7) > 0, "{ty}");
        if k {
            // Longer than what is unpacked ahead.
            assert!(check(ty, 2, 257 * 256, 33, Size::Usual, 16, 7) > 0, "{ty}");
        } else {
            // The last has more chunks than one token's reordered activations have room for.
            let shapes =
                [(3, 32, 9), (7, 288, 8), (19, 1408, 7), (2, 2880, 4), (4, 224, 15), (36, 480, 34), (3, 65 * 256, 1)];
            // Chunks that blocks of 64 or 128 do not fill.
            let shapes = shapes.into_iter().chain([(5, 64, 3), (9, 128, 1), (7, 320, 11), (21, 384, 16)]);
            for (rows, cols, tokens) in shapes.filter(|(_, cols, _)| cols % ty.block_len() == 0) {
                assert!(check(ty, rows, cols, tokens, Size::Usual, 2, 7) > 0, "{ty}");
            }
        }
    }
    for (rows, cols, tokens) in [(3, 1, 1), (2, 17, 5), (35, 33, 4), (3, 100, 9)] {
        for ty in [GgmlType::F32, GgmlType::F16, GgmlType::BF16] {
            assert!(check(ty, rows, cols, tokens, Size::Usual, 2, 7) > 0, "{ty}");
        }
    }
}

/// Rows are expanded some at a time where there is room on the stack, and tokens multiplied as many as share what is unpacked.
#[test]
fn rows_that_are_expanded_may_be_wide_and_tokens_many() {
    for ty in [GgmlType::IQ3_XXS, GgmlType::IQ2_S, GgmlType::NVFP4, GgmlType::Q1_0] {
        for (rows, cols, tokens) in [(3, 200 * 256, 2), (3, 180 * 256, 9), (5, 512, 151), (37, 256, 145)] {
            assert!(check(ty, rows, cols, tokens, Size::Usual, 3, 11) > 0, "{ty} {rows}x{cols}, {tokens} tokens");
        }
    }
}

/// Kernels may read on behind a row that is no whole number of chunks: into the next one, whose scales must not matter.
#[test]
fn a_row_s_infinities_are_no_other_s() {
    let infinity = f16::INFINITY.to_le_bytes();
    for ty in TYPES.into_iter().filter(|ty| (32..256).contains(&ty.block_len())) {
        let shapes = [(32, 1), (128, 1), (288, 3), (1408, 1), (480, 9), (384, 2)];
        for (cols, tokens) in shapes.into_iter().filter(|(cols, _)| cols % ty.block_len() == 0) {
            let (rows, random) = (7, &mut Random(cols as u64));
            let mut data = weights(ty, rows, cols, Size::Usual, random);
            let row_bytes = ty.row_bytes(cols as u64).unwrap() as usize;
            for row in data[1..].chunks_exact_mut(row_bytes).skip(1).step_by(2) {
                for block in row.chunks_exact_mut(ty.block_bytes()) {
                    match ty {
                        GgmlType::MXFP4 => block[0] = 255,
                        GgmlType::NVFP4 => block[..4].fill(0x7e), // its largest: there is no infinity
                        GgmlType::Q4_1 | GgmlType::Q5_1 => block[..4].copy_from_slice(&[infinity, infinity].concat()),
                        _ => block[..2].copy_from_slice(&infinity),
                    }
                }
            }
            let w = QMat::new(ty, rows, cols, &data[1..]);
            let x: Vec<_> = (0..tokens).flat_map(|_| activations(cols, Size::Usual, random)).collect();
            let mut acts = Acts::default();
            acts.quantize(&x, tokens, cols, quantize_row);
            let x: Vec<_> = (0..tokens).map(|t| acts.row(t, &x[t * cols..(t + 1) * cols])).collect();
            for kernels in available() {
                let mut y = vec![0.0; tokens * rows];
                let at: Vec<_> = y.chunks_mut(rows).map(<[f32]>::as_mut_ptr).collect();
                // SAFETY: each pointer has `rows` floats behind it and no other user.
                unsafe { kernels.matmul(w, &x, &at, &[]) };
                for (t, y) in y.chunks(rows).enumerate() {
                    for (r, y) in y.iter().enumerate().step_by(2) {
                        let want = dot(ty, w.row(r), x[t]);
                        assert!(want.is_finite() && *y == want, "{} {ty} {cols} y[{t}][{r}]", kernels.isa().name());
                    }
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn all_types_on_random_shapes(
        ty in 0..TYPES.len(), rows in 1usize..40, blocks in 1usize..20, tokens in 1usize..48,
        size in prop_oneof![Just(Size::Usual), Just(Size::Small), Just(Size::Large)],
        cut in 1usize..9, seed: u64,
    ) {
        let ty = TYPES[ty];
        let cols = match ty.block_len() {
            256 => 256 * blocks.div_ceil(4),
            len => (32 * blocks).next_multiple_of(len.max(32)),
        };
        let n = check(ty, rows, cols, tokens, size, cut, seed);
        prop_assert!(n > 0 || size != Size::Usual);
    }

    #[test]
    fn quantisers_agree(n in 1usize..2000, seed: u64, odd in prop::collection::vec((0usize..2000, 0usize..4), 0..4)) {
        let random = &mut Random(seed);
        let size = [Size::Usual, Size::Small, Size::Large][seed as usize % 3];
        let mut x = activations(n, size, random);
        for (at, what) in odd {
            x[at % n] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0][what];
        }
        let mut want = vec![ActChunk::ZERO; n.div_ceil(256)];
        quantize_row(&x, &mut want);
        for kernels in available() {
            let mut got = vec![ActChunk { q: [1; 256], d: [1.0; 8], s: [1.0; 8], h: [1; 16] }; want.len()];
            kernels.quantize_row(&x, &mut got);
            for (got, want) in got.iter().zip(&want) {
                prop_assert_eq!(got.q, want.q, "{}", kernels.isa().name());
                prop_assert!(got.d.iter().zip(want.d).all(|(a, b)| same(*a, b)), "{}", kernels.isa().name());
                prop_assert_eq!(got.s.map(f32::to_bits), want.s.map(f32::to_bits));
                prop_assert_eq!(got.h, want.h);
            }
        }
    }

    #[test]
    fn rows_of_q8_0_are_unpacked_to_the_same_bits(blocks in 0usize..12, seed: u64) {
        let random = &mut Random(seed);
        let size = [Size::Usual, Size::Small, Size::Large][seed as usize % 3];
        let bytes = &weights(GgmlType::Q8_0, 1, blocks * 32, size, random)[1..];
        let mut want = vec![0.0; blocks * 32];
        dequantize_row(GgmlType::Q8_0, bytes, &mut want);
        for kernels in available() {
            let mut got = vec![1.0; want.len()];
            kernels.from_q8_0(bytes, &mut got);
            let same = got.iter().zip(&want).all(|(a, b)| a.to_bits() == b.to_bits());
            prop_assert!(same, "{}", kernels.isa().name());
        }
    }

    #[test]
    fn vector_operations_agree_and_are_right(n in 0usize..150, seed: u64) {
        let random = &mut Random(seed);
        let a: Vec<f32> = (0..n).map(|_| random.float() * 20.0).collect();
        let b: Vec<f32> = (0..n).map(|_| random.float()).collect();
        let scalar = results(&Kernels::for_isa(Isa::Scalar).unwrap(), &a, &b);
        for kernels in available() {
            let got = results(&kernels, &a, &b);
            prop_assert_eq!(got.len(), scalar.len());
            for (i, (got, want)) in got.iter().zip(&scalar).enumerate() {
                prop_assert!(same(*got, *want), "{} result {i}: {got} is not {want}", kernels.isa().name());
            }
        }
        right(&a, &b);
    }
}

/// All that the vector operations give, in one list.
fn results(k: &Kernels, a: &[f32], b: &[f32]) -> Vec<f32> {
    let n = a.len();
    let mut half = vec![f16::ZERO; n];
    k.to_f16(b, &mut half);
    let mut out = vec![k.dot(a, b), k.max(a), k.sum_of_squares(a)];
    let mut y = b.to_vec();
    k.axpy(1.5, a, &mut y);
    out.extend_from_slice(&y);
    k.scale(0.7, &mut y);
    out.extend_from_slice(&y);
    k.scaled(-0.3, a, &mut y);
    out.extend_from_slice(&y);
    k.scale_mul(3.0, a, b, &mut y);
    out.extend_from_slice(&y);
    out.push(k.exp_sum(&mut y, 1.0));
    out.extend_from_slice(&y);
    let mut gate = a.to_vec();
    k.silu_mul(&mut gate, b);
    out.extend_from_slice(&gate);
    let mut turned = gate.clone();
    k.rotate(b, a, &mut turned, &mut y);
    out.extend(turned.iter().chain(&y));
    out.extend(half.iter().map(|x| x.to_f32()));
    out
}

/// The scalar operations, against double precision.
fn right(a: &[f32], b: &[f32]) {
    let k = Kernels::for_isa(Isa::Scalar).unwrap();
    let pairs = || a.iter().zip(b).map(|(a, b)| (f64::from(*a), f64::from(*b)));
    let close = |got: f32, want: f64, size: f64| assert!((f64::from(got) - want).abs() <= size * 3e-7, "{got} {want}");
    close(k.dot(a, b), pairs().map(|(a, b)| a * b).sum(), 4.0 * pairs().map(|(a, b)| (a * b).abs()).sum::<f64>());
    let squares = a.iter().map(|a| f64::from(*a).powi(2)).sum();
    close(k.sum_of_squares(a), squares, 4.0 * squares);
    assert_eq!(k.max(a), a.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let mut half = vec![f16::ZERO; b.len()];
    k.to_f16(b, &mut half);
    for (half, b) in half.iter().zip(b) {
        assert_eq!(*half, f16::from_f32(*b));
    }
    let (mut axpy, mut scale, mut scaled, mut product) = (b.to_vec(), b.to_vec(), b.to_vec(), b.to_vec());
    k.axpy(1.5, a, &mut axpy);
    k.scale(1.5, &mut scale);
    k.scaled(2.5, a, &mut scaled);
    k.scale_mul(1.5, a, b, &mut product);
    let mut gate = a.to_vec();
    k.silu_mul(&mut gate, b);
    let (mut low, mut high) = (a.to_vec(), b.to_vec());
    k.rotate(&vec![0.6; b.len()], &vec![0.8; b.len()], &mut low, &mut high);
    for (i, (a, b)) in pairs().enumerate() {
        close(low[i], 0.6 * a - 0.8 * b, 20.0);
        close(high[i], 0.8 * a + 0.6 * b, 20.0);
        close(axpy[i], 1.5 * a + b, 30.0);
        close(scale[i], 1.5 * b, 1.5 * b.abs());
        close(scaled[i], 2.5 * a, 2.5 * a.abs());
        close(product[i], 1.5 * a * b, 1.5 * (a * b).abs());
        close(gate[i], a / (1.0 + (-a).exp()) * b, 2.0 * (a / (1.0 + (-a).exp()) * b).abs());
    }
    let mut e = a.to_vec();
    let sum = k.exp_sum(&mut e, 2.0);
    let want: Vec<f64> = a.iter().map(|a| f64::from(a - 2.0).exp()).collect();
    e.iter().zip(&want).for_each(|(e, want)| close(*e, *want, *want));
    close(sum, want.iter().sum(), 4.0 * want.iter().sum::<f64>());
}

#[test]
fn exp_keeps_its_promise_over_its_whole_range() {
    for kernels in available() {
        let mut worst = 0f64;
        for step in 0..200_000 {
            let base = -88.0 + step as f32 * (176.0 / 200_000.0);
            let mut x = [base];
            kernels.exp_sum(&mut x, 0.0);
            let want = f64::from(base).exp();
            if base < -87.336_54 {
                assert_eq!(x[0], 0.0);
            } else {
                let unit = f64::from(f32::from_bits((want as f32).to_bits() & 0x7f80_0000)) * f64::from(f32::EPSILON);
                worst = worst.max((f64::from(x[0]) - want).abs() / unit);
            }
        }
        assert!(worst > 0.4 && worst <= 2.0, "{}: {worst} units in the last place", kernels.isa().name());
        let mut x = [f32::NEG_INFINITY, f32::NAN, 0.0, -1000.0];
        kernels.exp_sum(&mut x, 0.0);
        assert!(x[0] == 0.0 && x[1].is_nan() && x[2] == 1.0 && x[3] == 0.0, "{}: {x:?}", kernels.isa().name());
    }
}

#[test]
fn a_batch_is_quantised_row_by_row() {
    let x = activations(3 * 288, Size::Usual, &mut Random(1));
    for kernels in available() {
        let mut acts = Acts::with_capacity(3, 288);
        kernels.quantize(&x, 3, 288, &mut acts);
        for (r, x) in x.chunks(288).enumerate() {
            let mut want = [ActChunk::ZERO; 2];
            quantize_row(x, &mut want);
            assert_eq!(acts.row(r, x).chunks, want, "{} row {r}", kernels.isa().name());
        }
    }
}

#[test]
fn instruction_sets_that_the_cpu_lacks_are_refused() {
    let choose = |isa, interleave| Kernels::choose(KernelChoice { isa: Some(isa), interleave });
    assert_eq!(choose(Isa::Scalar, None).unwrap().isa(), Isa::Scalar);
    let error = choose(Isa::Scalar, Some(true)).err().expect("scalar code interleaves nothing").to_string();
    assert!(error.contains("scalar") && error.contains("interleave"), "{error}");
    for isa in Isa::ALL.iter().filter(|isa| !isa.is_available()) {
        let error = choose(*isa, None).err().expect("the CPU lacks it").to_string();
        assert!(error.contains("this CPU") && error.contains("scalar"), "{error}");
    }
}

fn multiply(ty: GgmlType, rows: usize, cols: usize, bytes: usize, chunks: usize) {
    let (data, x, chunks) = (vec![0; bytes], vec![0.0; cols], vec![ActChunk::ZERO; chunks]);
    let x = ActRow { x: &x, chunks: &chunks };
    Kernels::detect().unwrap().matvec(QMat::new(ty, rows, cols, &data), x, &mut vec![0.0; rows]);
}

#[test]
fn the_door_lets_fitting_lengths_in() {
    multiply(GgmlType::Q4_K, 2, 512, 2 * 2 * 144, 2);
}

#[test]
#[should_panic(expected = "bytes of 2 rows")]
fn the_door_stops_missing_bytes() {
    multiply(GgmlType::Q4_K, 2, 512, 2 * 2 * 144 - 1, 2);
}

#[test]
#[should_panic(expected = "activations do not fit")]
fn the_door_stops_short_activations() {
    multiply(GgmlType::Q4_K, 2, 512, 2 * 2 * 144, 1);
}

#[test]
#[should_panic(expected = "Q8_K is not computable")]
fn the_door_stops_types_without_arithmetic() {
    multiply(GgmlType::Q8_K, 1, 256, 292, 1);
}
