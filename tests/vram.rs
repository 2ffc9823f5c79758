//! Experts in a device's memory change no bit of the output, whatever the budgets and whatever fails. Without a Vulkan driver
//! these tests say so and pass.

mod common;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, OnceLock},
};

use common::{dice::Dice, isa::cpu, ref_models::ref_model};
use hotset::{
    Error, Result, arch,
    expert::{ExpertStore, PhaseStats, Scope, VramStats},
    gguf::Gguf,
    gpu::{self, Arithmetic, Buffer, Choice, Device, Kernel, Place, Step},
    policy::PolicyKind,
    prefetch::PrefetchKind,
    quant::GgmlType,
    session::{Options, Session, Vram},
    simulate::{self, Compute, Conditions, DeviceTier, Drive, Setting, SimPolicy},
    trace::{
        LayerEvent, TraceSink,
        file::{Header, TraceWriter},
    },
};

/// What fails, and after how many calls.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    Never,
    Allocate(usize),
    Submit(usize),
    Wait(usize),
    Copy(usize),
    WaitCopy(usize),
    /// Nothing, but what is computed takes a millisecond longer.
    Slow,
}

/// The machine's device for one session. Kernels are compiled once for all: lavapipe takes a second for each.
struct Shared {
    name: String,
    buffers: Vec<Buffer>,
    fault: Fault,
}

struct Opened {
    device: Box<dyn Device>,
    kernels: Vec<(Vec<u8>, Arithmetic, Kernel)>,
}

fn opened() -> Option<&'static Arc<Mutex<Opened>>> {
    static DEVICE: OnceLock<Option<Arc<Mutex<Opened>>>> = OnceLock::new();
    let open = || {
        let device = gpu::open(Choice::Any).inspect_err(|e| common::not_tested!("experts on a device: {e}")).ok()?;
        Some(Arc::new(Mutex::new(Opened { device, kernels: Vec::new() })))
    };
    DEVICE.get_or_init(open).as_ref()
}

fn lock() -> MutexGuard<'static, Opened> {
    opened().expect("the caller has asked").lock().unwrap_or_else(|e| e.into_inner())
}

/// One session at a time has the device.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(|e| e.into_inner())
}

impl Shared {
    fn boxed(fault: Fault) -> Box<dyn Device> {
        let name = lock().device.name().to_owned();
        Box::new(Self { name, buffers: Vec::new(), fault })
    }

    /// Counts a call down.
    fn fail(&mut self, left: impl Fn(Fault) -> Option<usize>, make: fn(usize) -> Fault) -> Result<()> {
        match left(self.fault) {
            Some(0) => Err(Error::invalid("the test's device: it fails here")),
            Some(n) => {
                self.fault = make(n - 1);
                Ok(())
            }
            None => Ok(()),
        }
    }
}

macro_rules! fail {
    ($shared:ident, $kind:ident) => {
        $shared.fail(|fault| if let Fault::$kind(n) = fault { Some(n) } else { None }, Fault::$kind)?
    };
}

