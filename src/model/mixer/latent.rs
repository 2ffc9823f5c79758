//! What latent attention does to queries, keys and results (arXiv 2405.04434): the way between heads and latent rows.

use crate::{
    Result,
    backend::{Backend, Product, Rows},
    blueprint,
    model::load::{Linear, Loader, Mat, Norm},
};

/// See the module.
pub struct Latent {
    /// Elements of a latent row.
    pub rank: usize,
    /// Elements of a query or key head that do not rotate.
    pub nope: usize,
    /// Elements behind them that do.
    rot: usize,
    n_head: usize,
    /// Elements of a value head.
    v: usize,
    /// Where queries come from short rows, too.
    q: Option<(Linear, Norm)>,
    norm: Norm,
    up: Up,
}

/// From latent rows to heads.
enum Up {
    /// (n_head, rank, nope), (n_head, v, rank)
    Absorbed([Mat; 2]),
    /// (n_head * (nope + v), rank)
    Expanded(Linear),
}

impl Latent {
    pub fn load(loader: &mut Loader<'_>, latent: &blueprint::Latent, n_head: usize) -> Result<Self> {
        let blueprint::Latent { rank, nope, rot, v, .. } = *latent;
        let q = match &latent.q {
            Some((linear, norm)) => Some((loader.linear(linear)?, loader.norm(norm)?)),
            None => None,
        };
        let up = match &latent.up {
            blueprint::Up::Absorbed([k, v]) => Up::Absorbed([loader.mat(k)?, loader.mat(v)?]),
            blueprint::Up::Expanded(linear) => Up::Expanded(loader.linear(linear)?),
        };
        Ok(Self { rank, nope, rot, n_head, v, q, norm: loader.norm(&latent.norm)?, up })
    }

    /// Floats per token beside an attention's rows.
    pub fn cols(latent: &blueprint::Latent, n_head: usize) -> usize {
        let keys = match latent.up {
            blueprint::Up::Absorbed(_) => n_head * latent.rank,
            blueprint::Up::Expanded(_) => n_head * (latent.nope + latent.v) + latent.rank + latent.rot,
        };
        n_head * latent.k() + keys
    }

    /// Floats per token of its short rows.
    pub fn low_cols(latent: &blueprint::Latent, n_head: usize) -> usize {
        let q = latent.q.map_or(0, |(linear, _)| linear.w.rows);
        latent.rank.max(n_head * latent.v).max(q)
    }

    /// Matrices whose rows are products of whole rows.
    pub fn mats_mut(&mut self) -> impl Iterator<Item = &mut Mat> {
        let up = match &mut self.up {
            Up::Absorbed(_) => None,
            Up::Expanded(linear) => Some(&mut linear.w),
        };
        self.q.iter_mut().map(|(linear, _)| &mut linear.w).chain(up)
    }

    /// Elements of a query head before it is absorbed.
    pub fn k(&self) -> usize {
        self.nope + self.rot
    }

    /// Whether keys are latent rows, which come from their product in place.
    pub fn is_absorbed(&self) -> bool {
        matches!(self.up, Up::Absorbed(_))
    }

