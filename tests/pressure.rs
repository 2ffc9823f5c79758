//! A session without a budget follows the machine: within a batch as between tokens, no bit changes, and beside a process
//! that grows nobody is killed.

mod common;

use std::sync::{Arc, Mutex};

use common::{
    dice::{Dice, no_hang},
    ref_models::{golden, ref_model},
};
use hotset::{
    arch,
    expert::{Allowance, ExpertCache, ExpertStore, Experts, Scope},
    gguf::Gguf,
    io::IoKind,
    model::{Batch, Model, Scratch, ScratchShape, Sequence, Span, Want, Workspace},
    policy::PolicyKind,
    prefetch::PrefetchKind,
    quant::GgmlType,
    trace::{LayerEvent, Phase, TraceSink},
};

/// Keeps nothing, but every layer runs over every token.
struct Whole;

impl TraceSink for Whole {
    fn record(&mut self, _: LayerEvent<'_>) {}
}

/// Says other numbers of slots at every second question, from one to all of each pool.
struct Whims {
    dice: Dice,
    most: Vec<usize>,
    said: Arc<Mutex<Vec<usize>>>,
}

impl Allowance for Whims {
    fn check(&mut self) -> Option<Vec<usize>> {
        if self.dice.below(2) == 0 {
            return None;
        }
        let slots: Vec<_> = self.most.iter().map(|&n| 1 + self.dice.below(n)).collect();
        self.said.lock().unwrap().clone_from(&slots);
        Some(slots)
    }
}

/// Logits of a prompt in batches and of tokens one by one; with whims, also whether they were obeyed.
fn logits(name: &str, scope: Scope, io: IoKind, whims: Option<u64>) -> Vec<u32> {
    let tokens: Vec<u32> = golden(name, "tokens").i32s().unwrap().iter().map(|&t| t as u32).collect();
    let gguf = Gguf::open(&ref_model(name)).unwrap();
    let blueprint = arch::blueprint(&gguf).unwrap();
    let store = ExpertStore::new(&gguf, blueprint.experts()).unwrap();
    let n_layer = store.layers().len();
    let most = match scope {
        Scope::Layer => vec![blueprint.n_expert - 2; n_layer],
        Scope::Size | Scope::Global => vec![blueprint.n_expert * n_layer / 2],
    };
    let mut backend = common::isa::cpu(2);
    let mut model = Model::load(&gguf, blueprint, &mut |_| {}).unwrap();
    model.interleave(&mut backend);
    let blueprint = &model.blueprint;
    let engine = io.build(store.files().clone(), 2).unwrap();
    let cache = ExpertCache::new(store, scope, &most, PolicyKind::default(), engine).unwrap();
    let prefetcher = PrefetchKind::Off.build(blueprint.n_expert, blueprint.n_expert_used());
    let mut experts = Experts::new(cache, prefetcher, Box::new(Whole));
    let said = Arc::new(Mutex::new(most.clone()));
    if let Some(seed) = whims {
        experts.follow(Some(Box::new(Whims { dice: Dice(seed), most, said: said.clone() })));
    }
    let (prompt, rest) = tokens.split_at(tokens.len() / 4 * 3);
    let n_batch = prompt.len() / 2;
    let mut sequence = [Sequence::new(blueprint, GgmlType::F32, tokens.len(), n_batch).unwrap()];
    let mut scratch =
        Scratch::new(blueprint, ScratchShape { n_batch, threads: 2, n_logits: n_batch, n_ctx: tokens.len() });
    let mut all = Vec::new();
    let batches = prompt.chunks(n_batch).map(|tokens| (Phase::Prompt, tokens));
    for (phase, tokens) in batches.chain(rest.chunks(1).map(|tokens| (Phase::Decode, tokens))) {
        let first_pos = sequence[0].len() as u32;
        let spans = [Span { seq: 0, first_pos, rows: 0..tokens.len(), phase, want: Want::All }];
        let workspace = Workspace { backend: &mut backend, experts: &mut experts, tier: None, scratch: &mut scratch };
        model.forward(workspace, &Batch { tokens, spans: &spans }, &mut sequence).unwrap();
        all.extend(scratch.logits()[..tokens.len() * model.blueprint.n_vocab].iter().map(|x| x.to_bits()));
        if phase == Phase::Decode {
            let allowed: usize = said.lock().unwrap().iter().sum();
            assert_eq!(experts.cache().n_slot(), allowed, "nothing is in use between tokens");
        }
    }
    all
}

#[test]
fn slots_that_come_and_go_within_a_batch_change_no_bit() {
    for name in ["qwen3moe", "qwen2moe"] {
        for scope in [Scope::Layer, Scope::Global] {
            let steady = logits(name, scope, IoKind::Pread, None);
            for &io in common::read_paths().iter().filter(|io| **io != IoKind::PageCache) {
                for seed in 0..2 {
                    let changing = no_hang(move || logits(name, scope, io, Some(seed)));
                    assert!(changing == steady, "{name}, {}, {}, seed {seed}", scope.name(), io.name());
                }
            }
        }
    }
}

#[cfg(target_os = "linux")]
mod beside {
    //! A model in a small cgroup with a process that grows.

