//! How to run, and the split of the budget that follows.

use std::path::PathBuf;

use crate::{
    Error, Result,
    backend::{AttentionBytes, KernelChoice},
    blueprint::Blueprint,
    expert::{ExpertStore, Scope},
    gguf::Gguf,
    gpu::Choice,
    io::{IoKind, Layout},
    machine,
    plan::{Needs, Plan, process_bytes},
    policy::PolicyKind,
    prefetch::PrefetchKind,
    quant::GgmlType,
};

/// How to run. [`Options::default`] is what the program does without flags.
#[derive(Clone, Debug)]
pub struct Options {
    /// The budget in bytes. `None`: four fifths of what the machine has free, at most what the model can use; and
    /// while it runs, slots are given back when the machine is short of memory, and taken again when it no longer is.
    pub memory_bytes: Option<u64>,
    /// What the process is charged beside what the engine allocates; `None`: what the program takes with such a model, or
    /// what is measured if that is more, see [`plan::process_bytes`](crate::plan::process_bytes). An embedder whose process
    /// is mostly its own says 0.
    pub process_bytes: Option<u64>,
    /// What the caller keeps beside the engine within the same budget: a server's requests.
    pub beside_bytes: u64,
    /// Tokens of context of each sequence; `None`: the model's own, at most 4096.
    pub n_ctx: Option<usize>,
    /// Sequences that an [`Engine`](super::Engine) holds, all counted in the budget. A session has one, whatever this says.
    pub parallel: usize,
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
    pub io_memory: Option<PathBuf>,
    /// Eviction policy.
    pub policy: PolicyKind,
    /// Prefetcher.
    pub prefetch: PrefetchKind,
    /// Whether free slots fill while the drive is idle, see [`ExpertCache::fill_free_slots`](crate::expert::ExpertCache::fill_free_slots).
    pub fill: bool,
    /// How slots are shared; `None`: a pool for each layer, or one for all where the budget is too small for that.
    pub scope: Option<Scope>,
    /// Threads that compute; `None`: as many as [`machine::Cores::threads`].
    pub threads: Option<usize>,
    /// Kernels that they compute with.
    pub kernels: KernelChoice,
    /// How much of a graphics card's memory holds experts.
    pub vram: Vram,
    /// Which one. A device that is not left open is used whatever it is and however slow.
    pub vram_device: Choice,
}

/// A budget of device memory.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
pub enum Vram {
    /// No device is looked for.
    #[default]
    Off,
    /// What the device has free, less a reserve.
    Auto,
    /// So many bytes.
    Bytes(u64),
    /// So many percent of the model's files.
    Percent(f64),
}

impl Default for Options {
    fn default() -> Self {
        Self {
            memory_bytes: None,
            process_bytes: None,
            beside_bytes: 0,
            n_ctx: None,
            parallel: 1,
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
            kernels: KernelChoice::default(),
            vram: Vram::Off,
            vram_device: Choice::Best,
        }
    }
}

impl Options {
    /// Threads that compute.
    pub(super) fn threads(&self) -> usize {
        self.threads.unwrap_or_else(|| machine::cores().threads())
    }

    /// Whether experts are kept for the next token, which [`IoKind::PageCache`] leaves to the system.
    pub(super) fn keeps_experts(&self) -> bool {
        self.io != Some(IoKind::PageCache)
    }
}

/// The options of an engine that reads by [`IoKind::PageCache`], whatever they say of keeping experts: it keeps none, so
/// that one pool serves all layers, there is nothing to evict by, and no room for what is not wanted yet.
pub(super) fn settled(options: &Options) -> Options {
    if options.keeps_experts() {
        return options.clone();
    }
    Options {
        scope: Some(Scope::Global),
        policy: PolicyKind::Lru,
        prefetch: PrefetchKind::Off,
        fill: false,
        ..options.clone()
    }
}

/// The longest context that is set up unasked.
const DEFAULT_CTX: usize = 4096;

/// Sequences at most: a batch has a token of each.
const MAX_PARALLEL: usize = 256;

/// The split of the budget that `options` ask for, with slots of this layout and a backend whose attention works in so much.
///
/// # Errors
/// A budget or a context that does not work.
pub(super) fn make_plan(
    gguf: &Gguf,
    blueprint: &Blueprint,
    store: &ExpertStore,
    options: &Options,
    layout: Layout,
    attention_bytes: AttentionBytes,
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
    if options.parallel == 0 || options.parallel > MAX_PARALLEL {
        let message = format!("the number of sequences must be from 1 to {MAX_PARALLEL}, not {}", options.parallel);
        return Err(Error::invalid(message));
    }
    let needs = Needs {
        n_ctx,
        parallel: options.parallel,
        n_batch: options.n_batch,
        all_logits: options.all_logits,
        kv: options.kv,
        scope: options.scope.unwrap_or(Scope::Layer),
        policy: options.policy,
        prefetch: options.prefetch,
        keeps: options.keeps_experts(),
        layout,
        process_bytes: options.beside_bytes.saturating_add(options.process_bytes.unwrap_or_else(|| {
            // Tensors begin where the header ends.
            let header_bytes = gguf.tensors().iter().map(|t| t.offset).min().unwrap_or(0);
            process_bytes(machine::code_bytes(), header_bytes, machine::rss_bytes().unwrap_or(0))
        })),
        threads: options.threads(),
        attention_bytes,
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
