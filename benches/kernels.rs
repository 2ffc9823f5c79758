//! Speed of matrix multiplication by type, instruction set, tokens, threads and where the weights are.
//!
//! `memory/…` reads weights out of DRAM for one token, bytes of weights per second: decoding should be bound by that. A plain
//! read of the same bytes takes turns with it, and its share of that is printed: what memory gives differs by a half from
//! minute to minute where there are neighbours. `cache/…` has weights that fit in L2, as
//! multiplications per second, beside a plain read of as many bytes (`cache/read`): prompt processing should be bound by
//! arithmetic. `prompt/…` has weights out of DRAM for as
//! many tokens as an expert gets of a prompt, in pieces of as many rows as the pool hands out, each of which asks for the next
//! one as there. Weights lie in huge pages, as a session has them: with small ones eight tokens of Q4_K went at 96 G
//! multiplications/s, not 133 (Zen 4). `Q4_K-interleaved` is the same type
//! with sixteen rows in turn, where there are kernels for that. Choose with a filter:
//! `cargo bench --bench kernels -- cache/Q4_K`.

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use hotset::backend::cpu::{
    kernels::{Isa, Kernels},
    plain_read,
};
use hotset::machine::{Filled, anonymous};
use hotset::quant::{Acts, GgmlType, QMat};
use memmap2::MmapMut;

const COLS: usize = 2048;
/// More than L3 caches of servers hold.
const MEMORY_BYTES: usize = 1 << 30;
/// For prompts, whose weights come from DRAM only by the way.
const PROMPT_BYTES: usize = 64 << 20;
const CACHE_BYTES: usize = 256 << 10;
const PIECE: usize = 96;

/// Weights of which all scales are small numbers: 0x1c1c is 0.004 as a half. In memory as a session has it.
fn weights(ty: GgmlType, bytes: usize) -> (MmapMut, usize) {
    let rows = rows_in(ty, bytes);
    let mut data = anonymous(rows * row_bytes(ty), Filled::AtOnce).expect("memory for the weights");
    data.fill(0x1c);
    (data, rows)
}

fn row_bytes(ty: GgmlType) -> usize {
    ty.row_bytes(COLS as u64).expect("2048 is a multiple of every block") as usize
}

/// Whole tiles of 16 rows for two threads, and whole pieces where there are enough rows.
fn rows_in(ty: GgmlType, bytes: usize) -> usize {
    let grain = if bytes > CACHE_BYTES { 2 * PIECE } else { 32 };
    bytes / row_bytes(ty) / grain * grain
}

fn kernels() -> Vec<Kernels> {
    let isas = Isa::ALL.iter().filter(|isa| isa.is_available());
    isas.map(|isa| Kernels::for_isa(*isa).expect("it is available")).collect()
}

fn types() -> impl Iterator<Item = GgmlType> {
    GgmlType::ALL.iter().copied().filter(|ty| ty.is_computable())
}

/// The orders of a type's rows that there are kernels for. Bytes are all the same here, in either.
fn orders(kernels: &Kernels, ty: GgmlType) -> impl Iterator<Item = (GgmlType, bool)> + use<> {
    let interleaved = kernels.can_interleave(ty, COLS).then_some((ty, true));
    [(ty, false)].into_iter().chain(interleaved)
}

fn named(ty: GgmlType, interleaved: bool) -> String {
    format!("{ty}{}", if interleaved { "-interleaved" } else { "" })
}

/// Runs `work` for each thread's share of `n`.
fn in_parallel(threads: usize, n: usize, work: impl Fn(std::ops::Range<usize>) + Sync) {
    std::thread::scope(|scope| {
        for i in 1..threads {
            let work = &work;
            scope.spawn(move || work(i * n / threads..(i + 1) * n / threads));
        }
        work(0..n / threads);
    });
}

/// How long `f` takes.
fn time(f: impl FnOnce()) -> Duration {
    let start = Instant::now();
    f();
    start.elapsed()
}

#[expect(clippy::print_stdout, reason = "a line more among criterion's")]
fn memory(c: &mut Criterion) {
    let mut group = c.benchmark_group("memory");
    let best = Kernels::detect().expect("scalar code runs everywhere");
    let x: Vec<f32> = (0..COLS).map(|i| (i % 17) as f32 - 8.0).collect();
    let mut acts = Acts::default();
    best.quantize(&x, 1, COLS, &mut acts);
    group.throughput(Throughput::Bytes(MEMORY_BYTES as u64));
    let orders = types().flat_map(|ty| orders(&best, ty));
    let orders: Vec<_> = orders.collect();
    for (threads, &(ty, interleaved)) in [1, 2].into_iter().flat_map(|threads| orders.iter().map(move |o| (threads, o)))
    {
        let mut shares = Vec::new();
        group.bench_function(format!("{}/{}/{threads}", named(ty, interleaved), best.isa().name()), |b| {
            // Made here, so that a bench which the filter leaves out costs nothing.
            let (data, rows) = weights(ty, MEMORY_BYTES);
            let w = QMat { interleaved, ..QMat::new(ty, rows, COLS, &data) };
            let plain = || in_parallel(threads, data.len(), |range| _ = black_box(plain_read(&data[range])));
            let matvec = || {
                in_parallel(threads, rows / 16, |range| {
                    for r in range {
                        let mut y = [0.0; 16];
                        best.matvec(w.slice(16 * r..16 * (r + 1)), acts.row(0, &x), &mut y);
                        black_box(y);
                    }
                });
            };
            b.iter_custom(|n| {
                let turns = (0..n).map(|_| {
                    let (plain, matvec) = (time(plain), time(matvec));
                    shares.push(plain.as_secs_f64() / matvec.as_secs_f64());
                    matvec
                });
                turns.sum()
            });
        });
        shares.sort_by(f64::total_cmp);
        if let [least, .., most] = shares[..] {
            let [least, median, most] = [least, shares[shares.len() / 2], most].map(|share| 100.0 * share);
            println!(
                "{:24}plain read: {median:.0} % of its rate (median of {}, {least:.0} to {most:.0})",
                "",
                shares.len()
            );
        }
    }
}

