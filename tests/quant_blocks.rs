//! Blocks are read as ggml reads them: against bytes and floats that ggml itself gave (tests/data/blocks).
//!
//! Each file is 16 rows of 256 weights, first their blocks, then `to_float` of them, little-endian. Where ggml's quantiser leaves
//! most weights zero or a code unused, blocks are random: Q2_0's by ggml's `to_float`, TQ1_0's and TQ2_0's by the `gguf` package.

use half::{bf16, f16};
use hotset::quant::act::{ActChunk, LANE_GROUP, TINY, quantize_row, span_of};
use hotset::quant::{ActRow, Acts, GgmlType, dequantize_row, dot};

const N: usize = 16 * 256;
const QUANTIZED: [GgmlType; 25] = {
    use GgmlType::*;
    [
        Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS, MXFP4, IQ2_XXS, IQ2_XS, IQ2_S,
        IQ3_XXS, IQ3_S, IQ1_S, IQ1_M, NVFP4, Q1_0, Q2_0, TQ1_0, TQ2_0,
    ]
};

fn reference(ty: GgmlType) -> (Vec<u8>, Vec<f32>) {
    let path = format!("{}/tests/data/blocks/{ty}.bin", env!("CARGO_MANIFEST_DIR"));
    let mut raw = std::fs::read(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    let floats = raw.split_off(ty.row_bytes(N as u64).unwrap() as usize);
    let floats: Vec<_> = floats.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    assert_eq!(floats.len(), N, "{path}");
    assert!(floats.iter().filter(|x| **x != 0.0).count() > N / 2, "{path} says nothing");
    (raw, floats)
}

#[test]
fn every_computable_type_is_tested() {
    let floats = [GgmlType::F32, GgmlType::F16, GgmlType::BF16];
    for ty in GgmlType::ALL {
        assert_eq!(ty.is_computable(), QUANTIZED.contains(ty) || floats.contains(ty), "{ty}");
    }
}

#[test]
fn quantised_blocks_are_ggml_s_bit_for_bit() {
    for ty in QUANTIZED {
        let (raw, want) = reference(ty);
        let mut got = vec![0.0; N];
        dequantize_row(ty, &raw, &mut got);
        for i in 0..N {
            assert_eq!(got[i].to_bits(), want[i].to_bits(), "{ty}[{i}]: {} is not {}", got[i], want[i]);
        }
    }
}

#[test]
fn floats_are_read_exactly() {
    let want = [0.0, -0.0, 1.0, -1.5, 2f32.powi(-14), -2f32.powi(-24), 65504.0, f32::INFINITY];
    let bytes: Vec<u8> = want.iter().flat_map(|x| f16::from_f32(*x).to_bits().to_le_bytes()).collect();
    assert_eq!(&bytes[4..8], &[0x00, 0x3c, 0x00, 0xbe], "1 and -1.5 as IEEE halves");
    let mut got = [0.0; 8];
    dequantize_row(GgmlType::F16, &bytes, &mut got);
    assert_eq!(got.map(f32::to_bits), want.map(f32::to_bits));

    let want = [0.0, -0.0, 1.0, -1.5, 2f32.powi(-126), -2f32.powi(-130), 2f32.powi(127), f32::NEG_INFINITY];
    let bytes: Vec<u8> = want.iter().flat_map(|x| bf16::from_f32(*x).to_bits().to_le_bytes()).collect();
    assert_eq!(&bytes[4..8], &[0x80, 0x3f, 0xc0, 0xbf], "1 and -1.5 as the upper half of a float");
    dequantize_row(GgmlType::BF16, &bytes, &mut got);
    assert_eq!(got.map(f32::to_bits), want.map(f32::to_bits));

    let bytes: Vec<u8> = want.iter().flat_map(|x| x.to_le_bytes()).collect();
    dequantize_row(GgmlType::F32, &bytes, &mut got);
    assert_eq!(got.map(f32::to_bits), want.map(f32::to_bits));
}

fn wave(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * i % 97) as f32 - 48.0) * 0.03 * (1.0 + (i % 31) as f32)).collect()
}

fn quantized(x: &[f32]) -> Vec<ActChunk> {
    let mut out = vec![ActChunk::ZERO; x.len().div_ceil(256)];
    quantize_row(x, &mut out);
    out
}

/// What the integers and scales stand for, in the order of `x`.
fn restored(chunks: &[ActChunk], n: usize) -> Vec<f32> {
    let lane = |i: usize| LANE_GROUP.iter().position(|g| *g == i % 256 / 16).unwrap();
    (0..n)
        .map(|i| {
            let (c, p) = (&chunks[i / 256], lane(i));
            f32::from(c.q[i % 16 / 4 * 64 + 4 * p + i % 4]) * c.d[span_of(p)]
        })
        .collect()
}

/// Squared distance of a span to what nearest integers at 127 steps to the largest magnitude give.
fn plain_error(span: &[f32]) -> f64 {
    let step = span.iter().fold(0f32, |m, x| m.max(x.abs())) / 127.0;
    let error = |x: &f32| f64::from(x - (x / step).round_ties_even() * step);
    span.iter().map(|x| error(x) * error(x)).sum()
}

