//! One suite over every engine: the right bytes, each tag once, demand first, errors for what is not there.

mod common;

use std::{
    fs::{File, OpenOptions},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, mpsc},
};

use common::{
    dice::{Dice, no_hang},
    samples::noise,
};
use hotset::{
    io::{
        Done, Extent, Extents, Files, IoBuf, IoEngine, IoKind, Layout, Priority, Read, ReadError, ReadPath, SimIo,
        ThreadEngine,
    },
    machine,
};

/// Length of the two files that most tests read.
const FILE_BYTES: usize = 300_001;

/// Two files of noise, with their contents.
struct World {
    files: Files,
    contents: Vec<Vec<u8>>,
    paths: Vec<PathBuf>,
    _folder: tempfile::TempDir,
}

impl World {
    fn new() -> World {
        let folder = tempfile::tempdir().unwrap();
        let contents: Vec<_> = (0..2).map(|seed| noise(seed, FILE_BYTES as u64)).collect();
        let paths: Vec<_> = (0..2).map(|i| folder.path().join(format!("{i}.bin"))).collect();
        paths.iter().zip(&contents).for_each(|(path, bytes)| std::fs::write(path, bytes).unwrap());
        let files = paths.iter().map(|p| (p.clone(), Arc::new(File::open(p).unwrap()))).collect();
        World { files, contents, paths, _folder: folder }
    }

    fn bytes(&self, e: &Extent) -> &[u8] {
        &self.contents[e.file as usize][e.offset as usize..][..e.len]
    }

    fn random_extents(&self, dice: &mut Dice) -> Extents {
        let extents: Vec<_> = (0..1 + dice.below(3))
            .map(|_| {
                let len = 1 + dice.below(20_000);
                Extent { file: dice.below(2) as u16, offset: dice.below(FILE_BYTES - len + 1) as u64, len }
            })
            .collect();
        Extents::new(&extents)
    }
}

/// Runs `test` on a new world with every engine that reads, with one thread and with several.
fn every_engine(test: fn(&World, Box<dyn IoEngine>)) {
    no_hang(move || {
        for kind in common::read_paths() {
            for threads in [1, 4] {
                let world = World::new();
                let engine = kind.build(world.files.clone(), threads).unwrap();
                assert_eq!(engine.name(), kind.name());
                test(&world, engine);
            }
        }
    });
}

fn read(engine: &mut dyn IoEngine, tag: usize, extents: Extents, priority: Priority) {
    let parts: Vec<_> = extents.iter().map(|e| e.len).collect();
    let buf = IoBuf::new(engine.layout(), &parts).unwrap();
    engine.submit(Read { tag, extents, buf, priority });
}

fn shows(world: &World, extents: &Extents, buf: &IoBuf) {
    for (i, extent) in extents.iter().enumerate() {
        assert!(buf.part(i)[..extent.len] == *world.bytes(extent), "part {i} of {extents:?}");
    }
}

fn one(extent: Extent) -> Extents {
    Extents::new(&[extent])
}

#[test]
fn reads_the_right_bytes_wherever_they_lie() {
    every_engine(|world, mut engine| {
        let page = hotset::io::buf::page_bytes();
        let odd = [(0, 1), (0, page), (1, page), (page - 1, 2), (page, page), (63, 3 * page), (FILE_BYTES - 1, 1)];
        for (offset, len) in odd.into_iter().chain([(0, FILE_BYTES)]) {
            let a = Extent { file: 0, offset: offset as u64, len };
            let b = Extent { file: 1, offset: (FILE_BYTES - offset - len) as u64, len };
            for extents in [one(a), Extents::new(&[a, b]), Extents::new(&[b, a, b])] {
                read(&mut *engine, 7, extents, Priority::Demand);
                let done = engine.wait().unwrap();
                done.result.unwrap();
                assert_eq!(done.tag, 7);
                shows(world, &extents, &done.buf);
            }
        }
        assert!(engine.wait().is_none() && engine.poll().is_none(), "nothing is in flight");
    });
}