fn cache(c: &mut Criterion) {
    let mut group = c.benchmark_group("cache");
    let x: Vec<f32> = (0..64 * COLS).map(|i| (i % 17) as f32 - 8.0).collect();
    let mut acts = Acts::default();
    Kernels::detect().expect("scalar code runs everywhere").quantize(&x, 64, COLS, &mut acts);
    group.throughput(Throughput::Bytes(CACHE_BYTES as u64));
    group.bench_function("read", |b| {
        let bytes = vec![1u8; CACHE_BYTES];
        b.iter(|| black_box(plain_read(black_box(&bytes))));
    });
    for ty in types() {
        let (data, rows) = weights(ty, CACHE_BYTES);
        let mut y = vec![0.0; 64 * rows];
        for (kernels, interleaved) in kernels().iter().flat_map(|k| orders(k, ty).map(move |(_, order)| (k, order))) {
            let w = QMat { interleaved, ..QMat::new(ty, rows, COLS, &data) };
            for tokens in [1, 4, 16, 64] {
                if kernels.isa() == Isa::Scalar && tokens > 1 {
                    continue; // token by token, at the same speed
                }
                let x: Vec<_> = (0..tokens).map(|t| acts.row(t, &x[t * COLS..(t + 1) * COLS])).collect();
                let y: Vec<_> = y.chunks_mut(rows).take(tokens).map(|y| y.as_mut_ptr()).collect();
                group.throughput(Throughput::Elements((rows * COLS * tokens) as u64));
                group.bench_function(format!("{}/{}/{tokens}", named(ty, interleaved), kernels.isa().name()), |b| {
                    // SAFETY: each pointer has `rows` floats behind it and no other user.
                    b.iter(|| unsafe { kernels.matmul(w, &x, &y, &[]) });
                });
            }
        }
    }
}

fn prompt(c: &mut Criterion) {
    let mut group = c.benchmark_group("prompt");
    let best = Kernels::detect().expect("scalar code runs everywhere");
    const TOKENS: [usize; 5] = [4, 8, 16, 32, 64];
    let n = TOKENS[TOKENS.len() - 1];
    let x: Vec<f32> = (0..n * COLS).map(|i| (i % 17) as f32 - 8.0).collect();
    let mut acts = Acts::default();
    best.quantize(&x, n, COLS, &mut acts);
    let orders: Vec<_> = types().flat_map(|ty| orders(&best, ty)).collect();
    let cases = orders.iter().flat_map(|o| TOKENS.into_iter().flat_map(move |n| [(o, n, 1), (o, n, 2)]));
    for (&(ty, interleaved), tokens, threads) in cases {
        let rows = rows_in(ty, PROMPT_BYTES);
        group.throughput(Throughput::Elements((rows * COLS * tokens) as u64));
        group.bench_function(format!("{}/{}/{tokens}/{threads}", named(ty, interleaved), best.isa().name()), |b| {
            let (data, rows) = weights(ty, PROMPT_BYTES);
            let w = QMat { interleaved, ..QMat::new(ty, rows, COLS, &data) };
            let x: Vec<_> = (0..tokens).map(|t| acts.row(t, &x[t * COLS..(t + 1) * COLS])).collect();
            b.iter(|| {
                in_parallel(threads, rows / PIECE, |range| {
                    let mut y = vec![0.0; tokens * PIECE];
                    let y: Vec<_> = y.chunks_mut(PIECE).map(|y| y.as_mut_ptr()).collect();
                    for piece in range {
                        let then = w.slice(PIECE * (piece + 1)..rows.min(PIECE * (piece + 2))).data;
                        // SAFETY: each pointer has `PIECE` floats behind it and no other user.
                        unsafe { best.matmul(w.slice(PIECE * piece..PIECE * (piece + 1)), &x, &y, then) };
                    }
                });
            });
        });
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(20))
        .measurement_time(Duration::from_millis(100))
        .without_plots();
    targets = memory, cache, prompt
}
criterion_main!(benches);