    use std::{
        env, fs,
        io::Write as _,
        path::{Path, PathBuf},
        process::{Child, Command, Stdio},
        thread::sleep,
        time::{Duration, Instant},
    };

    use super::common::tiny::Tiny;
    use hotset::{
        gguf::Gguf,
        human_bytes,
        session::{Options, Session},
    };

    const MIB: usize = 1 << 20;
    /// Of the cgroup.
    const LIMIT: usize = 140 * MIB;
    /// What the neighbour takes, by how much at once, and how often.
    const GROWTH: usize = 64 * MIB;
    const STEP: usize = 4 * MIB;
    const EVERY: Duration = Duration::from_millis(20);
    /// Width of an expert: 6 MiB each, 96 MiB together.
    const N_FF: u64 = 16_384;
    /// How long tokens are decoded, and how long before the neighbour begins.
    const RUNS: Duration = Duration::from_secs(3);
    const BEFORE: Duration = Duration::from_secs(1);

    /// What a process of this test is to do, and with what.
    const ROLE: &str = "HOTSET_TEST_ROLE";

    /// A memory cgroup, or why there is none.
    struct Group {
        folder: PathBuf,
        events: &'static str,
    }

    impl Group {
        fn new() -> Result<Self, String> {
            let own = fs::read_to_string("/proc/self/cgroup").map_err(|e| e.to_string())?;
            let path = |controller: &str| {
                let fields = own.lines().map(|line| line.splitn(3, ':').skip(1).collect::<Vec<_>>());
                fields
                    .filter(|f| f.len() == 2)
                    .find(|f| f[0].split(',').any(|c| c == controller))
                    .map(|f| f[1].to_owned())
            };
            let (parent, limit, events) = match (path("memory"), path("")) {
                (Some(v1), _) => (format!("/sys/fs/cgroup/memory{v1}"), "memory.limit_in_bytes", "memory.oom_control"),
                // A folder with processes of its own has no limited children: so beside it.
                (None, Some(v2)) => {
                    let parent = Path::new(&v2).parent().unwrap_or(Path::new("/")).display().to_string();
                    (format!("/sys/fs/cgroup{parent}"), "memory.max", "memory.events")
                }
                (None, None) => return Err("no cgroups".to_owned()),
            };
            let folder = Path::new(&parent).join(format!("hotset-test-{}", std::process::id()));
            fs::create_dir(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
            let group = Self { folder, events };
            fs::write(group.folder.join(limit), LIMIT.to_string()).map_err(|e| format!("{limit}: {e}"))?;
            Ok(group)
        }

        /// This test program in the cgroup, as something else.
        fn start(&self, role: &str) -> Child {
            let enter = "echo $$ > \"$0\" && exec \"$@\"";
            let mut command = Command::new("sh");
            command.args(["-c", enter]).arg(self.folder.join("cgroup.procs")).arg(env::current_exe().unwrap());
            command.args(["--exact", "beside::role", "--ignored", "--nocapture"]).env(ROLE, role);
            command.stdout(Stdio::piped()).spawn().unwrap()
        }

        fn kills(&self) -> u64 {
            let text = fs::read_to_string(self.folder.join(self.events)).unwrap();
            let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
            line.map_or(0, |n| n.trim().parse().unwrap())
        }
    }

