//! Dates in UTC as `strftime` writes them, from a clock that the caller reads: templates tell models the date.

use jiff::{
    Timestamp,
    fmt::strtime::{BrokenDownTime, Config},
    tz::TimeZone,
};

/// `format` with its directives replaced; those that are unknown stay as they are.
pub fn strftime(format: &str, unix_seconds: u64) -> String {
    let seconds = i64::try_from(unix_seconds).unwrap_or(i64::MAX);
    let now = Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX).to_zoned_datetime(TimeZone::UTC);
    let mut text = String::new();
    let written = BrokenDownTime::from(&now).format_with_config(&Config::new().lenient(true), format, &mut text);
    written.map_or_else(|_| format.to_owned(), |()| text)
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
            (0, "%~ %", "%~ %"),
            (951_782_399, "%Y-%m-%dT%H:%M:%SZ", "2000-02-28T23:59:59Z"),
            (1_709_251_200, "%F", "2024-03-01"),
            (u64::MAX, "%Y", "9999"),
        ] {
            assert_eq!(strftime(format, at), text);
        }
    }
}
