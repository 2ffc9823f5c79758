//! The tool's own tests: what it writes runs, and what cannot be is refused.

use hotset::{
    expert::{ExpertStore, Scope},
    gguf::Gguf,
    io::Layout,
    session::{Options, Session, make_plan},
    tokenizer::Tokenizer,
};

use super::*;

fn small(out: &std::path::Path, more: &[&str]) -> Args {
    let common = "synth --layers 2 --embd 256 --experts 6 --used 2 --ff 256 --heads 4 --kv-heads 2 --head-dim 64";
    let words = common.split(' ').chain(["--vocab", "300", out.to_str().unwrap()]).chain(more.iter().copied());
    Args::try_parse_from(words).unwrap()
}

/// Decodes some tokens and returns the spread of each one's logits.
fn spreads(path: &std::path::Path) -> Vec<f32> {
    let options = Options { threads: Some(1), n_ctx: Some(8), ..Options::default() };
    let mut session = Session::open(Gguf::open(path).unwrap(), &options, &mut |_, _| {}).unwrap();
    let mut decode = |token| {
        let logits = session.decode(token).unwrap();
        assert!(logits.iter().all(|l| l.is_finite()), "token {token}");
        let mean = logits.iter().sum::<f32>() / logits.len() as f32;
        (logits.iter().map(|l| (l - mean).powi(2)).sum::<f32>() / logits.len() as f32).sqrt()
    };
    (0..6).map(|i| decode(i * 37)).collect()
}

#[test]
fn a_model_of_every_type_decodes() {
    let folder = tempfile::tempdir().unwrap();
    for ty in GgmlType::ALL.iter().filter(|ty| ty.is_computable()) {
        for arch in ["qwen3moe", "llama"] {
            let path = folder.path().join(format!("{arch}-{ty}.gguf"));
            let ty = ty.name();
            write(&small(&path, &["--etype", ty, "--atype", ty, "--otype", ty, "--arch", arch])).unwrap();
            for spread in spreads(&path) {
                assert!((0.3..3.0).contains(&spread), "{arch} {ty}: logits of spread {spread}");
            }
        }
    }
}

/// Small enough for a test: few layers, few experts' types, a small vocabulary and table.
#[test]
fn published_shapes_decode() {
    let folder = tempfile::tempdir().unwrap();
    for arch in ["lfm2moe", "deepseek2"] {
        let path = folder.path().join(format!("{arch}.gguf"));
        let words = "--layers 4 --vocab 300 --etype IQ2_XXS --atype Q4_0 --otype Q4_0 --arch";
        let words = ["synth", path.to_str().unwrap()].into_iter().chain(words.split(' ')).chain([arch]);
        write(&Args::try_parse_from(words).unwrap()).unwrap();
        for spread in spreads(&path) {
            assert!((0.1..5.0).contains(&spread), "{arch}: logits of spread {spread}");
        }
    }
    for more in [
        ["--arch=lfm2moe", "--embd=64"],
        ["--arch=deepseek4", "--layers=3"],
        ["--arch=lfm2moe", "--table-rows=99"],
        ["--arch=llama", "--table-rows=99"],
    ] {
        let words = ["synth", "no.gguf"].into_iter().chain(more);
        assert!(write(&Args::try_parse_from(words).unwrap()).is_err(), "{more:?}");
    }
}

