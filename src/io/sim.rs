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

/// See the module. So many requests are served at a time as the drive is deep, demand before prefetch: their latencies run side
/// by side, their bytes move one request after another.
pub struct SimIo {
    latency_ns: u64,
    bytes_per_us: u64,
    depth: usize,
    clock: SimClock,
    /// When the drive is through with each of the last requests that it began, in that order. (up to `depth`)
    served: VecDeque<u64>,
    demand: VecDeque<(u64, Read)>,
    prefetch: VecDeque<(u64, Read)>,
}

impl SimIo {
    /// A drive that needs `latency_ns` a request and then moves `bytes_per_us` (= MB/s) bytes per microsecond.
    pub fn new(latency_ns: u64, bytes_per_us: u64) -> Self {
        Self {
            latency_ns,
            bytes_per_us: bytes_per_us.max(1),
            depth: 1,
            clock: SimClock::default(),
            served: VecDeque::new(),
            demand: VecDeque::new(),
            prefetch: VecDeque::new(),
        }
    }

    /// The same drive, serving `depth` requests at a time.
    pub fn with_depth(self, depth: usize) -> Self {
        Self { depth: depth.max(1), ..self }
    }

    /// Lets virtual time pass, as computing does.
    pub fn advance(&mut self, ns: u64) {
        self.clock.advance(ns);
    }

    /// The clock that it goes by.
    pub fn clock(&self) -> SimClock {
        self.clock.clone()
    }

    /// Of the next request after `demand` and `prefetch` others and what was `served`: when it starts, when it is done, and
    /// whether it is a demand read.
    fn nth(&self, served: &VecDeque<u64>, demand: usize, prefetch: usize) -> Option<(u64, u64, bool)> {
        let place = if served.len() < self.depth { 0 } else { served[0] };
        let (submitted, read, demand) = match (self.demand.get(demand), self.prefetch.get(prefetch)) {
            // A prefetch that the drive began before the demand read came keeps its place.
            (Some(d), Some(p)) if place.max(p.0) < d.0 => (p.0, &p.1, false),
            (Some(d), _) => (d.0, &d.1, true),
            (None, Some(p)) => (p.0, &p.1, false),
            (None, None) => return None,
        };
        let start = place.max(submitted);
        let moves = (start + self.latency_ns).max(served.back().copied().unwrap_or(0));
        Some((start, moves + read.extents.bytes() * 1000 / self.bytes_per_us, demand))
    }

    fn next(&self) -> Option<(u64, u64, bool)> {
        self.nth(&self.served, 0, 0)
    }

    /// Prefetches that the drive has begun.
    fn begun(&self) -> usize {
        let (mut served, mut n) = (self.served.clone(), [0, 0]);
        while let Some((start, done, demand)) = self.nth(&served, n[0], n[1])
            && start < self.clock.now_ns()
        {
            self.serve(&mut served, done);
            n[usize::from(!demand)] += 1;
        }
        n[1]
    }

    fn serve(&self, served: &mut VecDeque<u64>, done: u64) {
        if served.len() == self.depth {
            served.pop_front();
        }
        served.push_back(done);
    }

    fn finish(&mut self) -> Option<Done> {
        let (_, at, demand) = self.next()?;
        let mut served = std::mem::take(&mut self.served);
        self.serve(&mut served, at);
        self.served = served;
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
        self.depth
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
        let begun = self.begun();
        let waiting = |(i, (_, r)): (usize, &(u64, Read))| (r.tag == tag && i >= begun).then_some(i);
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
