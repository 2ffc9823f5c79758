//! Ctrl-C and its like: the first asks the run to end, the second ends the process.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use hotset::{Error, Result};
use signal_hook::consts::SIGINT;

/// Exit code after Ctrl-C: 128 + SIGINT, as shells have it.
pub const INTERRUPTED: u8 = 130;

/// What signals have asked for.
#[derive(Clone, Default)]
pub struct Interrupts {
    stop: Arc<AtomicBool>,
    resumed: Arc<AtomicBool>,
}

impl Interrupts {
    /// Watches for Ctrl-C. Where `restore` is given, the terminal gets these bytes before a signal ends or stops the
    /// process.
    ///
    /// # Errors
    /// If the system refuses the handlers.
    pub fn watch(restore: Option<&'static str>) -> Result<Self> {
        let watch = Self::default();
        match restore {
            Some(bytes) => watch.restoring(bytes),
            None => watch.plain(),
        }
        .map_err(|e| Error::request("a handler for Ctrl-C", "it to be installed", e))?;
        Ok(watch)
    }

    /// True once Ctrl-C was pressed.
    pub fn asked_to_stop(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// True once after each time that the process was stopped and runs again: others have used the terminal meanwhile.
    pub fn take_resumed(&self) -> bool {
        self.resumed.swap(false, Ordering::Relaxed)
    }

    fn plain(&self) -> std::io::Result<()> {
        // In this order: the shutdown must see the flag as the signals before this one left it.
        signal_hook::flag::register_conditional_shutdown(SIGINT, i32::from(INTERRUPTED), self.stop.clone())?;
        signal_hook::flag::register(SIGINT, self.stop.clone())?;
        Ok(())
    }

    /// On a thread, since a handler must not write; past the lock of standard error, which the run may hold while its
    /// terminal is paused.
    #[cfg(unix)]
    fn restoring(&self, bytes: &'static str) -> std::io::Result<()> {
        use signal_hook::{
            consts::{SIGHUP, SIGTERM, SIGTSTP},
            iterator::Signals,
            low_level::{emulate_default_handler, exit},
        };
        let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP, SIGTSTP])?;
        let watch = self.clone();
        std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
            for signal in signals.forever() {
                if signal == SIGINT && !watch.stop.swap(true, Ordering::Relaxed) {
                    continue;
                }
                let _ = rustix::io::write(rustix::stdio::stderr(), bytes.as_bytes());
                if signal == SIGINT {
                    exit(i32::from(INTERRUPTED));
                }
                // Ends the process, or stops it until it is resumed.
                let _ = emulate_default_handler(signal);
                watch.resumed.store(true, Ordering::Relaxed);
            }
        })?;
        Ok(())
    }

    #[cfg(not(unix))]
    fn restoring(&self, _: &'static str) -> std::io::Result<()> {
        self.plain()
    }
}