impl Device for Shared {
    fn name(&self) -> &str {
        &self.name
    }
    fn shares_memory(&self) -> bool {
        true
    }
    fn free_bytes(&self) -> u64 {
        lock().device.free_bytes()
    }
    fn used_bytes(&self) -> Option<u64> {
        lock().device.used_bytes()
    }
    fn kernel(&mut self, code: &[u8], arithmetic: Arithmetic) -> Result<Kernel> {
        let Opened { device, kernels } = &mut *lock();
        if let Some((.., kernel)) = kernels.iter().find(|(known, s, _)| known == code && *s == arithmetic) {
            return Ok(*kernel);
        }
        let kernel = device.kernel(code, arithmetic)?;
        kernels.push((code.to_vec(), arithmetic, kernel));
        Ok(kernel)
    }
    fn allocate(&mut self, bytes: u64, place: Place) -> Result<Buffer> {
        fail!(self, Allocate);
        let buffer = lock().device.allocate(bytes, place)?;
        self.buffers.push(buffer);
        Ok(buffer)
    }
    fn free(&mut self, buffer: Buffer) {
        self.buffers.retain(|held| *held != buffer);
        lock().device.free(buffer);
    }
    fn write(&mut self, to: Buffer, at: u64, bytes: &[u8]) {
        lock().device.write(to, at, bytes);
    }
    fn read(&self, from: Buffer, at: u64, bytes: &mut [u8]) {
        lock().device.read(from, at, bytes);
    }
    fn submit(&mut self, steps: &[Step]) -> Result<()> {
        fail!(self, Submit);
        lock().device.submit(steps)
    }
    fn wait(&mut self) -> Result<()> {
        let waited = lock().device.wait();
        if self.fault == Fault::Slow {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        fail!(self, Wait);
        waited
    }
    fn copy(&mut self, lane: usize, from: Buffer, to: Buffer, at: u64, bytes: u64) -> Result<()> {
        fail!(self, Copy);
        lock().device.copy(lane, from, to, at, bytes)
    }
    fn wait_copy(&mut self, lane: usize) -> Result<()> {
        let waited = lock().device.wait_copy(lane);
        fail!(self, WaitCopy);
        waited
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let device = &mut lock().device;
        device.wait().unwrap();
        (0..gpu::LANES).for_each(|lane| device.wait_copy(lane).unwrap());
        self.buffers.drain(..).for_each(|buffer| device.free(buffer));
    }
}

/// What a run gave.
struct Run {
    /// Of all logits.
    bits: Vec<u32>,
    stats: Option<VramStats>,
    /// Bytes of slots.
    slots_bytes: u64,
    notes: Vec<String>,
}

fn options() -> Options {
    let (threads, process_bytes) = (Some(2), Some(0));
    // A device that was named stays on however slow.
    Options {
        threads,
        process_bytes,
        n_ctx: Some(64),
        kv: GgmlType::F32,
        vram_device: Choice::Any,
        ..Options::default()
    }
}

fn session(path: &Path, options: &Options, fault: Fault) -> Session {
    let gguf = Gguf::open(path).unwrap();
    if options.vram == Vram::Off {
        return Session::with_backend(gguf, options, cpu(2), Box::new(()), &mut |_, _| {}).unwrap();
    }
    Session::with_device(gguf, options, cpu(2), Box::new(()), Shared::boxed(fault), &mut |_, _| {}).unwrap()
}

fn run(path: &Path, options: &Options, fault: Fault) -> Run {
    let mut session = session(path, options, fault);
    let notes = Arc::new(Mutex::new(Vec::new()));
    let told = notes.clone();
    session.on_vram_note(move |note| told.lock().unwrap().push(note.to_owned()));
    let mut bits = Vec::new();
    let keep = |bits: &mut Vec<u32>, logits: &[f32]| bits.extend(logits.iter().map(|x| x.to_bits()));
    keep(&mut bits, session.feed(&[3, 1, 4, 1, 5], &mut |_| {}).unwrap());
    for token in [9, 2, 6, 5, 3, 5, 8, 9, 7, 9] {
        keep(&mut bits, session.decode(token).unwrap());
    }
    let stats = session.vram().map(|slots| *slots.stats());
    let slots_bytes = session.vram_device().map_or(0, |(_, bytes, _)| bytes);
    drop(session);
    let notes = notes.lock().unwrap().clone();
    Run { bits, stats, slots_bytes, notes }
}

/// VRAM and RAM budgets, from nearly nothing to everything.
fn budgets_change_nothing(path: &Path, policies: &[PolicyKind]) {
    let _turn = turn();
    let on_cpu = run(path, &options(), Fault::Never).bits;
    // What experts are copied from counts in the budget of RAM.
    let (least, full) = {
        let with_device = Options { vram: Vram::Bytes(1 << 30), ..options() };
        let session = session(path, &with_device, Fault::Never);
        (session.plan().smallest_bytes, session.plan().full_bytes)
    };
    let all = run(path, &Options { vram: Vram::Bytes(1 << 30), ..options() }, Fault::Never);
    let name = path.display();
    let (stats, all_bytes) = (all.stats.expect("the device takes part"), all.slots_bytes);
    assert!(all.notes.is_empty(), "{name}: {:?}", all.notes);
    assert!(all.bits == on_cpu, "{name}: everything in VRAM changed the logits");
    assert!(stats.hit > 0 && stats.uploads > 0 && stats.evictions == 0, "{name}: {stats:?}");
    for &policy in policies {
        for share in [8, 3] {
            for memory_bytes in [least + (full - least) / 8, full] {
                let vram = Vram::Bytes((1 << 20) + all_bytes / share);
                let options = Options { vram, memory_bytes: Some(memory_bytes), policy, ..options() };
                let got = run(path, &options, Fault::Never);
                let what = format!("{name}: 1/{share} in VRAM, {memory_bytes} bytes of RAM, {}", policy.name());
                assert!(got.notes.is_empty(), "{what}: {:?}", got.notes);
                assert!(got.bits == on_cpu, "{what}: other logits");
                assert!(got.slots_bytes <= (1 << 20) + all_bytes / share, "{what}: {} bytes", got.slots_bytes);
                assert!(got.stats.is_some_and(|stats| stats.uploads > 0), "{what}: {:?}", got.stats);
            }
        }
    }
}

/// A trace's writer that the test keeps a hand on.
struct Sink(Arc<Mutex<TraceWriter>>);

impl TraceSink for Sink {
    fn record(&mut self, event: LayerEvent<'_>) {
        self.0.lock().unwrap().record(event);
    }
}

/// What a live run counts is what the simulator counts for its trace: on the device, and in memory behind it.
#[test]
fn a_replay_of_both_tiers_equals_the_live_run() {
    if opened().is_none() {
        return;
    }
    let _turn = turn();
    let (path, folder) = (ref_model("qwen3moe"), tempfile::tempdir().unwrap());
    let plan = session(&path, &Options { vram: Vram::Bytes(1 << 30), ..options() }, Fault::Never).plan().clone();
    let mut evictions = 0;
    for (i, &policy) in PolicyKind::ALL.iter().enumerate() {
        let quarter = plan.smallest_bytes + (plan.full_bytes - plan.smallest_bytes) / 4;
        let options = Options {
            policy,
            scope: Some(Scope::Layer),
            prefetch: PrefetchKind::Off,
            memory_bytes: Some(if i % 2 == 0 { quarter } else { plan.full_bytes }),
            vram: Vram::Bytes((1 << 20) + 300_000),
            ..options()
        };
        let trace = folder.path().join(format!("{i}.trace"));
        let gguf = Gguf::open(&path).unwrap();
        let sink = Arc::new(Mutex::new(TraceWriter::create(&trace, header(&gguf)).unwrap()));
        let device = Shared::boxed(Fault::Never);
        let mut live =
            Session::with_device(gguf, &options, cpu(2), Box::new(Sink(sink.clone())), device, &mut |_, _| {}).unwrap();
        let mut dice = Dice(3);
        live.feed(&[3, 1, 4, 1, 5], &mut |_| {}).unwrap();
        (0..50).for_each(|_| drop(live.decode(dice.below(100) as u32).unwrap().to_vec()));
        sink.lock().unwrap().flush().unwrap();
        let slots = live.vram().expect("the device takes part");
        let setting = Setting {
            policy: SimPolicy::Live(policy),
            scope: Scope::Layer,
            slots: &live.plan().slots,
            prefetch: PrefetchKind::Off,
            fill: false,
            vram: Some(DeviceTier { slots: slots.by_layer(), max_rows: gpu::MAX_ROWS, expert_ns: 0 }),
            conditions: Conditions { drive: Drive::NVME, compute: Compute::default(), warmup: 0 },
        };
        let replayed = simulate::replay(&trace, &setting, None).unwrap();
        let what = policy.name();
        assert_eq!(replayed.vram, *slots.stats(), "{what}: on the device");
        let counts = |of: PhaseStats| (of.hit, of.late + of.miss);
        assert_eq!(counts(replayed.stats.decode), counts(live.stats().decode), "{what}: decoding");
        assert_eq!(counts(replayed.stats.prompt), counts(live.stats().prompt), "{what}: the prompt");
        assert!(slots.stats().hit > 0 && slots.stats().uploads > 0, "{what}: {:?}", slots.stats());
        evictions += slots.stats().evictions;
    }
    assert!(evictions > 0, "nobody ever lost a slot");
}

/// What the trace of a model says of it.
fn header(gguf: &Gguf) -> Header {
    let blueprint = arch::blueprint(gguf).unwrap();
    let store = ExpertStore::new(gguf, blueprint.experts()).unwrap();
    Header {
        model: "reference".to_owned(),
        model_id: String::new(),
        source: "a test".to_owned(),
        n_layer: blueprint.n_moe(),
        n_expert: blueprint.n_expert,
        n_expert_used: blueprint.n_expert_used(),
        expert_bytes: store.layers().iter().map(|layer| layer.expert_bytes()).collect(),
        weights: true,
        lookahead: "the engine's".to_owned(),
        lookahead_ranks: 0,
        prompts: Vec::new(),
    }
}

fn bundled() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/moe-s-q4_0.gguf")
}

