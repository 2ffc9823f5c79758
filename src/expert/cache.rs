//! A fixed number of expert-sized slots of memory, filled by an [`IoEngine`], emptied as a [`CachePolicy`] says.
//!
//! All slots are allocated once and filled in place again and again: freeing and committing pages at each eviction made
//! a better policy 30 % slower elsewhere. Each MoE layer has its own slots unless asked otherwise: one global pool that
//! is smaller than a token's working set hits exactly nothing under LRU, slots per layer have no such cliff, and they fit
//! layers whose experts differ in size.
//!
//! Must not know: what the bytes mean, where they come from ([`Source`]), models, arithmetic.

mod allowance;
mod elsewhere;
mod fill;
mod kept;
mod rolling;
mod victim;

pub use self::allowance::Allowance;
use self::{elsewhere::Elsewhere, fill::Fill, kept::Kept, rolling::Rolling};
use super::{
    source::Source,
    stats::{CacheStats, LayerHits},
    store::{Arranged, ExpertStore},
};
use crate::{
    Error, Result,
    id::ExpertId,
    io::{Done, IoBuf, IoEngine, Priority, Toucher},
    policy::{CachePolicy, CacheShape, PolicyKind},
    prefetch::Reads,
    retrieval::Retrieval,
    trace::{LayerEvent, Phase, Routed},
};

/// How slots are shared among layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// A pool for each layer, with slots of its own experts' size.
    Layer,
    /// A pool for all layers whose experts are of one size.
    Size,
    /// One pool for all layers, with slots of the largest expert's size.
    Global,
}

impl Scope {
    /// The name that `--scope` takes.
    pub fn name(self) -> &'static str {
        match self {
            Scope::Layer => "layer",
            Scope::Size => "size",
            Scope::Global => "global",
        }
    }
    /// Whose a slot is, by that name.
    pub fn of_slots(name: &str) -> &'static str {
        match name {
            _ if name == Scope::Layer.name() => "slots per layer",
            _ if name == Scope::Size.name() => "slots per size of experts",
            _ => "slots for all layers",
        }
    }
}

/// Prefetches in flight at most: enough to keep a drive busy, few enough that a demand read waits for one at most.
const MAX_PREFETCHES: usize = 8;

/// Reads in flight, demanded ones included, below which guesses for far layers may join them.
const MAX_IDLE_PREFETCHES: usize = 4;

/// Experts of a prompt that are handed out at once while others are on their way. Their slots take the next reads only
/// when they have been computed, and an engine without threads is looked after only between hand-outs: all of a layer's
/// residents at once left the drive idle meanwhile.
const PROMPT_GROUP: usize = 4;

/// The same when none is on its way: nobody waits, but memory may have to be given back meanwhile.
const PROMPT_GROUP_AT_HAND: usize = 32;

/// A drive that takes longer is waited for in pieces, so that memory can be given back meanwhile.
const LOOK_NS: u64 = 10_000_000;

/// Slots of each pool that have pages before a read needs them: as many again as have been used, and at least what a token
/// wants of a layer in most models.
const TOUCH_AHEAD: usize = 8;

enum Slot {
    Free(IoBuf),
    /// The buffer is with the engine.
    Loading,
    Ready(IoBuf),
}

/// Why an expert was read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// Somebody waits for it.
    Demand,
    /// A prefetcher's guess.
    Guess,
    /// For the next layer of a long prompt.
    Ahead,
    /// It is pinned, or the last run used it.
    Kept,
    /// A slot was free.
    Fill,
}

impl Cause {
    fn priority(self) -> Priority {
        match self {
            Cause::Demand => Priority::Demand,
            Cause::Guess | Cause::Kept | Cause::Fill => Priority::Prefetch,
            Cause::Ahead => Priority::Ahead,
        }
    }
}

/// A slot's tenant and how it came.
#[derive(Clone, Copy)]
struct Tenant {
    id: ExpertId,
    cause: Cause,
    /// Nobody has asked for it yet.
    unasked: bool,
    /// It has been handed out.
    used: bool,
    /// How its bytes lie, once [`ExpertCache::arrange`] has had them arranged.
    arranged: Option<Arranged>,
}

struct Pool {
    /// Whose experts it holds.
    layers: Vec<u16>,
    free: Vec<u32>,
    /// Slots whose memory has been given back to the system.
    parked: Vec<u32>,
    /// How many should be parked.
    park: usize,
    /// The first of its slots among all.
    first: usize,
    n_slot: usize,
}

