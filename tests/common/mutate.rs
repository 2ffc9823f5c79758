//! Damages good inputs, from a seed: what a bad drive, a bad tool or bad will makes of them.

use super::dice::Dice;

/// A seed with one to four faults.
pub fn mutate(dice: &mut Dice, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = seeds[dice.below(seeds.len())].clone();
    for _ in 0..=dice.below(4) {
        fault(dice, &mut bytes, seeds);
    }
    bytes
}

/// A place and a length within `n`.
fn range(dice: &mut Dice, n: usize) -> std::ops::Range<usize> {
    let start = dice.below(n + 1);
    start..start + dice.below((n - start).min(64) + 1)
}

/// A number that someone forgot to think of.
pub fn extreme(dice: &mut Dice) -> u64 {
    let power = 1u64 << dice.below(64);
    match dice.below(6) {
        0 => 0,
        1 => u64::MAX,
        2 => power,
        3 => power - 1,
        4 => power.wrapping_neg(),
        _ => dice.below(70_000) as u64,
    }
}

fn fault(dice: &mut Dice, bytes: &mut Vec<u8>, seeds: &[Vec<u8>]) {
    let n = bytes.len();
    match dice.below(10) {
        0 if n > 0 => bytes[dice.below(n)] ^= 1 << dice.below(8),
        1 if n > 0 => bytes[dice.below(n)] = dice.next() as u8,
        2 => bytes.truncate(dice.below(n + 1)),
        3 | 4 => {
            // A length, a count or an offset: often aligned, always little-endian.
            let (width, value) = (1 << dice.below(4), extreme(dice));
            let at = dice.below(n + 1);
            let at = if dice.below(2) == 0 { at } else { at / 4 * 4 };
            if let Some(field) = bytes.get_mut(at..at + width) {
                field.copy_from_slice(&value.to_le_bytes()[..width]);
            }
        }
        5 => {
            let other = &seeds[dice.below(seeds.len())];
            let piece = other[range(dice, other.len())].to_vec();
            let at = range(dice, n);
            bytes.splice(at, piece);
        }
        6 => drop(bytes.drain(range(dice, n))),
        7 => {
            let piece = bytes[range(dice, n)].to_vec();
            let at = dice.below(n + 1);
            bytes.splice(at..at, piece);
        }
        8 => {
            let piece: Vec<u8> = (0..dice.below(16)).map(|_| dice.next() as u8).collect();
            let at = dice.below(n + 1);
            bytes.splice(at..at, piece);
        }
        _ => number_in_text(dice, bytes),
    }
}

/// Puts another number in the place of one that is written out.
fn number_in_text(dice: &mut Dice, bytes: &mut Vec<u8>) {
    let from = dice.below(bytes.len() + 1);
    let Some(start) = bytes[from..].iter().position(u8::is_ascii_digit).map(|i| from + i) else { return };
    let len = bytes[start..].iter().take_while(|b| b.is_ascii_digit()).count();
    let sign = if dice.below(8) == 0 { "-" } else { "" };
    let number = format!("{sign}{}", extreme(dice));
    bytes.splice(start..start + len, number.into_bytes());
}
