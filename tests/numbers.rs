//! Numbers that are none: hyper-parameters that make no sense are refused, and a model whose arithmetic ends in NaN stops and
//! says where, in place of drawing token 0 for ever.

mod common;

use std::{path::Path, process::Output};

use common::{
    opened::{Folder, bits_of, logits, open, options, refused, stops},
    program::command,
    ref_models::ref_model,
    tiny::{ARCHS, N_EXPERT, Tiny},
};
use hotset::{
    gguf::{Gguf, Value},
    quant::GgmlType,
    sampler::{Sampler, SamplerConfig},
    session::{Options, Session},
};

#[test]
fn hyper_parameters_that_are_no_numbers_are_refused_by_name() {
    let senseless = [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -1.0, -1e-5, 0.0, f32::MAX, 1e-42];
    for arch in ARCHS {
        for short in [
            "attention.layer_norm_rms_epsilon",
            "rope.freq_base",
            "rope.scaling.factor",
            "rope.scale_linear",
            "rope.scaling.attn_factor",
        ] {
            let key = format!("{arch}.{short}");
            for value in senseless {
                let mut tiny = Tiny::new(arch);
                tiny.set(&key, value);
                refused(&tiny, &[&key, "a number from"]);
            }
            for value in [1e300, -1e300, f64::NAN, 1e-300] {
                let mut tiny = Tiny::new(arch);
                tiny.set(&key, Value::F64(value));
                refused(&tiny, &[&key]);
            }
        }
    }
    // The largest that make sense.
    let mut tiny = Tiny::new("llama");
    tiny.set("llama.rope.freq_base", 45_204_020_000.0f32);
    tiny.set("llama.attention.layer_norm_rms_epsilon", 1e-12f32);
    tiny.set("llama.rope.scaling.factor", 64.0f32);
    assert!(bits_of(&tiny).iter().all(|&bits| f32::from_bits(bits).is_finite()));
}

fn fill(tiny: &mut Tiny, name: &str, value: f32) {
    let bytes = &mut tiny.tensor(name).bytes;
    bytes.as_chunks_mut::<4>().0.iter_mut().for_each(|x| *x = value.to_le_bytes());
}

/// The part of the model that must be blamed for a matrix.
fn part(name: &str) -> String {
    match name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) {
        Some((il, rest)) if rest.starts_with("attn") => format!("the attention of blk.{il} "),
        Some((il, _)) => format!("the feed-forward part of blk.{il} "),
        None if name.starts_with("token_embd") => "the token embedding ".to_owned(),
        None => "the output ".to_owned(),
    }
}

#[test]
fn weights_that_are_no_numbers_stop_the_model_where_they_are() {
    for arch in ARCHS {
        let mut whole = Tiny::new(arch);
        whole.add("rope_freqs.weight", &[8]);
        fill(&mut whole, "rope_freqs.weight", 1.0);
        assert_eq!(bits_of(&whole), bits_of(&Tiny::new(arch)));
        for tensor in &whole.tensors {
            let name = &tensor.name;
            for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut tiny = whole.clone();
                fill(&mut tiny, name, bad);
                let is_vector = tensor.dims.len() == 1 && !name.contains("ffn_gate_inp");
                if is_vector {
                    refused(&tiny, &[&format!("tensor {name} has {bad}")]);
                } else {
                    // Of the last layer and the output, only what the last token of a prompt needs is computed.
                    let late = name == "output.weight" || name.starts_with("blk.1.");
                    let position = if late { "position 4" } else { "position 0" };
                    stops(&tiny, &[&part(name), position, "NaN or infinity"]);
                }
            }
        }
    }
    for zero in [0.0, -1.0] {
        let mut tiny = Tiny::new("llama");
        tiny.add("rope_freqs.weight", &[8]);
        fill(&mut tiny, "rope_freqs.weight", zero);
        refused(&tiny, &["tensor rope_freqs.weight"]);
    }
}

