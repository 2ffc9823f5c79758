//! `hotset repack`: the same bits from one read an expert, or one sentence and nothing left.

mod common;

use std::{
    collections::HashSet,
    fs::{self, OpenOptions},
    ops::ControlFlow,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Duration,
};

use common::{
    ref_models::ref_model,
    samples::noise,
    tiny::{N_EMBD, N_EXPERT, N_FF, N_LAYER, Tiny},
};
use hotset::{
    Result, arch,
    blueprint::ExpertSet,
    expert::{BLOCK_BYTES, ExpertStore, REPACK_KEY, Scope},
    gguf::{Gguf, GgufWriter, Value},
    quant::GgmlType,
    repack::{Report, Step, repack},
    session::{Options, Session},
};
use proptest::prelude::*;

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/moe-s-q4_0.gguf");
const ARCHS: [&str; 4] = ["qwen3moe", "llama", "olmoe", "qwen2moe"];

fn options() -> Options {
    Options { threads: Some(1), process_bytes: Some(0), ..Options::default() }
}

fn open(path: &Path, options: Options) -> Result<Session> {
    Session::open(Gguf::open(path)?, &options, &mut |_, _| {})
}

/// The bits of the logits of a prompt and two decoded tokens.
fn bits(mut session: Session) -> Vec<u32> {
    let mut bits: Vec<_> = session.feed(&[3, 1, 4, 1, 5], &mut |_| {}).unwrap().iter().map(|x| x.to_bits()).collect();
    for token in [9, 2] {
        bits.extend(session.decode(token).unwrap().iter().map(|x| x.to_bits()));
    }
    assert!(bits.iter().all(|&b| f32::from_bits(b).is_finite()));
    bits
}

fn go_on(_: Step, _: u64, _: u64) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn repacked(source: &Path, out: &Path) -> Report {
    repack(&Gguf::open(source).unwrap(), out, &mut go_on).unwrap().expect("nobody asked for an end")
}

fn store(gguf: &Gguf) -> ExpertStore {
    let c = arch::blueprint(gguf).unwrap();
    ExpertStore::new(gguf, c.experts()).unwrap()
}

