//! One model in one budget, with one expert cache, for several sequences of tokens: what a server uses. One sequence is simpler
//! with a [`Session`](crate::session::Session).
//!
//! Must not know: text, sampling, terminals, whose sequences they are.

mod follow;
mod options;
mod read_path;
mod timing;
mod vram;

pub use options::{Options, Vram};
pub use read_path::{PlainReads, plain_reads};
pub use timing::Timing;
pub use vram::planned_slots;

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use self::{follow::Follow, options::settled, read_path::Chosen};
use crate::{
    Error, Result, arch,
    backend::{Backend, cpu::Cpu},
    blueprint::Blueprint,
    expert::{Allowance, CacheStats, DeviceSlots, ExpertCache, ExpertStore, Experts, HotList, LayerHits, Pace},
    gguf::Gguf,
    gpu::{self, Choice, Device},
    id::ExpertId,
    io::{Files, IoEngine, Layout},
    model::{Batch, Model, Scratch, Sequence, Span, Tier, Workspace},
    plan::Plan,
    trace::TraceSink,
};

/// Is told what there is to say of a device.
type VramListener = Box<dyn FnMut(&str) + Send>;

/// See the module. Generic over the arithmetic, so that tests can run the reference beside the fast one.
pub struct Engine<B: Backend = Cpu> {
    path: PathBuf,
    model: Model,
    backend: B,
    experts: Experts,
    tier: Option<Tier>,
    /// What there is to say of the tier, and who is told.
    vram_note: Option<String>,
    vram_listener: Option<VramListener>,
    /// (parallel)
    sequences: Vec<Sequence>,
    scratch: Scratch,
    plan: Plan,
    io_reason: Option<String>,
    timing: Timing,
    /// The budget now.
    memory_bytes: Arc<AtomicU64>,
}

impl Options {
    /// The threads and kernels that they ask for.
    ///
    /// # Errors
    /// Kernels that the CPU lacks; a thread that the system refuses.
    pub fn cpu(&self) -> Result<Cpu> {
        Cpu::with(self.kernels, self.threads())
    }
}

/// The split of the budget that `options` ask for, with slots of this layout, on the CPU.
///
/// # Errors
/// A budget or a context that does not work.
pub fn make_plan(
    gguf: &Gguf,
    blueprint: &Blueprint,
    store: &ExpertStore,
    options: &Options,
    layout: Layout,
) -> Result<Plan> {
    options::make_plan(gguf, blueprint, store, options, layout, Cpu::attention_bytes)
}

impl Engine<Cpu> {
    /// Plans, loads the dense weights and makes the slots. `progress` is told (bytes done, bytes in all).
    ///
    /// # Errors
    /// Whatever is wrong with the file, the budget or the options, in one sentence.
    pub fn open(gguf: Gguf, options: &Options, progress: &mut dyn FnMut(u64, u64)) -> Result<Self> {
        let backend = options.cpu()?;
        Self::with_backend(gguf, options, backend, Box::new(()), progress)
    }

    /// The kernels that they compute with, for people.
    pub fn isa(&self) -> String {
        self.backend.isa()
    }

    /// Threads that compute.
    pub fn threads(&self) -> usize {
        self.backend.threads()
    }

    /// Bytes a second of nothing but reading dense weights on all threads, for `time`: what bounds decoding while every expert
    /// is in memory. `None` where there are so few that caches may hold them.
    pub fn memory_rate(&mut self, time: Duration) -> Option<f64> {
        self.backend.read_rate(&self.model.weight_bytes(), time)
    }
}

