//! A page of a mapped file that cannot be had, as an error value instead of the end of the process.
//!
//! Who touches a page of a file that has been cut short, or that the drive cannot read back, gets SIGBUS. Populated pages are
//! no help: a truncation takes locked and copied ones away as well, and clean ones may be reclaimed and read again at any
//! time. So a handler puts zeros in the place of the mapping and notes that it is lost; whoever used it asks afterwards
//! ([`Watched::is_lost`]) and throws the result away.
//!
//! The process belongs to the program that hotset is a part of: the handler touches nothing but mappings that are watched,
//! and leaves every other bus error to the handler that was there before, or to the system.
//!
//! Must not know: files, experts.

use std::{
    ffi::{c_int, c_void},
    io,
    sync::{
        Mutex, OnceLock,
        atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering, fence},
    },
};

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};

/// Where a mapping lies. A node of a list that only grows, since a handler can neither lock nor know when to let go: nodes are
/// used again, never freed.
struct Region {
    /// Odd while `start` and `len` are being changed.
    version: AtomicUsize,
    start: AtomicUsize,
    /// 0: nothing is watched.
    len: AtomicUsize,
    lost: AtomicBool,
    next: AtomicPtr<Region>,
}

/// The first of the list.
static REGIONS: AtomicPtr<Region> = AtomicPtr::new(std::ptr::null_mut());

/// Those that watch nothing. The handler does not look here.
static IDLE: Mutex<Vec<&'static Region>> = Mutex::new(Vec::new());

/// What handled SIGBUS before us.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

/// A range of memory whose bus errors are caught until this is dropped. Drop it before the range is unmapped.
pub(super) struct Watched(&'static Region);

impl Watched {
    /// Watches `len` bytes from `start` on, a multiple of the page.
    ///
    /// # Safety
    /// All pages of the range must be one mapping of the caller's, which nobody writes through and which stays where it is
    /// until this is dropped; whatever its bytes turn to must be good enough for whoever reads them.
    pub unsafe fn new(start: *const u8, len: usize) -> Self {
        let idle = IDLE.lock().unwrap_or_else(|e| e.into_inner()).pop();
        let region = idle.unwrap_or_else(Region::add);
        region.lost.store(false, Ordering::Relaxed);
        region.set(start as usize, len);
        Self(region)
    }

    /// Whether a page of it could not be had since it is watched: what was read there may be zeros.
    pub fn is_lost(&self) -> bool {
        self.0.lost.load(Ordering::Acquire)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.0.set(0, 0);
        IDLE.lock().unwrap_or_else(|e| e.into_inner()).push(self.0);
    }
}

impl Region {
    /// A new node at the head of the list.
    fn add() -> &'static Region {
        let region: &'static Region = Box::leak(Box::new(Region {
            version: AtomicUsize::new(0),
            start: AtomicUsize::new(0),
            len: AtomicUsize::new(0),
            lost: AtomicBool::new(false),
            next: AtomicPtr::new(std::ptr::null_mut()),
        }));
        let mut first = REGIONS.load(Ordering::Relaxed);
        loop {
            region.next.store(first, Ordering::Relaxed);
            let at = std::ptr::from_ref(region).cast_mut();
            match REGIONS.compare_exchange_weak(first, at, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return region,
                Err(now) => first = now,
            }
        }
    }

    /// Only the owner calls it.
    fn set(&self, start: usize, len: usize) {
        self.version.fetch_add(1, Ordering::Relaxed);
        fence(Ordering::Release);
        self.start.store(start, Ordering::Relaxed);
        self.len.store(len, Ordering::Relaxed);
        self.version.fetch_add(1, Ordering::Release);
    }

    /// The range, unless it is being changed: then it is not the one in which somebody reads.
    fn range(&self) -> Option<(usize, usize)> {
        let version = self.version.load(Ordering::Acquire);
        let range = (self.start.load(Ordering::Relaxed), self.len.load(Ordering::Relaxed));
        fence(Ordering::Acquire);
        (version.is_multiple_of(2) && self.version.load(Ordering::Relaxed) == version).then_some(range)
    }
}

