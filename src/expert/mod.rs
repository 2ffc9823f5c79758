//! All that happens to experts apart from arithmetic: where they lie, which of them are in memory, when they are read.
//! [`Experts`] is the one door between the model and offloading.
//!
//! Must not know: models, arithmetic. One control thread owns it; the only place in the program that waits for a disk
//! is [`Experts::next_ready`].

mod cache;
mod hot;
mod matrices;
mod pace;
mod source;
mod stats;
mod store;
mod vram;

pub use cache::{Allowance, ExpertCache, Scope};
pub use hot::{Hot, HotList};
pub use pace::{Line, Pace, Times};
pub use stats::{CacheStats, LayerHits, PhaseStats};
pub use store::{BLOCK_BYTES, ExpertStore, LayerStore, Matrix, REPACK_KEY, REPACK_VERSION, repack_version};
pub use vram::{DeviceSlots, VramStats};

use self::pace::Pacer;
use crate::{
    Result,
    id::ExpertId,
    prefetch::{PrefetchKind, Prefetcher},
    quant::{FfnMats, QMatMut},
    trace::{LayerEvent, Phase, TraceSink},
};

/// See the module.
pub struct Experts {
    cache: ExpertCache,
    prefetcher: Box<dyn Prefetcher>,
    trace: Box<dyn TraceSink>,
    guesses: Vec<ExpertId>,
    vram: Option<DeviceSlots>,
    /// The decoded token that runs, and when it began.
    token: Option<(u32, u64)>,
    pacer: Pacer,
}

impl Experts {
    /// Puts the parts together.
    pub fn new(mut cache: ExpertCache, prefetcher: Box<dyn Prefetcher>, trace: Box<dyn TraceSink>) -> Self {
        if !trace.wants_every_token() {
            cache.read_ahead_but_for_last();
        }
        if prefetcher.wants_retrieval() {
            cache.retrieve();
        }
        let (guesses, pacer) = (Vec::with_capacity(256), Pacer::new());
        Self { cache, prefetcher, trace, guesses, vram: None, token: None, pacer }
    }

    /// See [`ExpertCache::follow`].
    pub fn follow(&mut self, allowance: Option<Box<dyn Allowance>>) {
        self.cache.follow(allowance);
    }

    /// To be called now and then while something long is computed between two events. In a long prompt, attention keeps
    /// everybody else waiting for some tenths of a second, in which a process that grows takes 100 MB.
    pub fn meanwhile(&mut self) {
        self.cache.obey();
    }

    /// Submits this layer's reads, then the guessed ones behind them. Never blocks.
    pub fn request(&mut self, event: LayerEvent<'_>) {
        let late = self.submit(event);
        self.guess(event);
        let alone = !self.cache.reads_beside() && self.cache.stats().decode.late == late;
        self.pacer.requested(event, alone.then(|| self.cache.absent_bytes()), self.cache.io().now_ns());
        self.trace.record(event);
    }

    /// Submits a layer's reads while no more is known of it than its experts; [`Experts::request_rest`] follows. Never blocks.
    pub fn request_early(&mut self, event: LayerEvent<'_>) {
        self.submit(event);
        self.pacer.requested(event, None, self.cache.io().now_ns());
    }

    /// What [`Experts::request`] does beyond [`Experts::request_early`], before any other event.
    pub fn request_rest(&mut self, event: LayerEvent<'_>) {
        self.guess(event);
        self.trace.record(event);
    }

    /// Submits an event's reads. Returns how many came too late before.
    fn submit(&mut self, event: LayerEvent<'_>) -> u64 {
        self.cache.obey();
        self.tell_time(event);
        let late = self.cache.stats().decode.late;
        match &mut self.vram {
            None => self.cache.request(event),
            Some(vram) => {
                vram.find(event);
                self.cache.request_but_for(event, vram.hits());
                vram.choose(event, &mut self.cache);
            }
        }
        late
    }

    /// Submits what the prefetcher guesses.
    fn guess(&mut self, event: LayerEvent<'_>) {
        self.guesses.clear();
        let reads = self.prefetcher.observe(event, self.cache.retrieval(), &mut self.guesses);
        let store = self.cache.store();
        let (n_layer, n_expert) = (store.layers().len(), store.n_expert());
        self.guesses.retain(|id| usize::from(id.layer) < n_layer && usize::from(id.expert) < n_expert);
        if let Some(vram) = &self.vram {
            self.guesses.retain(|&id| vram.slot(id).is_none());
        }
        self.cache.prefetch(&self.guesses, reads);
    }

    /// Keeps experts in a device's slots too from now on.
    pub fn use_vram(&mut self, slots: DeviceSlots) {
        self.vram = Some(slots);
    }

    /// No longer does, and wants what it still has to compute of the event from memory: all experts but those in `done`.
    pub fn leave_vram(&mut self, event: LayerEvent<'_>, done: &[ExpertId]) {
        self.vram = None;
        self.cache.nowhere_else();
        self.cache.request_but_for(event, done);
    }

    /// The same between two events.
    pub fn stop_vram(&mut self) {
        self.vram = None;
        self.cache.nowhere_else();
    }

    /// The device's slots, if there are any.
    pub fn vram(&self) -> Option<&DeviceSlots> {
        self.vram.as_ref()
    }

