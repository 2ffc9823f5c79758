//! A few threads that read. What "read" means is a [`ReadPath`]; the queue, the order and the hand-over are here.
//!
//! Threads, not async: a handful of large reads keeps a drive busy, and the one waiting thread has nothing else to do.

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use crossbeam::channel::{Receiver, Sender, bounded, never};

use super::{Done, Extents, IoBuf, IoEngine, Priority, Read, ReadError, buf::Layout};
use crate::input::patiently;

/// Reads in flight at most, each on a thread where the engine has threads: twice the queue depth at which drives stop getting faster.
pub const MAX_DEPTH: usize = 64;

/// How one read is done, on an I/O thread.
pub trait ReadPath: Send + Sync + 'static {
    /// The name that `--io` takes.
    fn name(&self) -> &'static str;
    /// How the buffers that [`ReadPath::read`] fills are laid out.
    fn layout(&self) -> Layout;
    /// Fills the buffer's parts from the extents. All or nothing: on an error the buffer's content is void.
    fn read(&self, extents: &Extents, buf: &mut IoBuf) -> Result<(), ReadError>;
}

/// [`IoEngine`] over threads that share one queue: demand reads first, each kind in order of arrival.
pub struct ThreadEngine {
    path: Arc<dyn ReadPath>,
    shared: Arc<Shared>,
    /// What is through. Bounded: channels that grow allocate now and then, and the token loop allocates nothing.
    done: Receiver<Done>,
    threads: Vec<JoinHandle<()>>,
    in_flight: usize,
    start: Instant,
}

struct Shared {
    queue: Mutex<Queue>,
    work: Condvar,
}

struct Queue {
    demand: VecDeque<Read>,
    prefetch: VecDeque<Read>,
    closed: bool,
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().expect("no code panics while it holds the queue")
    }
}

impl ThreadEngine {
    /// Starts `threads` threads, from one to [`MAX_DEPTH`].
    pub fn new(path: impl ReadPath, threads: usize) -> std::io::Result<Self> {
        let path: Arc<dyn ReadPath> = Arc::new(path);
        let queue = || VecDeque::with_capacity(4 * MAX_DEPTH);
        let queue = Queue { demand: queue(), prefetch: queue(), closed: false };
        let shared = Arc::new(Shared { queue: Mutex::new(queue), work: Condvar::new() });
        let threads = threads.clamp(1, MAX_DEPTH);
        // A thread that finds it full waits for the engine's owner, who takes what is through before it waits for more.
        let (sender, done) = bounded(2 * MAX_DEPTH);
        // A thread's first wait allocates its place to wait: now, and not in the token loop.
        let _ = done.recv_timeout(Duration::from_millis(1));
        let mut engine =
            Self { path, shared, done, threads: Vec::with_capacity(threads), in_flight: 0, start: Instant::now() };
        for i in 0..threads {
            let (path, shared, sender) = (engine.path.clone(), engine.shared.clone(), sender.clone());
            let thread = std::thread::Builder::new()
                .name(format!("hotset-io-{i}"))
                .stack_size(256 << 10)
                .spawn(move || work(&*path, &shared, &sender))?;
            engine.threads.push(thread);
        }
        Ok(engine)
    }
}

/// One I/O thread, until the engine is dropped.
fn work(path: &dyn ReadPath, shared: &Shared, done: &Sender<Done>) {
    loop {
        let mut queue = shared.queue();
        let mut read = loop {
            if queue.closed {
                return;
            }
            match queue.demand.pop_front().or_else(|| queue.prefetch.pop_front()) {
                Some(read) => break read,
                None => queue = shared.work.wait(queue).expect("no code panics while it holds the queue"),
            }
        };
        drop(queue);
        let result = catch_unwind(AssertUnwindSafe(|| {
            patiently(|e: &ReadError| &e.source, || path.read(&read.extents, &mut read.buf))
        }));
        // A read that never came back would leave its owner waiting for ever. On an error nobody looks into the buffer.
        let result = result.unwrap_or_else(|_| {
            Err(ReadError { extent: read.extents[0], source: std::io::Error::other("the read path panicked") })
        });
        if done.send(Done { tag: read.tag, buf: read.buf, result }).is_err() {
            return;
        }
    }
}

impl IoEngine for ThreadEngine {
    fn name(&self) -> &'static str {
        self.path.name()
    }
    fn depth(&self) -> usize {
        self.threads.len()
    }
    fn layout(&self) -> Layout {
        self.path.layout()
    }
    fn submit(&mut self, read: Read) {
        let mut queue = self.shared.queue();
        match read.priority {
            Priority::Demand => queue.demand.push_back(read),
            Priority::Prefetch | Priority::Ahead => queue.prefetch.push_back(read),
        }
        drop(queue);
        self.in_flight += 1;
        self.shared.work.notify_one();
    }
    fn promote(&mut self, tag: usize) {
        let mut queue = self.shared.queue();
        if let Some(read) = queue.prefetch.iter().position(|r| r.tag == tag).and_then(|i| queue.prefetch.remove(i)) {
            queue.demand.push_back(read);
        }
    }
    fn wait(&mut self) -> Option<Done> {
        if self.in_flight == 0 {
            return None;
        }
        let done = self.done.recv().expect("an I/O thread ends only when the engine is dropped");
        self.in_flight -= 1;
        Some(done)
    }
    fn wait_at_most(&mut self, ns: u64) -> Option<Option<Done>> {
        if self.in_flight == 0 {
            return None;
        }
        // Its threads end only when the engine is dropped, so that the only failure is a time that is over.
        let done = self.done.recv_timeout(Duration::from_nanos(ns)).ok();
        self.in_flight -= usize::from(done.is_some());
        Some(done)
    }
    fn poll(&mut self) -> Option<Done> {
        let done = self.done.try_recv().ok()?;
        self.in_flight -= 1;
        Some(done)
    }
    fn now_ns(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }
}

impl Drop for ThreadEngine {
    fn drop(&mut self) {
        self.shared.queue().closed = true;
        self.shared.work.notify_all();
        // Whoever waits to hand something over learns that nobody takes it.
        self.done = never();
        for thread in self.threads.drain(..) {
            // A thread that panicked has already said so on stderr; dropping must not panic again.
            let _ = thread.join();
        }
    }
}
