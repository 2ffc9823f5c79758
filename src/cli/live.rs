//! `--stats-live`: what the cache does while the text appears. On a terminal a panel of four lines at its foot, below a
//! scrolling region in which the text runs as ever; elsewhere, and on a terminal that is too small, a line a second at most.
//!
//! Drawn between tokens by the thread that runs the model, ten times per second at most, in one write each; when off, it is
//! not there. All writes leave the cursor where the text has it.

mod panel;

use std::{
    collections::VecDeque,
    fmt::Write as _,
    io::{self, IsTerminal, Write},
    time::{Duration, Instant},
};

use hotset::{
    backend::cpu::Cpu,
    expert::{CacheStats, LayerHits},
    session::{Session, Timing},
};
use terminal_size::{Height, Width};

use self::panel::View;
use super::{
    interrupt::Interrupts,
    out::{folded, plain},
    stats::LABEL,
};

/// Between two drawings of the panel.
const REDRAW: Duration = Duration::from_millis(100);
/// Between two lines where there is no panel.
const LINE: Duration = Duration::from_secs(1);
/// Figures are of the last so many drawings.
const WINDOW: usize = 10;

/// The smallest terminal that has room for the panel and a text above it.
const ROWS: u16 = 10;
const COLUMNS: u16 = 40;

/// Gives the terminal back: scrolling everywhere, cursor as it is, nothing below it.
pub const RESTORE: &str = "\x1b7\x1b[r\x1b8\x1b[J";

/// Whether `--stats-live` draws a panel rather than print lines: on a terminal that is large enough, and knows how.
pub fn has_panel() -> bool {
    moves_cursor() && size().is_some_and(|(columns, rows)| columns >= COLUMNS && rows >= ROWS)
}

/// Whether standard error is a terminal that can draw anywhere but at its end.
pub fn moves_cursor() -> bool {
    io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// (columns, rows)
fn size() -> Option<(u16, u16)> {
    terminal_size::terminal_size_of(io::stderr()).map(|(Width(columns), Height(rows))| (columns, rows))
}

/// See the module.
pub struct Live {
    /// On a terminal.
    panel: bool,
    /// What the panel was set up for; `None`: it is not on the screen.
    size: Option<(u16, u16)>,
    drawn: Instant,
    window: VecDeque<Sample>,
}

/// Where the session stood.
struct Sample {
    at: Instant,
    cache: CacheStats,
    timing: Timing,
    layers: Vec<LayerHits>,
}

impl Sample {
    fn of(session: &Session<Cpu>) -> Self {
        let (cache, timing, layers) = (*session.stats(), session.timing(), session.layer_stats().to_vec());
        Self { at: Instant::now(), cache, timing, layers }
    }
}

impl Live {
    /// Begins; `panel` as [`has_panel`] has it.
    pub fn new(panel: bool, session: &Session<Cpu>) -> Self {
        let first = Sample::of(session);
        let mut live = Self { panel, size: None, drawn: first.at, window: VecDeque::from([first]) };
        live.set_up();
        live
    }

    /// Draws, if it is time: `done` of `of` tokens of `what` are through.
    pub fn tick(&mut self, session: &Session<Cpu>, interrupts: &Interrupts, what: &str, done: usize, of: usize) {
        if self.drawn.elapsed() < if self.panel { REDRAW } else { LINE } {
            return;
        }
        self.drawn = Instant::now();
        if self.window.len() > WINDOW {
            self.window.pop_front();
        }
        self.window.push_back(Sample::of(session));
        let (old, new) = (&self.window[0], &self.window[self.window.len() - 1]);
        let view = View::between(old, new, what, done, of);
        if !self.panel {
            // One a second: each of its own second.
            self.window.drain(..self.window.len() - 1);
            // A line of its own, where the text stands on the same terminal.
            if io::stderr().is_terminal() {
                plain(format_args!(""));
            }
            return folded(format_args!("{}", view.line()), LABEL);
        }
        if interrupts.take_resumed() || self.size != size() {
            self.set_up();
        }
        if let Some((columns, rows)) = self.size {
            let mut text = "\x1b7".to_owned();
            for (i, line) in view.lines(usize::from(columns)).iter().enumerate() {
                let row = usize::from(rows) - panel::LINES + 1 + i;
                let _ = write!(text, "\x1b[{row};1H\x1b[2K{line}");
            }
            send(&(text + "\x1b8"));
        }
    }

    /// Makes room at the foot. Nothing where the terminal has become too small; it may grow again.
    fn set_up(&mut self) {
        if !self.panel {
            return;
        }
        self.take_down();
        self.size = size().filter(|(columns, rows)| *columns >= COLUMNS && *rows >= ROWS);
        if let Some((_, rows)) = self.size {
            // Down and up again, so that the cursor's line lies above the panel; IND and CUU leave the column as it is.
            let down = "\x1bD".repeat(panel::LINES);
            let (n, last) = (panel::LINES, usize::from(rows) - panel::LINES);
            send(&format!("{down}\x1b[{n}A\x1b7\x1b[1;{last}r\x1b8"));
        }
    }

    fn take_down(&mut self) {
        if self.size.take().is_some() {
            send(RESTORE);
        }
    }
}

/// Also on errors and panics.
impl Drop for Live {
    fn drop(&mut self) {
        self.take_down();
    }
}

/// In one write, so that nothing else comes between. Nobody can be told if that fails.
fn send(text: &str) {
    let mut stderr = io::stderr().lock();
    let _ = stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush());
}