fn files_in(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Experts whose projections differ in type within a layer and between layers, as quantisers of today leave them.
fn mixed_types(mut tiny: Tiny) -> Tiny {
    use GgmlType::{F16, F32, Q4_0, Q8_0};
    for (il, types) in [[Q8_0, Q4_0, Q8_0], [F16, F32, Q4_0]].into_iter().enumerate() {
        for (role, ty) in ["gate", "up", "down"].into_iter().zip(types) {
            let t = tiny.tensor(&format!("blk.{il}.ffn_{role}_exps.weight"));
            let n: u64 = t.dims.iter().product();
            t.bytes = match ty {
                F32 => continue,
                F16 => t
                    .bytes
                    .as_chunks()
                    .0
                    .iter()
                    .flat_map(|b| half::f16::from_f32(f32::from_le_bytes(*b)).to_le_bytes())
                    .collect(),
                _ => noise(il as u64, ty.row_bytes(n).unwrap()),
            };
            t.ty = ty;
            if ty != F16 {
                let scale = half::f16::from_f32(0.01).to_le_bytes();
                t.bytes.chunks_mut(ty.block_bytes()).for_each(|block| block[..2].copy_from_slice(&scale));
            }
        }
    }
    tiny
}

#[test]
fn a_repacked_model_gives_the_same_bits_on_every_read_path() {
    for arch in ARCHS {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let stacked = Tiny::new(arch);
        let mut sources = vec![stacked.write_split(folder.path(), 3)];
        for (name, tiny) in [
            ("stacked.gguf", stacked.clone()),
            ("old.gguf", stacked.clone().old_layout()),
            ("fused.gguf", stacked.clone().fused_layout(1..N_LAYER)),
            ("types.gguf", mixed_types(stacked)),
        ] {
            tiny.write(&at(name));
            sources.push(at(name));
        }
        for source in sources {
            let expected = bits(open(&source, options()).unwrap());
            let out = at("out.gguf");
            let report = repacked(&source, &out);
            assert_eq!((report.layers, report.experts), (N_LAYER, N_LAYER * N_EXPERT));
            assert_eq!(report.bytes, fs::metadata(&out).unwrap().len());
            for &io in common::read_paths() {
                for scope in [Scope::Layer, Scope::Global] {
                    let options = Options { io: Some(io), scope: Some(scope), ..options() };
                    let least = open(&out, options.clone()).unwrap().plan().smallest_bytes;
                    for memory_bytes in [None, Some(least + (1 << 20))] {
                        let session = open(&out, Options { memory_bytes, ..options.clone() }).unwrap();
                        let what = format!("{} {} {}", source.display(), io.name(), scope.name());
                        assert!(bits(session) == expected, "{arch}: {what}");
                    }
                }
            }
            fs::remove_file(out).unwrap();
        }
    }
}

#[test]
fn real_shapes_give_the_same_bits_too() {
    let folder = tempfile::tempdir().unwrap();
    for (i, source) in [ref_model("qwen2moe"), ref_model("llama-mixtral"), MODEL.into()].into_iter().enumerate() {
        let out = folder.path().join(i.to_string());
        repacked(&source, &out);
        let options = Options { n_ctx: Some(64), ..options() };
        assert!(
            bits(open(&out, options.clone()).unwrap()) == bits(open(&source, options).unwrap()),
            "{}",
            source.display()
        );
    }
}

/// Every expert is one run of blocks; its matrices and all other tensors have the source's bytes, types and shapes.
fn check_layout(source: &Path, out: &Path) {
    let [old, new] = [source, out].map(|path| Gguf::open(path).unwrap());
    let read = |gguf: &Gguf, file: usize, offset: u64, len: usize| {
        let mut bytes = vec![0; len];
        gguf.shards()[file].read(offset, &mut bytes).unwrap();
        bytes
    };
    let (from, to) = (store(&old), store(&new));
    for (a, b) in from.layers().iter().zip(to.layers()) {
        assert!(b.is_one_read() && !a.is_one_read());
        for e in 0..N_EXPERT {
            let [before, places] = [a, b].map(|layer| layer.matrices(e).map(Option::unwrap));
            for (a, b) in before.iter().zip(&places) {
                assert_eq!((a.ty, a.rows, a.cols, a.at.len), (b.ty, b.rows, b.cols, b.at.len));
                let [a, b] = [(&old, a.at), (&new, b.at)].map(|(g, at)| read(g, at.file.into(), at.offset, at.len));
                assert!(a == b);
            }
            let [gate, up, down] = places.map(|m| (m.at.offset, m.at.offset + m.at.len as u64));
            assert!(gate.0 % BLOCK_BYTES == 0 && gate.1 <= up.0 && up.1 <= down.0);
            assert!(up.0 - gate.1 < BLOCK_BYTES && down.0 - up.1 < BLOCK_BYTES, "nothing but padding in between");
        }
    }
    let dense = |gguf: &Gguf| -> Vec<_> {
        let blueprint = arch::blueprint(gguf).unwrap();
        let experts: HashSet<_> = blueprint.experts().flat_map(ExpertSet::tensors).map(|t| t.index).collect();
        let dense = gguf.tensors().iter().enumerate().filter(|(i, _)| !experts.contains(i)).map(|(_, t)| t);
        let bytes = |t: &hotset::gguf::TensorInfo| read(gguf, t.shard, t.offset, t.bytes.unwrap() as usize);
        dense.map(|t| (t.name.clone(), t.dims.clone(), t.ty, bytes(t))).collect()
    };
    assert!(dense(&old) == dense(&new), "in the same order too");
}

#[test]
fn experts_lie_in_one_place_and_all_else_is_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let (source, out) = (folder.path().join("in.gguf"), folder.path().join("out.gguf"));
    let tiny = mixed_types(Tiny::new("qwen2moe"));
    tiny.write(&source);
    repacked(&source, &out);
    check_layout(&source, &out);
    let gguf = Gguf::open(&out).unwrap();
    let meta: Vec<_> = gguf.meta().iter().map(|(k, v)| (k.to_owned(), v.clone())).collect();
    assert_eq!(meta[..tiny.meta.len()], tiny.meta[..]);
    let added: Vec<_> = meta[tiny.meta.len()..].iter().map(|(k, _)| k.as_str()).collect();
    assert_eq!(added, ["general.alignment", REPACK_KEY, "hotset.repack.layout", "hotset.repack.program"]);
    assert_eq!(meta[tiny.meta.len() + 1].1, Value::U32(1));

    // From a set: one file, that no longer says it is a part. An alignment of its own stays where it was, with our value.
    fs::remove_file(&out).unwrap();
    let mut tiny = tiny;
    tiny.meta.insert(1, ("general.alignment".to_owned(), 64u32.into()));
    let first = tiny.write_split(folder.path(), 2);
    repacked(&first, &out);
    check_layout(&first, &out);
    let gguf = Gguf::open(&out).unwrap();
    assert!(gguf.meta().iter().all(|(key, _)| !key.starts_with("split.")));
    assert_eq!(gguf.meta().iter().nth(1), Some(("general.alignment", &Value::U32(4096))));
}