#[test]
fn a_buffer_is_filled_again_and_again() {
    every_engine(|world, mut engine| {
        let mut dice = Dice(1);
        let mut buf = IoBuf::new(engine.layout(), &[20_000; 3]).unwrap();
        for tag in 0..50 {
            let extents = world.random_extents(&mut dice);
            engine.submit(Read { tag, extents, buf, priority: Priority::Demand });
            let done = engine.wait().unwrap();
            done.result.unwrap();
            shows(world, &extents, &done.buf);
            buf = done.buf;
        }
    });
}

#[test]
fn each_of_many_reads_comes_back_once() {
    every_engine(|world, mut engine| {
        let mut dice = Dice(2);
        let wanted: Vec<_> = (0..200).map(|_| world.random_extents(&mut dice)).collect();
        let mut back = vec![0; wanted.len()];
        let mut file = |done: Done| {
            done.result.unwrap();
            shows(world, &wanted[done.tag], &done.buf);
            back[done.tag] += 1;
        };
        for (tag, extents) in wanted.iter().enumerate() {
            let priority = if dice.below(2) == 0 { Priority::Demand } else { Priority::Prefetch };
            read(&mut *engine, tag, *extents, priority);
            if dice.below(3) == 0 {
                engine.promote(dice.below(wanted.len()));
            }
            while let Some(done) = engine.poll() {
                file(done);
            }
        }
        while let Some(done) = engine.wait() {
            file(done);
        }
        assert!(back.iter().all(|&n| n == 1), "{back:?}");
    });
}

#[test]
fn dropping_with_reads_in_flight_ends() {
    every_engine(|world, mut engine| {
        let mut dice = Dice(3);
        for tag in 0..100 {
            read(&mut *engine, tag, world.random_extents(&mut dice), Priority::Prefetch);
        }
        drop(engine);
    });
}

#[test]
fn the_end_of_the_file_is_an_error_that_names_the_extent() {
    every_engine(|_, mut engine| {
        let good = Extent { file: 0, offset: 5, len: 100 };
        let end = FILE_BYTES as u64;
        for (offset, len) in [(end - 1, 2), (end, 1), (end + 100_000, 5_000), (0, FILE_BYTES + 1)] {
            let bad = Extent { file: 1, offset, len };
            read(&mut *engine, 0, Extents::new(&[good, bad]), Priority::Demand);
            let error = engine.wait().unwrap().result.expect_err("there is nothing to read");
            assert_eq!((error.extent, error.source.kind()), (bad, std::io::ErrorKind::UnexpectedEof));
        }
        // Far beyond what a file can be: some error, and the engine lives.
        read(&mut *engine, 0, one(Extent { file: 0, offset: u64::MAX - 1, len: 8 }), Priority::Demand);
        assert!(engine.wait().unwrap().result.is_err());
        read(&mut *engine, 0, one(good), Priority::Demand);
        engine.wait().unwrap().result.unwrap();
    });
}

#[test]
fn a_file_cut_short_after_the_open_is_an_error() {
    every_engine(|world, mut engine| {
        let cut = 100_000;
        OpenOptions::new().write(true).open(&world.paths[0]).unwrap().set_len(cut).unwrap();
        let gone = Extent { file: 0, offset: cut - 10, len: 20 };
        read(&mut *engine, 0, one(gone), Priority::Demand);
        let error = engine.wait().unwrap().result.expect_err("half of it is gone");
        assert_eq!((error.extent, error.source.kind()), (gone, std::io::ErrorKind::UnexpectedEof));
        let left = one(Extent { file: 0, offset: cut - 20, len: 20 });
        read(&mut *engine, 1, left, Priority::Demand);
        let done = engine.wait().unwrap();
        done.result.unwrap();
        shows(world, &left, &done.buf);
    });
}