/// How far one wanted expert has come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Want {
    /// Has no slot yet.
    Queued,
    /// Has a slot; the read may be in flight.
    Held,
    /// Handed out, in use until the next hand-out.
    Taken,
    /// No longer needed by this event.
    Done,
}

const NONE: u32 = u32::MAX;

/// Who has to stay: what is wanted now, on its way, pinned, or among `also`.
fn keep<'a>(
    slots: &'a [Slot],
    index: &'a [u32],
    wanted: &'a [(Routed, Want)],
    pinned: &'a [bool],
    n_expert: usize,
    also: &'a [ExpertId],
) -> impl Fn(ExpertId) -> bool + 'a {
    move |id| {
        let at = usize::from(id.layer) * n_expert + usize::from(id.expert);
        matches!(slots[index[at] as usize], Slot::Loading)
            || pinned[at]
            || also.contains(&id)
            || wanted.iter().any(|(w, state)| w.id == id && *state != Want::Done)
    }
}

/// See the module.
pub struct ExpertCache {
    source: Source,
    /// Whether experts stay for the next event.
    keeps: bool,
    policy: Box<dyn CachePolicy>,
    retrieval: Retrieval,
    shape: CacheShape,
    pools: Vec<Pool>,
    slots: Vec<Slot>,
    allowance: Option<Box<dyn Allowance>>,
    /// Gone once slots have been given back.
    toucher: Option<Toucher>,
    /// (slots)
    tenants: Vec<Option<Tenant>>,
    /// Slot of each expert, or [`NONE`]. (n_moe_layer, n_expert)
    index: Vec<u32>,
    /// What the current event wants, each with its first row's weight, in the order in which loads are issued.
    wanted: Vec<(Routed, Want)>,
    /// Those that were not in a slot when it asked for them. (up to n_expert)
    absent: Vec<ExpertId>,
    /// Rows that want each expert of the current layer. (n_expert)
    rows: Vec<u32>,
    rolling: Rolling,
    kept: Kept,
    fill: Fill,
    elsewhere: Elsewhere,
    /// Residents of each layer, those on their way included. (n_moe_layer)
    held: Vec<usize>,
    /// Layers that hold more than their share. (up to n_moe_layer)
    rich: Vec<u16>,
    /// Rows that wanted each expert since the start. (n_moe_layer, n_expert)
    uses: Vec<u64>,
    prefetches_in_flight: usize,
    phase: Phase,
    stats: CacheStats,
    /// Of decoding. (n_moe_layer)
    by_layer: Vec<LayerHits>,
}

impl ExpertCache {
    /// `slots[i]` slots for pool `i`, as [`ExpertStore::pools`] numbers them.
    ///
    /// # Errors
    /// If the system refuses the memory.
    pub fn new(
        store: ExpertStore,
        scope: Scope,
        slots: &[usize],
        policy: PolicyKind,
        io: Box<dyn IoEngine>,
    ) -> Result<Self> {
        Self::with_policy(store, scope, slots, |shape| policy.build(shape), io)
    }

    /// [`ExpertCache::new`] with a policy of the caller's making.
    ///
    /// # Errors
    /// As [`ExpertCache::new`].
    pub fn with_policy(
        store: ExpertStore,
        scope: Scope,
        slots: &[usize],
        policy: impl FnOnce(&CacheShape) -> Box<dyn CachePolicy>,
        io: Box<dyn IoEngine>,
    ) -> Result<Self> {
        let n_layer = store.layers().len();
        let pool_of = store.pools(scope);
        let n_pool = pool_of.iter().max().map_or(0, |last| last + 1);
        assert_eq!(slots.len(), n_pool, "one number of slots for each pool");
        let shape = CacheShape { n_expert: store.n_expert(), pool_of, slots: slots.to_vec() };
        let policy = policy(&shape);
        let retrieval =
            if policy.wants_retrieval() { Retrieval::new(n_layer, shape.n_expert) } else { Retrieval::off() };
        let refused = |e| Error::invalid(format!("cannot allocate memory for expert slots: {e}"));
        let (mut pools, mut bufs) = (Vec::with_capacity(n_pool), Vec::with_capacity(n_pool));
        let mut first = 0;
        for (pool, &n) in slots.iter().enumerate() {
            let layers = shape.layers(pool);
            let parts = store.slot_parts(layers.iter().map(|&layer| layer.into()));
            bufs.push(IoBuf::many(io.layout(), &parts, n).map_err(refused)?);
            // Popped from the end: slot 0 first.
            let free = (first as u32..(first + n) as u32).rev().collect();
            pools.push(Pool { layers, free, parked: Vec::with_capacity(n), park: 0, first, n_slot: n });
            first += n;
        }
        let toucher = Toucher::start(&bufs);
        let all: Vec<_> = bufs.into_iter().flatten().map(Slot::Free).collect();
        let n_expert = store.n_expert();
        let cache = Self {
            index: vec![NONE; n_layer * n_expert],
            wanted: Vec::with_capacity(n_expert),
            absent: Vec::with_capacity(n_expert),
            rows: vec![0; n_expert],
            rolling: Rolling::new(&store, &shape.pool_of),
            held: vec![0; n_layer],
            rich: Vec::with_capacity(n_layer),
            kept: Kept::new(n_layer * n_expert),
            fill: Fill::default(),
            elsewhere: Elsewhere::new(n_layer * n_expert),
            uses: vec![0; n_layer * n_expert],
            tenants: vec![None; all.len()],
            slots: all,
            allowance: None,
            toucher,
            policy,
            retrieval,
            shape,
            pools,
            source: Source::new(store, io),
            keeps: true,
            prefetches_in_flight: 0,
            phase: Phase::Prompt,
            stats: CacheStats::default(),
            by_layer: vec![LayerHits::default(); n_layer],
        };
        (0..cache.pools.len()).for_each(|pool| cache.touch_ahead(pool, 0));
        Ok(cache)
    }