    /// The slot that an expert which was just handed out is to be copied to, if the last request chose it: once.
    pub fn promote(&mut self, id: ExpertId) -> Option<u32> {
        let slot = self.vram.as_mut()?.take_promotion(id)?;
        self.cache.set_elsewhere(id, true);
        Some(slot)
    }

    /// The clock of everything here, in nanoseconds.
    pub fn now_ns(&self) -> u64 {
        self.cache.io().now_ns()
    }

    /// Tells the prefetcher how long a token took when the next one begins.
    fn tell_time(&mut self, event: LayerEvent<'_>) {
        if event.phase == Phase::Prompt {
            self.token = None;
        } else if event.layer == 0 {
            let now = self.cache.io().now_ns();
            if let Some((_, start)) = self.token.filter(|(token, _)| token + 1 == event.first_token) {
                self.prefetcher.token_took(now - start);
            }
            self.token = Some((event.first_token, now));
        }
    }

    /// Hands out the requested experts as they arrive, those in memory first; empty when all have been. Blocks only when
    /// none is at hand.
    ///
    /// # Errors
    /// The first read that failed, with path, expert and offset.
    pub fn next_ready(&mut self, ready: &mut Vec<ExpertId>) -> Result<()> {
        self.cache.obey();
        self.pacer.asked(self.cache.io().now_ns());
        let before = self.cache.stats().decode.stall_ns;
        self.cache.next_ready(ready).inspect_err(|_| self.pacer.failed())?;
        let stall = self.cache.stats().decode.stall_ns - before;
        self.pacer.handed_out(ready.len(), stall, self.cache.io().now_ns());
        if ready.is_empty() && self.prefetcher.reads_ahead() {
            self.cache.read_ahead();
        }
        Ok(())
    }

    /// See [`ExpertCache::reorder_kept`].
    pub fn reorder_kept(&mut self, ids: &[ExpertId], interleave: impl FnMut(QMatMut<'_>) -> bool) {
        self.cache.reorder_kept(ids, interleave);
    }

    /// The matrices of an expert that was just handed out.
    pub fn get(&self, id: ExpertId) -> FfnMats<'_> {
        self.cache.get(id)
    }

    /// See [`TraceSink::wants_every_token`].
    pub fn wants_every_token(&self) -> bool {
        self.trace.wants_every_token()
    }

    /// Whether the model should compute the scores of the MoE layer behind `layer`: if the prefetcher wants them and there is
    /// something left to fetch, or if the trace wants them.
    pub fn wants_scores(&self, layer: u16) -> bool {
        self.prefetcher.wants_scores() && !self.cache.holds_layer(layer + 1) || self.trace.wants_scores()
    }
    /// Uses at most so many slots of each pool from now on. See [`ExpertCache::resize`].
    pub fn resize(&mut self, slots: &[usize]) {
        self.cache.resize(slots);
    }
    /// Keeps these experts in memory. See [`ExpertCache::pin`].
    ///
    /// # Errors
    /// More pins than there is room for.
    pub fn pin(&mut self, list: &HotList, spare: usize) -> Result<()> {
        self.cache.pin(list, spare)
    }
    /// Reads these experts before they are asked for. See [`ExpertCache::warm`].
    pub fn warm(&mut self, list: &HotList) {
        self.cache.warm(list);
    }
    /// See [`ExpertCache::restore_past`].
    ///
    /// # Errors
    /// What is wrong with the bytes.
    pub fn restore_past(&mut self, bytes: &[u8]) -> std::result::Result<(), &'static str> {
        self.cache.restore_past(bytes)
    }
    /// See [`ExpertCache::fill_free_slots`].
    pub fn fill_free_slots(&mut self, on: bool) {
        self.cache.fill_free_slots(on);
    }
    /// Counters since the start.
    pub fn stats(&self) -> &CacheStats {
        self.cache.stats()
    }
    /// Where decoding's time went since the start.
    pub fn pace(&self) -> &Pace {
        self.pacer.pace()
    }
    /// What runs: read path, policy, prefetcher.
    pub fn modes(&self) -> (&'static str, &'static str, &'static str) {
        (self.cache.io().name(), self.cache.policy_name(), self.prefetcher.name())
    }
    /// Shares of the decoded tokens for which each of several prefetchers ran, by name; empty where there is no choice, or
    /// before the first token.
    pub fn prefetch_modes(&self) -> Vec<(&'static str, f64)> {
        let modes = self.prefetcher.tokens_by_mode();
        let all: u64 = modes.iter().map(|(_, tokens)| tokens).sum();
        let share = |(name, tokens)| (all > 0).then(|| (name, tokens as f64 / all as f64));
        modes.into_iter().filter_map(share).collect()
    }
    /// Share of the decoded tokens for which guesses were made; `None` where there is no choice, or before the first token.
    pub fn prefetch_share(&self) -> Option<f64> {
        let off = |(name, _): &(&str, f64)| *name == PrefetchKind::Off.name();
        self.prefetch_modes().iter().find(|mode| off(mode)).map(|(_, share)| 1.0 - share)
    }
    /// What the prefetcher guessed at the last request, the likeliest of each layer first.
    pub fn guesses(&self) -> &[ExpertId] {
        &self.guesses
    }
    /// The cache itself, for reading.
    pub fn cache(&self) -> &ExpertCache {
        &self.cache
    }
}