#[test]
fn buffers_take_what_the_plan_counts() {
    let page = hotset::io::buf::page_bytes() as u64;
    for parts in [&[1][..], &[4096, 4096], &[100, 5_000, 70_000], &[64; 3]] {
        let bytes: u64 = parts.iter().map(|&p| p as u64).sum();
        for layout in [Layout::Lines, Layout::Blocks(512), Layout::Blocks(4096), Layout::Pages] {
            let slot = layout.slot_bytes(parts);
            assert!(slot.is_multiple_of(page) && slot >= bytes, "{layout:?} {parts:?}: {slot}");
            assert!(slot <= bytes + 2 * page * parts.len() as u64, "{layout:?} {parts:?}: {slot}");
        }
        assert!(Layout::Blocks(512).slot_bytes(parts) <= bytes + (3 * 1022 + page));
        let buf = IoBuf::new(Layout::Lines, parts).unwrap();
        parts.iter().enumerate().for_each(|(i, &len)| assert_eq!(buf.part(i).len(), len));
    }
}

/// Offsets that widen both ends as far as they go, in a buffer made for exactly these lengths; adjacent extents, which
/// become one read; the same with a gap of a byte, and in the wrong order.
#[test]
fn whole_blocks_have_room_wherever_the_parts_start() {
    every_engine(|world, mut engine| {
        for block in [512, 4096] {
            for len in [1, block, block + 1, 3 * block + 1] {
                for skip in [0, 1, block - 1, block, block + 1] {
                    let at = |i: usize, gap: usize| Extent { file: 0, offset: (skip + i * (len + gap)) as u64, len };
                    for gap in [0, 1, 2 * block] {
                        let [a, b, c] = [0, 1, 2].map(|i| at(i, gap));
                        for extents in [[a, b, c], [c, b, a], [a, c, b], [b, b, b]].map(|e| Extents::new(&e)) {
                            read(&mut *engine, 1, extents, Priority::Demand);
                            let done = engine.wait().unwrap();
                            done.result.unwrap();
                            shows(world, &extents, &done.buf);
                        }
                    }
                }
            }
        }
    });
}

/// A run of adjacent extents that the file ends in: the error names the one that is cut.
#[test]
fn of_adjacent_extents_the_one_that_is_cut_is_named() {
    every_engine(|world, mut engine| {
        let cut = 50_000;
        OpenOptions::new().write(true).open(&world.paths[0]).unwrap().set_len(cut).unwrap();
        for (offset, n) in [(cut - 250, 2), (cut - 150, 1), (cut - 50, 0), (cut - 100, 1), (cut - 200, 2)] {
            let list = [0, 1, 2].map(|i| Extent { file: 0, offset: offset + 100 * i, len: 100 });
            read(&mut *engine, 0, Extents::new(&list), Priority::Demand);
            let error = engine.wait().unwrap().result.expect_err("the end is gone");
            assert_eq!((error.extent, error.source.kind()), (list[n], std::io::ErrorKind::UnexpectedEof));
        }
    });
}

#[test]
fn a_read_that_is_larger_than_its_buffer_is_an_error() {
    every_engine(|_, mut engine| {
        let extents = one(Extent { file: 0, offset: 7, len: 20_000 });
        let buf = IoBuf::new(engine.layout(), &[100]).unwrap();
        engine.submit(Read { tag: 0, extents, buf, priority: Priority::Demand });
        // Mappings are as large as they have to be.
        assert_eq!(engine.wait().unwrap().result.is_ok(), engine.layout() == Layout::Pages);
    });
}

/// Files of /proc can be opened and read, but not past the page cache.
#[cfg(target_os = "linux")]
#[test]
fn where_a_file_cannot_be_read_past_the_page_cache_the_error_names_it() {
    let path = Path::new("/proc/version");
    let files: Files = [(path.to_owned(), Arc::new(File::open(path).unwrap()))].into_iter().collect();
    let text = IoKind::Direct.build(files, 1).err().expect("refused").to_string();
    assert!(text.contains("past the page cache on /proc/version: "), "{text}");
}