/// The sentence of a refusal, after which the folder is as it was.
#[track_caller]
fn refused(source: &Path, out: &Path) -> String {
    let folder = source.parent().unwrap();
    let before = (files_in(folder), fs::read(out).ok());
    let text = repack(&Gguf::open(source).unwrap(), out, &mut go_on).unwrap_err().to_string();
    assert!(!text.contains('\n'), "{text}");
    assert_eq!((files_in(folder), fs::read(out).ok()), before, "{text}");
    text
}

#[test]
fn what_cannot_be_is_one_sentence_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (source, out) = (at("in.gguf"), at("out.gguf"));
    let whole = Tiny::new("qwen3moe");
    whole.write(&source);
    let begins = |text: String, path: &Path, word: &str| {
        assert!(text.starts_with(&format!("{}: ", path.display())) && text.contains(word), "{text}");
    };
    begins(refused(&source, &source), &source, "the model itself");
    fs::create_dir(at("sub")).unwrap();
    begins(refused(&source, &at("sub/../in.gguf")), &at("sub/../in.gguf"), "the model itself");
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(&source, at("link.gguf")).unwrap();
        begins(refused(&source, &at("link.gguf")), &at("link.gguf"), "the model itself");
    }
    fs::write(at("taken"), "somebody's").unwrap();
    let exists = |path: &Path| format!("{} already exists (use --force to replace it)", path.display());
    assert_eq!(refused(&source, &at("taken")), exists(&at("taken")));
    begins(refused(&source, folder.path()), folder.path(), "is a directory");
    begins(refused(&source, &at("no/folder/out.gguf")), &at("no/folder/out.gguf"), "cannot create");

    let first = whole.write_split(folder.path(), 2);
    let second = at("model-00002-of-00002.gguf");
    begins(refused(&first, &second), &second, "the model itself");

    let refuses = |change: &dyn Fn(&mut Tiny), word: &str| {
        let mut tiny = whole.clone();
        change(&mut tiny);
        tiny.write(&source);
        begins(refused(&source, &out), &source, word);
    };
    refuses(&|t| t.set("general.architecture", "mystery"), "mystery");
    refuses(&|t| t.tensors.retain(|t| !t.name.contains("_exps") && !t.name.contains("_inp")), "without experts");
    refuses(&|t| t.tensor("blk.1.ffn_up_exps.weight").ty = GgmlType::I32, "blk.1.ffn_up_exps.weight");
    refuses(&|t| drop(t.take("blk.1.ffn_down_exps.weight")), "blk.1.ffn_down_exps.weight");
    // A type that only a later ggml knows: its length is unknown, so it cannot be copied.
    whole.write(&source);
    let bytes = fs::read(&source).unwrap();
    let name = b"blk.0.attn_norm.weight";
    let ty = bytes.windows(name.len()).position(|w| w == name).unwrap() + name.len() + 4 + 8;
    fs::write(&source, [&bytes[..ty], &77u32.to_le_bytes(), &bytes[ty + 4..]].concat()).unwrap();
    begins(refused(&source, &out), &source, "type number 77");
}

