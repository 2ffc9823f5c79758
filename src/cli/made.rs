//! Which program made a figure, on what machine and when: what every figure has to carry.

use std::{
    sync::LazyLock,
    time::{SystemTime, UNIX_EPOCH},
};

use hotset::{backend::cpu::kernels::Isa, chat::strftime, gguf::Gguf, human_bytes, machine, trace::file::fnv1a};

/// Of the program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The commit that the program was built from, where whoever built it says so, as releases do.
const COMMIT: Option<&str> = option_env!("HOTSET_COMMIT");

/// Version, commit, and what this CPU computes with.
pub static LONG_VERSION: LazyLock<String> = LazyLock::new(|| {
    let commit = COMMIT.map_or(String::new(), |commit| format!(" ({commit})"));
    let sets: Vec<_> = Isa::ALL.iter().rev().filter(|isa| isa.is_available()).map(|isa| isa.name()).collect();
    format!("{VERSION}{commit}\ninstruction sets of this CPU, best first: {}", sets.join(", "))
});

/// What tells a model from others of its name: FNV-1a of its tensor table.
pub fn model_id(gguf: &Gguf) -> String {
    fnv1a(gguf.tensors().iter().flat_map(|t| {
        let dims = t.dims.iter().flat_map(|d| d.to_le_bytes());
        t.name.bytes().chain(dims).chain(t.offset.to_le_bytes()).collect::<Vec<_>>()
    }))
}

/// As in "AMD EPYC 7763, 2 cores allowed, 23.5 GiB, linux x86_64"; what the system does not tell is left out.
pub fn machine() -> String {
    let system = format!("{} {}", std::env::consts::OS, std::env::consts::ARCH);
    let memory = machine::memory_bytes().map(human_bytes);
    [machine::cpu_name(), Some(machine::cores().to_string()), memory, Some(system)]
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
        .join(", ")
}

/// The time in UTC, as in 2026-03-01T12:00:59Z.
pub fn now() -> String {
    strftime("%Y-%m-%dT%H:%M:%SZ", unix_seconds())
}

/// Seconds since 1970.
pub fn unix_seconds() -> u64 {
    // A clock before 1970 is a clock that was never set.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
