//! Ctrl-C and its like: the first may ask the run to end, the next ends the process. Whatever ends it gives the terminal back
//! and removes drafts of files, where these have names.
//!
//! Signals belong to the process, and so does what is kept here.

use std::{
    io,
    sync::{
        Arc, LazyLock, OnceLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
};

use hotset::{Error, Result};
use signal_hook::consts::{SIGINT, TERM_SIGNALS};

/// Exit code after Ctrl-C: 128 + SIGINT, as shells have it.
pub const INTERRUPTED: u8 = 130;

/// Bit `n` for each signal `n` that the first time only asks for an end.
static ASKS: AtomicU64 = AtomicU64::new(0);
/// The signal that has asked for an end, or 0.
static ASKED: LazyLock<Arc<AtomicUsize>> = LazyLock::new(Arc::default);
/// The process was stopped and runs again.
static RESUMED: AtomicBool = AtomicBool::new(false);
/// What the terminal gets before a signal ends or stops the process.
static RESTORE: OnceLock<&str> = OnceLock::new();

/// What signals have asked for.
pub struct Interrupts(());

impl Interrupts {
    /// The first Ctrl-C asks for an end. Where `restore` is given, the terminal gets these bytes before a signal ends or
    /// stops the process.
    ///
    /// # Errors
    /// If the system refuses the handlers.
    pub fn watch(restore: Option<&'static str>) -> Result<Self> {
        if let Some(bytes) = restore {
            RESTORE.get_or_init(|| bytes);
        }
        Self::asking(&[SIGINT])
    }

    /// The first of all signals that end a process asks for an end.
    ///
    /// # Errors
    /// As [`Interrupts::watch`].
    pub fn watch_all() -> Result<Self> {
        Self::asking(&endings())
    }

    fn asking(signals: &[i32]) -> Result<Self> {
        ASKS.fetch_or(signals.iter().map(|signal| 1u64 << signal).sum(), Ordering::Relaxed);
        listen().map_err(refused)?;
        Ok(Self(()))
    }

    /// True once a signal asked for an end.
    pub fn asked_to_stop(&self) -> bool {
        self.asked().is_some()
    }

    /// The signal that asked for an end.
    pub fn asked(&self) -> Option<u8> {
        u8::try_from(ASKED.load(Ordering::Relaxed)).ok().filter(|signal| *signal > 0)
    }

    /// As if no signal had come yet: the next one asks again.
    pub fn forget(&self) {
        ASKED.store(0, Ordering::Relaxed);
    }

    /// True once after each time that the process was stopped and runs again: others have used the terminal meanwhile.
    pub fn take_resumed(&self) -> bool {
        RESUMED.swap(false, Ordering::Relaxed)
    }
}

/// From now on, drafts that have names are removed when a signal ends the process.
///
/// # Errors
/// If the system refuses the handlers.
pub fn remove_drafts_at_the_end() -> Result<()> {
    listen().map_err(refused)
}

fn refused(e: io::Error) -> Error {
    Error::invalid(format!("cannot install handlers for signals: {e}"))
}

/// Signals that end a process and can be answered.
fn endings() -> Vec<i32> {
    let mut signals = TERM_SIGNALS.to_vec();
    #[cfg(unix)]
    signals.push(signal_hook::consts::SIGHUP);
    signals
}

/// Answers signals on a thread, since a handler must not write. Those that whoever started us had ignored (`nohup`) stay
/// ignored.
#[cfg(unix)]
fn listen() -> io::Result<()> {
    use signal_hook::{
        consts::SIGTSTP,
        iterator::{Handle, Signals},
    };
    use std::sync::Mutex;
    static LISTENER: Mutex<Option<Handle>> = Mutex::new(None);
    let mut listener = LISTENER.lock().expect("nobody panics while holding it");
    let handle = match &mut *listener {
        Some(handle) => handle,
        none => {
            let mut signals = Signals::new([0; 0])?;
            let handle = signals.handle();
            std::thread::Builder::new().name("signals".to_owned()).spawn(move || signals.forever().for_each(answer))?;
            none.insert(handle)
        }
    };
    let ignored = ignored_signals();
    let stop = RESTORE.get().map(|_| SIGTSTP);
    for signal in endings().into_iter().chain(stop).filter(|s| ignored >> (s - 1) & 1 == 0) {
        handle.add_signal(signal)?;
    }
    Ok(())
}

#[cfg(unix)]
fn answer(signal: i32) {
    use signal_hook::{
        consts::SIGTSTP,
        low_level::{emulate_default_handler, exit},
    };
    let asks = ASKS.load(Ordering::Relaxed) >> signal & 1 == 1;
    let first = || ASKED.compare_exchange(0, signal as usize, Ordering::Relaxed, Ordering::Relaxed).is_ok();
    if asks && first() {
        return;
    }
    if let Some(bytes) = RESTORE.get() {
        // Past the lock of standard error, which the run may hold while its terminal is paused.
        let _ = rustix::io::write(rustix::stdio::stderr(), bytes.as_bytes());
    }
    // Held until the process ends, so that no other draft begins.
    let _held = (signal != SIGTSTP).then(hotset::new_file::remove_drafts);
    if asks && signal == SIGINT {
        exit(i32::from(INTERRUPTED));
    }
    // Ends the process, or stops it until it is resumed.
    let _ = emulate_default_handler(signal);
    RESUMED.store(true, Ordering::Relaxed);
}

/// Bit `n - 1` for signal `n`; none where the system does not say.
#[cfg(unix)]
fn ignored_signals() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|l| l.strip_prefix("SigIgn:"));
    mask.and_then(|m| u64::from_str_radix(m.trim(), 16).ok()).unwrap_or(0)
}

#[cfg(not(unix))]
fn listen() -> io::Result<()> {
    use signal_hook::flag::{register, register_conditional_shutdown, register_usize};
    // Handlers can only set flags there, which is of use to those who ask, once in a process.
    for signal in endings().into_iter().filter(|signal| ASKS.load(Ordering::Relaxed) >> signal & 1 == 1) {
        let asked = Arc::new(AtomicBool::new(false));
        // In this order: the shutdown must see the flag as the signals before this one left it.
        register_conditional_shutdown(signal, 128 + signal, asked.clone())?;
        register(signal, asked)?;
        register_usize(signal, ASKED.clone(), signal as usize)?;
    }
    Ok(())
}