/// A read path whose reads wait until the test lets them go, and which keeps their order.
#[derive(Clone)]
struct Gate {
    open: Arc<Mutex<mpsc::Receiver<()>>>,
    started: mpsc::Sender<u64>,
}

impl ReadPath for Gate {
    fn name(&self) -> &'static str {
        "gate"
    }
    fn layout(&self) -> Layout {
        Layout::Nothing
    }
    fn read(&self, extents: &Extents, _: &mut IoBuf) -> Result<(), ReadError> {
        // Both fail only when the test is over.
        let _ = self.started.send(extents[0].offset);
        let _ = self.open.lock().unwrap().recv();
        Ok(())
    }
}

#[test]
fn demand_and_promoted_reads_go_before_prefetches() {
    no_hang(|| {
        let (open, gate) = mpsc::channel();
        let (started, order) = mpsc::channel();
        let path = Gate { open: Arc::new(Mutex::new(gate)), started };
        let mut engine = ThreadEngine::new(path, 1).unwrap();
        let at = |tag: usize| one(Extent { file: 0, offset: tag as u64, len: 1 });
        read(&mut engine, 0, at(0), Priority::Prefetch);
        assert_eq!(order.recv().unwrap(), 0, "the thread is busy with the first");
        for tag in [1, 2, 3] {
            read(&mut engine, tag, at(tag), Priority::Prefetch);
        }
        read(&mut engine, 4, at(4), Priority::Demand);
        engine.promote(3);
        engine.promote(0); // under way already
        engine.promote(99); // never submitted
        (0..5).for_each(|_| open.send(()).unwrap());
        let tags: Vec<_> = std::iter::from_fn(|| engine.wait()).map(|done| done.tag).collect();
        assert_eq!(tags, [0, 4, 3, 1, 2]);
        assert_eq!(order.iter().take(4).collect::<Vec<_>>(), [4, 3, 1, 2]);
    });
}

/// A read path with a bug.
struct Panics;

impl ReadPath for Panics {
    fn name(&self) -> &'static str {
        "panics"
    }
    fn layout(&self) -> Layout {
        Layout::Nothing
    }
    fn read(&self, _: &Extents, _: &mut IoBuf) -> Result<(), ReadError> {
        panic!("on purpose")
    }
}

#[test]
fn a_read_that_panics_comes_back_as_an_error() {
    no_hang(|| {
        let mut engine = ThreadEngine::new(Panics, 1).unwrap();
        for tag in 0..3 {
            read(&mut engine, tag, one(Extent { file: 0, offset: 9, len: 1 }), Priority::Demand);
            let done = engine.wait().unwrap();
            assert_eq!((done.tag, done.result.unwrap_err().extent.offset), (tag, 9));
        }
    });
}

#[test]
fn the_number_of_threads_has_limits() {
    for threads in [0, usize::MAX] {
        let world = World::new();
        let mut engine = IoKind::Pread.build(world.files.clone(), threads).unwrap();
        read(&mut *engine, 0, one(Extent { file: 0, offset: 0, len: 1 }), Priority::Demand);
        engine.wait().unwrap().result.unwrap();
    }
}

/// Submits `len` bytes at the simulated drive's time.
fn simulate(sim: &mut SimIo, tag: usize, len: usize, priority: Priority) {
    read(sim, tag, one(Extent { file: 0, offset: 0, len }), priority);
}

#[test]
fn the_simulated_drive_keeps_time() {
    let mut sim = SimIo::new(100, 1000); // 1 byte a nanosecond
    simulate(&mut sim, 0, 50, Priority::Demand);
    simulate(&mut sim, 1, 10, Priority::Demand);
    sim.advance(149);
    assert!(sim.poll().is_none());
    sim.advance(1);
    assert_eq!(sim.poll().unwrap().tag, 0);
    assert_eq!(sim.wait().unwrap().tag, 1);
    assert_eq!(sim.now_ns(), 260, "one after the other");
    assert!(sim.wait().is_none());
    sim.advance(1000);
    simulate(&mut sim, 2, 0, Priority::Demand);
    sim.wait().unwrap();
    assert_eq!(sim.now_ns(), 1360, "an idle drive starts when it is asked");
}

