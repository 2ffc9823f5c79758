//! Stop strings in a text that comes in pieces. What may be the beginning of one is held back until it is known.
//! Knows no tokens.

/// See the module.
#[derive(Clone, Debug)]
pub struct StopStrings {
    stops: Vec<String>,
    /// Text that was not given yet: the beginning of a stop string, or what the last call gave and what follows it.
    held: String,
    /// Bytes of `held` that the last call gave.
    given: usize,
    stopped: bool,
}

impl StopStrings {
    /// For these texts; empty ones do not count.
    pub fn new(stops: &[String]) -> Self {
        let stops = stops.iter().filter(|stop| !stop.is_empty()).cloned().collect();
        Self { stops, held: String::new(), given: 0, stopped: false }
    }

    /// The text that is certain once `piece` has come, and the index of the stop string that ended it. Of several the one that
    /// begins first; nothing comes after it.
    pub fn push(&mut self, piece: &str) -> (&str, Option<usize>) {
        self.held.drain(..self.given);
        self.given = 0;
        if self.stopped {
            return ("", None);
        }
        self.held.push_str(piece);
        let found =
            self.stops.iter().enumerate().filter_map(|(i, stop)| Some((self.held.find(stop.as_str())?, i))).min();
        if let Some((at, which)) = found {
            self.stopped = true;
            self.held.truncate(at);
            self.given = at;
            return (&self.held, Some(which));
        }
        self.given = self.held.len() - self.unsure();
        (&self.held[..self.given], None)
    }

    /// What was held back, and `rest`, at the end of the text.
    pub fn finish(&mut self, rest: &str) -> &str {
        self.held.drain(..self.given);
        self.given = 0;
        if !self.stopped {
            self.held.push_str(rest);
        }
        &self.held
    }

    /// Bytes at the end that a stop string may begin with.
    fn unsure(&self) -> usize {
        let longest = |stop: &String| overlap(&self.held, stop);
        self.stops.iter().map(longest).max().unwrap_or(0)
    }
}

/// The longest end of `text` that is a beginning of `mark`, but not all of it. Bytes
pub fn overlap(text: &str, mark: &str) -> usize {
    let most = text.len().min(mark.len().saturating_sub(1));
    (1..=most).rev().find(|&n| text.as_bytes().ends_with(&mark.as_bytes()[..n])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (String, Option<usize>) {
        let mut stop = StopStrings::new(&stops.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>());
        let (mut text, mut which) = (String::new(), None);
        for piece in pieces {
            let (new, found) = stop.push(piece);
            text.push_str(new);
            which = which.or(found);
        }
        text.push_str(stop.finish(""));
        (text, which)
    }

    #[test]
    fn wherever_the_text_is_cut_it_ends_before_the_first_stop_string() {
        for (text, stops, expected) in [
            ("one two three", &["two"][..], ("one ", Some(0))),
            ("aab aaab", &["aaab"], ("aab ", Some(0))),
            ("abcabd!", &["abd", "cab"], ("ab", Some(1))),
            ("nothing", &["x", ""], ("nothing", None)),
            ("ends in sto", &["stop"], ("ends in sto", None)),
            ("ä→ö→", &["→ö"], ("ä", Some(0))),
            ("", &["a"], ("", None)),
        ] {
            let cuts: Vec<_> = text.char_indices().map(|(i, _)| i).chain([text.len()]).collect();
            let expected = (expected.0.to_owned(), expected.1);
            for &a in &cuts {
                for &b in cuts.iter().filter(|&&b| b >= a) {
                    assert_eq!(run(stops, &[&text[..a], &text[a..b], &text[b..]]), expected, "{text} at {a} and {b}");
                }
            }
            let each: Vec<_> = cuts.windows(2).map(|w| &text[w[0]..w[1]]).collect();
            assert_eq!(run(stops, &each), expected, "{text}");
        }
    }

    #[test]
    fn only_what_may_become_a_stop_string_waits() {
        let mut stop = StopStrings::new(&["END".to_owned()]);
        assert_eq!(stop.push("the E").0, "the ");
        assert_eq!(stop.push("N").0, "");
        assert_eq!(stop.push("T").0, "ENT");
        assert_eq!(stop.push("END and more"), ("", Some(0)));
        assert_eq!(stop.push("even more"), ("", None));
        assert_eq!(stop.finish("rest"), "");
    }
}
