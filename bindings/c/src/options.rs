//! How to run and how to write, as C says it. Zeros are the defaults.

use std::ffi::c_char;

use hotset::{
    Options, SamplerConfig, generate::Rules, io::IoKind, model::KV_TYPES, policy::PolicyKind, prefetch::PrefetchKind,
    quant::GgmlType,
};

use crate::{
    error::Failure,
    memory::{Growing, array, end_of, flag, string},
};

/// How a session runs. Zeros are the defaults; `size` is always set.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct OpenOptions {
    /// sizeof(hotset_options).
    pub size: usize,
    /// The memory budget in bytes. 0: four fifths of what the machine has free, at most what the model can use, and less while the
    /// machine is short of memory.
    pub memory_bytes: u64,
    /// Eviction policy by name: "lfu-adaptive", "echo", "lfu-decay", "lfuda", "lru", "slru". NULL: the first.
    pub policy: *const c_char,
    /// What is read ahead: "auto", "auto-votes", "lookahead", "votes", "both", "history", "off". NULL: the first.
    pub prefetch: *const c_char,
    /// Read path: "pread", "direct", "uring", "mapped", "page-cache". NULL: the one that suits files, budget and drive.
    pub io: *const c_char,
    /// Type of the KV cache: "f32", "f16", "q8_0". NULL: f16.
    pub kv: *const c_char,
    /// Tokens of context. 0: the model's own, at most 4096.
    pub n_ctx: u32,
    /// Tokens of a prompt that run together. 0: what suits model and budget.
    pub n_batch: u32,
    /// Threads that compute. 0: as many as there are cores to use.
    pub threads: u32,
    /// Reads in flight at most. 0: what suits the read path.
    pub io_depth: u32,
    /// 0: the budget is what the whole process stays within. 1: it is what this session allocates, whatever else the process holds;
    /// for a process that is mostly something else, or has several sessions.
    pub session_only: u32,
    /// 1: free slots are filled with experts while the drive is idle.
    pub fill: u32,
}

// SAFETY: repr(C), the size first, then integers and pointers.
unsafe impl Growing for OpenOptions {
    const NAME: &'static str = "hotset_options";
    const LEAST: usize = end_of!(OpenOptions, fill: u32);
}

/// How a text is written. Zeros, and NULL for the whole, are the most likely token every time, without end but the context's.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct TextOptions {
    /// sizeof(hotset_text_options).
    pub size: usize,
    /// Texts before which the generated one ends, each ending in NUL.
    pub stop: *const *const c_char,
    /// How many `stop` has.
    pub n_stop: usize,
    /// The same seed, prompt and options give the same text, whatever the budget.
    pub seed: u64,
    /// Tokens at most. 0: as many as the context holds.
    pub max_tokens: u32,
    /// 0: always the most likely token. Below 1 sharpens the distribution, above 1 flattens it.
    pub temperature: f32,
    /// Keep the `top_k` most likely tokens. 0: all.
    pub top_k: u32,
    /// Keep the most likely tokens that together reach this probability. 0 and 1: all.
    pub top_p: f32,
    /// Keep tokens at least this fraction as likely as the most likely one. 0: all.
    pub min_p: f32,
    /// Penalise recent tokens if above 1. 0 and 1: no penalty.
    pub repeat_penalty: f32,
    /// How many tokens are recent. 0: 64.
    pub repeat_last_n: u32,
    /// 1: go on after the model has ended its text.
    pub ignore_end: u32,
}

// SAFETY: repr(C), the size first, then integers, floats and pointers.
unsafe impl Growing for TextOptions {
    const NAME: &'static str = "hotset_text_options";
    const LEAST: usize = end_of!(TextOptions, ignore_end: u32);
}

/// The item of that name, or the default for NULL.
///
/// # Safety
/// `name` is NULL or ends in NUL.
unsafe fn named<T: Copy>(
    name: *const c_char,
    what: &str,
    default: T,
    all: &[T],
    name_of: fn(T) -> &'static str,
) -> Result<T, Failure> {
    // SAFETY: the caller's promise.
    let Some(name) = (unsafe { string(name, what) })? else { return Ok(default) };
    let names = || all.iter().map(|&item| name_of(item)).collect::<Vec<_>>().join(", ");
    let found = all.iter().copied().find(|&item| name_of(item).eq_ignore_ascii_case(name));
    found.ok_or_else(|| Failure::invalid(format!("{what} must be one of {}, not \"{}\"", names(), name.escape_debug())))
}

fn some(n: u32) -> Option<usize> {
    (n > 0).then_some(n as usize)
}

impl OpenOptions {
    /// # Safety
    /// Strings are NULL or end in NUL.
    pub(crate) unsafe fn library(&self) -> Result<Options, Failure> {
        let default = Options::default();
        let io = [None].into_iter().chain(IoKind::ALL.iter().copied().map(Some)).collect::<Vec<_>>();
        // SAFETY: the caller's promise, as in the next three.
        let policy = unsafe { named(self.policy, "policy", default.policy, PolicyKind::ALL, PolicyKind::name) }?;
        // SAFETY: see above.
        let prefetch =
            unsafe { named(self.prefetch, "prefetch", default.prefetch, PrefetchKind::ALL, PrefetchKind::name) }?;
        // SAFETY: see above.
        let io = unsafe { named(self.io, "io", None, &io[1..], |io| io.map_or("", IoKind::name)) }?;
        // SAFETY: see above.
        let kv = unsafe { named(self.kv, "kv", default.kv, KV_TYPES, GgmlType::name) }?;
        let session_only = flag(self.session_only, "session_only")?;
        Ok(Options {
            memory_bytes: (self.memory_bytes > 0).then_some(self.memory_bytes),
            process_bytes: session_only.then_some(0),
            n_ctx: some(self.n_ctx),
            n_batch: some(self.n_batch),
            threads: some(self.threads),
            io_depth: some(self.io_depth),
            fill: flag(self.fill, "fill")?,
            policy,
            prefetch,
            io,
            kv,
            ..default
        })
    }
}

impl TextOptions {
    pub(crate) fn sampling(&self) -> SamplerConfig {
        let or = |number: f32, default| if number == 0.0 { default } else { number };
        let default = SamplerConfig::default();
        SamplerConfig {
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            temperature: self.temperature,
            top_k: self.top_k as usize,
            top_p: or(self.top_p, 1.0),
            min_p: self.min_p,
            repeat_penalty: or(self.repeat_penalty, 1.0),
            repeat_last_n: some(self.repeat_last_n).unwrap_or(default.repeat_last_n),
            seed: self.seed,
        }
    }

    /// # Safety
    /// `stop` is NULL or has `n_stop` strings that end in NUL.
    pub(crate) unsafe fn rules(&self) -> Result<Rules, Failure> {
        // SAFETY: the caller's promise.
        let stops = unsafe { array(self.stop, self.n_stop, "stop") }?;
        let mut stop = Vec::new();
        for &text in stops {
            // SAFETY: the caller's promise.
            match unsafe { string(text, "a stop string") }? {
                None => return Err(Failure::null("a stop string")),
                Some("") => return Err(Failure::invalid("a stop string is empty")),
                Some(text) => stop.push(text.to_owned()),
            }
        }
        let ignore_end = flag(self.ignore_end, "ignore_end")?;
        Ok(Rules { max_tokens: some(self.max_tokens), stop, ignore_end, ..Rules::default() })
    }
}