/// Every type whose scales can say NaN, in an expert and in a dense matrix.
#[test]
fn scales_that_are_no_numbers_stop_the_model_whatever_the_type() {
    use GgmlType::{BF16, F16, IQ4_NL, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0};
    for ty in [F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, IQ4_NL] {
        for name in ["blk.1.ffn_gate_exps.weight", "blk.0.ffn_up_exps.weight", "blk.1.ffn_down_exps.weight"]
            .into_iter()
            .chain(["blk.0.attn_q.weight", "blk.1.attn_k.weight", "blk.0.attn_v.weight", "blk.1.attn_output.weight"])
            .chain(["output.weight", "token_embd.weight", "blk.0.ffn_gate_inp.weight"])
        {
            let mut tiny = Tiny::new("qwen3moe");
            let t = tiny.tensor(name);
            let rows: u64 = t.dims[1..].iter().product();
            (t.ty, t.bytes) = (ty, vec![0xff; (ty.row_bytes(t.dims[0]).unwrap() * rows) as usize]);
            stops(&tiny, &[&part(name)]);
        }
    }
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/quant");
    for file in ["qwen3moe-256.Q2_K.gguf", "qwen3moe-256.Q4_0.gguf"] {
        let whole = Tiny::read(&data.join(file));
        for name in ["blk.1.ffn_gate_exps.weight", "blk.1.ffn_up_exps.weight", "blk.1.ffn_down_exps.weight"] {
            let mut tiny = whole.clone();
            tiny.tensor(name).bytes.fill(0xff);
            stops(&tiny, &[&part(name)]);
        }
    }
}

#[test]
fn one_broken_expert_stops_the_tokens_that_use_it_and_no_others() {
    let whole = Tiny::new("olmoe");
    let expected = bits_of(&whole);
    let mut stopped = 0;
    for expert in 0..N_EXPERT {
        let mut tiny = whole.clone();
        let bytes = &mut tiny.tensor("blk.1.ffn_up_exps.weight").bytes;
        let len = bytes.len() / N_EXPERT;
        bytes[expert * len..(expert + 1) * len].fill(0xff);
        let folder = Folder::new();
        match logits(open(&folder.write(&tiny)).unwrap()) {
            Ok(bits) => assert_eq!(bits, expected, "expert {expert} is not used"),
            Err(e) => {
                assert!(e.to_string().contains("the feed-forward part of blk.1 gives NaN"), "{e}");
                stopped += 1;
            }
        }
    }
    assert!(stopped > 0 && stopped < N_EXPERT, "{stopped}");
}

#[test]
fn a_stop_leaves_the_sequence_as_it_was() {
    for (name, tokens) in [("output.weight", 5), ("blk.1.ffn_up_exps.weight", 5), ("blk.0.attn_q.weight", 5)] {
        let mut tiny = Tiny::new("qwen3moe");
        fill(&mut tiny, name, f32::NAN);
        let folder = Folder::new();
        let mut session = open(&folder.write(&tiny)).unwrap();
        for _ in 0..2 {
            let said = session.decode(3).unwrap_err().to_string();
            assert!(said.contains(&part(name)) && said.contains("position 0"), "{said}");
            let said = session.feed(&vec![3; tokens], &mut |_| {}).unwrap_err().to_string();
            assert!(said.contains(&part(name)), "{said}");
            assert_eq!(session.n_past(), 0);
        }
    }
}