#[test]
fn forty_eight_layers_do_not_explode() {
    let folder = tempfile::tempdir().unwrap();
    for skew in ["-1", "0", "0.6"] {
        let path = folder.path().join(format!("deep{skew}.gguf"));
        write(&small(&path, &["--layers", "48", "--router-skew", skew])).unwrap();
        for spread in spreads(&path) {
            assert!((0.3..3.0).contains(&spread), "skew {skew}: logits of spread {spread}");
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_file_and_no_file_is_replaced_unasked() {
    let folder = tempfile::tempdir().unwrap();
    let path = |n: u32| folder.path().join(format!("{n}.gguf"));
    for (n, seed) in [(1, "5"), (2, "5"), (3, "6")] {
        write(&small(&path(n), &["--seed", seed])).unwrap();
    }
    let read = |n| std::fs::read(path(n)).unwrap();
    assert!(read(1) == read(2) && read(1) != read(3));
    assert!(write(&small(&path(1), &[])).is_err());
    assert!(write(&small(&path(1), &["--force"])).is_ok());
}

#[test]
fn text_survives_the_vocabulary() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("v.gguf");
    write(&small(&path, &[])).unwrap();
    let tokenizer = Tokenizer::from_gguf(&Gguf::open(&path).unwrap()).unwrap();
    let text = "the thing, över there\n";
    let mut bytes = Vec::new();
    for token in tokenizer.encode(text, false, false) {
        tokenizer.append_bytes(token, true, &mut bytes);
    }
    assert_eq!(String::from_utf8(bytes).unwrap(), text);
}

/// Each layer's experts count with their own size, in every scope, and no budget changes a bit.
#[test]
fn mixed_types_are_budgeted_by_each_layer_s_own_size() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mixed.gguf");
    let types = "--layers 7 --experts 8 --etype IQ3_XXS --dtype IQ4_XS --ltype 0-2=Q6_K --router-skew 0";
    write(&small(&path, &types.split(' ').collect::<Vec<_>>())).unwrap();
    let gguf = Gguf::open(&path).unwrap();
    let blueprint = hotset::arch::blueprint(&gguf).unwrap();
    let store = ExpertStore::new(&gguf, blueprint.experts()).unwrap();
    let rows = |ty: GgmlType| 256 * ty.row_bytes(256).unwrap();
    let large = 3 * rows(GgmlType::Q6_K);
    let little = 2 * rows(GgmlType::IQ3_XXS) + rows(GgmlType::IQ4_XS);
    let sizes: Vec<_> = store.layers().iter().map(|layer| layer.expert_bytes()).collect();
    assert_eq!(sizes, [large, large, large, little, little, little, little]);
    assert_eq!(store.pools(Scope::Size), [0, 0, 0, 1, 1, 1, 1]);
    assert_eq!(store.layers()[3].types(), [GgmlType::IQ3_XXS, GgmlType::IQ3_XXS, GgmlType::IQ4_XS].map(Some));

    let options = |scope, memory_bytes| Options {
        threads: Some(1),
        n_ctx: Some(16),
        n_batch: Some(4),
        process_bytes: Some(0),
        scope: Some(scope),
        memory_bytes: Some(memory_bytes),
        ..Options::default()
    };
    let bits = |scope, memory_bytes| -> Vec<u32> {
        let gguf = Gguf::open(&path).unwrap();
        let mut session = Session::open(gguf, &options(scope, memory_bytes), &mut |_, _| {}).unwrap();
        let mut logits = session.feed(&[3, 1, 4, 1, 5, 9], &mut |_| {}).unwrap().to_vec();
        for token in [2, 6, 5] {
            logits.extend_from_slice(session.decode(token).unwrap());
        }
        logits.iter().map(|x| x.to_bits()).collect()
    };
    let plan = |scope, memory_bytes| {
        make_plan(&gguf, &blueprint, &store, &options(scope, memory_bytes), Layout::Lines).unwrap()
    };
    let everything = bits(Scope::Layer, u64::MAX);
    for scope in [Scope::Layer, Scope::Size, Scope::Global] {
        let full = plan(scope, u64::MAX);
        let (smallest, fixed) = (full.smallest_bytes, full.dense_bytes + full.kv_bytes + full.scratch_bytes);
        // A pool of all layers has slots of the largest expert; the others cost what their experts are, but for alignment.
        let all = if matches!(scope, Scope::Global) { 7 * 8 * large } else { 8 * (3 * large + 4 * little) };
        let slots = full.full_bytes - fixed;
        assert!((all..all + all / 50).contains(&slots), "{scope:?}: {slots} bytes of slots for {all} of experts");
        for memory_bytes in [smallest, (smallest + full.full_bytes) / 2] {
            let plan = plan(scope, memory_bytes);
            let parts = [plan.dense_bytes, plan.kv_bytes, plan.scratch_bytes, plan.slots_bytes];
            assert!(parts.iter().sum::<u64>() <= memory_bytes, "{scope:?}: {parts:?}");
            assert!(bits(scope, memory_bytes) == everything, "{scope:?} in {memory_bytes} bytes");
        }
    }
}

#[test]
fn layers_of_another_type_are_some_there_are() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("no.gguf");
    for layers in ["0-2", "2", "1-0"] {
        let ltype = format!("{layers}=Q6_K");
        assert!(write(&small(&path, &["--ltype", &ltype])).is_err(), "{layers} of two layers");
    }
    for text in ["Q6_K", "0=Q9", "x=Q6_K", "0-=Q6_K"] {
        assert!(layers_and_type(text).is_err(), "{text}");
    }
}

#[test]
fn shapes_that_cannot_be_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    for more in [["--used", "7"], ["--kv-heads", "3"], ["--vocab", "100"], ["--ff", "100"]] {
        let path = folder.path().join("no.gguf");
        assert!(write(&small(&path, &more)).is_err(), "{more:?}");
        assert!(!path.exists());
    }
    assert!(computable("Q8_1").is_err());
}
