//! Dates in UTC as `strftime` writes them, from a clock that the caller reads: templates tell models the date.

use std::fmt::Write;

const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// `format` with Python's directives replaced; those that are unknown stay as they are.
pub fn strftime(format: &str, unix_seconds: u64) -> String {
    let days = unix_seconds / 86_400;
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (unix_seconds / 3600 % 24, unix_seconds / 60 % 60, unix_seconds % 60);
    let (weekday, month_name) = (DAYS[((days + 4) % 7) as usize], MONTHS[month as usize - 1]);
    let hour12 = (hour + 11) % 12 + 1;
    let (mut out, mut chars) = (String::new(), format.chars());
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut directive = chars.next();
        let padded = directive != Some('-');
        if !padded {
            directive = chars.next();
        }
        let mut number = |n: u64| {
            let _ = if padded { write!(out, "{n:02}") } else { write!(out, "{n}") };
        };
        match directive {
            Some('Y') => number(year),
            Some('m') => number(month),
            Some('d') => number(day),
            Some('y') => number(year % 100),
            Some('H') => number(hour),
            Some('I') => number(hour12),
            Some('M') => number(minute),
            Some('S') => number(second),
            Some('B') => out.push_str(month_name),
            Some('b') => out.push_str(&month_name[..3]),
            Some('A') => out.push_str(weekday),
            Some('a') => out.push_str(&weekday[..3]),
            Some('p') => out.push_str(if hour < 12 { "AM" } else { "PM" }),
            Some('F') => drop(write!(out, "{year}-{month:02}-{day:02}")),
            Some('T') => drop(write!(out, "{hour:02}:{minute:02}:{second:02}")),
            Some('Z') => out.push_str("UTC"),
            Some('%') => out.push('%'),
            Some(other) => out.extend(['%', other]),
            None => out.push('%'),
        }
    }
    out
}

/// (year, month, day) of a day after 1970-01-01.
fn civil(days: u64) -> (u64, u64, u64) {
    // Years begin in March, so that the leap day is the last one: Hinnant's algorithm.
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * of_year + 2) / 153;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, of_year - (153 * march_month + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use super::strftime;

    #[test]
    fn dates_are_pythons() {
        for (at, format, text) in [
            (0, "%Y-%m-%d %H:%M:%S %A", "1970-01-01 00:00:00 Thursday"),
            (951_782_400, "%d %b %Y", "29 Feb 2000"),
            (1_785_542_399, "%-d %B %y, %I:%M %p %Z%%", "31 July 26, 11:59 PM UTC%"),
            (4_102_444_799, "%F %T %a", "2099-12-31 23:59:59 Thu"),
            (0, "%q %", "%q %"),
            (951_782_399, "%Y-%m-%dT%H:%M:%SZ", "2000-02-28T23:59:59Z"),
            (1_709_251_200, "%F", "2024-03-01"),
        ] {
            assert_eq!(strftime(format, at), text);
        }
    }
}