#[test]
fn budgets_change_no_bit_of_the_bundled_model() {
    if opened().is_some() {
        budgets_change_nothing(&bundled(), &[PolicyKind::default()]);
    }
}

#[test]
fn budgets_and_policies_change_no_bit() {
    if opened().is_some() {
        budgets_change_nothing(&ref_model("qwen3moe"), PolicyKind::ALL);
    }
}

/// Recurrent layers, latent attention, windows, a shared expert, biases, a norm of the router's own.
#[test]
fn budgets_change_no_bit_of_other_architectures() {
    if opened().is_none() {
        return;
    }
    for name in ["qwen3next", "deepseek2-lite-mla", "laguna", "granitehybrid", "llama4", "hunyuan-moe", "smallthinker"]
    {
        budgets_change_nothing(&ref_model(name), &[PolicyKind::default()]);
    }
}

#[test]
fn a_device_that_fails_costs_no_token() {
    if opened().is_none() {
        return;
    }
    let _turn = turn();
    let path = ref_model("qwen3moe");
    let on_cpu = run(&path, &options(), Fault::Never).bits;
    let vram = Options { vram: Vram::Bytes(1 << 30), ..options() };
    let faults = [0, 3, 9, 25]
        .into_iter()
        .flat_map(|n| [Fault::Allocate(n), Fault::Submit(n), Fault::Wait(n), Fault::Copy(n), Fault::WaitCopy(n)]);
    for fault in faults {
        let got = run(&path, &vram, fault);
        assert!(got.bits == on_cpu, "{fault:?}: other logits");
        assert!(got.notes.len() <= 1 && got.notes.iter().all(|note| !note.contains('\n')), "{:?}", got.notes);
        if !matches!(fault, Fault::Allocate(25)) {
            assert!(
                got.notes.iter().any(|note| note.contains("it fails here")
                    || note.contains("has room")
                    || note.contains("a copy failed")),
                "{fault:?}: {:?}",
                got.notes
            );
        }
    }
}