/// Rows of the output that are no numbers are tokens that are never drawn.
#[test]
fn one_broken_row_of_the_output_is_a_token_that_is_never_drawn() {
    let whole = Tiny::new("llama");
    let mut tiny = whole.clone();
    let row = 32 * 4;
    tiny.tensor("output.weight").bytes[7 * row..8 * row].fill(0xff);
    let (expected, got) = (bits_of(&whole), bits_of(&tiny));
    for (i, (expected, got)) in expected.iter().zip(&got).enumerate() {
        assert_eq!(i % 40 != 7, expected == got, "logit {i}");
    }
    let last: Vec<f32> = got[got.len() - 40..].iter().map(|&bits| f32::from_bits(bits)).collect();
    for temperature in [0.0, 1.0] {
        let config = SamplerConfig { temperature, top_p: 1.0, min_p: 0.0, top_k: 0, ..SamplerConfig::default() };
        let mut sampler = Sampler::new(config, 40).unwrap();
        assert!((0..200).all(|_| sampler.sample(&last) != 7));
    }
}

#[test]
fn a_broken_embedding_row_stops_only_its_token() {
    let mut tiny = Tiny::new("olmoe");
    let row = 32 * 4;
    tiny.tensor("token_embd.weight").bytes[7 * row..8 * row].fill(0xff);
    let folder = Folder::new();
    let mut session = open(&folder.write(&tiny)).unwrap();
    session.feed(&[1, 2], &mut |_| {}).unwrap();
    let said = session.feed(&[3, 7, 1], &mut |_| {}).unwrap_err().to_string();
    assert!(said.contains("the token embedding gives NaN") && said.contains("position 3"), "{said}");
    let said = session.fill(&[3, 7, 1]).unwrap_err().to_string();
    assert!(said.contains("position 3"), "{said}");
    assert_eq!(session.n_past(), 2);
    session.decode(5).unwrap();
}

#[cfg(unix)]
#[test]
fn a_file_that_is_overwritten_while_it_is_read_stops_the_model() {
    use std::os::unix::fs::FileExt;
    let folder = Folder::new();
    let path = folder.write(&Tiny::new("qwen3moe"));
    let gguf = Gguf::open(&path).unwrap();
    let mut session = open(&path).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    for name in ["gate", "up", "down"] {
        let t = gguf.tensor(&format!("blk.0.ffn_{name}_exps.weight")).unwrap();
        file.write_all_at(&vec![0xff; t.bytes.unwrap() as usize], t.offset).unwrap();
    }
    let said = session.decode(3).unwrap_err().to_string();
    assert!(said.contains("blk.0") && said.contains("changed"), "{said}");
}

/// A model with a vocabulary, of which one expert in layer 1 is none.
fn broken_model(folder: &Folder) -> String {
    let mut tiny = Tiny::read(&ref_model("qwen3moe"));
    tiny.tensor("blk.1.ffn_down_exps.weight").bytes.fill(0xff);
    folder.write(&tiny).to_str().unwrap().to_owned()
}

fn hotset(args: &[&str]) -> Output {
    command(env!("CARGO_BIN_EXE_hotset")).args(args).output().unwrap()
}

#[test]
fn every_verb_that_runs_the_model_fails_and_says_where() {
    let folder = Folder::new();
    let model = broken_model(&folder);
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (text, out) = (at("text.txt"), at("out"));
    std::fs::write(&text, "the other day ".repeat(40)).unwrap();
    for args in [
        &["run", &model, "abc", "-n", "4"][..],
        &["bench", &model, "-p", "8", "-n", "4", "-r", "1", "--probe", "0"],
        &["perplexity", &model, "--file", &text, "--ctx", "32"],
        &["trace", &model, "--prompts", &text, "-n", "4", "--out", &out],
        &["logits", &model, "--tokens", "64,65,66", "--out", &at("a.npy")],
    ] {
        let output = hotset(args);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {said}");
        assert!(said.contains("the feed-forward part of blk.1 gives NaN or infinity"), "{args:?}: {said}");
        assert!(!String::from_utf8_lossy(&output.stdout).contains("NaN"), "{args:?}");
    }
}