#[test]
fn what_the_file_says_of_itself_is_not_believed() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    Tiny::new("llama").write(&at("in.gguf"));
    let expected = bits(open(&at("in.gguf"), options()).unwrap());
    repacked(&at("in.gguf"), &at("packed.gguf"));
    assert!(refused(&at("packed.gguf"), &at("again.gguf")).contains("not repacked already"));
    let packed = Tiny::read(&at("packed.gguf"));

    // Versions that there are not.
    for (value, word) in [(Value::U32(2), "got 2"), (Value::U32(0), "got 0"), ("1".into(), "got string")] {
        let mut tiny = packed.clone();
        tiny.set(REPACK_KEY, value);
        tiny.write(&at("wrong.gguf"));
        let said = open(&at("wrong.gguf"), options()).err().expect("refused").to_string();
        assert!(said.starts_with(at("wrong.gguf").to_str().unwrap()), "{said}");
        assert!(said.contains(REPACK_KEY) && said.contains(word) && !said.contains('\n'), "{said}");
        assert!(refused(&at("wrong.gguf"), &at("again.gguf")).contains(word));
    }
    // A tool that wrote the file anew, in another order and alignment: not one read, and the same model.
    let mut tiny = packed.clone();
    tiny.set("general.alignment", 32u32);
    tiny.tensors.reverse();
    tiny.write(&at("moved.gguf"));
    // A plain file that says that it is repacked.
    let mut liar = Tiny::new("llama");
    liar.set(REPACK_KEY, 1u32);
    liar.write(&at("liar.gguf"));
    for path in [at("moved.gguf"), at("liar.gguf")] {
        assert!(store(&Gguf::open(&path).unwrap()).layers().iter().all(|l| !l.is_one_read()));
        for &io in common::read_paths() {
            assert!(bits(open(&path, Options { io: Some(io), ..options() }).unwrap()) == expected);
        }
        let text = stdout(&["inspect", path.to_str().unwrap()]);
        assert!(text.contains("repacked (version 1), but changed since"), "{text}");
    }
    // One expert moved: slots are alike, so that layer is read in parts, and right.
    let mut tiny = packed;
    let moved = tiny.take("blk.0.ffn_up.3.weight");
    tiny.tensors.push(moved);
    tiny.write(&at("one.gguf"));
    assert!(bits(open(&at("one.gguf"), options()).unwrap()) == expected);
    // Sizes, shapes and types are the tensor table's, and held against the model.
    for (name, change) in [
        ("blk.1.ffn_down.7.weight", (vec![N_FF, N_EMBD - 1], GgmlType::F32)),
        ("blk.0.ffn_gate.0.weight", (vec![N_FF, N_EMBD], GgmlType::F32)),
        ("blk.0.ffn_up.5.weight", (vec![N_EMBD, N_FF], GgmlType::F16)),
        ("blk.0.ffn_up.0.weight", (vec![N_EMBD, N_FF], GgmlType::I32)),
    ] {
        let mut tiny = Tiny::read(&at("packed.gguf"));
        let t = tiny.tensor(name);
        (t.dims, t.ty) = change;
        t.bytes.truncate((t.ty.row_bytes(t.dims[0]).unwrap() * t.dims[1]) as usize);
        tiny.write(&at("wrong.gguf"));
        let said = open(&at("wrong.gguf"), options()).err().expect("refused").to_string();
        assert!(said.contains("tensor blk.") && !said.contains('\n'), "{said}");
    }
}

