//! Options that several verbs share, and the words that their values are written in.

use std::{fmt, str::FromStr};

use super::{Stop, model_file, out::note};
use clap::builder::{PossibleValuesParser, TypedValueParser};
pub use hotset::budget::Memory;
use hotset::{
    Error, arch,
    backend::cpu::kernels::{Isa, KernelChoice, Kernels},
    engine,
    expert::{ExpertStore, Scope},
    gguf::Gguf,
    gpu::Choice,
    human_bytes,
    io::{IoKind, Layout, MAX_DEPTH},
    machine,
    model::KV_TYPES,
    policy::PolicyKind,
    prefetch::PrefetchKind,
    quant::GgmlType,
    session::{Options, Vram, make_plan},
};

/// How the model runs.
#[derive(clap::Args)]
#[command(next_help_heading = "Memory and speed")]
pub struct Engine {
    /// Memory budget, which the whole process stays within: 4GiB, 500MB, plain bytes, or 30% of the model's files. K, M,
    /// G, T alone mean KiB, MiB, GiB, TiB. auto: four fifths of what the machine has free, at most what the model can
    /// use; and while it runs, memory goes back when the machine is short of it
    #[arg(long, value_name = "SIZE", default_value = "auto", allow_negative_numbers = true)]
    memory: Memory,
    /// Threads that compute; default: the cores (not their hardware threads) that affinity and CPU quota allow
    #[arg(short = 't', long, value_name = "N", value_parser = count::<1024>)]
    threads: Option<usize>,
    #[command(flatten)]
    pub modes: Modes,
}

impl Engine {
    /// The library's options for a context of `n_ctx` tokens.
    ///
    /// # Errors
    /// As [`Modes::options`].
    pub fn options(&self, gguf: &Gguf, n_ctx: usize) -> Result<Options, Stop> {
        let memory_bytes = self.memory.bytes(file_bytes(gguf));
        Ok(Options { memory_bytes, threads: self.threads, ..self.modes.options(n_ctx)? })
    }
}

/// Says before a run that the memory which its budget lets it take is not there.
pub fn warn_of_budget(gguf: &Gguf, options: &Options, quiet: bool) {
    let (Some(asked), Some(free)) = (options.memory_bytes, machine::available_bytes()) else { return };
    // What else is wrong the session will say.
    let told = missing_memory(asked, free, || full_bytes(gguf, options).unwrap_or(asked));
    if let Some(told) = told.filter(|_| !quiet) {
        note(format_args!("{told}"));
    }
}

/// Has it said what there is to say of `--vram`, now and while the session runs.
pub fn say_of_vram(session: &mut engine::Engine, quiet: bool) {
    if !quiet {
        session.on_vram_note(|text| note(format_args!("{text}")));
    }
}

/// What to say of a budget where `free` bytes are free; it may be larger than the `full` that the model can use.
fn missing_memory(asked: u64, free: u64, full: impl FnOnce() -> u64) -> Option<String> {
    let used = if asked > free { asked.min(full()) } else { asked };
    let told = || {
        let (used, free) = (human_bytes(used), human_bytes(free));
        format!("the budget of {used} is more than the {free} that the machine or its memory cgroup has free")
    };
    (used > free).then(|| told() + ": the system may swap, or kill the run")
}

/// What a model takes with every expert in memory.
fn full_bytes(gguf: &Gguf, options: &Options) -> hotset::Result<u64> {
    let blueprint = arch::blueprint(gguf)?;
    let store = ExpertStore::new(gguf, blueprint.experts())?;
    Ok(make_plan(gguf, &blueprint, &store, options, Layout::Lines)?.full_bytes)
}

/// Bytes of the model's files, of which a budget may be a percentage.
pub fn file_bytes(gguf: &Gguf) -> u64 {
    gguf.shards().iter().map(|s| s.len).sum()
}