#[test]
fn the_simulated_drive_finishes_what_it_has_begun() {
    let mut sim = SimIo::new(100, 1000);
    for tag in 0..3 {
        simulate(&mut sim, tag, 0, Priority::Prefetch);
    }
    sim.advance(60);
    simulate(&mut sim, 3, 0, Priority::Demand);
    sim.promote(2);
    sim.promote(0); // begun at 0
    let times: Vec<_> = std::iter::from_fn(|| Some((sim.wait()?.tag, sim.now_ns()))).collect();
    assert_eq!(times, [(0, 100), (3, 200), (2, 300), (1, 400)]);
}

#[test]
fn a_deep_simulated_drive_overlaps_latencies_and_moves_bytes_in_turn() {
    let mut sim = SimIo::new(100, 1000).with_depth(2);
    for tag in 0..4 {
        simulate(&mut sim, tag, 30, Priority::Prefetch);
    }
    sim.advance(10);
    simulate(&mut sim, 4, 30, Priority::Demand);
    sim.promote(1); // begun at 0
    sim.promote(3);
    let times: Vec<_> = std::iter::from_fn(|| Some((sim.wait()?.tag, sim.now_ns()))).collect();
    // 4 and 3 start when 0 and 1 are done, at 130 and 160; 2 follows when 4 is.
    assert_eq!(times, [(0, 130), (1, 160), (4, 260), (3, 290), (2, 390)]);
}

#[cfg(target_os = "linux")]
#[test]
fn mapped_pages_are_given_back() {
    const BYTES: usize = 64 << 20;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large.bin");
    std::fs::write(&path, noise(9, BYTES as u64)).unwrap();
    let files: Files = [(path.clone(), Arc::new(File::open(&path).unwrap()))].into_iter().collect();
    let mut engine = IoKind::Mapped.build(files, 1).unwrap();
    let rss = || machine::rss_bytes().unwrap() as i64;
    let mut map = |buf: IoBuf, len: usize| {
        let extents = one(Extent { file: 0, offset: 0, len });
        engine.submit(Read { tag: 0, extents, buf, priority: Priority::Demand });
        let done = engine.wait().unwrap();
        done.result.unwrap();
        done.buf
    };
    let before = rss();
    let buf = map(IoBuf::new(Layout::Pages, &[]).unwrap(), BYTES);
    let mapped = rss();
    // Other tests run beside this one; none takes more than a few MiB.
    assert!(mapped - before > BYTES as i64 / 4 * 3, "populated before it is handed out: {before} to {mapped}");
    let buf = map(buf, 4096);
    let after = rss();
    assert!(mapped - after > BYTES as i64 / 4 * 3, "released by the next read: {mapped} to {after}");
    let buf = map(buf, BYTES);
    drop(buf);
    assert!(mapped - rss() > BYTES as i64 / 4 * 3, "released with its buffer");
}