    /// Where the experts lie.
    pub fn store(&self) -> &ExpertStore {
        self.source.store()
    }
    /// The engine.
    pub fn io(&self) -> &dyn IoEngine {
        self.source.io()
    }
    /// The policy's name; none where nothing is kept.
    pub fn policy_name(&self) -> &'static str {
        if self.keeps { self.policy.name() } else { "none" }
    }
    /// Counters since the start.
    pub fn stats(&self) -> &CacheStats {
        &self.stats
    }
    /// What decoding found in each MoE layer since the start; together [`CacheStats::decode`]. (n_moe_layer)
    pub fn by_layer(&self) -> &[LayerHits] {
        &self.by_layer
    }
    /// What the last request wanted and found in no slot: its late and missed experts.
    pub fn absent(&self) -> &[ExpertId] {
        &self.absent
    }
    /// Bytes of the absent experts of the last request.
    pub(super) fn absent_bytes(&self) -> u64 {
        self.absent.iter().map(|id| self.source.bytes(*id)).sum()
    }
    /// The tokens that resemble the present one, as the last request left them; off unless the policy, or
    /// [`ExpertCache::retrieve`], wants them.
    pub fn retrieval(&self) -> &Retrieval {
        &self.retrieval
    }
    /// From now on, past tokens are kept and compared.
    pub fn retrieve(&mut self) {
        if self.retrieval.is_off() {
            self.retrieval = Retrieval::new(self.shape.n_layer(), self.shape.n_expert);
        }
    }
    /// Begins with what the tokens of an earlier run used; nothing where past tokens are not kept. See [`Retrieval::restore`].
    ///
    /// # Errors
    /// What is wrong with the bytes.
    pub fn restore_past(&mut self, bytes: &[u8]) -> std::result::Result<(), &'static str> {
        if self.retrieval.is_off() { Ok(()) } else { self.retrieval.restore(bytes) }
    }
    /// True if reads are in flight that nobody has asked for.
    pub(super) fn reads_beside(&self) -> bool {
        self.prefetches_in_flight + self.kept.in_flight > 0
    }
    /// True if the expert's bytes are in a slot now.
    pub fn is_resident(&self, id: ExpertId) -> bool {
        self.slot_of(id).is_some_and(|s| matches!(self.slots[s], Slot::Ready(_)))
    }

    /// True if every expert of the layer has a slot: nothing of it will be read again.
    pub fn holds_layer(&self, layer: u16) -> bool {
        let n = self.shape.n_expert;
        let first = usize::from(layer) * n;
        let held = |at: usize| self.index[at] != NONE || self.elsewhere.is(at);
        first + n <= self.index.len() && (first..first + n).all(held)
    }

    /// Has pages made for the slots that come after a pool's first `n`.
    fn touch_ahead(&self, pool: usize, n: usize) {
        if let Some(toucher) = &self.toucher {
            toucher.reach(pool, n + n.max(TOUCH_AHEAD));
        }
    }

    /// Wants every expert that the event routes to and submits reads for the absent ones, as far as slots go. Never
    /// blocks. Follow with [`ExpertCache::next_ready`] until it is empty.
    pub fn request(&mut self, event: LayerEvent<'_>) {
        while let Some(done) = self.source.poll() {
            // A wanted read that failed earlier was reported then; a prefetch that failed is asked for again if needed.
            let _ = self.complete(done);
        }
        self.phase = event.phase;
        self.wanted.clear();
        self.before_rolling(event);
        if rolling::wants_all(event, self.shape.n_expert) {
            (0..self.pools.len()).for_each(|pool| self.touch_ahead(pool, self.pools[pool].n_slot));
        }
        self.park();
        self.observe(event);
        self.collect(event);
        self.absent.clear();
        let counts = self.stats.of_mut(event.phase);
        counts.events += 1;
        let before = *counts;
        for &(Routed { id, .. }, _) in &self.wanted {
            match self.index[id.layer as usize * self.shape.n_expert + id.expert as usize] {
                NONE => counts.miss += 1,
                slot if matches!(self.slots[slot as usize], Slot::Ready(_)) => {
                    counts.hit += 1;
                    continue;
                }
                _ => counts.late += 1,
            }
            self.absent.push(id);
        }
        if event.phase == Phase::Decode {
            let layer = &mut self.by_layer[usize::from(event.layer)];
            layer.hit += counts.hit - before.hit;
            layer.late += counts.late - before.late;
            layer.miss += counts.miss - before.miss;
        }
        for i in 0..self.wanted.len() {
            let (routed, _) = self.wanted[i];
            if let Some(slot) = self.slot_of(routed.id) {
                self.wanted[i].1 = Want::Held;
                self.claim(slot);
                self.policy.touch(routed);
            }
        }
        self.issue();
    }

    /// Somebody asks for what is in, or on its way to, `slot`.
    fn claim(&mut self, slot: usize) {
        let tenant = self.tenants[slot].as_mut().expect("an indexed slot has a tenant");
        let cause = tenant.cause;
        if std::mem::take(&mut tenant.unasked) {
            match cause {
                Cause::Kept => self.stats.warm_used += 1,
                Cause::Fill => self.stats.fill_used += 1,
                _ => self.stats.prefetch_useful += 1,
            }
        }
        if matches!(self.slots[slot], Slot::Loading) && cause != Cause::Demand {
            tenant.cause = Cause::Demand;
            self.landed(cause);
            self.source.promote(slot);
        }
    }

    /// A read that was not demanded is no longer in flight, or is demanded now.
    fn landed(&mut self, cause: Cause) {
        match cause {
            Cause::Guess => self.prefetches_in_flight -= 1,
            Cause::Kept | Cause::Fill => self.kept.in_flight -= 1,
            Cause::Demand | Cause::Ahead => {}
        }
    }

    /// Tells those who foretell what a layer chose.
    fn observe(&mut self, event: LayerEvent<'_>) {
        self.retrieval.observe(event);
        self.policy.observe(event, &self.retrieval);
    }

    /// Gives slots and reads to queued experts, in order, until slots run out.
    fn issue(&mut self) {
        for i in 0..self.wanted.len() {
            let (routed, Want::Queued) = self.wanted[i] else { continue };
            let Some(slot) = self.slot_for(routed.id) else { return };
            self.wanted[i].1 = Want::Held;
            self.load(slot, routed.id, Cause::Demand);
            self.policy.touch(routed);
        }
    }

    /// Hands out the wanted experts that have arrived, blocking for one if none has; empty when the event is through. The
    /// ones handed out before may be evicted from now on. Of a prompt that still waits for others, a few at a time
    /// (`PROMPT_GROUP`).
    ///
    /// # Errors
    /// The first failed read of a wanted expert, also of one that was handed out before and whose pages were lost in use. The event is
    /// over then; the cache itself stays sound.
    pub fn next_ready(&mut self, out: &mut Vec<ExpertId>) -> Result<()> {
        out.clear();
        for i in 0..self.wanted.len() {
            if self.wanted[i].1 == Want::Taken {
                self.wanted[i].1 = Want::Done;
                self.check_used(self.wanted[i].0.id)?;
            }
        }
        while let Some(done) = self.source.poll() {
            self.complete(done)?;
        }
        self.park();
        // After the poll: it may have been a guess that held the slot for which a wanted expert queues.
        self.issue();
        loop {
            self.take_ready(out);
            if !out.is_empty() {
                return Ok(());
            }
            if self.wanted.iter().all(|(_, w)| *w == Want::Done) {
                if !self.keeps {
                    self.release_wanted();
                }
                self.read_kept();
                self.fill();
                return Ok(());
            }
            let start = self.source.now_ns();
            let done =
                self.source.wait_at_most(LOOK_NS).expect("a wanted expert that is not ready has a read in flight");
            let stall = self.source.now_ns() - start;
            self.stats.of_mut(self.phase).stall_ns += stall;
            match done {
                Some(done) => self.complete(done)?,
                None => self.obey(),
            }
            self.issue();
        }
    }

    /// An expert that has just left its slot left it because it could not be read.
    fn lost(&mut self, id: ExpertId, slot: usize) {
        self.stats.failed_reads += 1;
        self.policy.remove(id);
        let pool = self.pool_of(id);
        self.pools[pool].free.push(slot as u32);
    }

    /// Throws away an expert that turned out not to be what the file has, after it was used.
    ///
    /// # Errors
    /// Why it was not.
    fn check_used(&mut self, id: ExpertId) -> Result<()> {
        let slot = self.slot_of(id).expect("a handed-out expert stays until the next hand-out");
        let Slot::Ready(buf) = &self.slots[slot] else { panic!("{id} was not handed out") };
        let Some(fault) = buf.fault() else { return Ok(()) };
        self.vacate(id);
        self.lost(id, slot);
        self.wanted.clear();
        Err(self.source.explain(id, fault))
    }

    /// Marks the wanted experts that have arrived as taken and adds them to `out`.
    fn take_ready(&mut self, out: &mut Vec<ExpertId>) {
        let (slots, index, n_expert) = (&self.slots, &self.index, self.shape.n_expert);
        let is_ready = |id: ExpertId| {
            let slot = index[id.layer as usize * n_expert + id.expert as usize];
            slot != NONE && matches!(slots[slot as usize], Slot::Ready(_))
        };
        let waits = |(r, want): &(Routed, Want)| match want {
            Want::Queued => true,
            Want::Held => !is_ready(r.id),
            Want::Taken | Want::Done => false,
        };
        let most = match self.phase {
            Phase::Decode => usize::MAX,
            Phase::Prompt if self.wanted.iter().any(waits) => PROMPT_GROUP,
            Phase::Prompt => PROMPT_GROUP_AT_HAND,
        };
        for (Routed { id, .. }, want) in &mut self.wanted {
            if *want == Want::Held && out.len() < most && is_ready(*id) {
                *want = Want::Taken;
                out.push(*id);
            }
        }
    }

    /// The bytes of an expert that [`ExpertCache::next_ready`] has just handed out, and how they lie.
    pub(super) fn held(&self, id: ExpertId) -> (&IoBuf, Arranged) {
        let slot = self.slot_of(id).expect("a handed-out expert stays until the next hand-out");
        let Slot::Ready(buf) = &self.slots[slot] else { panic!("{id} was not handed out") };
        (buf, self.tenants[slot].and_then(|tenant| tenant.arranged).unwrap_or_default())
    }

    /// Calls `arrange` for the bytes of those of `ids` that were handed out before: they have shown that they are worth it,
    /// while a slot's next tenant comes as it is in the file. It says how they lie then. Nothing happens to the file's own
    /// pages. To be called when they have just been handed out.
    pub(super) fn arrange(
        &mut self,
        ids: &[ExpertId],
        mut arrange: impl FnMut(&ExpertStore, ExpertId, &mut IoBuf) -> Arranged,
    ) {
        for &id in ids {
            let slot = self.slot_of(id).expect("a handed-out expert stays until the next hand-out");
            let (Some(tenant), Slot::Ready(buf)) = (&mut self.tenants[slot], &mut self.slots[slot]) else {
                panic!("{id} was not handed out")
            };
            if std::mem::replace(&mut tenant.used, true) && tenant.arranged.is_none() && buf.is_owned() {
                tenant.arranged = Some(arrange(self.source.store(), id, buf));
            }
        }
    }

    /// Submits reads for the absent ones of the first guesses, as `reads` has it, below all demand reads, as far as slots and
    /// the limits on reads in flight go. Evicts nothing that is wanted now or among all the guesses.
    pub fn prefetch(&mut self, guesses: &[ExpertId], reads: Reads) {
        // What the last request found absent is on its way.
        let beside = self.absent.len() + self.kept.in_flight;
        for (i, &id) in guesses.iter().take(reads.now.saturating_add(reads.idle)).enumerate() {
            let busy = i >= reads.now && beside + self.prefetches_in_flight >= MAX_IDLE_PREFETCHES;
            if busy || self.prefetches_in_flight >= MAX_PREFETCHES {
                return;
            }
            if self.slot_of(id).is_some() {
                continue;
            }
            let Some(slot) = self.free_slot(self.pool_of(id), guesses) else { continue };
            self.stats.prefetches += 1;
            self.prefetches_in_flight += 1;
            self.load(slot, id, Cause::Guess);
        }
    }

    fn slot_of(&self, id: ExpertId) -> Option<usize> {
        let slot = self.index[self.at(id)];
        (slot != NONE).then_some(slot as usize)
    }

    /// The expert's place in lists of all. (n_moe_layer, n_expert)
    fn at(&self, id: ExpertId) -> usize {
        id.layer as usize * self.shape.n_expert + id.expert as usize
    }

    fn pool_of(&self, id: ExpertId) -> usize {
        self.shape.pool(id.layer)
    }

    /// From now on no expert stays for the next event: every use is a read, and nothing is read that is not wanted.
    pub fn keep_nothing(&mut self) {
        self.keeps = false;
    }

    /// Frees the slots of an event that is through.
    fn release_wanted(&mut self) {
        for i in 0..self.wanted.len() {
            let id = self.wanted[i].0.id;
            if self.slot_of(id).is_some() {
                let slot = self.vacate(id);
                self.policy.remove(id);
                let pool = self.pool_of(id);
                self.pools[pool].free.push(slot as u32);
            }
        }
        self.wanted.clear();
    }

    /// Takes the slot from its tenant. The buffer stays as it is until the next read.
    fn vacate(&mut self, id: ExpertId) -> usize {
        let at = self.at(id);
        let slot = std::mem::replace(&mut self.index[at], NONE) as usize;
        self.held[usize::from(id.layer)] -= 1;
        let tenant = self.tenants[slot].take().expect("an indexed slot has a tenant");
        if tenant.unasked && !matches!(tenant.cause, Cause::Kept | Cause::Fill) {
            self.stats.prefetch_wasted += 1;
        }
        if let Slot::Ready(buf) = std::mem::replace(&mut self.slots[slot], Slot::Loading) {
            self.slots[slot] = Slot::Free(buf);
        }
        slot
    }

    fn load(&mut self, slot: usize, id: ExpertId, cause: Cause) {
        let Slot::Free(buf) = std::mem::replace(&mut self.slots[slot], Slot::Loading) else {
            panic!("a slot that was taken is free");
        };
        let at = self.at(id);
        self.index[at] = slot as u32;
        self.tenants[slot] = Some(Tenant { id, cause, unasked: cause != Cause::Demand, used: false, arranged: None });
        let pool = self.pool_of(id);
        let Pool { first, n_slot, .. } = self.pools[pool];
        // Not one that another pool has lent.
        if (first..first + n_slot).contains(&slot) {
            self.touch_ahead(pool, slot + 1 - first);
        }
        self.held[usize::from(id.layer)] += 1;
        match cause {
            Cause::Kept | Cause::Fill => self.policy.warm(id),
            _ => self.policy.insert(id),
        }
        let bytes = self.source.read(slot, id, buf, cause.priority());
        match cause {
            Cause::Demand => self.stats.of_mut(self.phase).demand_bytes += bytes,
            Cause::Guess | Cause::Ahead => self.stats.prefetch_bytes += bytes,
            Cause::Kept => self.stats.warm_bytes += bytes,
            Cause::Fill => self.stats.fill_bytes += bytes,
        }
    }

    /// Files a finished read. Only the failure of a wanted expert is an error.
    fn complete(&mut self, done: Done) -> Result<()> {
        let slot = done.tag;
        let tenant = self.tenants[slot].expect("a slot with a read in flight has a tenant");
        self.landed(tenant.cause);
        let Err(error) = done.result else {
            self.slots[slot] = Slot::Ready(done.buf);
            return Ok(());
        };
        self.slots[slot] = Slot::Free(done.buf);
        if tenant.cause == Cause::Fill {
            // It would be read again and again, although nobody wants it.
            self.fill_free_slots(false);
        }
        let at = self.at(tenant.id);
        self.index[at] = NONE;
        self.tenants[slot] = None;
        self.held[usize::from(tenant.id.layer)] -= 1;
        self.lost(tenant.id, slot);
        if self.wanted.iter().any(|(w, _)| w.id == tenant.id) {
            self.wanted.clear();
            return Err(self.source.explain(tenant.id, error));
        }
        Ok(())
    }
}