    /// Splits `memory` of `n` rows: query heads (n, n_head, nope + rot), and the rest.
    pub fn split<'m>(&self, n: usize, memory: &'m mut [f32]) -> (&'m mut [f32], &'m mut [f32]) {
        memory.split_at_mut(n * self.n_head * self.k())
    }

    /// Query heads (n, n_head, nope + rot) of the normed rows `x`, by `w`.
    pub fn queries(&self, b: &mut impl Backend, x: &Rows, w: &Linear, low: &mut Rows, y: &mut [f32]) {
        let Some((down, norm)) = &self.q else {
            return b.matmul(x, &mut [Product { w: w.w.view(), y }]);
        };
        let y_low = low.start_wide(x.len(), down.w.view().rows);
        b.matmul(x, &mut [Product { w: down.w.view(), y: y_low }]);
        down.finish(b, y_low);
        norm.apply_onto(b, y_low);
        b.prepare(low);
        b.matmul(low, &mut [Product { w: w.w.view(), y }]);
    }

    /// Norms the latent part of the rows `x` (n, rank + rot), and leaves it in `low` as well.
    pub fn norm(&self, b: &mut impl Backend, x: &mut [f32], low: &mut Rows) {
        let cols = self.rank + self.rot;
        let rows = low.start_wide(x.len() / cols, self.rank);
        for (row, x) in rows.chunks_exact_mut(self.rank).zip(x.chunks_exact(cols)) {
            row.copy_from_slice(&x[..self.rank]);
        }
        self.norm.apply_onto(b, rows);
        for (row, x) in rows.chunks_exact(self.rank).zip(x.chunks_exact_mut(cols)) {
            x[..self.rank].copy_from_slice(row);
        }
    }

    /// Keys (n, n_head, nope + rot) and values (n, n_head, v) of latent rows in `low`, whose rotated parts are those of `x`
    /// (n, rank + rot). `both` has room for them.
    pub fn expand(&self, b: &mut impl Backend, low: &mut Rows, x: &[f32], both: &mut [f32], [k, v]: [&mut [f32]; 2]) {
        let Up::Expanded(linear) = &self.up else { unreachable!("absorbed keys are latent rows") };
        b.prepare(low);
        let each = self.n_head * (self.nope + self.v);
        let both = &mut both[..low.len() * each];
        b.matmul(low, &mut [Product { w: linear.w.view(), y: both }]);
        linear.finish(b, both);
        let heads =
            k.chunks_exact_mut(self.k()).zip(v.chunks_exact_mut(self.v)).zip(both.chunks_exact(self.nope + self.v));
        for (i, ((k, v), both)) in heads.enumerate() {
            let rotated = &x[(i / self.n_head + 1) * (self.rank + self.rot) - self.rot..][..self.rot];
            k[..self.nope].copy_from_slice(&both[..self.nope]);
            k[self.nope..].copy_from_slice(rotated);
            v.copy_from_slice(&both[self.nope..]);
        }
    }

    /// Queries as the attention wants them, of rotated heads: (n, n_head, rank + rot) where keys are latent rows. `heads` are
    /// rows to work in, `wide` has room for (n, n_head, rank).
    pub fn absorb(&self, b: &mut impl Backend, heads: &[f32], rows: &mut Rows, wide: &mut [f32], q: &mut [f32]) {
        let Up::Absorbed([k, _]) = &self.up else { return q.copy_from_slice(heads) };
        let n = heads.len() / self.k();
        let parts = rows.start_wide(n, self.nope);
        for (part, head) in parts.chunks_exact_mut(self.nope).zip(heads.chunks_exact(self.k())) {
            part.copy_from_slice(&head[..self.nope]);
        }
        b.prepare(rows);
        let wide = &mut wide[..n * self.rank];
        b.matmul_per_head(rows, self.n_head, k.view(), wide);
        let from = wide.chunks_exact(self.rank).zip(heads.chunks_exact(self.k()));
        for (q, (wide, head)) in q.chunks_exact_mut(self.rank + self.rot).zip(from) {
            q[..self.rank].copy_from_slice(wide);
            q[self.rank..].copy_from_slice(&head[self.nope..]);
        }
    }

    /// Value heads (n, n_head, v) of what attention gives, in `low`.
    pub fn values(&self, b: &mut impl Backend, attended: &mut Rows, low: &mut Rows) {
        let n = attended.len();
        match &self.up {
            Up::Expanded(_) => low.start_wide(n, self.n_head * self.v).copy_from_slice(attended.x()),
            Up::Absorbed([_, v]) => {
                attended.reshape(self.rank);
                b.prepare(attended);
                b.matmul_per_head(attended, self.n_head, v.view(), low.start_wide(n, self.n_head * self.v));
            }
        }
    }
}
