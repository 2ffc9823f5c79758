//! One sequence of tokens on one model within one budget: the door that a program uses.
//!
//! Must not know: text, sampling, terminals.

mod follow;
mod read_path;

pub use read_path::{PlainReads, plain_reads};

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use self::{follow::Follow, read_path::Chosen};
use crate::{
    Error, Result, arch,
    backend::{Backend, cpu::Cpu},
    blueprint::Blueprint,
    expert::{Allowance, CacheStats, ExpertCache, ExpertStore, Experts, HotList, LayerHits, Pace, Scope},
    gguf::Gguf,
    io::{Files, IoEngine, IoKind, Layout},
    machine,
    model::{Batch, KvCache, Model, Scratch, Want},
    plan::{Needs, Plan, process_bytes},
    policy::PolicyKind,
    prefetch::PrefetchKind,
    quant::GgmlType,
    trace::{Phase, TraceSink},
};

/// How to run. [`Options::default`] is what the program does without flags.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The budget in bytes. `None`: four fifths of what the machine has free, at most what the model can use; and
    /// while it runs, slots are given back when the machine is short of memory, and taken again when it no longer is.
    pub memory_bytes: Option<u64>,
    /// What the process is charged beside what the session allocates; `None`: what the program takes with such a model, or
    /// what is measured if that is more, see [`plan::process_bytes`](crate::plan::process_bytes). An embedder whose process
    /// is mostly its own says 0.
    pub process_bytes: Option<u64>,
    /// What the caller keeps beside the session within the same budget: a server's requests.
    pub beside_bytes: u64,
    /// Tokens of context; `None`: the model's own, at most 4096.
    pub n_ctx: Option<usize>,
    /// Tokens of a prompt batch, if the budget allows; `None`: what suits model and budget, see [`Plan`].
    pub n_batch: Option<usize>,
    /// Whether every row of a batch gets logits.
    pub all_logits: bool,
    /// Type of the KV cache.
    pub kv: GgmlType,
    /// Read path; `None`: the one that suits files, budget and drive.
    pub io: Option<IoKind>,
    /// Reads in flight, each on a thread where the read path has threads; `None`: what suits the read path.
    pub io_depth: Option<usize>,
    /// File in which the drive's figures are kept where [`Options::io`] is `None`; without one they are found anew.
    pub io_memory: Option<&'static Path>,
    /// Eviction policy.
    pub policy: PolicyKind,
    /// Prefetcher.
    pub prefetch: PrefetchKind,
    /// Whether free slots fill while the drive is idle, see [`ExpertCache::fill_free_slots`].
    pub fill: bool,
    /// How slots are shared; `None`: a pool for each layer, or one for all where the budget is too small for that.
    pub scope: Option<Scope>,
    /// Threads that compute; `None`: as many as [`machine::Cores::threads`].
    pub threads: Option<usize>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            memory_bytes: None,
            process_bytes: None,
            beside_bytes: 0,
            n_ctx: None,
            n_batch: None,
            all_logits: false,
            kv: GgmlType::F16,
            io: None,
            io_depth: None,
            io_memory: None,
            policy: PolicyKind::default(),
            prefetch: PrefetchKind::Auto,
            fill: false,
            scope: None,
            threads: None,
        }
    }
}

/// The options of a session that reads by [`IoKind::PageCache`], whatever they say of keeping experts: it keeps none, so
/// that one pool serves all layers, there is nothing to evict by, and no room for what is not wanted yet.
fn settled(options: &Options) -> Options {
    if options.io != Some(IoKind::PageCache) {
        return *options;
    }
    Options {
        scope: Some(Scope::Global),
        policy: PolicyKind::Lru,
        prefetch: PrefetchKind::Off,
        fill: false,
        ..*options
    }
}

/// The longest context that is set up unasked.
const DEFAULT_CTX: usize = 4096;

/// See the module. Generic over the arithmetic, so that tests can run the reference beside the fast one.
pub struct Session<B: Backend = Cpu> {
    path: PathBuf,
    model: Model,
    backend: B,
    experts: Experts,
    kv: KvCache,
    scratch: Scratch,
    plan: Plan,
    io_reason: Option<String>,
    timing: Timing,
    /// The budget now.
    memory_bytes: Arc<AtomicU64>,
}

