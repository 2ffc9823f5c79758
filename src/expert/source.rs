//! Where experts come from: a cache asks for them by id, and is told when they have come.
//!
//! Must not know: slots, policies, what the bytes mean.

use super::store::ExpertStore;
use crate::{
    Error,
    id::ExpertId,
    io::{Done, IoBuf, IoEngine, Priority, Read, ReadError},
};

/// A model's files: the index of its experts, and what reads them. A simulated one has an index without files and an engine with
/// a clock of its own; that both are one type is what lets a replay equal a run.
pub(super) struct Source {
    store: ExpertStore,
    io: Box<dyn IoEngine>,
}

impl Source {
    pub fn new(store: ExpertStore, io: Box<dyn IoEngine>) -> Self {
        Self { store, io }
    }

    /// The index.
    pub fn store(&self) -> &ExpertStore {
        &self.store
    }

    /// What reads.
    pub fn io(&self) -> &dyn IoEngine {
        &*self.io
    }

    /// Bytes of an expert.
    pub fn bytes(&self, id: ExpertId) -> u64 {
        self.store.layers()[usize::from(id.layer)].expert_bytes()
    }

    /// Begins to read an expert into `buf`; [`Done::tag`] will be `tag`. Returns its bytes.
    pub fn read(&mut self, tag: usize, id: ExpertId, buf: IoBuf, priority: Priority) -> u64 {
        let extents = self.store.extents(id);
        self.io.submit(Read { tag, extents, buf, priority });
        extents.bytes()
    }

    /// Somebody waits for the read `tag` now.
    pub fn promote(&mut self, tag: usize) {
        self.io.promote(tag);
    }

    /// A read that has finished, if any. Never blocks.
    pub fn poll(&mut self) -> Option<Done> {
        self.io.poll()
    }

    /// See [`IoEngine::wait_at_most`].
    pub fn wait_at_most(&mut self, ns: u64) -> Option<Option<Done>> {
        self.io.wait_at_most(ns)
    }

    /// The clock, in nanoseconds.
    pub fn now_ns(&self) -> u64 {
        self.io.now_ns()
    }

    /// The whole sentence for a read that failed.
    pub fn explain(&self, id: ExpertId, error: ReadError) -> Error {
        self.store.explain(id, error)
    }
}
