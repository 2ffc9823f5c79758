//! Pages for slots a little before they are used.
//!
//! The system gives anonymous memory page by page, zeroed, when it is first touched. What touches a slot first is the read
//! that fills it: with `io_uring` the control thread in submitting it, else a reading thread before its request goes out;
//! either way a drive waits and a token with it. A thread of the lowest priority does it beforehand, in the time in which
//! computing waits for the drive. A model of 17.7 GB with slots for three quarters of it decoded its second 64 tokens at
//! 8 to 9 tokens/s without, and at 17 to 20 with it.
//!
//! Only as far as somebody says ([`Toucher::reach`]): a budget is a limit, not an order.
//!
//! Must not know: experts, reads. Where the system cannot be asked (before Linux 5.14, elsewhere), memory is touched by
//! the reads as before.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
};
use std::thread::JoinHandle;

use super::buf::{IoBuf, Region};

/// Gets pages for buffers, group by group. Ends with its owner.
pub struct Toucher {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    /// The buffers of each group in the order of their use.
    groups: Vec<Vec<Region>>,
    /// How many of each group should have pages. (groups)
    reach: Vec<AtomicUsize>,
    stop: AtomicBool,
}

impl Toucher {
    /// For groups of buffers, in the order in which each group's will be used. `None` where there is nothing to do: the
    /// buffers are no memory of our own, or there is no thread to be had.
    pub fn start<'a, Group: IntoIterator<Item = &'a IoBuf>>(groups: impl IntoIterator<Item = Group>) -> Option<Self> {
        let regions = |group: Group| group.into_iter().filter_map(IoBuf::region).collect::<Vec<_>>();
        let groups: Vec<_> = groups.into_iter().map(regions).collect();
        if groups.iter().all(Vec::is_empty) {
            return None;
        }
        let reach = groups.iter().map(|_| AtomicUsize::new(0)).collect();
        let shared = Arc::new(Shared { groups, reach, stop: AtomicBool::new(false) });
        let thread = std::thread::Builder::new().name("touch".to_owned());
        let thread = thread.spawn({
            // Made here: a thread that yields to all may begin when tokens run, which allocate nothing.
            let (shared, done) = (shared.clone(), vec![0; shared.reach.len()]);
            move || shared.work(done)
        });
        Some(Self { shared, thread: Some(thread.ok()?) })
    }

    /// The first `n` buffers of a group are, or will soon be, in use.
    pub fn reach(&self, group: usize, n: usize) {
        if self.shared.reach[group].fetch_max(n, Relaxed) < n
            && let Some(thread) = &self.thread
        {
            thread.thread().unpark();
        }
    }
}

impl Drop for Toucher {
    /// Returns when no buffer will be touched any more.
    fn drop(&mut self) {
        self.shared.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// `done`: zeros. (groups)
    fn work(&self, mut done: Vec<usize>) {
        crate::machine::yield_to_all();
        loop {
            let mut idle = true;
            // In turn: layers fill side by side.
            for (i, group) in self.groups.iter().enumerate() {
                if self.stop.load(Relaxed) {
                    return;
                }
                if done[i] < self.reach[i].load(Relaxed).min(group.len()) {
                    if group[done[i]].populate().is_err() {
                        return;
                    }
                    done[i] += 1;
                    idle = false;
                }
            }
            if idle {
                std::thread::park();
            }
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::time::{Duration, Instant};

    use super::super::Layout;
    use super::*;

    /// Bytes of the buffer's memory that have pages.
    fn held(buf: &IoBuf) -> usize {
        buf.region().unwrap().held()
    }

    fn wait_for_pages(buf: &IoBuf) {
        let start = Instant::now();
        while held(buf) < buf.part(0).len() && start.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn buffers_have_pages_as_far_as_was_said_and_no_further() {
        let len = 1 << 20;
        let groups = [0, 1].map(|_| IoBuf::many(Layout::Lines, &[len], 4).unwrap());
        let toucher = Toucher::start(&groups).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        assert!(groups.iter().flatten().all(|buf| held(buf) == 0));
        toucher.reach(1, 3);
        toucher.reach(1, 2); // not back
        wait_for_pages(&groups[1][2]);
        drop(toucher);
        assert_eq!(groups[1].iter().map(held).collect::<Vec<_>>(), [len, len, len, 0]);
        assert!(groups[0].iter().all(|buf| held(buf) == 0));
    }

    #[test]
    fn what_has_been_written_stays() {
        let mut bufs = IoBuf::many(Layout::Lines, &[1 << 16], 2).unwrap();
        bufs[0].part_mut(0).fill(7);
        let toucher = Toucher::start([&bufs]).unwrap();
        toucher.reach(0, 2);
        wait_for_pages(&bufs[1]);
        drop(toucher);
        assert_eq!(held(&bufs[1]), 1 << 16);
        assert!(bufs[0].part(0).iter().all(|&b| b == 7));
        assert!(bufs[1].part(0).iter().all(|&b| b == 0));
    }

    #[test]
    fn mappings_need_nobody() {
        assert!(Toucher::start([&IoBuf::many(Layout::Pages, &[1 << 16], 2).unwrap()]).is_none());
    }
}
