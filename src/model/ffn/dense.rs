//! A feed-forward network that every token takes.

use crate::{
    Result,
    backend::{Backend, FfnExtras, FfnJob, Pair},
    blueprint,
    model::{
        Scratch,
        cx::Cx,
        load::{Gated, Loader, Mat},
    },
};

/// See the module.
pub struct Dense(Gated);

impl Dense {
    pub fn load(loader: &mut Loader<'_>, ffn: &blueprint::Gated) -> Result<Self> {
        Ok(Self(loader.gated(ffn)?))
    }

    pub fn mats_mut(&mut self) -> &mut [Mat] {
        &mut self.0.mats
    }

    /// `x += ffn(norm(x))`, where the rows have been normed already.
    pub fn add<B: Backend>(&self, cx: &mut Cx<'_, B>) {
        everyone(&self.0, cx);
        let (n, n_embd) = (cx.len(), cx.n_embd);
        let Cx { b, s, target, .. } = cx;
        let Scratch { x, sum, branch, moe, .. } = &mut **s;
        let terms = &moe.shared[..n * n_embd];
        b.add_weighted(target.rows([x, sum, branch], n, n_embd), n_embd, terms, |_| 1.0);
    }
}

/// `shared[i] = ffn(norm[i])` for every row.
pub(super) fn everyone<B: Backend>(ffn: &Gated, cx: &mut Cx<'_, B>) {
    let (mats, extras) = (ffn.view(), FfnExtras::plain(ffn.act));
    let Cx { b, s, .. } = cx;
    let (norm, moe) = (&s.norm, &mut s.moe);
    let at_once = moe.hidden.pairs(mats.n_ff()).min(moe.pairs.len());
    for start in (0..norm.len()).step_by(at_once) {
        let n = at_once.min(norm.len() - start);
        for (i, pair) in moe.pairs[..n].iter_mut().enumerate() {
            *pair = Pair { row: (start + i) as u32, out: (start + i) as u32, scale: 1.0 };
        }
        let job = FfnJob { mats, extras, pairs: 0..n, hidden: 0 };
        b.ffn(norm, &[job], &moe.pairs[..n], &mut moe.hidden, &mut moe.shared);
    }
}