/// Catches the bus errors of [`Watched`] ranges from now on.
///
/// # Errors
/// If the system refuses a handler.
pub(super) fn install() -> io::Result<()> {
    static INSTALLED: Mutex<bool> = Mutex::new(false);
    let mut installed = INSTALLED.lock().unwrap_or_else(|e| e.into_inner());
    if *installed {
        return Ok(());
    }
    // What was there is known before our handler can be called.
    // SAFETY: a `sigaction` of zeros is one without handler, flags and mask; the call fills it.
    let before = unsafe {
        let mut before: libc::sigaction = std::mem::zeroed();
        if libc::sigaction(libc::SIGBUS, std::ptr::null(), &mut before) != 0 {
            return Err(io::Error::last_os_error());
        }
        before
    };
    let before = BEFORE.get_or_init(|| before);
    // SAFETY: the handler has the signature that `SA_SIGINFO` promises, and does only what a handler may: it loads atomics and
    // makes system calls. With the mask and the stack that the one before it had asked for, since it may be called from here.
    let refused = unsafe {
        let mut ours: libc::sigaction = std::mem::zeroed();
        ours.sa_sigaction = on_bus_error as extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) as usize;
        ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | (before.sa_flags & libc::SA_RESTART);
        ours.sa_mask = before.sa_mask;
        libc::sigaction(libc::SIGBUS, &ours, std::ptr::null_mut()) != 0
    };
    if refused {
        return Err(io::Error::last_os_error());
    }
    *installed = true;
    Ok(())
}

extern "C" fn on_bus_error(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the system hands a valid `siginfo_t` to a handler with `SA_SIGINFO`; where the signal is no fault (`si_code` not
    // above 0), the address in it is not looked at.
    let (is_fault, address) = unsafe { ((*info).si_code > 0, (*info).si_addr() as usize) };
    if is_fault && replace(address) {
        return;
    }
    // SAFETY: the arguments are the system's.
    unsafe { hand_on(signal, info, context, is_fault) };
}

/// Puts zeros in the place of the watched range that has `address`. False: there is none, or no zeros either.
fn replace(address: usize) -> bool {
    let mut next = REGIONS.load(Ordering::Acquire);
    // SAFETY: nodes are never freed, and each was complete before it could be reached.
    while let Some(region) = unsafe { next.as_ref() } {
        if let Some((start, len)) = region.range()
            && address.wrapping_sub(start) < len
        {
            region.lost.store(true, Ordering::Release);
            // SAFETY: whoever watches the range vouches that it is one mapping, which is there for as long as somebody reads
            // in it, as the one whom this signal interrupted does, and that any bytes will do.
            let zeros = unsafe {
                let flags = MapFlags::PRIVATE | MapFlags::FIXED;
                mmap_anonymous(std::ptr::without_provenance_mut(start), len, ProtFlags::READ, flags)
            };
            return zeros.is_ok();
        }
        next = region.next.load(Ordering::Relaxed);
    }
    false
}

/// Does what would have been done without us.
///
/// # Safety
/// To be called from a handler, with its arguments.
unsafe fn hand_on(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void, is_fault: bool) {
    let handler = BEFORE.get().map_or(libc::SIG_DFL, |before| before.sa_sigaction);
    match handler {
        // Who sent it meant nothing by it. A fault cannot be ignored.
        libc::SIG_IGN if !is_fault => {}
        // SAFETY: the default handler needs nothing. A fault comes again as soon as we return; what was sent is sent again, and
        // waits until then.
        libc::SIG_DFL | libc::SIG_IGN => unsafe {
            libc::signal(signal, libc::SIG_DFL);
            if !is_fault {
                libc::raise(signal);
            }
        },
        // SAFETY: it was the handler for this signal, and its flags say which of the two signatures it has.
        _ => unsafe {
            if BEFORE.get().is_some_and(|before| before.sa_flags & libc::SA_SIGINFO != 0) {
                type Handler = extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);
                std::mem::transmute::<usize, Handler>(handler)(signal, info, context);
            } else {
                std::mem::transmute::<usize, extern "C" fn(c_int)>(handler)(signal);
            }
        },
    }
}
