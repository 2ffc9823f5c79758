//! The bytes in a cache's slots as matrices: the one place where the two meet.
//!
//! Must not know: which expert is in which slot, and why.

use super::{ExpertCache, store::Arranged};
use crate::{
    id::ExpertId,
    quant::{FfnMats, QMatMut},
};

impl ExpertCache {
    /// The matrices of an expert that [`ExpertCache::next_ready`] has just handed out.
    pub fn get(&self, id: ExpertId) -> FfnMats<'_> {
        let (buf, arranged) = self.held(id);
        self.store().view(id, buf, arranged)
    }

    /// Calls `interleave` for each matrix of those of `ids` that were handed out before and that are not the file's own pages. It
    /// says whether it did. To be called when they have just been handed out.
    pub fn reorder_kept(&mut self, ids: &[ExpertId], mut interleave: impl FnMut(QMatMut<'_>) -> bool) {
        self.arrange(ids, |store, id, buf| {
            Arranged([0, 1, 2].map(|role| store.view_mut(id, role, buf).is_some_and(&mut interleave)))
        });
    }
}