#[test]
fn an_end_may_come_at_any_time_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (source, out) = (folder.path().join("in.gguf"), folder.path().join("out.gguf"));
    Tiny::new("qwen3moe").write(&source);
    let gguf = Gguf::open(&source).unwrap();
    let mut calls = Vec::new();
    let whole = repack(&gguf, &out, &mut |step, done, total| {
        calls.push((step, done, total));
        assert!(!out.exists(), "no name before the end");
        ControlFlow::Continue(())
    });
    assert!(whole.unwrap().is_some() && out.exists());
    fs::remove_file(&out).unwrap();
    let (copies, checks) = calls.split_at(calls.len() / 2);
    for (step, calls) in [(Step::Copy, copies), (Step::Check, checks)] {
        assert!(calls.iter().all(|c| c.0 == step) && calls.windows(2).all(|w| w[0].1 < w[1].1));
        assert!(calls.last().is_some_and(|(_, done, total)| done == total));
    }
    for end in [1, 2, calls.len() / 2, calls.len() / 2 + 1, calls.len()] {
        let mut n = 0;
        let stopped = repack(&gguf, &out, &mut |_, _, _| {
            n += 1;
            if n == end { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        assert!(stopped.unwrap().is_none() && n == end);
        assert_eq!(files_in(folder.path()), ["in.gguf"]);
    }
    // Somebody takes the name meanwhile.
    let late = repack(&gguf, &out, &mut |_, _, _| {
        fs::write(&out, "theirs").unwrap();
        ControlFlow::Continue(())
    });
    assert!(late.unwrap_err().to_string().contains("already exists"));
    assert_eq!(fs::read_to_string(&out).unwrap(), "theirs");
}

#[test]
fn a_source_that_changes_or_ends_is_noticed() {
    for (cut, word) in [(false, "another byte 5 of tensor blk.1.ffn_down.7.weight"), (true, "the file ends there")] {
        let folder = tempfile::tempdir().unwrap();
        let (source, out) = (folder.path().join("in.gguf"), folder.path().join("out.gguf"));
        Tiny::new("qwen3moe").write(&source);
        let gguf = Gguf::open(&source).unwrap();
        let at = store(&gguf).layers()[1].matrices(7)[2].unwrap().at;
        let changed = repack(&gguf, &out, &mut |step, done, total| {
            if step == Step::Copy && (done == total || cut) {
                let file = OpenOptions::new().write(true).open(&source).unwrap();
                if cut {
                    file.set_len(at.offset).unwrap();
                } else {
                    write_at(&file, at.offset + 5);
                }
            }
            ControlFlow::Continue(())
        });
        let text = changed.unwrap_err().to_string();
        assert!(text.contains(word) && !text.contains('\n'), "{text}");
        assert_eq!(files_in(folder.path()), ["in.gguf"]);
    }
}

/// Changes the byte there. (The noise has no such byte at that place.)
fn write_at(mut file: &fs::File, at: u64) {
    use std::io::{Seek, SeekFrom, Write};
    file.seek(SeekFrom::Start(at)).unwrap();
    file.write_all(&[0x5a]).unwrap();
}

proptest! {
    #![proptest_config(common::property::cases(300))]

    #[test]
    fn changed_headers_of_repacked_files_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..3u8), 1..5),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let (source, path) = (folder.path().join("in.gguf"), folder.path().join("out.gguf"));
        Tiny::new("llama").write(&source);
        repacked(&source, &path);
        let data = Gguf::open(&path).unwrap().tensors().iter().map(|t| t.offset).min().unwrap();
        let mut bytes = fs::read(&path).unwrap();
        for (at, byte, how) in changes {
            let b = &mut bytes[at.index(data as usize)];
            *b = match how { 0 => byte, 1 => *b ^ (1 << (byte % 8)), _ => b.wrapping_add(1) };
        }
        fs::write(&path, bytes).unwrap();
        let opened = catch_unwind(AssertUnwindSafe(|| open(&path, options()).and_then(|mut s| s.decode(1).map(drop))));
        prop_assert!(opened.is_ok(), "a panic");
        if let Ok(Err(error)) = opened {
            prop_assert!(!error.to_string().contains('\n'), "{}", error);
        }
    }
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hotset"));
    command.args(args).env_remove("HOTSET_MODEL").stdin(Stdio::null());
    command
}

