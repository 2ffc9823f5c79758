//! A model in its budget.

use std::{
    path::PathBuf,
    sync::{Mutex, MutexGuard},
    time::{SystemTime, UNIX_EPOCH},
};

use hotset::{
    Error, Gguf, Options, Result,
    backend::cpu::Cpu,
    budget::Memory,
    chat::{Message, Parser, Role, Settings, Tools},
    converse::Converser,
    expert::PhaseStats,
    generate::KeptSession,
    io::IoKind,
    model::KV_TYPES,
    policy::PolicyKind,
    prefetch::PrefetchKind,
    quant::GgmlType,
};
use pyo3::{prelude::*, types::PyDict};

use crate::{
    errors::OrRaise,
    generation::{Generation, Writing},
};

/// What is behind the lock.
pub struct Inner {
    pub kept: KeptSession<Cpu>,
    pub converser: Converser,
    /// Which text is being written: another one ends those before it.
    pub turn: u64,
}

/// A model within a budget. One thread at a time computes; others wait for it.
#[pyclass(frozen, module = "hotset._native")]
pub struct Session {
    inner: Mutex<Inner>,
    file_bytes: u64,
}

/// How to run; `None`: the library's default.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub struct Opening {
    ctx: Option<usize>,
    batch: Option<usize>,
    policy: Option<String>,
    prefetch: Option<String>,
    io: Option<String>,
    kv: Option<String>,
    threads: Option<usize>,
    fill: bool,
    session_only: bool,
}

/// The item of that name, or the default.
fn named<T: Copy>(name: Option<&str>, what: &str, default: T, all: &[T], name_of: fn(T) -> &'static str) -> Result<T> {
    let Some(name) = name else { return Ok(default) };
    let names = || all.iter().map(|&item| name_of(item)).collect::<Vec<_>>().join(", ");
    let found = all.iter().copied().find(|&item| name_of(item).eq_ignore_ascii_case(name));
    found.ok_or_else(|| Error::request(what, format!("one of {}", names()), name))
}

/// A budget in bytes as it is written; `None`: the library's choice.
fn bytes(memory: Option<&str>, file_bytes: u64) -> Result<Option<u64>> {
    let Some(text) = memory else { return Ok(None) };
    let memory: Memory = text.parse().map_err(|e| Error::invalid(format!("memory {text}: {e}")))?;
    Ok(memory.bytes(file_bytes))
}

impl Opening {
    fn options(&self, memory_bytes: Option<u64>) -> Result<Options> {
        let default = Options::default();
        let (policy, prefetch) = (self.policy.as_deref(), self.prefetch.as_deref());
        let io = self.io.as_deref();
        Ok(Options {
            memory_bytes,
            process_bytes: self.session_only.then_some(0),
            n_ctx: self.ctx,
            n_batch: self.batch,
            threads: self.threads,
            fill: self.fill,
            policy: named(policy, "policy", default.policy, PolicyKind::ALL, PolicyKind::name)?,
            prefetch: named(prefetch, "prefetch", default.prefetch, PrefetchKind::ALL, PrefetchKind::name)?,
            io: io.map(|io| named(Some(io), "io", IoKind::Pread, IoKind::ALL, IoKind::name)).transpose()?,
            kv: named(self.kv.as_deref(), "kv", default.kv, KV_TYPES, GgmlType::name)?,
            ..default
        })
    }
}

fn open(path: PathBuf, memory: Option<&str>, opening: &Opening) -> Result<Session> {
    if opening.threads == Some(0) {
        return Err(Error::invalid("threads must be at least 1"));
    }
    let gguf = Gguf::open(&path)?;
    let file_bytes = gguf.shards().iter().map(|shard| shard.len).sum();
    let options = opening.options(bytes(memory, file_bytes)?)?;
    let converser = Converser::new(&gguf, None)?;
    let session = hotset::Session::open(gguf, &options, &mut |_, _| {})?;
    let inner = Inner { kept: KeptSession::new(session), converser, turn: 0 };
    Ok(Session { inner: Mutex::new(inner), file_bytes })
}

impl Session {
    /// The session, once no other thread computes with it. To be called without Python's lock.
    ///
    /// # Errors
    /// If a bug of hotset broke the session earlier.
    pub fn lock(&self) -> Result<MutexGuard<'_, Inner>> {
        self.inner.lock().map_err(|_| Error::invalid("an earlier call broke the session; open another one"))
    }
}

#[pymethods]
impl Session {
    #[new]
    fn new(py: Python<'_>, path: PathBuf, memory: Option<String>, opening: Opening) -> PyResult<Self> {
        py.detach(|| open(path, memory.as_deref(), &opening)).or_raise(py)
    }

    /// A text that continues `prompt`, of which nothing has run yet.
    fn generate(slf: Py<Self>, py: Python<'_>, prompt: &str, writing: Writing) -> PyResult<Generation> {
        let begun = py.detach(|| {
            let mut inner = slf.get().lock()?;
            let tokens = inner.converser.tokenizer.encode(prompt, true, true);
            Generation::begin(&mut inner, &tokens, writing, None)
        });
        Ok(begun.or_raise(py)?.of(slf))
    }

