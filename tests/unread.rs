//! Every key and every tensor of a model's file is read, or known to change nothing, or the file is refused by name. What
//! nobody reads is how a model comes to answer wrongly without a word.

mod common;

use common::{
    opened::{Folder, bits_of, open, refused},
    tiny::{ARCHS, N_EMBD, N_EXPERT, N_LAYER, Tiny},
};
use hotset::{
    arch,
    gguf::{Array, Gguf, Value},
    model::Model,
    repack,
};

/// Tensors that other architectures or other writers have and these do not.
const STRANGE: &[&str] = &[
    "blk.0.exp_probs_b.bias",
    "blk.0.ffn_gate_inp.bias",
    "blk.0.ffn_gate_exps.bias",
    "blk.1.ffn_down_exps.bias",
    "blk.0.ffn_down_exps.input_scale",
    "blk.0.attn_norm.scale",
    "blk.0.ffn_gate_inp.scale",
    "blk.0.attn_sinks.weight",
    "blk.1.attn_gate.weight",
    "blk.1.post_attention_norm.weight",
    "blk.1.ffn_latent_down.weight",
    "blk.0.attn_q_norm.bias",
    "blk.1.attn_norm.bias",
    "blk.1.nextn.eh_proj.weight",
    "blk.00.attn_q.weight",
    "blk.+1.attn_q.weight",
    "blk.0.ffn_gate.0.weight",
    "token_embd.scale",
    "output.bias",
    "output_norm.bias",
    "token_embd_norm.weight",
    "position_embd.weight",
    "v.patch_embd.weight",
    "notes",
];

#[test]
fn a_tensor_that_nothing_reads_is_refused_by_name() {
    for arch in ARCHS {
        for name in STRANGE {
            let mut tiny = Tiny::new(arch);
            tiny.add(name, &[N_EMBD]);
            refused(&tiny, &[&format!("tensor {name} "), arch]);
        }
        // What one of them has is strange in those that do not.
        for other in ARCHS {
            for foreign in Tiny::new(other).tensors {
                let mut tiny = Tiny::new(arch);
                let known = tiny.tensors.iter().any(|t| t.name == foreign.name);
                if !known && !foreign.name.contains("_shexp") && !foreign.name.ends_with(".bias") {
                    let name = foreign.name.clone();
                    tiny.tensors.push(foreign);
                    refused(&tiny, &[&format!("tensor {name} ")]);
                }
            }
        }
    }
}

/// What a file says does not break the sentence that says so.
#[test]
fn names_with_control_characters_stay_in_one_line() {
    let shown = r"evil\n\u{1b}[2J";
    let evil = "evil\n\u{1b}[2J";
    let mut tiny = Tiny::new("qwen3moe");
    tiny.add(evil, &[N_EMBD]);
    refused(&tiny, &[&format!("tensor {shown} ")]);
    let mut tiny = Tiny::new("qwen3moe");
    tiny.add(&format!("blk.7.{evil}"), &[N_EMBD]);
    refused(&tiny, &["block_count is 2,", &format!("tensor blk.7.{shown}")]);
    let mut tiny = Tiny::new("qwen3moe");
    tiny.set(&format!("qwen3moe.{evil}"), evil);
    refused(&tiny, &[&format!("key qwen3moe.{shown} (\"{shown}\")")]);
    for key in ["general.architecture", "qwen3moe.rope.scaling.type"] {
        let mut tiny = Tiny::new("qwen3moe");
        tiny.set(key, evil);
        refused(&tiny, &[shown]);
    }
}

#[test]
fn an_expert_too_many_is_refused_in_every_layout() {
    let mut tiny = Tiny::new("llama").old_layout();
    let more = format!("blk.1.ffn_up.{N_EXPERT}.weight");
    tiny.add(&more, &[N_EMBD, 64]);
    refused(&tiny, &[&format!("tensor {more} ")]);
    let mut tiny = Tiny::new("llama").fused_layout(0..N_LAYER);
    tiny.add("blk.0.ffn_up_exps.weight", &[N_EMBD, 64, N_EXPERT as u64]);
    refused(&tiny, &["tensor blk.0.ffn_up_exps.weight "]);
}