#[test]
fn perplexity_never_prints_what_is_no_number() {
    let folder = Folder::new();
    let mut tiny = Tiny::read(&ref_model("qwen3moe"));
    // The row of the letter e, which the text has: the model runs, and its loss is none.
    let row = tiny.tensor("output.weight").bytes.len() / 272;
    let e = usize::from(b'e' - b'!');
    tiny.tensor("output.weight").bytes[e * row..(e + 1) * row].fill(0xff);
    let model = folder.write(&tiny);
    let text = folder.path().join("text.txt");
    std::fs::write(&text, "eels peel ".repeat(20)).unwrap();
    let output = hotset(&["perplexity", model.to_str().unwrap(), "--file", text.to_str().unwrap(), "--ctx", "32"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("the logit of token 68 "), "{said}");
    assert!(!String::from_utf8_lossy(&output.stdout).contains("NaN"));
}

/// A file that has its length and no data: written as zeros, as a hole, and with some of its tensors there.
#[test]
fn a_download_that_took_its_length_first_is_noticed() {
    let folder = Folder::new();
    let whole = Tiny::new("qwen2moe");
    let path = folder.write(&whole);
    let gguf = Gguf::open(&path).unwrap();
    let (bytes, start) = (std::fs::read(&path).unwrap(), gguf.tensors()[0].offset as usize);

    let mut zeros = bytes.clone();
    zeros[start..].fill(0);
    std::fs::write(&path, &zeros).unwrap();
    let said = open(&path).err().expect("no data").to_string();
    assert!(said.contains("norm.weight is not there (still downloading?)"), "{said}");
    // A copy of it would be no better.
    let (empty, copy) = (Gguf::open(&path).unwrap(), folder.path().join("copy.gguf"));
    let watch = &mut |_, _, _| std::ops::ControlFlow::Continue(());
    assert!(hotset::repack::repack(&empty, &copy, watch).unwrap_err().to_string().ends_with("(still downloading?)"));
    assert!(!copy.exists());

    for name in ["output_norm.weight", "blk.0.attn_norm.weight", "blk.1.ffn_norm.weight"] {
        let mut tiny = whole.clone();
        fill(&mut tiny, name, 0.0);
        refused(&tiny, &[&format!("the data of tensor {name} is not there")]);
    }
    // Zeros that models have.
    let mut tiny = whole.clone();
    fill(&mut tiny, "blk.0.attn_q.bias", 0.0);
    fill(&mut tiny, "blk.0.attn_output.weight", 0.0);
    bits_of(&tiny);

    // Only the first half is there, and the file system can tell.
    let part = folder.path().join("part.gguf");
    let expert = gguf.tensor("blk.1.ffn_down_exps.weight").unwrap();
    std::fs::write(&part, &bytes[..expert.offset as usize]).unwrap();
    std::fs::OpenOptions::new().write(true).open(&part).unwrap().set_len(bytes.len() as u64).unwrap();
    let sparse = Gguf::open(&part).unwrap();
    if sparse.hollow_tensors().is_empty() {
        common::not_tested!("this file system does not tell of holes");
        return;
    }
    let said = open(&part).err().expect("no data").to_string();
    assert!(said.contains("the data of tensor blk.1.ffn_down_exps.weight is not there"), "{said}");
}

/// A batch is looked at row by row, and the position is the token's own.
#[test]
fn the_position_is_that_of_the_first_token_that_is_none() {
    let mut tiny = Tiny::new("qwen3moe");
    let row = 32 * 4;
    tiny.tensor("token_embd.weight").bytes[9 * row..10 * row].fill(0xff);
    let folder = Folder::new();
    let path = folder.write(&tiny);
    for n_batch in [1, 2, 3, 8] {
        let options = Options { n_batch: Some(n_batch), ..options() };
        let mut session = Session::open(Gguf::open(&path).unwrap(), &options, &mut |_, _| {}).unwrap();
        let said = session.feed(&[1, 2, 3, 4, 5, 9, 6, 7], &mut |_| {}).unwrap_err().to_string();
        assert!(said.contains("position 5"), "{n_batch}: {said}");
        assert_eq!(session.n_past(), 0);
    }
}