impl<B: Backend> Engine<B> {
    /// [`Engine::open`] with arithmetic and a trace of the caller's choice.
    ///
    /// # Errors
    /// As [`Engine::open`].
    pub fn with_backend(
        gguf: Gguf,
        options: &Options,
        backend: B,
        trace: Box<dyn TraceSink>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self> {
        let engine = |gguf: &_, blueprint: &_, store: &_| read_path::choose(gguf, blueprint, store, options);
        Self::start(gguf, options, backend, trace, engine, gpu::open, progress)
    }

    /// [`Engine::with_backend`] with a device of the caller's choice where [`Options::vram`] asks for one.
    ///
    /// # Errors
    /// As [`Engine::open`].
    pub fn with_device(
        gguf: Gguf,
        options: &Options,
        backend: B,
        trace: Box<dyn TraceSink>,
        device: Box<dyn Device>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self> {
        let engine = |gguf: &_, blueprint: &_, store: &_| read_path::choose(gguf, blueprint, store, options);
        Self::start(gguf, options, backend, trace, engine, |_| Ok(device), progress)
    }

    /// [`Engine::with_backend`] with a read engine of the caller's choice, made on the model's files.
    ///
    /// # Errors
    /// As [`Engine::open`].
    pub fn with_engine(
        gguf: Gguf,
        options: &Options,
        backend: B,
        trace: Box<dyn TraceSink>,
        engine: impl FnOnce(Files) -> Result<Box<dyn IoEngine>>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self> {
        let engine = |_: &_, _: &_, store: &ExpertStore| {
            let engine = engine(store.files().clone())?;
            Ok(Chosen { engine, reason: None })
        };
        Self::start(gguf, options, backend, trace, engine, gpu::open, progress)
    }

    fn start(
        gguf: Gguf,
        options: &Options,
        mut backend: B,
        trace: Box<dyn TraceSink>,
        engine: impl FnOnce(&Gguf, &Blueprint, &ExpertStore) -> Result<Chosen>,
        device: impl FnOnce(Choice) -> Result<Box<dyn Device>>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self> {
        let options = &settled(options);
        let path = gguf.path().to_owned();
        let blueprint = arch::blueprint(&gguf)?;
        let store = ExpertStore::new(&gguf, blueprint.experts())?;
        let Chosen { engine: io, reason: io_reason } = engine(&gguf, &blueprint, &store)?;
        let prepared = vram::prepare(options, backend.is_cpu(), device, &blueprint, &store);
        let staging_bytes = if let Some(Ok(_)) = prepared { vram::staging_bytes(&blueprint, &store) } else { 0 };
        let options = &Options { beside_bytes: options.beside_bytes.saturating_add(staging_bytes), ..options.clone() };
        let plan = options::make_plan(&gguf, &blueprint, &store, options, io.layout(), B::attention_bytes)?;
        let blueprint = blueprint.for_context(plan.n_ctx);
        // First of all that takes memory, since it checks the shapes that all else is sized by.
        let mut loaded = 0;
        let total = plan.dense_bytes;
        let mut model = Model::load(&gguf, blueprint, &mut |bytes| {
            loaded += bytes;
            progress(loaded, total);
        })?;
        model.interleave(&mut backend);
        let blueprint = &model.blueprint;
        let opened = prepared.map(|ffns| ffns.and_then(|ffns| vram::open(ffns, options, blueprint, &store)));
        let mut cache = ExpertCache::new(store, plan.scope, &plan.slots, options.policy, io)?;
        if !options.keeps_experts() {
            cache.keep_nothing();
        }
        let prefetcher = options.prefetch.build(blueprint.n_expert, blueprint.n_expert_used());
        let sequence = |_| Sequence::new(blueprint, options.kv, plan.n_ctx, plan.n_batch);
        let sequences = (0..plan.parallel).map(sequence).collect::<Result<_>>()?;
        let scratch = Scratch::new(blueprint, plan.scratch());
        let mut experts = Experts::new(cache, prefetcher, trace);
        experts.fill_free_slots(options.fill);
        let (tier, vram_note) = match opened {
            None => (None, None),
            Some(Err(e)) => (None, Some(format!("{e}; --vram is off"))),
            Some(Ok(vram::Opened { tier, slots, note })) => {
                experts.use_vram(slots);
                (Some(tier), note)
            }
        };
        let (timing, memory_bytes) = (Timing::default(), Arc::new(AtomicU64::new(plan.budget_bytes)));
        if options.memory_bytes.is_none() {
            let follow = Follow::new(plan.clone(), memory_bytes.clone());
            experts.follow(follow.map(|follow| Box::new(follow) as Box<dyn Allowance>));
        }
        Ok(Self {
            path,
            model,
            backend,
            experts,
            tier,
            vram_note,
            vram_listener: None,
            sequences,
            scratch,
            plan,
            io_reason,
            timing,
            memory_bytes,
        })
    }

    /// Sets another budget for the running engine, from [`Plan::least_bytes`] to the one that it was opened with. Slots
    /// go back to the system, or come into use again; nothing that is computed changes. An engine that was opened without a
    /// budget has one from then on, and no longer follows the machine.
    ///
    /// # Errors
    /// If the budget is outside these limits.
    pub fn set_memory(&mut self, memory_bytes: u64) -> Result<()> {
        let slots = self.plan.slots_within(memory_bytes)?;
        self.experts.follow(None);
        self.experts.resize(&slots);
        self.memory_bytes.store(memory_bytes, Relaxed);
        Ok(())
    }

    /// Gives the memory of all slots but those that a token needs back to the system, until [`Engine::reclaim_slots`]; tokens may
    /// still come, and read more. Returns the bytes.
    pub fn release_slots(&mut self) -> u64 {
        let (least, now) = (self.plan.least_bytes(), self.memory_bytes());
        self.experts.resize(&self.plan.slots_within(least).expect("the least is within the plan's limits"));
        now.saturating_sub(least)
    }

    /// Uses all slots again that the budget has now.
    pub fn reclaim_slots(&mut self) {
        let slots = self.plan.slots_within(self.memory_bytes()).expect("the budget is within the plan's limits");
        self.experts.resize(&slots);
    }

    /// Whether an expert's weights are in memory. `layer` counts MoE layers.
    pub fn is_resident(&self, layer: usize, expert: usize) -> bool {
        let id = ExpertId { layer: layer as u16, expert: expert as u16 };
        layer < self.layer_stats().len()
            && expert < self.model.blueprint.n_expert
            && self.experts.cache().is_resident(id)
    }

    /// Keeps the listed experts in memory from now on, and reads them while the drive is idle; the first ones if slots have
    /// to be given back. The list is for this model.
    ///
    /// # Errors
    /// If they leave too few slots for the others that a token needs.
    pub fn pin(&mut self, list: &HotList) -> Result<()> {
        self.experts.pin(list, self.model.blueprint.n_expert_used())
    }

    /// A warm start: reads the listed experts into free slots while the drive is idle, and takes them for used. The list
    /// is for this model, from [`Engine::hot`] of an earlier run.
    pub fn warm(&mut self, list: &HotList) {
        self.experts.warm(list);
    }

    /// Experts that are pinned now: as many as [`Engine::pin`] was given, or fewer if slots were given back.
    pub fn n_pinned(&self) -> usize {
        self.experts.cache().n_pinned()
    }

    /// How often its tokens used each expert.
    pub fn hot(&self) -> HotList {
        self.experts.cache().hot()
    }

    /// Whether policy or prefetcher go by past tokens.
    pub fn keeps_past(&self) -> bool {
        !self.experts.cache().retrieval().is_off()
    }

    /// What the last tokens used, for [`Engine::restore_past`]; `None` where past tokens are not kept.
    pub fn past(&self) -> Option<Vec<u8>> {
        self.keeps_past().then(|| self.experts.cache().retrieval().to_bytes())
    }

    /// Begins with what the tokens of an earlier run of the same model used; nothing where past tokens are not kept.
    ///
    /// # Errors
    /// What is wrong with the bytes; the engine is as before then.
    pub fn restore_past(&mut self, past: &[u8]) -> std::result::Result<(), &'static str> {
        self.experts.restore_past(past)
    }

    /// The budget now: that of the plan, or what [`Engine::set_memory`] or a machine short of memory made of it.
    pub fn memory_bytes(&self) -> u64 {
        self.memory_bytes.load(Relaxed)
    }

    /// Runs tokens of one or more sequences together, each expert read at most once for all of them. The logits that the spans
    /// want are in [`Engine::logits`] then.
    ///
    /// # Errors
    /// Spans that are not the batch's tokens in order, or not at their sequences' ends; a token beyond the vocabulary; more tokens
    /// than a batch or a context holds, more logits than [`Plan::n_logits`]; a read that failed. Every sequence is as before the
    /// call then, so that the call can be repeated.
    pub fn step(&mut self, batch: &Batch<'_>) -> Result<()> {
        self.check(batch)?;
        let start = Instant::now();
        let Self { model, backend, experts, tier, scratch, sequences, .. } = self;
        let tier = tier.as_mut();
        let done = model.forward(Workspace { backend, experts, tier, scratch }, batch, sequences);
        if let Some(why) = self.tier.as_ref().and_then(Tier::off) {
            self.vram_note = Some(why.to_owned());
            self.tier = None;
            self.say_vram_note();
        }
        done?;
        self.timing.add(batch.spans, start.elapsed());
        Ok(())
    }

    fn check(&self, batch: &Batch<'_>) -> Result<()> {
        let refused = |message: String| Err(Error::invalid(message));
        let (n_batch, n_logits, n_vocab) = (self.plan.n_batch, self.plan.n_logits, self.model.blueprint.n_vocab);
        if batch.tokens.is_empty() {
            return refused("a batch without tokens computes nothing".to_owned());
        }
        if batch.tokens.len() > n_batch {
            return refused(format!("a batch holds {n_batch} tokens, not {}", batch.tokens.len()));
        }
        self.check_tokens(batch.tokens)?;
        let wanted: usize = batch.spans.iter().map(Span::n_logits).sum();
        if wanted > n_logits {
            return refused(format!(
                "a batch gives logits of {n_logits} tokens, not of {wanted} (of {n_vocab} numbers each)"
            ));
        }
        let mut end = 0;
        for (i, span) in batch.spans.iter().enumerate() {
            if span.rows.start != end || span.rows.is_empty() {
                return refused(format!(
                    "span {i} has the tokens {:?} of a batch whose next token is {end}",
                    span.rows
                ));
            }
            end = span.rows.end;
            if batch.spans[..i].iter().any(|before| before.seq == span.seq) {
                return refused(format!("sequence {} has two spans in a batch", span.seq));
            }
            let Some(sequence) = self.sequences.get(span.seq) else {
                return refused(format!(
                    "there are {} sequences, and none is number {}",
                    self.sequences.len(),
                    span.seq
                ));
            };
            if sequence.len() != span.first_pos as usize {
                let (first, n) = (span.first_pos, sequence.len());
                return refused(format!(
                    "sequence {} has {n} tokens, so that none can come at position {first}",
                    span.seq
                ));
            }
            self.check_room(sequence, span.rows.len())?;
        }
        if end != batch.tokens.len() {
            return refused(format!("spans hold {end} of a batch's {} tokens", batch.tokens.len()));
        }
        Ok(())
    }

    /// Whether all tokens are in the vocabulary.
    ///
    /// # Errors
    /// Names the first that is not.
    pub fn check_tokens(&self, tokens: &[u32]) -> Result<()> {
        let n_vocab = self.model.blueprint.n_vocab;
        match tokens.iter().find(|&&t| t as usize >= n_vocab) {
            None => Ok(()),
            Some(token) => Err(Error::invalid(format!("token {token} is not in the vocabulary of {n_vocab} tokens"))),
        }
    }

    /// Whether a sequence's context has room for `n` more tokens.
    ///
    /// # Errors
    /// If not.
    pub fn check_room(&self, sequence: &Sequence, n: usize) -> Result<()> {
        let (used, n_ctx) = (sequence.len(), sequence.n_ctx());
        if n <= n_ctx - used {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "the context of {n_ctx} tokens is too short for {} (the model was trained for {})",
            used + n,
            self.model.blueprint.n_ctx_train
        )))
    }

    /// The logits that the last step wanted, in the order of its spans, then old ones. (rows wanted, n_vocab)
    pub fn logits(&self) -> &[f32] {
        self.scratch.logits()
    }
    /// The sequences. (parallel)
    pub fn sequences(&self) -> &[Sequence] {
        &self.sequences
    }
    /// A sequence, to be rewound, restored or cleared.
    ///
    /// # Panics
    /// If there is none of that number.
    pub fn sequence_mut(&mut self, seq: usize) -> &mut Sequence {
        &mut self.sequences[seq]
    }
    /// Two different sequences, the second to be copied to from the first.
    ///
    /// # Panics
    /// If there are none of these numbers, or they are one.
    pub fn sequence_pair(&mut self, from: usize, to: usize) -> (&Sequence, &mut Sequence) {
        let [from, to] = self.sequences.get_disjoint_mut([from, to]).expect("two different sequences that there are");
        (from, to)
    }
    /// The model's file.
    pub fn path(&self) -> &std::path::Path {
        &self.path
    }
    /// Hyper-parameters.
    pub fn blueprint(&self) -> &Blueprint {
        &self.model.blueprint
    }
    /// How the budget was split.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }
    /// What the cache counted.
    pub fn stats(&self) -> &CacheStats {
        self.experts.stats()
    }
    /// The slots in a device's memory, if experts are kept there.
    pub fn vram(&self) -> Option<&DeviceSlots> {
        self.experts.vram()
    }
    /// The device, and bytes of its slots, and bytes that were copied to them.
    pub fn vram_device(&self) -> Option<(String, u64, u64)> {
        self.tier.as_ref().map(|tier| (tier.describe(), tier.slots_bytes(), tier.uploaded_bytes()))
    }
    /// From now on, `listener` is told what there is to say of [`Options::vram`]: that there is no device, or that it is used no
    /// longer, and why. A sentence each time.
    pub fn on_vram_note(&mut self, listener: impl FnMut(&str) + Send + 'static) {
        self.vram_listener = Some(Box::new(listener));
        self.say_vram_note();
    }
    fn say_vram_note(&mut self) {
        if let (Some(listener), Some(note)) = (&mut self.vram_listener, &self.vram_note) {
            listener(note);
            self.vram_note = None;
        }
    }
    /// Where decoding's time went.
    pub fn pace(&self) -> &Pace {
        self.experts.pace()
    }
    /// What decoding found in each MoE layer. (n_moe_layer)
    pub fn layer_stats(&self) -> &[LayerHits] {
        self.experts.cache().by_layer()
    }
    /// What the clock counted.
    pub fn timing(&self) -> Timing {
        self.timing
    }
    /// Reads in flight at most.
    pub fn io_depth(&self) -> usize {
        self.experts.cache().io().depth()
    }
    /// Why this read path runs, where [`Options::io`] left it open.
    pub fn io_reason(&self) -> Option<&str> {
        self.io_reason.as_deref()
    }
    /// What runs: (read path, policy, prefetcher); no policy where no experts are kept.
    pub fn modes(&self) -> (&'static str, &'static str, &'static str) {
        self.experts.modes()
    }
    /// Share of the decoded tokens for which experts were read ahead, where that follows what it measures.
    pub fn prefetch_share(&self) -> Option<f64> {
        self.experts.prefetch_share()
    }
    /// See [`Experts::prefetch_modes`].
    pub fn prefetch_modes(&self) -> Vec<(&'static str, f64)> {
        self.experts.prefetch_modes()
    }
    /// The arithmetic, for people.
    pub fn backend(&self) -> String {
        self.backend.describe()
    }
}