/// Time spent in forward passes, and the tokens that came of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timing {
    /// Prompt tokens.
    pub prompt_tokens: u64,
    /// Nanoseconds in prompt batches.
    pub prompt_ns: u64,
    /// Tokens decoded one at a time.
    pub decode_tokens: u64,
    /// Nanoseconds in decoding.
    pub decode_ns: u64,
}

impl Session<Cpu> {
    /// Plans, loads the dense weights and makes the slots. `progress` is told (bytes done, bytes in all).
    ///
    /// # Errors
    /// Whatever is wrong with the file, the budget or the options, in one sentence.
    pub fn open(gguf: Gguf, options: &Options, progress: &mut dyn FnMut(u64, u64)) -> Result<Self> {
        let backend = Cpu::new(options.threads.unwrap_or_else(|| machine::cores().threads()))?;
        Self::with_backend(gguf, options, backend, Box::new(()), progress)
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

impl<B: Backend> Session<B> {
    /// [`Session::open`] with arithmetic and a trace of the caller's choice.
    ///
    /// # Errors
    /// As [`Session::open`].
    pub fn with_backend(
        gguf: Gguf,
        options: &Options,
        backend: B,
        trace: Box<dyn TraceSink>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self> {
        let engine = |gguf: &_, blueprint: &_, store: &_| read_path::choose(gguf, blueprint, store, options);
        Self::start(gguf, options, backend, trace, engine, progress)
    }

    /// [`Session::with_backend`] with an engine of the caller's choice, made on the model's files.
    ///
    /// # Errors
    /// As [`Session::open`].
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
        Self::start(gguf, options, backend, trace, engine, progress)
    }

    fn start(
        gguf: Gguf,
        options: &Options,
        mut backend: B,
        trace: Box<dyn TraceSink>,
        engine: impl FnOnce(&Gguf, &Blueprint, &ExpertStore) -> Result<Chosen>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self> {
        let options = &settled(options);
        let path = gguf.path().to_owned();
        let blueprint = arch::blueprint(&gguf)?;
        let store = ExpertStore::new(&gguf, blueprint.experts())?;
        let Chosen { engine: io, reason: io_reason } = engine(&gguf, &blueprint, &store)?;
        let plan = make_plan(&gguf, &blueprint, &store, options, io.layout())?;
        // First of all that takes memory, since it checks the shapes that all else is sized by.
        let mut loaded = 0;
        let total = plan.dense_bytes;
        let mut model = Model::load(&gguf, blueprint, &mut |bytes| {
            loaded += bytes;
            progress(loaded, total);
        })?;
        model.interleave(&mut backend);
        let blueprint = &model.blueprint;
        let cache = ExpertCache::new(store, plan.scope, &plan.slots, options.policy, io)?;
        let prefetcher = options.prefetch.build(blueprint.n_expert, blueprint.n_expert_used());
        let kv = KvCache::new(blueprint, options.kv, plan.n_ctx)?;
        let scratch = Scratch::new(blueprint, plan.scratch());
        let mut experts = Experts::new(cache, prefetcher, trace);
        experts.fill_free_slots(options.fill);
        let (timing, memory_bytes) = (Timing::default(), Arc::new(AtomicU64::new(plan.budget_bytes)));
        if options.memory_bytes.is_none() {
            let follow = Follow::new(plan.clone(), memory_bytes.clone());
            experts.follow(follow.map(|follow| Box::new(follow) as Box<dyn Allowance>));
        }
        Ok(Self { path, model, backend, experts, kv, scratch, plan, io_reason, timing, memory_bytes })
    }

    /// Sets another budget for the running session, from [`Plan::least_bytes`] to the one that it was opened with. Slots
    /// go back to the system, or come into use again; nothing that is computed changes. A session that was opened without a
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

    /// Keeps the listed experts in memory from now on, and reads them while the drive is idle; the first ones if slots have
    /// to be given back. The list is for this model.
    ///
    /// # Errors
    /// If they leave too few slots for the others that a token needs.
    pub fn pin(&mut self, list: &HotList) -> Result<()> {
        self.experts.pin(list, self.model.blueprint.n_expert_used())
    }

    /// A warm start: reads the listed experts into free slots while the drive is idle, and takes them for used. The list
    /// is for this model, from [`Session::hot`] of an earlier run.
    pub fn warm(&mut self, list: &HotList) {
        if self.keeps() {
            self.experts.warm(list);
        }
    }

    /// Experts that are pinned now: as many as [`Session::pin`] was given, or fewer if slots were given back.
    pub fn n_pinned(&self) -> usize {
        self.experts.cache().n_pinned()
    }

    /// How often this session's tokens used each expert.
    pub fn hot(&self) -> HotList {
        self.experts.cache().hot()
    }

    /// Whether policy or prefetcher go by past tokens.
    pub fn keeps_past(&self) -> bool {
        !self.experts.cache().retrieval().is_off()
    }

    /// What this session's last tokens used, for [`Session::restore_past`]; `None` where past tokens are not kept.
    pub fn past(&self) -> Option<Vec<u8>> {
        self.keeps_past().then(|| self.experts.cache().retrieval().to_bytes())
    }

    /// Begins with what the tokens of an earlier session of the same model used; nothing where past tokens are not kept.
    ///
    /// # Errors
    /// What is wrong with the bytes; the session is as before then.
    pub fn restore_past(&mut self, past: &[u8]) -> std::result::Result<(), &'static str> {
        self.experts.restore_past(past)
    }

    /// The budget now: that of the plan, or what [`Session::set_memory`] or a machine short of memory made of it.
    pub fn memory_bytes(&self) -> u64 {
        self.memory_bytes.load(Relaxed)
    }

    /// Runs prompt tokens in batches and returns the last one's logits (n_vocab). `progress` is told the tokens done.
    ///
    /// # Errors
    /// A token beyond the vocabulary, a context that is full, a read that failed. The sequence is as before the call
    /// then, so that the call can be repeated.
    pub fn feed(&mut self, tokens: &[u32], progress: &mut dyn FnMut(usize)) -> Result<&[f32]> {
        self.check(tokens)?;
        let (n_batch, n_past) = (self.plan.n_batch, self.kv.len());
        for (i, batch) in tokens.chunks(n_batch).enumerate() {
            let done = i * n_batch + batch.len();
            let want = if done == tokens.len() { Want::Last } else { Want::Nothing };
            self.timed(batch, Phase::Prompt, want).inspect_err(|_| self.kv.truncate(n_past))?;
            progress(done);
        }
        Ok(self.logits())
    }

    /// Runs at most a batch of prompt tokens for the KV cache alone, without logits.
    ///
    /// # Errors
    /// As [`Session::feed`]; also with more tokens than a batch has.
    pub fn fill(&mut self, tokens: &[u32]) -> Result<()> {
        self.check(tokens)?;
        let room = self.plan.n_batch;
        if tokens.len() > room {
            return Err(Error::invalid(format!("a batch holds {room} tokens, not {}", tokens.len())));
        }
        self.timed(tokens, Phase::Prompt, Want::Nothing)
    }

    /// Runs at most a batch of prompt tokens and returns the logits of each. (tokens, n_vocab)
    ///
    /// # Errors
    /// As [`Session::feed`]; also without [`Options::all_logits`], or with more tokens than a batch has.
    pub fn feed_all(&mut self, tokens: &[u32]) -> Result<&[f32]> {
        self.check(tokens)?;
        let room = self.plan.n_logits.min(self.plan.n_batch);
        if tokens.len() > room {
            return Err(Error::invalid(format!("a batch holds {room} tokens with logits, not {}", tokens.len())));
        }
        self.timed(tokens, Phase::Prompt, Want::All)?;
        Ok(&self.scratch.logits()[..tokens.len() * self.model.blueprint.n_vocab])
    }

    /// Runs one token and returns its logits. (n_vocab)
    ///
    /// # Errors
    /// As [`Session::feed`].
    pub fn decode(&mut self, token: u32) -> Result<&[f32]> {
        self.check(&[token])?;
        self.timed(&[token], Phase::Decode, Want::Last)?;
        Ok(self.logits())
    }

    fn timed(&mut self, tokens: &[u32], phase: Phase, want: Want) -> Result<()> {
        let start = Instant::now();
        let batch = Batch { tokens, phase, want };
        self.model.forward(&mut self.backend, batch, &mut self.kv, &mut self.experts, &mut self.scratch)?;
        let (n, ns) = (tokens.len() as u64, start.elapsed().as_nanos() as u64);
        let t = &mut self.timing;
        match phase {
            Phase::Prompt => (t.prompt_tokens, t.prompt_ns) = (t.prompt_tokens + n, t.prompt_ns + ns),
            Phase::Decode => (t.decode_tokens, t.decode_ns) = (t.decode_tokens + n, t.decode_ns + ns),
        }
        Ok(())
    }

    fn check(&self, tokens: &[u32]) -> Result<()> {
        let n_vocab = self.model.blueprint.n_vocab;
        if tokens.is_empty() {
            return Err(Error::invalid("the prompt has no tokens"));
        }
        if let Some(token) = tokens.iter().find(|&&t| t as usize >= n_vocab) {
            return Err(Error::invalid(format!("token {token} is not in the vocabulary of {n_vocab} tokens")));
        }
        let (used, n_ctx) = (self.kv.len(), self.kv.n_ctx());
        if used + tokens.len() > n_ctx {
            return Err(Error::invalid(format!(
                "the context of {n_ctx} tokens is too short for {} (the model was trained for {})",
                used + tokens.len(),
                self.blueprint().n_ctx_train
            )));
        }
        Ok(())
    }

    /// Forgets the tokens from position `len` on; the experts stay where they are.
    pub fn truncate(&mut self, len: usize) {
        self.kv.truncate(len);
    }
    /// The logits of the last call that gave any. (n_vocab)
    pub fn logits(&self) -> &[f32] {
        &self.scratch.logits()[..self.model.blueprint.n_vocab]
    }
    /// Forgets the sequence; the experts stay where they are.
    pub fn reset(&mut self) {
        self.kv.truncate(0);
    }
    /// Tokens in the sequence.
    pub fn n_past(&self) -> usize {
        self.kv.len()
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
        let (io, policy, prefetch) = self.experts.modes();
        (io, if self.keeps() { policy } else { "none" }, prefetch)
    }
    /// Whether experts are kept for the next token, which [`IoKind::PageCache`] leaves to the system.
    fn keeps(&self) -> bool {
        self.experts.cache().io().name() != IoKind::PageCache.name()
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

/// The split of the budget that `options` ask for, with slots of this layout.
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
    let n_ctx = options.n_ctx.unwrap_or(DEFAULT_CTX.min(blueprint.n_ctx_train));
    if n_ctx == 0 || n_ctx > blueprint.n_ctx_train {
        return Err(Error::invalid(match n_ctx {
            0 => "a context of 0 tokens holds nothing".to_owned(),
            n => blueprint.context_error(n),
        }));
    }
    if options.n_batch == Some(0) {
        return Err(Error::invalid("a batch of 0 tokens holds nothing"));
    }
    let needs = Needs {
        n_ctx,
        n_batch: options.n_batch,
        all_logits: options.all_logits,
        kv: options.kv,
        scope: options.scope.unwrap_or(Scope::Layer),
        policy: options.policy,
        prefetch: options.prefetch,
        keeps: options.io != Some(IoKind::PageCache),
        layout,
        process_bytes: options.beside_bytes.saturating_add(options.process_bytes.unwrap_or_else(|| {
            // Tensors begin where the header ends.
            let header_bytes = gguf.tensors().iter().map(|t| t.offset).min().unwrap_or(0);
            process_bytes(machine::code_bytes(), header_bytes, machine::rss_bytes().unwrap_or(0))
        })),
        threads: options.threads.unwrap_or_else(|| machine::cores().threads()),
    };
    let plan = Plan::new(blueprint, store, needs, None)?;
    let budget = match (options.memory_bytes, machine::available_bytes()) {
        (Some(asked), _) => asked,
        (None, Some(free)) => (free / 5 * 4).min(plan.full_bytes),
        (None, None) => plan.full_bytes,
    };
    if options.scope.is_some() {
        return Plan::new(blueprint, store, needs, Some(budget));
    }
    // A token needs slots for one layer at a time only: one pool for all layers does with much less, but hits less as well.
    let one_pool = Needs { scope: Scope::Global, ..needs };
    let smallest_bytes = Plan::new(blueprint, store, one_pool, None)?.smallest_bytes.min(plan.smallest_bytes);
    let needs = if budget < plan.smallest_bytes { one_pool } else { needs };
    let mut plan = Plan::new(blueprint, store, needs, Some(budget))?;
    plan.smallest_bytes = smallest_bytes;
    Ok(plan)
}
