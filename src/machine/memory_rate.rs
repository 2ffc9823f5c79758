//! How many bytes a second a plain read of memory gives.

use std::{hint::black_box, sync::Barrier, thread, time::Instant};

/// Read by each thread: more than caches hold.
const BYTES: usize = 64 << 20;

/// Passes, of which the fastest counts: neighbours make reads slower, never faster.
const PASSES: usize = 4;

/// Bytes a second that `threads` threads read together, each from memory of its own. Takes some tenths of a second and
/// 64 MiB a thread.
pub fn memory_rate(threads: usize) -> f64 {
    let threads = threads.max(1);
    let together = Barrier::new(threads);
    let slowest = thread::scope(|scope| {
        let work = || {
            let words = vec![1u64; BYTES / size_of::<u64>()];
            let pass = || {
                together.wait();
                let start = Instant::now();
                let (eights, _) = words.as_chunks::<8>();
                let sum = eights.iter().fold([0u64; 8], |sum, x| std::array::from_fn(|i| sum[i].wrapping_add(x[i])));
                black_box(sum);
                start.elapsed().as_secs_f64()
            };
            (0..PASSES).map(|_| pass()).fold(f64::INFINITY, f64::min)
        };
        let all: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        all.into_iter().map(|t| t.join().expect("a sum does not panic")).fold(0.0, f64::max)
    });
    (threads * BYTES) as f64 / slowest.max(1e-9)
}