/// A millisecond for each layer is more than these few experts take on any CPU.
#[test]
fn a_device_slower_than_the_cpu_is_left() {
    if opened().is_none() {
        return;
    }
    let _turn = turn();
    let path = ref_model("qwen3moe");
    let n_ctx = 64;
    let on_cpu = options();
    let with_device = Options { vram: Vram::Bytes(1 << 30), vram_device: Choice::Best, ..on_cpu.clone() };
    let (mut alone, mut aided) = (session(&path, &on_cpu, Fault::Never), session(&path, &with_device, Fault::Slow));
    let notes = Arc::new(Mutex::new(Vec::new()));
    let told = notes.clone();
    aided.on_vram_note(move |note| told.lock().unwrap().push(note.to_owned()));
    let (mut hit, mut left) = (0, None);
    for i in 0..64 * n_ctx {
        if i % n_ctx == 0 {
            [&mut alone, &mut aided].into_iter().for_each(Session::reset);
        }
        let token = (i * i % 61) as u32;
        let bits = |logits: &[f32]| logits.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert!(
            bits(alone.decode(token).unwrap()) == bits(aided.decode(token).unwrap()),
            "token {i}: the same logits with the device, when it is left and afterwards"
        );
        match (aided.vram(), left) {
            (Some(slots), _) => hit = slots.stats().hit,
            (None, None) => left = Some(i),
            (None, Some(before)) if i > before + 8 => break,
            (None, Some(_)) => {}
        }
    }
    let notes = notes.lock().unwrap();
    assert!(hit > 0 && left.is_some(), "{hit} experts were computed on the device, and then no more: {left:?}");
    let said = notes.len() == 1 && notes[0].contains("than on the CPU: --vram is off from now on");
    assert!(said, "one sentence says so: {notes:?}");
}

#[test]
fn activations_that_a_device_cannot_compute_exactly_stay_on_the_cpu() {
    if opened().is_none() {
        return;
    }
    let _turn = turn();
    let path = ref_model("gpt-oss");
    let got = run(&path, &Options { vram: Vram::Auto, ..options() }, Fault::Never);
    assert!(got.bits == run(&path, &options(), Fault::Never).bits && got.stats.is_none());
    assert!(got.notes.len() == 1 && got.notes[0].contains("stay on the CPU"), "{:?}", got.notes);
}

#[test]
fn a_budget_too_small_for_one_expert_is_said() {
    if opened().is_none() {
        return;
    }
    let _turn = turn();
    let got = run(&ref_model("qwen3moe"), &Options { vram: Vram::Bytes(1000), ..options() }, Fault::Never);
    assert!(got.stats.is_none() && got.notes.len() == 1 && got.notes[0].contains("hold no expert"), "{:?}", got.notes);
}