fn stdout(args: &[&str]) -> String {
    let output = command(args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The one sentence on standard error of a run that failed.
fn sentence(output: &Output) -> String {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.starts_with("hotset: ") && text.trim_end().lines().count() == 1, "{text}");
    text
}

#[test]
fn the_verb_says_what_it_did() {
    let folder = tempfile::tempdir().unwrap();
    let out: PathBuf = folder.path().join("packed.gguf");
    let out = out.to_str().unwrap();
    let text = stdout(&["repack", MODEL, out]);
    for words in ["224 experts in 7 layers", "737 tensors read back", "llama.cpp does not load"] {
        assert!(text.contains(words), "{text}");
    }
    let budget = common::program::budget(env!("CARGO_BIN_EXE_hotset"), MODEL, 3);
    let run = |model: &str| stdout(&["run", model, "Once upon a time", "-n", "12", "--memory", &budget, "--seed", "1"]);
    assert_eq!(run(out), run(MODEL));
    assert!(stdout(&["inspect", out]).contains("repacked (version 1): each expert lies in one place"));
    let json =
        |model: &str| -> serde_json::Value { serde_json::from_str(&stdout(&["inspect", model, "--json"])).unwrap() };
    let (new, old) = (json(out), json(MODEL));
    assert_eq!([&new["repacked"], &new["one_read_experts"]], [&1.into(), &serde_json::Value::Bool(true)]);
    assert_eq!([&old["repacked"], &old["one_read_experts"]], [&serde_json::Value::Null, &false.into()]);
    for key in ["parameters", "expert_parameters", "active_parameters", "dense_resident_bytes"] {
        assert_eq!(new[key], old[key], "{key}");
    }
    let again = command(&["repack", MODEL, out]).output().unwrap();
    assert!(sentence(&again).contains("packed.gguf already exists (use --force to replace it)"));
    assert!(sentence(&command(&["repack", out, MODEL]).output().unwrap()).contains("moe-s-q4_0.gguf"));
    assert_eq!(files_in(folder.path()), ["packed.gguf"]);
}

/// What a full drive looks like to a program: no room for so long a file.
#[cfg(target_os = "linux")]
#[test]
fn a_file_that_finds_no_room_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("packed.gguf");
    let program = env!("CARGO_BIN_EXE_hotset");
    let script = format!("trap '' XFSZ; ulimit -f 2000; exec {program} repack {MODEL} {}", out.display());
    let output = Command::new("sh").args(["-c", &script]).output().unwrap();
    let text = sentence(&output);
    assert!(text.contains("packed.gguf: cannot reserve 17448960 bytes: File too large"), "{text}");
    assert!(files_in(folder.path()).is_empty());
}

/// Whenever a signal comes, the file is whole or there is none; nor is anything else. Also of one that kills.
#[cfg(target_os = "linux")]
#[test]
fn a_signal_leaves_all_or_nothing() {
    use rustix::process::{Pid, Signal, kill_process};
    let (mut done, mut told) = (0, 0);
    for (i, signal) in [Signal::INT, Signal::TERM, Signal::HUP, Signal::KILL].into_iter().cycle().take(32).enumerate() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("packed.gguf");
        let mut child = command(&["repack", MODEL, out.to_str().unwrap()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(2 * i as u64));
        let _ = kill_process(Pid::from_child(&child), signal);
        let status = child.wait().unwrap();
        let whole = out.exists();
        // A signal may come between the file and the end of the process.
        assert!(whole || !status.success());
        assert_eq!(files_in(folder.path()), if whole { vec!["packed.gguf"] } else { vec![] });
        if whole {
            store(&Gguf::open(&out).unwrap());
            done += 1;
        }
        told += usize::from(status.code().is_some_and(|c| c > 128));
    }
    eprintln!("{done} of 32 were done before the signal, {told} ended by what it told them");
}

/// Nothing but the header is a matter of memory: 16 MB (of heap and all else that is its own) do for 96.
#[cfg(target_os = "linux")]
#[test]
fn memory_does_not_grow_with_the_model() {
    let folder = tempfile::tempdir().unwrap();
    let (source, out) = (folder.path().join("big.gguf"), folder.path().join("out.gguf"));
    // Two tensors of 48 MiB.
    let mut tiny = Tiny::new("qwen3moe");
    let rows = (48 << 20) / (4 * N_EMBD);
    tiny.tensor("token_embd.weight").dims[1] = rows;
    tiny.tensor("output.weight").dims[1] = rows;
    let mut w = GgufWriter::new(&source, false).unwrap();
    for (key, value) in &tiny.meta {
        w.meta(key, value.clone()).unwrap();
    }
    for t in &tiny.tensors {
        w.tensor(&t.name, &t.dims, t.ty).unwrap();
    }
    let mut w = w.start().unwrap();
    for t in &tiny.tensors {
        w.begin(&t.name).unwrap();
        let n = t.dims.iter().product::<u64>() * 4;
        for at in (0..n).step_by(1 << 20) {
            // Norms of zeros would be a download that is not there yet.
            w.write(&vec![1; (n - at).min(1 << 20) as usize]).unwrap();
        }
    }
    w.finish().unwrap();
    let script =
        format!("ulimit -d 16000; exec {} repack {} {}", env!("CARGO_BIN_EXE_hotset"), source.display(), out.display());
    let output = Command::new("sh").args(["-c", &script]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
