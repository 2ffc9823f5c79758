//! Memories of key and value heads, a head on one thread, a token after another: a row gets the same bits in any batch.

use super::{Out, Phase, Pool, Worker, kernels::Kernels};
use crate::backend::Recurrence;

/// Elements of values that are computed together.
const VALUES: usize = 256;

/// Multiplications below which the calling thread does them all.
const ALONE: usize = 16 << 10;

pub(super) fn recur(kernels: &Kernels, pool: &mut Pool, r: &Recurrence<'_>, state: &mut [f32], out: &mut [f32]) {
    let (n, size, width) = (r.n(), r.k * r.v, r.heads * r.v);
    assert!(state.len() == r.heads * size && r.from.len() == state.len(), "memories of {} heads", r.heads);
    assert_eq!(out.len(), n * width, "output of {n} rows");
    let (state, out) = (Out(state.as_mut_ptr()), Out(out.as_mut_ptr()));
    let work = Phase::new(r.heads, pool.threads());
    let body = |worker: Worker<'_>| {
        work.work(worker, |head| {
            // SAFETY: there are as many memories as heads (asserted), and each is this thread's alone.
            let memory = unsafe { std::slice::from_raw_parts_mut(state.at(head * size), size) };
            memory.copy_from_slice(&r.from[head * size..(head + 1) * size]);
            for row in 0..n {
                // SAFETY: `out` has a row for each token (asserted), of which this head's part is this thread's alone.
                let out = unsafe { std::slice::from_raw_parts_mut(out.at(row * width + head * r.v), r.v) };
                step(kernels, r, row, head, memory, out);
            }
        });
    };
    if n * r.heads * size < ALONE { body(Worker::alone()) } else { pool.run(&body) }
}

/// One token through one head's memory (k, v).
fn step(kernels: &Kernels, r: &Recurrence<'_>, row: usize, head: usize, memory: &mut [f32], out: &mut [f32]) {
    let [query, key, value] = r.vectors(row, head);
    let rate = r.rate[row * r.heads + head];
    let (mut found, mut change) = ([0.0; VALUES], [0.0; VALUES]);
    for start in (0..r.v).step_by(VALUES) {
        let n = VALUES.min(r.v - start);
        let (found, change, out) = (&mut found[..n], &mut change[..n], &mut out[start..start + n]);
        found.fill(0.0);
        for (i, key) in key.iter().enumerate() {
            let line = &mut memory[i * r.v + start..][..n];
            kernels.scale(r.decay(row, head, i), line);
            if r.corrects {
                kernels.axpy(*key, line, found);
            }
        }
        for ((change, value), found) in change.iter_mut().zip(&value[start..]).zip(&*found) {
            *change = rate * (value - found);
        }
        out.fill(0.0);
        for (i, (key, query)) in key.iter().zip(query).enumerate() {
            let line = &mut memory[i * r.v + start..][..n];
            kernels.axpy(*key, change, line);
            kernels.axpy(*query, line, out);
        }
    }
}
