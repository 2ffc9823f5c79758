//! Scalar, slow, obvious: what the fast backend is tested against. Activations stay exact F32; weights are dequantised.

use super::{
    Attention, AttentionShape, Backend, CacheWrite, FfnExtras, FfnJob, Hidden, Pair, Product, Recurrence, RopeKind,
    Rotation, Rows, soft_cap,
};
use crate::quant::{QMat, dequantize_row, encode_row};

/// See the module.
#[derive(Default)]
pub struct Reference;

/// `w · x`. (w.rows)
fn product(w: &QMat<'_>, x: &[f32], y: &mut [f32]) {
    let mut row = vec![0.0; w.cols];
    for (r, y) in y.iter_mut().enumerate() {
        dequantize_row(w.ty, w.row(r), &mut row);
        *y = row.iter().zip(x).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>() as f32;
    }
}

impl Backend for Reference {
    fn describe(&self) -> String {
        "reference".to_owned()
    }
    fn prepare(&mut self, _: &mut Rows) {}
    fn matmul(&mut self, rows: &Rows, products: &mut [Product<'_>]) {
        for p in products {
            for (x, y) in rows.x().chunks_exact(rows.cols).zip(p.y.chunks_exact_mut(p.w.rows)) {
                product(&p.w, x, y);
            }
        }
    }
    fn matmul_per_head(&mut self, rows: &Rows, n_head: usize, w: QMat<'_>, y: &mut [f32]) {
        let each = w.rows / n_head;
        for (i, (x, y)) in rows.x().chunks_exact(rows.cols).zip(y.chunks_exact_mut(each)).enumerate() {
            let head = i % n_head;
            product(&w.slice(head * each..(head + 1) * each), x, y);
        }
    }
    fn ffn(&mut self, rows: &Rows, jobs: &[FfnJob<'_>], pairs: &[Pair], _: &mut Hidden, out: &mut [f32]) {
        for job in jobs {
            let (n_ff, n_embd) = (job.mats.n_ff(), job.mats.down.rows);
            let (mut gate, mut up) = (vec![0.0; n_ff], vec![0.0; n_ff]);
            for pair in &pairs[job.pairs.clone()] {
                let x = &rows.x()[pair.row as usize * rows.cols..][..rows.cols];
                product(&job.mats.up, x, &mut up);
                if let Some(w) = &job.mats.gate {
                    product(w, x, &mut gate);
                }
                gate.iter_mut().chain(&mut up).for_each(|y| *y *= pair.scale);
                let FfnExtras { act, scale, bias } = job.extras;
                let finish = |role: usize, y: &mut [f32]| {
                    y.iter_mut().for_each(|y| *y *= scale[role]);
                    y.iter_mut().zip(bias[role]).for_each(|(y, b)| *y += b);
                };
                finish(1, &mut up);
                if job.mats.gate.is_some() {
                    finish(0, &mut gate);
                    act.apply(&mut gate, &up);
                } else {
                    gate.copy_from_slice(&up);
                    act.apply_alone(&mut gate);
                }
                let out = &mut out[pair.out as usize * n_embd..][..n_embd];
                product(&job.mats.down, &gate, out);
                finish(2, out);
            }
        }
    }
    fn attention_bytes(_: usize, _: AttentionShape) -> u64 {
        0
    }
    fn attend(&mut self, a: &Attention<'_>, out: &mut [f32]) {
        let group = a.n_head / a.n_head_kv;
        let (bytes_k, bytes_v) = (row_bytes(a, a.head_k), row_bytes(a, a.head_v));
        let (mut key, mut value) = (vec![0.0; a.head_k], vec![0.0; a.head_v]);
        for (i, (q, out)) in a.q.chunks_exact(a.head_k).zip(out.chunks_exact_mut(a.head_v)).enumerate() {
            let (row, head) = (i / a.n_head, i % a.n_head);
            let base = head / group * a.n_ctx;
            let mut scores = Vec::new();
            let seen = (a.sees_from(a.first + row)..=a.first + row)
                .filter(|pos| a.chosen(row, pos / 64) >> (pos % 64) & 1 == 1);
            for pos in seen.clone().map(|pos| pos % a.n_ctx) {
                dequantize_row(a.ty, &a.keys[(base + pos) * bytes_k..][..bytes_k], &mut key);
                let score = q.iter().zip(&key).map(|(a, b)| a * b).sum::<f32>() * a.scale;
                scores.push(a.soft_cap.map_or(score, |cap| soft_cap(cap, score)));
            }
            let sink = a.sinks.get(head);
            let max = scores.iter().chain(sink).fold(f32::NEG_INFINITY, |m, s| m.max(*s));
            let total: f32 = scores.iter().chain(sink).map(|s| (s - max).exp()).sum();
            out.fill(0.0);
            for (pos, score) in seen.zip(&scores) {
                if a.values.is_empty() {
                    dequantize_row(a.ty, &a.keys[(base + pos % a.n_ctx) * bytes_k..][..bytes_k], &mut key);
                    value.copy_from_slice(&key[..a.head_v]);
                } else {
                    dequantize_row(a.ty, &a.values[(base + pos % a.n_ctx) * bytes_v..][..bytes_v], &mut value);
                }
                let p = (score - max).exp() / total;
                out.iter_mut().zip(&value).for_each(|(o, v)| *o += p * v);
            }
        }
    }
    fn recur(&mut self, r: &Recurrence<'_>, state: &mut [f32], out: &mut [f32]) {
        state.copy_from_slice(r.from);
        for (i, out) in out.chunks_exact_mut(r.v).enumerate() {
            let (row, head) = (i / r.heads, i % r.heads);
            let (memory, rate) = (&mut state[head * r.k * r.v..][..r.k * r.v], r.rate[row * r.heads + head]);
            let [query, key, value] = r.vectors(row, head);
            for (j, (out, value)) in out.iter_mut().zip(value).enumerate() {
                let mut found = 0.0;
                for (i, key) in key.iter().enumerate() {
                    memory[i * r.v + j] *= r.decay(row, head, i);
                    found += if r.corrects { memory[i * r.v + j] * key } else { 0.0 };
                }
                *out = 0.0;
                for (i, (key, query)) in key.iter().zip(query).enumerate() {
                    memory[i * r.v + j] += key * rate * (value - found);
                    *out += memory[i * r.v + j] * query;
                }
            }
        }
    }
    fn rms_norm(&mut self, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        let n = weight.len();
        for (x, out) in x.chunks_exact(n).zip(out.chunks_exact_mut(n)) {
            let mean = x.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>() / n as f64;
            let scale = 1.0 / (mean as f32 + eps).sqrt();
            for ((o, x), w) in out.iter_mut().zip(x).zip(weight) {
                *o = x * scale * w;
            }
        }
    }
    fn rms_norm_onto(&mut self, x: &mut [f32], weight: &[f32], eps: f32) {
        let copy = x.to_vec();
        self.rms_norm(&copy, weight, eps, x);
    }
    fn rope(&mut self, x: &mut [f32], r: &Rotation<'_>) {
        let n = r.turns.len() / (2 * r.pairs).max(1);
        let heads = x.len() / r.head / n.max(1);
        for (i, head) in x.chunks_exact_mut(r.head).enumerate() {
            let turns = &r.turns[i / heads * 2 * r.pairs..][..2 * r.pairs];
            for pair in 0..r.pairs {
                let (a, b) = match r.kind {
                    RopeKind::Interleaved => (2 * pair, 2 * pair + 1),
                    RopeKind::Halves => (pair, pair + r.pairs),
                };
                let (a, b) = (r.skip + a, r.skip + b);
                let (cos, sin) = (turns[pair], turns[pair + r.pairs]);
                (head[a], head[b]) = (head[a] * cos - head[b] * sin, head[a] * sin + head[b] * cos);
            }
        }
    }
    fn write_cache(&mut self, w: CacheWrite<'_>) {
        let bytes = w.dim / w.ty.block_len() * w.ty.block_bytes();
        let n_ctx = w.cache.len() / w.heads / bytes;
        let mut row = vec![0; bytes];
        for (i, x) in w.x.chunks_exact(w.dim).enumerate() {
            let (head, pos) = (&mut w.cache[i % w.heads * n_ctx * bytes..], (w.first + i / w.heads) % n_ctx);
            encode_row(w.ty, x, &mut row);
            head[pos * bytes..(pos + 1) * bytes].copy_from_slice(&row);
        }
    }
    fn add_bias(&mut self, x: &mut [f32], bias: &[f32]) {
        x.chunks_exact_mut(bias.len()).for_each(|x| x.iter_mut().zip(bias).for_each(|(x, b)| *x += b));
    }
    fn add_weighted(&mut self, x: &mut [f32], cols: usize, terms: &[f32], weight: impl Fn(usize) -> f32 + Sync) {
        let each = terms.len() / x.len();
        for (r, term) in terms.chunks_exact(cols).enumerate() {
            let x = &mut x[r / each * cols..][..cols];
            x.iter_mut().zip(term).for_each(|(x, t)| *x += weight(r) * t);
        }
    }
    fn softmax(&mut self, x: &mut [f32], cols: usize) {
        for x in x.chunks_exact_mut(cols) {
            let max = x.iter().fold(f32::NEG_INFINITY, |m, s| m.max(*s));
            x.iter_mut().for_each(|s| *s = (*s - max).exp());
            let total: f32 = x.iter().sum();
            x.iter_mut().for_each(|s| *s /= total);
        }
    }
    fn each_row<T: Send>(&mut self, x: &mut [T], cols: usize, _: usize, f: impl Fn(usize, &mut [T]) + Sync) {
        x.chunks_exact_mut(cols).enumerate().for_each(|(i, row)| f(i, row));
    }
}

fn row_bytes(a: &Attention<'_>, n: usize) -> usize {
    n / a.ty.block_len() * a.ty.block_bytes()
}