#[test]
fn whoever_opens_the_file_refuses_it() {
    let folder = Folder::new();
    let mut tiny = Tiny::new("olmoe");
    tiny.add("blk.0.exp_probs_b.bias", &[N_EXPERT as u64]);
    let gguf = Gguf::open(&folder.write(&tiny)).unwrap();
    let said = arch::blueprint(&gguf).unwrap_err().to_string();
    assert!(said.contains("tensor blk.0.exp_probs_b.bias"), "{said}");
    let out = folder.path().join("repacked.gguf");
    let said = repack::repack(&gguf, &out, &mut |_, _, _| std::ops::ControlFlow::Continue(())).unwrap_err().to_string();
    assert!(said.contains("tensor blk.0.exp_probs_b.bias") && !out.exists(), "{said}");
}

#[test]
fn a_number_of_layers_that_the_tensors_contradict_is_refused() {
    for arch in ARCHS {
        let mut tiny = Tiny::new(arch);
        tiny.set(&format!("{arch}.block_count"), 1u32);
        refused(&tiny, &[&format!("{arch}.block_count is 1,"), "tensor blk.1.attn_norm.weight"]);
        tiny.set(&format!("{arch}.block_count"), 3u32);
        refused(&tiny, &["tensor blk.2.", "no such tensor"]);
    }
}

#[test]
fn what_is_charged_to_the_budget_is_what_is_loaded() {
    let folder = Folder::new();
    let path = folder.write(&Tiny::new("qwen2moe"));
    let gguf = Gguf::open(&path).unwrap();
    let (mut loaded, mut rounded) = (0, 0);
    let blueprint = arch::blueprint(&gguf).unwrap();
    let charged = blueprint.resident_bytes();
    Model::load(&gguf, blueprint, &mut |bytes| {
        loaded += bytes;
        rounded += bytes.next_multiple_of(4096);
    })
    .unwrap();
    assert_eq!(charged, rounded);
    assert!(loaded > 0 && rounded > loaded);
}

#[test]
fn a_key_that_nothing_reads_is_refused_by_name() {
    for arch in ARCHS {
        for (short, value) in [
            ("mystery", Value::from(1u32)),
            ("attention.sinks", true.into()),
            ("expert_activation", "gelu".into()),
            ("rope.scaling.long_factors", vec![1.0f32; 8].into()),
        ] {
            let mut tiny = Tiny::new(arch);
            let key = format!("{arch}.{short}");
            tiny.set(&key, value);
            refused(&tiny, &[&format!("key {key} "), "unknown"]);
        }
        let mut tiny = Tiny::new(arch);
        tiny.set("prism.hadamard.size", 128u32);
        refused(&tiny, &["prism.hadamard.size"]);
    }
}

/// A key and a value of it that changes what a model computes.
fn changes() -> Vec<(&'static str, Value)> {
    vec![
        ("expert_group_count", 2u32.into()),
        ("expert_group_used_count", 2u32.into()),
        ("expert_gating_func", 2u32.into()),
        ("expert_gating_func", 3u32.into()),
        ("expert_weights_scale", 2.5f32.into()),
        ("expert_weights_scale", f32::NAN.into()),
        ("expert_shared_count", 1u32.into()),
        ("attention.causal", false.into()),
        ("attention.sliding_window", 8u32.into()),
        ("attention.sliding_window", vec![8u32, 0].into()),
        ("attention.sliding_window_pattern", vec![true, false].into()),
        ("attention.scale", 0.5f32.into()),
        ("attention.scale", f32::NAN.into()),
        ("attention.max_alibi_bias", 8.0f32.into()),
        ("attention.clamp_kqv", 1.5f32.into()),
        ("attn_logit_softcapping", 50.0f32.into()),
        ("final_logit_softcapping", 30.0f32.into()),
        ("logit_scale", 0.1f32.into()),
        ("residual_scale", 0.2f32.into()),
        ("embedding_scale", 12.0f32.into()),
        ("rope.dimension_sections", vec![4i32, 4, 0, 0].into()),
        ("rope.scaling.yarn_ext_factor", 1.0f32.into()),
        ("rope.scaling.yarn_attn_factor", 1.5f32.into()),
        ("nextn_predict_layers", 1u32.into()),
        ("leading_dense_block_count", 1u32.into()),
        ("interleave_moe_layer_step", 2u32.into()),
        ("use_parallel_residual", true.into()),
    ]
}