#[test]
fn activations_are_no_farther_than_by_the_plain_scale_and_nearer_on_the_whole() {
    let (mut ours, mut plain) = (0.0, 0.0);
    for n in [32, 96, 256, 288, 1408, 2880] {
        let x = wave(n);
        let chunks = quantized(&x);
        let back = restored(&chunks, n);
        for (i, span) in x.chunks(32).enumerate() {
            let error: f64 = span.iter().zip(&back[32 * i..]).map(|(x, b)| f64::from((x - b) * (x - b))).sum();
            let bound = plain_error(span);
            // The plain scale's integers are among the candidates; what remains is rounding in f32.
            assert!(error <= bound * 1.0001 + 1e-12, "span {i} of {n}: {error:e} is over {bound:e}");
            (ours, plain) = (ours + error, plain + bound);
        }
        for (c, chunk) in chunks.iter().enumerate() {
            for (p, group) in LANE_GROUP.into_iter().enumerate() {
                let sum: i32 = (0..16).map(|i| i32::from(chunk.q[i / 4 * 64 + 4 * p + i % 4])).sum();
                assert_eq!(chunk.h[p], sum);
                assert_eq!(chunk.s[span_of(p)], (chunk.h[p] + chunk.h[p ^ 4]) as f32);
                let zero = (chunk.d[span_of(p)], chunk.s[span_of(p)]) == (0.0, 0.0);
                assert!((c * 16 + group) / 2 * 32 < n || zero, "padding is zero");
            }
        }
    }
    assert!(
        ours < 0.8 * plain,
        "squared distance {ours:e} against {plain:e}: the search found a tenth less noise at least"
    );
}

#[test]
fn odd_activations_are_defined() {
    let mut x = vec![1.0; 256];
    x[3] = f32::NAN;
    x[20] = f32::INFINITY; // in the same span
    x[64..96].fill(0.0);
    x[96..128].fill(f32::from_bits(7)); // denormal
    x[128..160].fill(-TINY);
    let chunks = quantized(&x);
    let d = chunks[0].d;
    assert!(d[0].is_nan() && d[1] == 1.0 / 127.0 && d[2] == 0.0 && d[3] == 0.0, "{d:?}");
    assert_eq!((d[4], d[5]), (TINY / 127.0, 1.0 / 127.0));
    let back = restored(&chunks, 256);
    assert_eq!(back[64..128], [0.0; 64]);
    assert!(back[128..160].iter().all(|x| (x / -TINY - 1.0).abs() < 1e-6));
}

/// The integer form says the same as the dequantised weights: sums differ only in rounding.
#[test]
fn dot_is_the_sum_over_dequantised_weights() {
    for ty in QUANTIZED.into_iter().chain([GgmlType::F32, GgmlType::F16, GgmlType::BF16]) {
        for n in [256, 1024, N] {
            let (raw, weights) = if QUANTIZED.contains(&ty) {
                let (raw, weights) = reference(ty);
                (raw[..ty.row_bytes(n as u64).unwrap() as usize].to_vec(), weights)
            } else {
                let w = wave(N);
                let bytes = w[..n].iter().flat_map(|w| match ty {
                    GgmlType::F16 => f16::from_f32(*w).to_bits().to_le_bytes().to_vec(),
                    GgmlType::BF16 => bf16::from_f32(*w).to_bits().to_le_bytes().to_vec(),
                    _ => w.to_le_bytes().to_vec(),
                });
                let bytes: Vec<u8> = bytes.collect();
                let mut weights = vec![0.0; n];
                dequantize_row(ty, &bytes, &mut weights);
                (bytes, weights)
            };
            let x = wave(n);
            let chunks = quantized(&x);
            let seen = if QUANTIZED.contains(&ty) { restored(&chunks, n) } else { x.clone() };
            let terms: Vec<f64> = weights.iter().zip(&seen).map(|(w, x)| f64::from(*w) * f64::from(*x)).collect();
            let (want, size) = (terms.iter().sum::<f64>(), terms.iter().map(|t| t.abs()).sum::<f64>());
            let got = f64::from(dot(ty, &raw, ActRow { x: &x, chunks: &chunks }));
            assert!(size > 0.0 && (got - want).abs() <= 1e-6 * size, "{ty} of {n}: {got} is not {want} (terms {size})");
        }
    }
}

#[test]
fn the_buffer_keeps_its_promise() {
    let mut acts = Acts::with_capacity(3, 288);
    assert_eq!(Acts::bytes(3, 288), 3 * 2 * 384);
    let x = wave(3 * 288);
    acts.quantize(&x, 3, 288, quantize_row);
    let before = acts.row(0, &x[..288]).chunks.as_ptr();
    for r in 0..3 {
        let x = &x[r * 288..(r + 1) * 288];
        assert_eq!(acts.row(r, x).chunks, quantized(x));
    }
    acts.quantize(&x[..256], 1, 256, quantize_row);
    let row = acts.row(0, &x[..256]);
    assert_eq!(row.chunks, quantized(&x[..256]));
    assert_eq!(row.chunks.as_ptr(), before, "the buffer was allocated again");
}
