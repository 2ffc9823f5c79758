//! A disk of a given latency and bandwidth, on a virtual clock. Reads nothing: its buffers are empty.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{Done, IoEngine, Layout, Priority, Read};

/// Virtual time, in the hands of all who let it pass. One thread at a time may.
#[derive(Clone, Debug, Default)]
pub struct SimClock(Arc<AtomicU64>);

impl SimClock {
    /// Nanoseconds since the start.
    pub fn now_ns(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
    /// Lets time pass, as computing does.
    pub fn advance(&self, ns: u64) {
        self.set(self.now_ns() + ns);
    }
    fn set(&self, ns: u64) {
        self.0.store(ns, Ordering::Relaxed);
    }
}

/// See the module. One request is served at a time, demand before prefetch.
pub struct SimIo {
    latency_ns: u64,
    bytes_per_us: u64,
    clock: SimClock,
    /// When the drive is through with what it has started.
    busy_until_ns: u64,
    demand: VecDeque<(u64, Read)>,
    prefetch: VecDeque<(u64, Read)>,
}

impl SimIo {
    /// A drive that needs `latency_ns` a request and then moves `bytes_per_us` (= MB/s) bytes a microsecond.
    pub fn new(latency_ns: u64, bytes_per_us: u64) -> Self {
        Self {
            latency_ns,
            bytes_per_us: bytes_per_us.max(1),
            clock: SimClock::default(),
            busy_until_ns: 0,
            demand: VecDeque::new(),
            prefetch: VecDeque::new(),
        }
    }

    /// Lets virtual time pass, as computing does.
    pub fn advance(&mut self, ns: u64) {
        self.clock.advance(ns);
    }

    /// The clock that it goes by.
    pub fn clock(&self) -> SimClock {
        self.clock.clone()
    }

    /// When the next request starts, when it is done, and whether it is a demand read.
    fn next(&self) -> Option<(u64, u64, bool)> {
        let (submitted, read, demand) = match (self.demand.front(), self.prefetch.front()) {
            // A prefetch that the drive began before the demand read came is finished first.
            (Some(d), Some(p)) if self.busy_until_ns.max(p.0) < d.0 => (p.0, &p.1, false),
            (Some(d), _) => (d.0, &d.1, true),
            (None, Some(p)) => (p.0, &p.1, false),
            (None, None) => return None,
        };
        let start = self.busy_until_ns.max(submitted);
        Some((start, start + self.latency_ns + read.extents.bytes() * 1000 / self.bytes_per_us, demand))
    }

    fn finish(&mut self) -> Option<Done> {
        let (_, at, demand) = self.next()?;
        self.busy_until_ns = at;
        let queue = if demand { &mut self.demand } else { &mut self.prefetch };
        let (_, read) = queue.pop_front()?;
        Some(Done { tag: read.tag, buf: read.buf, result: Ok(()) })
    }
}

impl IoEngine for SimIo {
    fn name(&self) -> &'static str {
        "sim"
    }
    fn depth(&self) -> usize {
        1
    }
    fn layout(&self) -> Layout {
        Layout::Nothing
    }
    fn submit(&mut self, read: Read) {
        let queue = if read.priority == Priority::Demand { &mut self.demand } else { &mut self.prefetch };
        queue.push_back((self.clock.now_ns(), read));
    }
    fn promote(&mut self, tag: usize) {
        // What the drive has begun goes on as it is.
        let begun = self.next().is_some_and(|(start, _, demand)| !demand && start < self.clock.now_ns());
        let waiting = |(i, (_, r)): (usize, &(u64, Read))| (r.tag == tag && !(begun && i == 0)).then_some(i);
        if let Some(read) = self.prefetch.iter().enumerate().find_map(waiting).and_then(|i| self.prefetch.remove(i)) {
            self.demand.push_back((self.clock.now_ns(), read.1));
        }
    }
    fn wait(&mut self) -> Option<Done> {
        let (_, at, _) = self.next()?;
        self.clock.set(self.clock.now_ns().max(at));
        self.finish()
    }
    fn poll(&mut self) -> Option<Done> {
        if self.next()?.1 <= self.clock.now_ns() { self.finish() } else { None }
    }
    fn now_ns(&self) -> u64 {
        self.clock.now_ns()
    }
}