/// Bytes of a mapping whose file shrinks read as zeros, and the buffer says so; within the file's last page too, where the system
/// says nothing. Read again, they are there again.
#[cfg(unix)]
#[test]
fn a_file_that_shrinks_under_its_mapping_is_an_error_of_the_buffer() {
    let world = World::new();
    let mut engine = IoKind::Mapped.build(world.files.clone(), 1).unwrap();
    let whole = Extents::new(&[
        Extent { file: 1, offset: 77, len: 5_000 },
        Extent { file: 0, offset: 100, len: 200_000 },
        Extent { file: 0, offset: 200_100, len: 60_000 },
    ]);
    for len in [0, 1, 150_000, 200_000, 260_000, 260_099] {
        read(&mut *engine, 0, whole, Priority::Demand);
        let done = engine.wait().unwrap();
        done.result.unwrap();
        shows(&world, &whole, &done.buf);
        assert!(done.buf.fault().is_none());
        let file = OpenOptions::new().write(true).open(&world.paths[0]).unwrap();
        file.set_len(len).unwrap();
        let sums = std::thread::scope(|scope| {
            let sum = |i: usize| done.buf.part(i).iter().map(|&b| u64::from(b)).sum::<u64>();
            let threads: Vec<_> = (0..6).map(|i| scope.spawn(move || sum(i % 3))).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect::<Vec<_>>()
        });
        assert_eq!(sums[0], world.contents[1][77..5_077].iter().map(|&b| u64::from(b)).sum::<u64>());
        let fault = done.buf.fault().expect("bytes are gone");
        assert_eq!((fault.extent.file, fault.source.kind()), (0, std::io::ErrorKind::UnexpectedEof), "cut to {len}");
        std::fs::write(&world.paths[0], &world.contents[0]).unwrap();
    }
}

/// Bus errors that are none of hotset's go where they went before, in a process of its own here.
#[cfg(target_os = "linux")]
#[test]
fn other_bus_errors_are_left_to_the_program() {
    use std::os::unix::process::ExitStatusExt;
    let run = |what: &str| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("shrinks.bin");
        std::fs::write(&path, noise(4, 100_000)).unwrap();
        let child = common::program::command(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "child_has_a_bus_error_of_its_own", "--nocapture"])
            .env(SHRINKS, &path)
            .env("HOTSET_TEST_BUS_ERROR", what)
            .output()
            .unwrap();
        (child.status.code(), child.status.signal(), String::from_utf8_lossy(&child.stderr).into_owned())
    };
    for what in ["fault", "sent"] {
        let (code, signal, said) = run(what);
        assert_eq!((code, signal), (None, Some(signal_hook::consts::SIGBUS)), "{what}: {said}");
    }
    for what in ["handled fault", "handled sent"] {
        let (code, signal, said) = run(what);
        assert_eq!((code, signal), (Some(9), None), "{what}: {said}");
    }
}

#[cfg(target_os = "linux")]
#[test]
#[ignore = "the other half of other_bus_errors_are_left_to_the_program"]
fn child_has_a_bus_error_of_its_own() {
    let Some(path) = std::env::var_os(SHRINKS) else { return };
    let what = std::env::var("HOTSET_TEST_BUS_ERROR").unwrap();
    if what.starts_with("handled") {
        // SAFETY: the handler ends the process and does nothing else.
        let handled = unsafe {
            signal_hook::low_level::register(signal_hook::consts::SIGBUS, || signal_hook::low_level::exit(9))
        };
        handled.unwrap();
    }
    let path = Path::new(&path);
    let files: Files = [(path.to_owned(), Arc::new(File::open(path).unwrap()))].into_iter().collect();
    let mut engine = IoKind::Mapped.build(files.clone(), 1).unwrap();
    read(&mut *engine, 0, one(Extent { file: 0, offset: 0, len: 100_000 }), Priority::Demand);
    let done = engine.wait().unwrap();
    // SAFETY: read-only, and what becomes of the file is what this is about.
    let own = unsafe { memmap2::Mmap::map(&*files[0].1).unwrap() };
    OpenOptions::new().write(true).open(path).unwrap().set_len(0).unwrap();
    // Hotset's own first: it is survived.
    assert_eq!(done.buf.part(0).iter().map(|&b| u64::from(b)).sum::<u64>(), 0);
    assert!(done.buf.fault().is_some());
    if what.ends_with("sent") {
        signal_hook::low_level::raise(signal_hook::consts::SIGBUS).unwrap();
    }
    let sum: u64 = own.iter().map(|&b| u64::from(b)).sum();
    unreachable!("the bytes are gone, yet their sum is {sum}");
}

#[cfg(target_os = "linux")]
const SHRINKS: &str = "HOTSET_TEST_SHRINKS";