/// How the model runs, whatever the budget and the threads.
#[derive(clap::Args)]
#[command(next_help_heading = "Memory and speed")]
pub struct Modes {
    /// Tokens of a prompt batch; a small budget makes it smaller [default: 512; up to 2048 where experts are read]
    #[arg(short, long, visible_alias = "batch-size", value_name = "TOKENS", value_parser = count::<65_536>)]
    batch: Option<usize>,
    /// Type of the KV cache
    #[arg(long, value_name = "TYPE", default_value = kv_name(Options::default().kv), value_parser = named(KV_TYPES, kv_name))]
    pub kv: GgmlType,
    /// Read path: through the page cache (pread), past it with O_DIRECT (direct), the same through an io_uring (uring), the
    /// file's own pages, mapped (mapped), a plain read for each use without a cache of our own (page-cache, a baseline), or
    /// what suits the budget and the drive (auto)
    #[arg(long, value_name = "PATH", default_value = io_name(None), value_parser = named(IO_KINDS, io_name))]
    // Spelt out, so that clap takes it for the value and not for one that may be missing.
    io: std::option::Option<IoKind>,
    /// Reads in flight, each on a thread where the read path has threads; default: what suits the read path
    #[arg(long, value_name = "N", value_parser = count::<MAX_DEPTH>)]
    io_depth: Option<usize>,
    /// Which expert leaves when a slot is needed; default: lfu-adaptive
    #[arg(long, value_name = "POLICY", value_parser = named(PolicyKind::ALL, PolicyKind::name))]
    policy: Option<PolicyKind>,
    /// Which experts are read before they are asked for: those that the next layer's router names (lookahead), those that the
    /// most similar past tokens used (votes), by both, by what followed before (history), or none (off); default: auto, which
    /// chooses between lookahead and off by measured time (auto-votes: also votes and both)
    #[arg(long, value_name = "GUESS", value_parser = named(PrefetchKind::ALL, PrefetchKind::name))]
    prefetch: Option<PrefetchKind>,
    /// While the drive is idle, read experts into slots that are still free, before a token wants them
    #[arg(long)]
    fill: bool,
    /// Slots: a pool for each layer, or one for all; default: layer, or global where the budget is too small for that
    #[arg(long, value_name = "SCOPE", value_parser = named(SCOPES, Scope::name))]
    scope: Option<Scope>,
    /// Graphics card's memory that holds experts, which are computed there: 6GiB, or 40% of the model's files; auto: what the
    /// card has free, less a reserve; off: none. The text is the same, bit for bit
    #[arg(long, value_name = "SIZE", default_value = "off")]
    vram: VramSize,
    /// Number of the device for --vram, as the driver lists them from 0, or any: whatever it is and however slow
    #[arg(long, value_name = "N", requires = "vram", value_parser = device, hide = true)]
    vram_device: Option<Choice>,
}

/// A device for `--vram`.
fn device(text: &str) -> Result<Choice, String> {
    let number = || text.parse().ok().map(Choice::Number);
    (text == "any").then_some(Choice::Any).or_else(number).ok_or_else(|| "expected any or a number".to_owned())
}

/// A budget of device memory as it was written.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct VramSize(Option<Memory>);

impl fmt::Display for VramSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => write!(f, "off"),
            Some(memory) => write!(f, "{memory}"),
        }
    }
}

impl FromStr for VramSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(VramSize(None));
        }
        text.parse()
            .map(|memory| VramSize(Some(memory)))
            .map_err(|e: String| e.replace("expected auto or", "expected off, auto or"))
    }
}

impl From<VramSize> for Vram {
    fn from(size: VramSize) -> Vram {
        match size.0 {
            None => Vram::Off,
            Some(Memory::Auto) => Vram::Auto,
            Some(Memory::Bytes(n)) => Vram::Bytes(n),
            Some(Memory::Percent(p)) => Vram::Percent(p),
        }
    }
}

impl Modes {
    /// The library's options for a context of `n_ctx` tokens, with budget and threads left to it.
    ///
    /// # Errors
    /// Options of a cache for a read path that has none.
    pub fn options(&self, n_ctx: usize) -> Result<Options, Stop> {
        let of_a_cache = [
            ("--policy", self.policy.is_some()),
            ("--prefetch", self.prefetch.is_some()),
            ("--fill", self.fill),
            ("--scope", self.scope.is_some()),
            ("--vram", self.vram.0.is_some()),
        ];
        if let (Some(IoKind::PageCache), Some((name, _))) = (self.io, of_a_cache.iter().find(|(_, given)| *given)) {
            return Err(Stop::usage(format!("{name} means nothing with --io page-cache, which keeps no experts")));
        }
        let default = Options::default();
        Ok(Options {
            process_bytes: None,
            beside_bytes: 0,
            memory_bytes: None,
            n_ctx: Some(n_ctx),
            parallel: 1,
            n_batch: self.batch,
            all_logits: false,
            kv: self.kv,
            io: self.io,
            io_depth: self.io_depth,
            io_memory: model_file::cache_folder().ok().map(|folder| folder.join("drives.json")),
            policy: self.policy.unwrap_or(default.policy),
            prefetch: self.prefetch.unwrap_or(default.prefetch),
            fill: self.fill,
            scope: self.scope,
            vram: self.vram.into(),
            vram_device: self.vram_device.unwrap_or_default(),
            threads: None,
            kernels: kernels()?,
        })
    }
}

