//! A memory budget as people write it: `4GiB`, `500MB`, `30%` of the model's files, `auto`.
//!
//! Must not know: what the budget is split into.

use std::{fmt, str::FromStr};

/// A plain number below this is no budget: its unit was forgotten.
const LEAST_PLAIN: u64 = 4096;

/// A memory budget as it was written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Memory {
    /// So many bytes.
    Bytes(u64),
    /// So many percent of the model's files.
    Percent(f64),
    /// What the machine can spare.
    Auto,
}

impl Memory {
    /// The budget for a model whose files have `file_bytes`; `None`: the library's choice.
    pub fn bytes(self, file_bytes: u64) -> Option<u64> {
        match self {
            Memory::Bytes(n) => Some(n),
            Memory::Percent(p) => Some((file_bytes as f64 * p / 100.0) as u64),
            Memory::Auto => None,
        }
    }
}

/// As it could have been written.
impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Memory::Bytes(n) if *n < LEAST_PLAIN => write!(f, "{n}B"),
            Memory::Bytes(n) => write!(f, "{n}"),
            Memory::Percent(p) => write!(f, "{p}%"),
            Memory::Auto => write!(f, "auto"),
        }
    }
}

impl FromStr for Memory {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "expected auto or a size such as 4GiB, 500MB, 3000000 or 30%".to_owned();
        if text == "auto" {
            return Ok(Memory::Auto);
        }
        if let Ok(bytes) = text.parse() {
            return match bytes {
                0 => Err(wrong()),
                1..LEAST_PLAIN => Err(format!("did you mean {text}GiB?")),
                bytes => Ok(Memory::Bytes(bytes)),
            };
        }
        if text.parse().is_ok_and(|n: f64| n > 0.0 && n.is_finite()) {
            return Err(format!("did you mean {text}GiB?"));
        }
        let split = text.find(|c: char| c != '.' && !c.is_ascii_digit()).ok_or_else(wrong)?;
        let number: f64 = text[..split].parse().map_err(|_| wrong())?;
        let factor = match text[split..].trim().to_ascii_lowercase().as_str() {
            "%" => return Ok(Memory::Percent(number)),
            "b" => 1,
            "k" | "kib" => 1 << 10,
            "m" | "mib" => 1 << 20,
            "g" | "gib" => 1 << 30,
            "t" | "tib" => 1 << 40,
            "kb" => 1_000,
            "mb" => 1_000_000,
            "gb" => 1_000_000_000,
            "tb" => 1_000_000_000_000u64,
            _ => return Err(wrong()),
        };
        Ok(Memory::Bytes((number * factor as f64) as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("0b", 0),
            ("4096", 4096),
            ("3000000", 3_000_000),
            ("4GiB", 4 << 30),
            ("4g", 4 << 30),
            ("1.5 MiB", 3 << 19),
            ("500MB", 500_000_000),
            ("2tb", 2_000_000_000_000),
            ("7B", 7),
        ] {
            assert_eq!(text.parse(), Ok(Memory::Bytes(bytes)), "{text}");
        }
        assert_eq!("30%".parse(), Ok(Memory::Percent(30.0)));
        assert_eq!(Memory::Percent(12.5).bytes(800), Some(100));
        for memory in [Memory::Percent(12.5), Memory::Bytes(7), Memory::Auto] {
            assert_eq!(memory.to_string().parse(), Ok(memory));
        }
        for text in ["8", "512", "1.5"] {
            assert_eq!(text.parse::<Memory>(), Err(format!("did you mean {text}GiB?")));
        }
        for text in ["", "0", "-1", "GiB", "4 gigs", "1..5M", "%", "NaN", "∞"] {
            assert!(text.parse::<Memory>().is_err(), "{text}");
        }
    }
}