    impl Drop for Group {
        fn drop(&mut self) {
            // Its processes take a moment to leave.
            for _ in 0..100 {
                if fs::remove_dir(&self.folder).is_ok() {
                    return;
                }
                sleep(Duration::from_millis(20));
            }
            eprintln!("left behind: {}", self.folder.display());
        }
    }

    fn model(path: &Path) {
        let mut tiny = Tiny::new("qwen3moe");
        tiny.set("qwen3moe.expert_feed_forward_length", N_FF as u32);
        for tensor in tiny.tensors.iter_mut().filter(|t| t.name.contains("_exps")) {
            let down = tensor.name.contains("down");
            let (width, before) = if down { (0, tensor.dims[0]) } else { (1, tensor.dims[1]) };
            tensor.dims[width] = N_FF;
            tensor.bytes = tensor.bytes.repeat((N_FF / before) as usize);
        }
        tiny.write(path);
    }

    /// Decodes the same tokens again and again, and says the last budget.
    fn session(path: &Path) {
        let gguf = Gguf::open(path).unwrap();
        let mut session = Session::open(gguf, &Options::default(), &mut |_, _| {}).unwrap();
        let (start, mut first) = (Instant::now(), None);
        let before = session.memory_bytes();
        while start.elapsed() < RUNS {
            session.reset();
            let mut logits = session.feed(&[1, 2, 3, 4], &mut |_| {}).unwrap().to_vec();
            for token in 5..20 {
                logits.extend_from_slice(session.decode(token).unwrap());
            }
            let bits: Vec<_> = logits.iter().map(|x| x.to_bits()).collect();
            assert!(*first.get_or_insert_with(|| bits.clone()) == bits, "the same tokens, the same bits");
        }
        // For the parent process.
        let mut out = std::io::stdout().lock();
        writeln!(out, "\nBUDGETS {before} {}", session.memory_bytes()).unwrap();
    }

    fn neighbour() {
        let mut taken = Vec::new();
        for _ in 0..GROWTH / STEP {
            taken.push(std::hint::black_box(vec![7u8; STEP]));
            sleep(EVERY);
        }
        // Until it is killed, or the test is gone.
        sleep(100 * RUNS);
    }

    #[test]
    #[ignore = "what the test below starts"]
    fn role() {
        match env::var(ROLE).expect("the test says what to do").as_str() {
            "neighbour" => neighbour(),
            path => session(Path::new(path)),
        }
    }

    #[test]
    fn a_session_without_a_budget_makes_room_for_a_process_that_grows() {
        let group = match Group::new() {
            Ok(group) => group,
            Err(why) => return super::common::not_tested!("a session beside a process that grows ({why})"),
        };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        model(&path);
        let session = group.start(path.to_str().unwrap());
        sleep(BEFORE);
        let mut neighbour = group.start("neighbour");
        let output = session.wait_with_output().unwrap();
        let alive = neighbour.try_wait().unwrap().is_none();
        neighbour.kill().unwrap();
        neighbour.wait().unwrap();
        assert_eq!((group.kills(), output.status.success(), alive), (0, true, true), "{}", output.status);
        let text = String::from_utf8(output.stdout).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("BUDGETS ")).expect("it says its budgets");
        let budgets: Vec<u64> = line.split(' ').map(|n| n.parse().unwrap()).collect();
        let [before, after] = budgets[..] else { panic!("{line}") };
        let given = human_bytes(before.saturating_sub(after));
        // At first a fifth of the cgroup is free anyway.
        assert!(before < LIMIT as u64 && before - after > GROWTH as u64 / 2, "gave {given} of {before}");
    }
}