#[test]
fn a_key_that_would_change_the_model_is_refused_by_name() {
    for arch in ARCHS {
        for (short, value) in changes() {
            if arch == "qwen2moe" && short == "expert_shared_count" {
                continue; // it has one
            }
            let mut tiny = Tiny::new(arch);
            let key = format!("{arch}.{short}");
            tiny.set(&key, value);
            refused(&tiny, &[&key]);
            // Whatever the key's type.
            tiny.set(&key, Value::Array(Array::String(vec!["x".to_owned()])));
            refused(&tiny, &[&key]);
        }
        let renormalises = matches!(arch, "llama" | "qwen3moe");
        let mut tiny = Tiny::new(arch);
        tiny.set(&format!("{arch}.expert_weights_norm"), !renormalises);
        refused(&tiny, &["expert_weights_norm"]);
    }
}

#[test]
fn a_key_that_changes_nothing_is_listed_with_a_reason() {
    for arch in ARCHS {
        let whole = Tiny::new(arch);
        let expected = bits_of(&whole);
        let renormalises = matches!(arch, "llama" | "qwen3moe");
        let harmless: Vec<(&str, Value)> = vec![
            ("vocab_size", 999u32.into()),
            ("expert_group_count", 0u32.into()),
            ("expert_group_count", 1u32.into()),
            ("expert_group_used_count", 1u32.into()),
            ("expert_gating_func", 0u32.into()),
            ("expert_gating_func", 1u32.into()),
            ("expert_weights_norm", renormalises.into()),
            ("expert_weights_scale", 1.0f32.into()),
            ("expert_weights_scale", 0.0f32.into()),
            ("attention.causal", true.into()),
            ("attention.sliding_window", 0u32.into()),
            ("attention.sliding_window", 64u32.into()),
            ("attention.sliding_window", 4096u32.into()),
            ("attention.scale", 0.25f32.into()),
            ("attention.layer_norm_epsilon", 1e-5f32.into()),
            ("rope.scaling.original_context_length", 32u32.into()),
            ("rope.scaling.finetuned", true.into()),
            ("rope.dimension_sections", vec![0i32; 4].into()),
            ("nextn_predict_layers", 0u32.into()),
            ("attn_logit_softcapping", 0.0f32.into()),
            ("tensor_data_layout", "Meta AI original pth".into()),
        ];
        for (short, value) in harmless {
            let mut tiny = whole.clone();
            let key = format!("{arch}.{short}");
            tiny.set(&key, value);
            assert_eq!(bits_of(&tiny), expected, "{key}");
            let folder = Folder::new();
            let blueprint = arch::blueprint(&Gguf::open(&folder.write(&tiny)).unwrap()).unwrap();
            let listed = blueprint.unread.iter().find(|unread| unread.name == key);
            assert!(listed.is_some_and(|unread| !unread.reason.is_empty()), "{key}: {:?}", blueprint.unread);
        }
        // These are read.
        for (short, value) in [
            ("expert_feed_forward_length", Value::from(64u32)),
            ("expert_feed_forward_length", vec![64u32, 64].into()),
            ("expert_shared_count", 0u32.into()),
            ("rope.scaling.attn_factor", 1.0f32.into()),
            ("rope.scaling.factor", 1.0f32.into()),
            ("rope.scaling.type", "none".into()),
            ("rope.dimension_count", 16u32.into()),
        ] {
            let mut tiny = whole.clone();
            tiny.set(&format!("{arch}.{short}"), value);
            assert_eq!(bits_of(&tiny), expected, "{arch}.{short}");
        }
    }
}

