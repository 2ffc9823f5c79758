//! Which program made a figure, on what machine and when: what every figure has to carry.

use std::time::{SystemTime, UNIX_EPOCH};

use hotset::{gguf::Gguf, human_bytes, machine, trace::file::fnv1a};

/// Of the program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

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
    // A clock before 1970 is a clock that was never set.
    date(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()))
}

/// Days are counted in years that begin in March, so that the leap day is the last one (H. Hinnant, "chrono-compatible
/// low-level date algorithms").
fn date(seconds: u64) -> String {
    let days = seconds / 86_400 + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year_of_era = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day + 2) / 153;
    let (d, m) = (day - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    let y = year_of_era + era * 400 + u64::from(m <= 2);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{y:04}-{m:02}-{d:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::date;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_200, "2024-03-01T00:00:00Z"),
            (4_102_444_799, "2099-12-31T23:59:59Z"),
        ] {
            assert_eq!(date(seconds), text);
        }
    }
}