    /// The model's answer to (role, content) pairs.
    fn chat(
        slf: Py<Self>,
        py: Python<'_>,
        messages: Vec<(String, String)>,
        thinking: Option<bool>,
        writing: Writing,
    ) -> PyResult<Generation> {
        let begun = py.detach(|| {
            let roles = [Role::System, Role::Developer, Role::User, Role::Assistant];
            let role = |name: &str| named(Some(name), "role", Role::User, &roles, role_name);
            let said = messages.iter().map(|(name, text)| Ok(Message::text(role(name)?, text.as_str())));
            let said = said.collect::<Result<Vec<_>>>()?;
            let mut inner = slf.get().lock()?;
            if thinking.is_some() && !inner.converser.template.knows_thinking() {
                return Err(Error::invalid("thinking: the model's chat template has no enable_thinking"));
            }
            let unix_seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
            let settings = Settings { enable_thinking: thinking, unix_seconds, ..Settings::default() };
            let prompt = inner.converser.prompt(&said, &settings)?;
            let parser = Parser::new(inner.converser.template.family(), Tools::default(), &prompt.text);
            Generation::begin(&mut inner, &prompt.tokens, writing, Some(parser))
        });
        Ok(begun.or_raise(py)?.of(slf))
    }

    fn tokenize(&self, py: Python<'_>, text: &str, add_special: bool, parse_special: bool) -> PyResult<Vec<u32>> {
        let tokens = || Ok(self.lock()?.converser.tokenizer.encode(text, add_special, parse_special));
        py.detach(tokens).or_raise(py)
    }

    fn detokenize(&self, py: Python<'_>, tokens: Vec<u32>) -> PyResult<String> {
        py.detach(|| Ok(self.lock()?.converser.tokenizer.decode(&tokens))).or_raise(py)
    }

    fn set_memory(&self, py: Python<'_>, memory: &str) -> PyResult<()> {
        let set = || {
            let bytes = bytes(Some(memory), self.file_bytes)?;
            let bytes = bytes.ok_or_else(|| Error::invalid("set_memory needs a size, such as 6GiB"))?;
            self.lock()?.kept.set_memory(bytes)
        };
        py.detach(set).or_raise(py)
    }

    fn reset(&self, py: Python<'_>) -> PyResult<()> {
        let reset = || {
            let mut inner = self.lock()?;
            inner.turn += 1;
            inner.kept.reset();
            Ok(())
        };
        py.detach(reset).or_raise(py)
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let counted = py.detach(|| {
            let inner = self.lock()?;
            let session = inner.kept.session();
            let (plan, n_vocab) = (session.plan(), session.blueprint().n_vocab);
            let memory = [session.memory_bytes(), plan.least_bytes(), plan.budget_bytes];
            let context = [plan.n_ctx, session.n_past(), n_vocab, session.threads()];
            Ok((memory, context, session.modes(), session.timing(), *session.stats()))
        });
        let (memory, context, (io, policy, prefetch), timing, cache) = counted.or_raise(py)?;
        let stats = PyDict::new(py);
        for (name, value) in ["memory_bytes", "least_bytes", "most_bytes"].into_iter().zip(memory) {
            stats.set_item(name, value)?;
        }
        for (name, value) in ["n_ctx", "n_past", "n_vocab", "threads"].into_iter().zip(context) {
            stats.set_item(name, value)?;
        }
        for (name, value) in [("io", io), ("policy", policy), ("prefetch", prefetch)] {
            stats.set_item(name, value)?;
        }
        stats.set_item("prompt", phase(py, &cache.prompt, timing.prompt_tokens, timing.prompt_ns)?)?;
        stats.set_item("decode", phase(py, &cache.decode, timing.decode_tokens, timing.decode_ns)?)?;
        for (name, value) in [
            ("bytes_read", cache.bytes_read()),
            ("prefetches", cache.prefetches),
            ("prefetches_used", cache.prefetch_useful),
            ("prefetches_wasted", cache.prefetch_wasted),
            ("evictions", cache.evictions),
        ] {
            stats.set_item(name, value)?;
        }
        Ok(stats)
    }
}

fn role_name(role: Role) -> &'static str {
    match role {
        Role::System => "system",
        Role::Developer => "developer",
        Role::User => "user",
        Role::Assistant => "assistant",
        Role::Tool => "tool",
    }
}

fn phase<'py>(py: Python<'py>, counted: &PhaseStats, tokens: u64, ns: u64) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    for (name, value) in [("tokens", tokens), ("hits", counted.hit), ("late", counted.late), ("misses", counted.miss)] {
        dict.set_item(name, value)?;
    }
    dict.set_item("hit_rate", counted.hit_rate())?;
    dict.set_item("seconds", ns as f64 / 1e9)?;
    dict.set_item("stall_seconds", counted.stall_ns as f64 / 1e9)?;
    Ok(dict)
}