/// The kernels that the environment asks for.
///
/// # Errors
/// Names of none.
pub fn kernels() -> hotset::Result<KernelChoice> {
    let asked = |variable: &'static str| std::env::var_os(variable).map(|value| value.to_string_lossy().into_owned());
    let wrong = |variable: &str, names: &str, got: &str| {
        Error::invalid(format!("{variable} must be one of {names}, not {got}"))
    };
    let (isa, interleave) = ("HOTSET_ISA", "HOTSET_INTERLEAVE");
    let choice = KernelChoice {
        isa: match asked(isa) {
            None => None,
            Some(name) => Some(*Isa::ALL.iter().find(|isa| isa.name() == name).ok_or_else(|| {
                let names: Vec<_> = Isa::ALL.iter().map(|isa| isa.name()).collect();
                wrong(isa, &names.join(", "), &name)
            })?),
        },
        interleave: match asked(interleave).as_deref() {
            None => None,
            Some("off") => Some(false),
            Some(other) => return Err(Error::invalid(format!("{interleave} can only be off, not {other}"))),
        },
    };
    Kernels::choose(choice).map_err(|e| Error::invalid(format!("{isa}: {e}")))?;
    Ok(choice)
}

/// Read paths that can be asked for.
const IO_KINDS: &[Option<IoKind>] = &[
    None,
    Some(IoKind::Pread),
    Some(IoKind::Direct),
    Some(IoKind::Uring),
    Some(IoKind::Mapped),
    Some(IoKind::PageCache),
];

/// The name that `--io` takes.
fn io_name(kind: Option<IoKind>) -> &'static str {
    kind.map_or("auto", IoKind::name)
}

/// The values of `--scope`.
pub const SCOPES: &[Scope] = &[Scope::Layer, Scope::Size, Scope::Global];

/// The name that `--kv` takes.
pub fn kv_name(ty: GgmlType) -> &'static str {
    match ty {
        GgmlType::F16 => "f16",
        GgmlType::F32 => "f32",
        GgmlType::Q8_0 => "q8_0",
        other => other.name(),
    }
}

/// A parser for the names of `all`.
pub fn named<T: Copy + Send + Sync + 'static>(
    all: &'static [T],
    name: fn(T) -> &'static str,
) -> impl TypedValueParser<Value = T> {
    PossibleValuesParser::new(all.iter().map(|&kind| name(kind)))
        .map(move |given| *all.iter().find(|&&kind| name(kind) == given).expect("clap lets only these names through"))
}

/// A number from 1 to `MAX`.
pub fn count<const MAX: usize>(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| (1..=MAX).contains(n)).ok_or_else(|| format!("expected a number from 1 to {MAX}"))
}

/// A number from 0 to `MAX`, or all (`None`) for -1, as llama.cpp has it.
pub fn count_or_all<const MAX: usize>(text: &str) -> Result<OrAll, String> {
    match text.parse() {
        Ok(-1) => Ok(OrAll(None)),
        Ok(n) if (0..=MAX as i64).contains(&n) => Ok(OrAll(Some(n as usize))),
        _ => Err(format!("expected a number from 0 to {MAX}, or -1")),
    }
}

/// A number, or all there are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OrAll(pub Option<usize>);

impl fmt::Display for OrAll {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(n) => write!(f, "{n}"),
            None => write!(f, "-1"),
        }
    }
}

/// The context that `--ctx` asks for, of a model that was trained for `n_ctx_train`: 0 is all of that, as in llama.cpp.
pub fn asked_ctx(ctx: usize, n_ctx_train: usize) -> usize {
    if ctx == 0 { n_ctx_train } else { ctx }
}

/// Tokens of context that an option may ask for; 0: see [`asked_ctx`].
pub fn ctx(text: &str) -> Result<usize, String> {
    let most = u32::MAX as usize;
    text.parse().ok().filter(|n| *n <= most).ok_or_else(|| format!("expected a number from 0 to {most}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_that_is_not_there_is_said() {
        let said = |asked: u64, free: u64, full: u64| missing_memory(asked << 30, free << 30, || full << 30);
        assert_eq!(said(8, 16, 4), None);
        assert_eq!(said(64, 16, 4), None, "the model cannot use it");
        for (asked, full, used) in [(64, 20, "20.0 GiB"), (17, 20, "17.0 GiB")] {
            let told = said(asked, 16, full).unwrap();
            assert!(told.contains(used) && told.contains("16.0 GiB"), "{told}");
        }
    }
}
