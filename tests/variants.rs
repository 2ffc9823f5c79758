//! Files that say the same model in another way give the same bits: experts each in a tensor of its own, as old files and
//! `hotset repack` have them, and factors of rotations that depend on the context.

mod common;

use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use common::{
    ref_models::{golden, ref_model},
    tiny::{Tensor, Tiny},
};
use hotset::{
    arch,
    expert::ExpertStore,
    gguf::Gguf,
    session::{Options, Session},
};

/// Logits of the first tokens of a reference run.
fn logits(name: &str, path: &Path, n_ctx: usize) -> Vec<u32> {
    let tokens: Vec<u32> = golden(name, "tokens").i32s().unwrap()[..20].iter().map(|&t| t as u32).collect();
    let options = Options { all_logits: true, n_ctx: Some(n_ctx), ..Options::default() };
    let mut session = Session::open(Gguf::open(path).unwrap(), &options, &mut |_, _| {}).unwrap();
    let (mut all, n_batch) = (Vec::new(), session.plan().n_batch);
    for batch in tokens.chunks(n_batch) {
        all.extend(session.feed_all(batch).unwrap().iter().map(|x| x.to_bits()));
    }
    all
}

/// The model with changes, in a file of its own.
fn changed(name: &str, folder: &Path, file: &str, change: impl FnOnce(&mut Tiny)) -> PathBuf {
    let mut tiny = Tiny::read(&ref_model(name));
    change(&mut tiny);
    let path = folder.join(file);
    tiny.write(&path);
    path
}

/// Each expert's matrices as tensors of their own.
fn single(tiny: &mut Tiny) {
    let stacked: Vec<String> =
        tiny.tensors.iter().map(|t| &t.name).filter(|name| name.ends_with("_exps.weight")).cloned().collect();
    for name in stacked {
        let t = tiny.take(&name);
        let (n, stem) = (t.dims[2] as usize, name.strip_suffix("_exps.weight").unwrap());
        let each = t.bytes.chunks(t.bytes.len() / n).enumerate();
        tiny.tensors.extend(each.map(|(e, bytes)| Tensor {
            name: format!("{stem}.{e}.weight"),
            dims: t.dims[..2].to_vec(),
            ty: t.ty,
            bytes: bytes.to_vec(),
        }));
    }
}

/// Grok's files of 2024 have no keys for its factors, and a tensor for each matrix of each expert.
#[test]
fn files_with_a_tensor_for_each_expert_give_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["grok", "nemotron_h_moe-latent", "kimi-linear"] {
        let want = logits(name, &ref_model(name), 64);
        let old = changed(name, folder.path(), &format!("{name}-old.gguf"), single);
        assert!(logits(name, &old, 64) == want, "{name}: one tensor for each expert");
        let repacked = folder.path().join(format!("{name}-repacked.gguf"));
        let source = Gguf::open(&ref_model(name)).unwrap();
        hotset::repack::repack(&source, &repacked, &mut |_, _, _| ControlFlow::Continue(())).unwrap();
        assert!(logits(name, &repacked, 64) == want, "{name}: repacked");
        let gguf = Gguf::open(&repacked).unwrap();
        let store = ExpertStore::new(&gguf, arch::blueprint(&gguf).unwrap().experts()).unwrap();
        assert!(store.layers().iter().all(|layer| layer.is_one_read()), "{name}");
    }
}

/// `values` as a tensor of floats.
fn vector(name: &str, values: &[f32]) -> Tensor {
    let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    Tensor { name: name.to_owned(), dims: vec![values.len() as u64], ty: hotset::quant::GgmlType::F32, bytes }
}

#[test]
fn factors_of_rotations_depend_on_the_context_s_length() {
    let (name, folder) = ("phimoe", tempfile::tempdir().unwrap());
    let n_rot = arch::blueprint(&Gguf::open(&ref_model(name)).unwrap()).unwrap().ropes()[0].n_rot;
    let factors = |by: f32| (0..n_rot / 2).map(|i| 1.0 + by * i as f32).collect::<Vec<_>>();
    let plain = |file: &str, by: f32| {
        changed(name, folder.path(), file, |tiny| tiny.tensors.push(vector("rope_freqs.weight", &factors(by))))
    };
    let both = changed(name, folder.path(), "both.gguf", |tiny| {
        tiny.tensors.push(vector("rope_factors_short.weight", &factors(0.25)));
        tiny.tensors.push(vector("rope_factors_long.weight", &factors(2.0)));
        tiny.set("phimoe.rope.scaling.original_context_length", 100u32);
        tiny.set("phimoe.rope.scaling.type", "longrope");
    });
    let (short, long) = (plain("short.gguf", 0.25), plain("long.gguf", 2.0));
    let [short, long] = [short, long].map(|path| logits(name, &path, 128));
    assert!(short != long);
    assert!(logits(name, &both, 100) == short, "up to 100 tokens");
    assert!(logits(name, &both, 101) == long, "more than 100 tokens");
    // One of them alone is no model.
    let one = changed(name, folder.path(), "one.gguf", |tiny| {
        tiny.tensors.push(vector("rope_factors_short.weight", &factors(0.25)));
    });
    let said = arch::blueprint(&Gguf::open(&one).unwrap()).unwrap_err().to_string();
    assert!(said.contains("rope_factors_long.weight"), "{said}");
}
