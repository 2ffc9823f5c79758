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
    threads: Vec<JoinHandle<()>>,
    in_flight: usize,
    start: Instant,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    work: Condvar,
    /// What is through. Not a channel: those that grow allocate now and then, and the token loop allocates nothing.
    done: Mutex<VecDeque<Done>>,
    arrived: Condvar,
}

#[derive(Default)]
struct Queue {
    demand: VecDeque<Read>,
    prefetch: VecDeque<Read>,
    closed: bool,
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().expect("no code panics while it holds the queue")
    }

    fn done(&self) -> MutexGuard<'_, VecDeque<Done>> {
        self.done.lock().expect("no code panics while it holds what is through")
    }
}

impl ThreadEngine {
    /// Starts `threads` threads, from one to [`MAX_DEPTH`].
    pub fn new(path: impl ReadPath, threads: usize) -> std::io::Result<Self> {
        let path: Arc<dyn ReadPath> = Arc::new(path);
        let shared = Arc::new(Shared::default());
        let threads = threads.clamp(1, MAX_DEPTH);
        let mut engine =
            Self { path, shared, threads: Vec::with_capacity(threads), in_flight: 0, start: Instant::now() };
        for i in 0..threads {
            let (path, shared) = (engine.path.clone(), engine.shared.clone());
            let thread = std::thread::Builder::new()
                .name(format!("hotset-io-{i}"))
                .stack_size(256 << 10)
                .spawn(move || work(&*path, &shared))?;
            engine.threads.push(thread);
        }
        Ok(engine)
    }
}

/// One I/O thread, until the engine is dropped.
fn work(path: &dyn ReadPath, shared: &Shared) {
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
        shared.done().push_back(Done { tag: read.tag, buf: read.buf, result });
        shared.arrived.notify_one();
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
        let arrived = self.shared.arrived.wait_while(self.shared.done(), |done| done.is_empty());
        let done = arrived.expect("no code panics while it holds what is through").pop_front();
        self.in_flight -= 1;
        done
    }
    fn wait_at_most(&mut self, ns: u64) -> Option<Option<Done>> {
        if self.in_flight == 0 {
            return None;
        }
        let time = Duration::from_nanos(ns);
        let arrived = self.shared.arrived.wait_timeout_while(self.shared.done(), time, |done| done.is_empty());
        let done = arrived.expect("no code panics while it holds what is through").0.pop_front();
        self.in_flight -= usize::from(done.is_some());
        Some(done)
    }
    fn poll(&mut self) -> Option<Done> {
        let done = self.shared.done().pop_front()?;
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
        for thread in self.threads.drain(..) {
            // A thread that panicked has already said so on stderr; dropping must not panic again.
            let _ = thread.join();
        }
    }
}