#[test]
fn widths_that_the_tensors_contradict_are_refused() {
    for arch in ARCHS {
        for value in [Value::from(63u32), vec![64u32, 32].into(), vec![64u32].into()] {
            let mut tiny = Tiny::new(arch);
            tiny.set(&format!("{arch}.expert_feed_forward_length"), value);
            refused(&tiny, &["expert_feed_forward_length"]);
        }
        let mut tiny = Tiny::new(arch);
        tiny.set(&format!("{arch}.expert_shared_feed_forward_length"), 95u32);
        refused(&tiny, &["expert_shared_feed_forward_length"]);
    }
    let mut tiny = Tiny::new("qwen2moe");
    tiny.set("qwen2moe.expert_shared_feed_forward_length", 96u32);
    tiny.set("qwen2moe.expert_shared_count", 1u32);
    assert_eq!(bits_of(&tiny), bits_of(&Tiny::new("qwen2moe")));
}

/// A layer without its shared expert is another model.
#[test]
fn a_shared_expert_that_is_left_out_is_missed() {
    let mut tiny = Tiny::new("qwen2moe");
    tiny.tensors.retain(|t| !(t.name.starts_with("blk.1.") && t.name.contains("_shexp")));
    refused(&tiny, &["tensor blk.1.ffn_gate_shexp.weight", "no such tensor"]);
}

#[test]
fn a_vocabulary_longer_than_the_embedding_is_refused() {
    let mut tiny = Tiny::new("qwen3moe");
    let tokens = |n: usize| Value::Array(Array::String((0..n).map(|i| format!("t{i}")).collect()));
    tiny.set("tokenizer.ggml.tokens", tokens(42));
    refused(&tiny, &["42 tokens", "40 rows", "token_embd.weight"]);
    for n in [0, 39, 40] {
        tiny.set("tokenizer.ggml.tokens", tokens(n));
        assert_eq!(bits_of(&tiny), bits_of(&Tiny::new("qwen3moe")));
    }
}

/// What converters write for the models that people run, with their own numbers where the tensors do not contradict them.
#[test]
fn the_keys_of_real_files_are_accepted() {
    let real: &[(&str, &[(&str, Value)])] = &[
        (
            "qwen3moe",
            &[
                ("context_length", 40_960u32.into()),
                ("feed_forward_length", 6_144u32.into()),
                ("rope.freq_base", 1e6f32.into()),
                ("attention.layer_norm_rms_epsilon", 1e-6f32.into()),
                ("expert_feed_forward_length", 64u32.into()),
                ("vocab_size", 151_936u32.into()),
            ],
        ),
        (
            "qwen2moe",
            &[
                ("context_length", 32_768u32.into()),
                ("feed_forward_length", 18_944u32.into()),
                ("rope.freq_base", 1e6f32.into()),
                ("attention.layer_norm_rms_epsilon", 1e-6f32.into()),
                ("expert_feed_forward_length", 64u32.into()),
                ("expert_shared_feed_forward_length", 96u32.into()),
            ],
        ),
        (
            "olmoe",
            &[
                ("context_length", 4_096u32.into()),
                ("feed_forward_length", 1_024u32.into()),
                ("rope.freq_base", 1e4f32.into()),
                ("attention.layer_norm_rms_epsilon", 1e-5f32.into()),
            ],
        ),
        (
            "llama",
            &[
                ("context_length", 32_768u32.into()),
                ("feed_forward_length", 14_336u32.into()),
                ("vocab_size", 32_000u32.into()),
                ("rope.dimension_count", 16u32.into()),
                ("rope.freq_base", 1e6f32.into()),
                ("attention.layer_norm_rms_epsilon", 1e-5f32.into()),
            ],
        ),
    ];
    for (arch, keys) in real {
        let mut tiny = Tiny::new(arch);
        for (short, value) in *keys {
            tiny.set(&format!("{arch}.{short}"), value.clone());
        }
        for (key, value) in [
            ("general.file_type", Value::from(15u32)),
            ("general.quantization_version", 2u32.into()),
            ("general.tags", vec!["text-generation".to_owned()].into()),
            ("quantize.imatrix.file", "imatrix.dat".into()),
            ("quantize.imatrix.chunks_count", 691i32.into()),
            ("tokenizer.chat_template", "{{ messages }}".into()),
        ] {
            tiny.set(key, value);
        }
        let folder = Folder::new();
        open(&folder.write(&tiny)).unwrap();
    }
}
