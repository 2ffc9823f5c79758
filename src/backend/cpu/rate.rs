//! How many bytes of weights per second one token's products take, out of memory, on all threads, with their hand-outs; and how
//! many a plain read takes, which is what they could at most.

use std::{
    hint::black_box,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use super::{
    Cpu,
    pool::{Phase, Worker},
};
use crate::{
    backend::{Backend, Product, Rows},
    quant::{GgmlType, QMat},
};

/// Width of the matrices: a multiple of every block.
const COLS: usize = 2048;

/// Weights in all: more than caches hold. Where memory is short, half of what is free, and [`LEAST_BYTES`] at least, since
/// fewer would show how fast a cache is.
const BYTES: usize = 128 << 20;
const LEAST_BYTES: usize = 64 << 20;

/// Passes, of which the fastest counts: neighbours make products slower, never faster. Nothing but the first counts once
/// [`MOST`] is over.
const PASSES: usize = 4;
const MOST: Duration = Duration::from_millis(300);

/// Every byte of the weights: as scales (halves, or exponents of MXFP4) small numbers, in all types.
const FILL: u8 = 0x1c;

/// Bytes that a thread reads in one go.
const PIECE: usize = 1 << 20;

/// Adds up 64-bit words: as fast as a core reads. Bytes behind the last 256 are left out.
pub fn plain_read(bytes: &[u8]) -> u64 {
    let mut sums = [0u64; 32];
    for chunk in bytes.as_chunks::<256>().0 {
        for (sum, word) in sums.iter_mut().zip(chunk.as_chunks::<8>().0) {
            *sum = sum.wrapping_add(u64::from_ne_bytes(*word));
        }
    }
    sums.iter().fold(0, |a, b| a ^ b)
}

impl Cpu {
    /// Bytes a second of nothing but reading `parts` on all threads, over and over for `time`. `None` where they are so few
    /// that caches may hold them, or the time is over before the first of them is read.
    pub fn read_rate(&mut self, parts: &[&[u8]], time: Duration) -> Option<f64> {
        let pieces: Vec<&[u8]> = parts.iter().flat_map(|part| part.chunks(PIECE)).collect();
        if pieces.iter().map(|piece| piece.len()).sum::<usize>() < BYTES {
            return None;
        }
        let (start, bytes) = (Instant::now(), AtomicUsize::new(0));
        while start.elapsed() < time {
            let pass = Phase::new(pieces.len(), self.pool.threads());
            self.pool.run(&|worker: Worker<'_>| {
                pass.work(worker, |i| {
                    if start.elapsed() < time {
                        black_box(plain_read(pieces[i]));
                        bytes.fetch_add(pieces[i].len(), Ordering::Relaxed);
                    }
                });
            });
        }
        let bytes = bytes.into_inner();
        (bytes > 0).then(|| bytes as f64 / start.elapsed().as_secs_f64())
    }
}

/// Matrices to measure with: 128 MiB while it lives, or less where memory is short.
pub struct WeightRate {
    weights: Vec<u8>,
    rows: Rows,
    y: Vec<f32>,
}

impl WeightRate {
    /// Makes the weights where `free_bytes` may be taken. `None` if those are too few to measure with.
    pub fn new(free_bytes: u64) -> Option<Self> {
        let bytes = usize::try_from(free_bytes / 2).unwrap_or(BYTES).min(BYTES);
        if bytes < LEAST_BYTES {
            return None;
        }
        let mut rows = Rows::new(1, COLS);
        rows.start(1).fill(1.0);
        Some(Self { weights: vec![FILL; bytes], rows, y: Vec::new() })
    }

    /// Bytes a second of type `ty` in products of about `product` bytes each, which is what is handed out to threads at
    /// once. `None` for a type that has no kernels. Takes some tenths of a second.
    pub fn of(&mut self, cpu: &mut Cpu, ty: GgmlType, product: usize) -> Option<f64> {
        let row_bytes = ty.is_computable().then(|| ty.row_bytes(COLS as u64))?? as usize;
        let n_row = (product / row_bytes).clamp(1, self.weights.len() / row_bytes);
        self.y.resize(n_row, 0.0);
        cpu.prepare(&mut self.rows);
        let (start, mut best) = (Instant::now(), 0f64);
        for _ in 0..PASSES {
            let (pass, mut bytes) = (Instant::now(), 0);
            for data in self.weights.chunks_exact(n_row * row_bytes) {
                // All bytes are alike, in either order.
                let w =
                    QMat { interleaved: cpu.kernels.wants_interleaved(ty, COLS), ..QMat::new(ty, n_row, COLS, data) };
                cpu.matmul(&self.rows, &mut [Product { w, y: &mut self.y }]);
                bytes += data.len();
            }
            best = best.max(bytes as f64 / pass.elapsed().as_secs_f64().max(1e-9));
            if start.elapsed() > MOST {
                break;
            }
        }
        Some(best)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No pass of so many bytes is quicker than a cache or slower than a disk.
    #[test]
    fn every_type_with_kernels_has_a_rate() {
        let (mut cpu, mut rate) = (Cpu::new(1).unwrap(), WeightRate::new(u64::MAX).unwrap());
        for ty in [GgmlType::F32, GgmlType::Q4_0] {
            let rate = rate.of(&mut cpu, ty, 1 << 20).unwrap();
            assert!((1e7..1e12).contains(&rate), "{ty} {rate}");
        }
        let without = GgmlType::ALL.iter().find(|ty| !ty.is_computable());
        assert!(without.is_none_or(|ty| rate.of(&mut cpu, *ty, 1 << 20).is_none()));
    }

    #[test]
    fn weights_take_half_of_what_is_free_and_no_more_than_needed() {
        let taken = |free: u64| WeightRate::new(free).map(|rate| rate.weights.len());
        assert_eq!([taken(u64::MAX), taken(1 << 30)], [Some(BYTES); 2]);
        assert_eq!(taken(200 << 20), Some(100 << 20));
        assert_eq!([taken((128 << 20) - 2), taken(0)], [None; 2]);
        let (mut cpu, mut rate) = (Cpu::new(1).unwrap(), WeightRate::new(128 << 20).unwrap());
        let rate = rate.of(&mut cpu, GgmlType::Q8_0, usize::MAX).expect("a product of all that there is");
        assert!((1e7..1e12).contains(&rate), "{rate}");
    }

    #[test]
    fn a_plain_read_has_a_rate_where_caches_do_not_hold_it_all() {
        let (mut cpu, bytes) = (Cpu::new(2).unwrap(), vec![FILL; BYTES]);
        let (a, b) = bytes.split_at(BYTES / 3);
        let rate = cpu.read_rate(&[a, b], Duration::from_millis(20)).unwrap();
        assert!((1e7..1e12).contains(&rate), "{rate}");
        assert!(cpu.read_rate(&[a], Duration::from_millis(20)).is_none());
        assert!(cpu.read_rate(&[a, b], Duration::ZERO).is_none());
        let words = [1u64, 2, 4, 8].map(u64::to_ne_bytes).concat().repeat(8);
        assert_eq!(plain_read(&words), 0, "of each of 32 sums one word, every word eight times: they cancel");
        assert_eq!(plain_read(&[&words[..8], &[0; 248]].concat()), 1);
    }
}
