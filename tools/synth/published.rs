//! Shapes of published models, with fewer layers where that is asked for: every key and tensor that hotset reads of such a file.

use hotset::{
    gguf::{Array, Value},
    quant::GgmlType,
};

use GgmlType::{F32, I32};

/// What may be another than that of the published model.
#[derive(Clone, Copy)]
pub struct Choices {
    /// Layers.
    pub layers: Option<usize>,
    /// Entries of the vocabulary.
    pub vocab: Option<usize>,
    /// Rows of a table of n-grams for each of its heads.
    pub table_rows: u64,
    /// Types of the experts' gate and up, of their down, of the other matrices, of the output matrix.
    pub types: [GgmlType; 4],
}

/// A model's header: keys with the architecture's name before them, and tensors with names, dims and types.
pub struct Header {
    arch: &'static str,
    /// Without those of the tokenizer.
    pub meta: Vec<(String, Value)>,
    pub tensors: Vec<(String, Vec<u64>, GgmlType)>,
    /// Entries of the vocabulary.
    pub vocab: usize,
    /// Types of the experts' gate and up, and of their down.
    experts: [GgmlType; 2],
    /// Of the other matrices.
    dense: GgmlType,
}

impl Header {
    fn new(arch: &'static str, choices: &Choices, layers: usize, vocab: usize, n_embd: u64) -> Self {
        let [up, down, dense, output] = choices.types;
        let (layers, vocab) = (choices.layers.unwrap_or(layers), choices.vocab.unwrap_or(vocab));
        let meta = vec![("general.architecture".to_owned(), Value::from(arch))];
        let mut h = Self { arch, meta, tensors: Vec::new(), vocab, experts: [up, down], dense };
        h.set("attention.layer_norm_rms_epsilon", 1e-6f32);
        h.counts(&[("block_count", layers as u32), ("embedding_length", n_embd as u32)]);
        h.add("token_embd.weight", GgmlType::F16, &[n_embd, vocab as u64]);
        h.add("output.weight", output, &[n_embd, vocab as u64]);
        h
    }

    fn set(&mut self, short: &str, value: impl Into<Value>) {
        self.meta.push((format!("{}.{short}", self.arch), value.into()));
    }

    fn counts(&mut self, counts: &[(&str, u32)]) {
        counts.iter().for_each(|&(short, n)| self.set(short, n));
    }

    /// A tensor, in Q8_0 where its rows are no whole blocks of the type.
    fn add(&mut self, name: impl Into<String>, ty: GgmlType, dims: &[u64]) {
        let ty = if ty.row_bytes(dims[0]).is_some() { ty } else { GgmlType::Q8_0 };
        self.tensors.push((name.into(), dims.to_vec(), ty));
    }

    /// Vectors and small matrices of a layer, in F32.
    fn floats(&mut self, il: usize, tensors: &[(&str, &[u64])]) {
        tensors.iter().for_each(|(name, dims)| self.add(format!("blk.{il}.{name}"), F32, dims));
    }

    /// Matrices of a layer.
    fn dense(&mut self, il: usize, tensors: &[(&str, &[u64])]) {
        tensors.iter().for_each(|(name, dims)| self.add(format!("blk.{il}.{name}.weight"), self.dense, dims));
    }

    /// `n` experts of a layer, `ff` wide, and their router.
    fn experts(&mut self, il: usize, [n_embd, ff, n]: [u64; 3]) {
        self.floats(il, &[("ffn_gate_inp.weight", &[n_embd, n])]);
        let [up, down] = self.experts;
        for (name, ty, dims) in
            [("gate", up, [n_embd, ff, n]), ("up", up, [n_embd, ff, n]), ("down", down, [ff, n_embd, n])]
        {
            self.add(format!("blk.{il}.ffn_{name}_exps.weight"), ty, &dims);
        }
    }

    /// A network that every token takes, of tensors that end in `suffix`.
    fn every(&mut self, il: usize, suffix: &str, [n_embd, ff]: [u64; 2]) {
        for (name, dims) in [("gate", [n_embd, ff]), ("up", [n_embd, ff]), ("down", [ff, n_embd])] {
            self.dense(il, &[(&format!("ffn_{name}{suffix}"), &dims)]);
        }
    }

    fn layers(&self) -> usize {
        self.count("block_count") as usize
    }

    /// Routed experts of a layer.
    pub fn experts_per_layer(&self) -> u64 {
        self.count("expert_count").into()
    }

    fn count(&self, short: &str) -> u32 {
        let key = format!("{}.{short}", self.arch);
        match self.meta.iter().find(|(known, _)| *known == key) {
            Some((_, Value::U32(n))) => *n,
            _ => unreachable!("{key} is set"),
        }
    }
}

fn u64s(numbers: impl Iterator<Item = u64>) -> Value {
    Value::Array(Array::U64(numbers.collect()))
}

fn i32s(numbers: impl Iterator<Item = i32>) -> Value {
    Value::Array(Array::I32(numbers.collect()))
}

/// Qwen3.8-Flash-Next's parts, some 120 billion parameters and 51 in a table of n-grams: the parts' sizes are Qwen3-Next's.
pub fn qwen4exp(choices: &Choices) -> Header {
    let mut h = Header::new("qwen4exp", choices, 48, 248_320, 2048);
    h.counts(&[
        ("context_length", 262_144),
        ("attention.head_count", 16),
        ("attention.head_count_kv", 2),
        ("attention.key_length", 256),
        ("attention.value_length", 256),
        ("rope.dimension_count", 64),
        ("expert_count", 512),
        ("expert_used_count", 10),
        ("expert_feed_forward_length", 768),
        ("expert_shared_feed_forward_length", 768),
        ("ssm.conv_kernel", 4),
        ("ssm.inner_size", 4096),
        ("ssm.state_size", 128),
        ("ssm.time_step_rank", 32),
        ("ssm.group_count", 16),
        ("full_attention_interval", 4),
        ("hyper_connection.count", 4),
        ("hyper_connection.low_rank", 64),
        ("attention.indexer.top_k", 2048),
        ("embedding_length_per_layer_input", 256),
        ("ple.ngram_size", 3),
        ("ple.heads_per_ngram", 8),
        ("ple.conv_kernel", 4),
        ("ple.eos_token_id", 7),
    ]);
    h.set("rope.freq_base", 1e7f32);
    h.set("ple.layers", i32s([1].into_iter()));
    h.set(
        "ple.layer_multipliers",
        u64s([13_510_798_882_111_487, 16_888_498_602_639_359, 11_258_999_068_426_243].into_iter()),
    );
    let rows = choices.table_rows;
    h.set("ple.head_offsets", u64s((0..16).map(|head| head * rows)));
    h.set("ple.head_vocab_sizes", u64s((0..16).map(|head| rows - head)));
    h.add("per_layer_token_embd.weight", GgmlType::Q4_0, &[256, 16 * rows]);
    for (name, dims) in [("norm", &[8192][..]), ("down", &[8192, 64]), ("up", &[64, 8192])] {
        h.add(format!("output_hc_{name}.weight"), F32, dims);
    }
    for il in 0..h.layers() {
        for part in ["attn", "ffn"] {
            h.floats(
                il,
                &[(&format!("hc_{part}_norm.weight"), &[8192]), (&format!("hc_{part}_up.weight"), &[64, 8192])],
            );
            h.floats(il, &[(&format!("hc_{part}_down_inject.weight"), &[8192, 68])]);
        }
        if (il + 1) % 4 == 0 {
            h.floats(il, &[("attn_q_norm.weight", &[256]), ("attn_k_norm.weight", &[256])]);
            h.dense(il, &[("attn_q", &[2048, 8192]), ("attn_k", &[2048, 512])]);
            h.dense(il, &[("attn_v", &[2048, 512]), ("attn_output", &[4096, 2048])]);
        } else {
            h.dense(il, &[("attn_qkv_gate", &[2048, 12_288]), ("ssm_out", &[4096, 2048])]);
            h.floats(il, &[("ssm_beta_alpha.weight", &[2048, 64]), ("ssm_conv1d.weight", &[4, 8192])]);
            h.floats(il, &[("ssm_dt.bias", &[32]), ("ssm_a", &[32]), ("ssm_norm.weight", &[128])]);
        }
        if il == 1 {
            h.dense(il, &[("ple_key", &[4096, 8192]), ("ple_value", &[4096, 2048])]);
            h.floats(il, &[("ple_norm_key.weight", &[8192]), ("ple_norm_query.weight", &[8192])]);
            h.floats(il, &[("ple_norm_conv.weight", &[8192]), ("ple_conv1d.weight", &[4, 8192])]);
        }
        h.experts(il, [2048, 768, 512]);
        h.floats(il, &[("ffn_gate_inp_shexp.weight", &[2048])]);
        h.every(il, "_shexp", [2048, 768]);
    }
    h
}

/// DeepSeek-V4-Flash: 284 billion parameters, 13 of them a token's.
pub fn deepseek4(choices: &Choices) -> Header {
    let mut h = Header::new("deepseek4", choices, 43, 129_280, 4096);
    h.counts(&[
        ("context_length", 1 << 20),
        ("attention.head_count", 64),
        ("attention.head_count_kv", 1),
        ("attention.key_length", 512),
        ("attention.value_length", 512),
        ("attention.q_lora_rank", 1024),
        ("attention.output_group_count", 8),
        ("attention.output_lora_rank", 1024),
        ("attention.sliding_window", 128),
        ("attention.indexer.head_count", 64),
        ("attention.indexer.key_length", 128),
        ("attention.indexer.top_k", 512),
        ("rope.dimension_count", 64),
        ("rope.scaling.original_context_length", 65_536),
        ("expert_count", 256),
        ("expert_used_count", 6),
        ("expert_feed_forward_length", 2048),
        ("expert_shared_count", 1),
        ("expert_gating_func", 4),
        ("hash_layer_count", 3),
        ("hyper_connection.count", 4),
        ("hyper_connection.sinkhorn_iterations", 20),
    ]);
    for (short, number) in [
        ("rope.freq_base", 1e4f32),
        ("attention.compress_rope_freq_base", 1.6e5),
        ("rope.scaling.factor", 16.0),
        ("expert_weights_scale", 1.5),
        ("hyper_connection.epsilon", 1e-6),
    ] {
        h.set(short, number);
    }
    h.set("rope.scaling.type", "yarn");
    h.set("expert_weights_norm", true);
    let (n, vocab) = (h.layers(), h.vocab as u64);
    h.set("swiglu_clamp_exp", Value::Array(Array::F32(vec![10.0; n])));
    let each = |il: usize| if il < 2 { 0 } else { [4, 128][il % 2] };
    h.set("attention.compress_ratios", i32s((0..n).map(each)));
    h.add("output_norm.weight", F32, &[4096]);
    for (name, dims) in [("fn", &[16_384, 4][..]), ("base", &[4]), ("scale", &[1])] {
        h.add(format!("output_hc_{name}.weight"), F32, dims);
    }
    for il in 0..n {
        for part in ["attn", "ffn"] {
            h.floats(
                il,
                &[(&format!("{part}_norm.weight"), &[4096]), (&format!("hc_{part}_fn.weight"), &[16_384, 24])],
            );
            h.floats(il, &[(&format!("hc_{part}_base.weight"), &[24]), (&format!("hc_{part}_scale.weight"), &[3])]);
        }
        h.floats(il, &[("attn_sinks.weight", &[64]), ("attn_q_a_norm.weight", &[1024])]);
        h.floats(il, &[("attn_kv_a_norm.weight", &[512])]);
        h.dense(il, &[("attn_q_a", &[4096, 1024]), ("attn_q_b", &[1024, 32_768]), ("attn_kv", &[4096, 512])]);
        h.dense(il, &[("attn_output_a", &[4096, 8192]), ("attn_output_b", &[8192, 4096])]);
        let tokens = each(il) as u64;
        if tokens > 0 {
            compressor(&mut h, il, "attn_compressor", [512, if tokens == 4 { 1024 } else { 512 }, tokens]);
        }
        if tokens == 4 {
            compressor(&mut h, il, "indexer_compressor", [128, 256, tokens]);
            h.dense(il, &[("indexer.proj", &[4096, 64]), ("indexer.attn_q_b", &[1024, 8192])]);
        }
        if il < 3 {
            h.add(format!("blk.{il}.ffn_gate_tid2eid.weight"), I32, &[6, vocab]);
        } else {
            h.floats(il, &[("exp_probs_b.bias", &[256])]);
        }
        h.experts(il, [4096, 2048, 256]);
        h.every(il, "_shexp", [4096, 2048]);
    }
    h
}

/// What makes rows of blocks of so many tokens.
fn compressor(h: &mut Header, il: usize, name: &str, [dim, cols, tokens]: [u64; 3]) {
    h.dense(il, &[(&format!("{name}_kv"), &[4096, cols]), (&format!("{name}_gate"), &[4096, cols])]);
    h.floats(il, &[(&format!("{name}_ape.weight"), &[cols, tokens]), (&format!("{name}_norm.weight"), &[dim])]);
}

/// LFM2-8B-A1B: short convolutions, attention in six of 24 layers.
pub fn lfm2moe(choices: &Choices) -> Header {
    const ATTENDS: [usize; 6] = [2, 6, 10, 14, 18, 21];
    let mut h = Header::new("lfm2moe", choices, 24, 65_536, 2048);
    h.counts(&[
        ("context_length", 128_000),
        ("attention.head_count", 32),
        ("expert_count", 32),
        ("expert_used_count", 4),
        ("expert_feed_forward_length", 1792),
        ("expert_gating_func", 2),
        ("shortconv.l_cache", 3),
        ("leading_dense_block_count", 2),
    ]);
    h.set("rope.freq_base", 1e6f32);
    let n = h.layers();
    h.set("attention.head_count_kv", i32s((0..n).map(|il| if ATTENDS.contains(&il) { 8 } else { 0 })));
    h.add("token_embd_norm.weight", F32, &[2048]);
    for il in 0..n {
        h.floats(il, &[("attn_norm.weight", &[2048]), ("ffn_norm.weight", &[2048])]);
        if ATTENDS.contains(&il) {
            h.floats(il, &[("attn_q_norm.weight", &[64]), ("attn_k_norm.weight", &[64])]);
            h.dense(il, &[("attn_q", &[2048, 2048]), ("attn_k", &[2048, 512])]);
            h.dense(il, &[("attn_v", &[2048, 512]), ("attn_output", &[2048, 2048])]);
        } else {
            h.floats(il, &[("shortconv.conv.weight", &[3, 2048])]);
            h.dense(il, &[("shortconv.in_proj", &[2048, 6144]), ("shortconv.out_proj", &[2048, 2048])]);
        }
        if il < 2 {
            h.every(il, "", [2048, 7168]);
        } else {
            h.experts(il, [2048, 1792, 32]);
            h.floats(il, &[("exp_probs_b.bias", &[32])]);
        }
    }
    h
}

/// DeepSeek-V2-Lite: latent attention, a shared expert.
pub fn deepseek2(choices: &Choices) -> Header {
    let mut h = Header::new("deepseek2", choices, 27, 102_400, 2048);
    h.counts(&[
        ("context_length", 32_768),
        ("attention.head_count", 16),
        ("attention.head_count_kv", 1),
        ("attention.kv_lora_rank", 512),
        ("attention.key_length", 576),
        ("attention.value_length", 512),
        ("attention.key_length_mla", 192),
        ("attention.value_length_mla", 128),
        ("rope.dimension_count", 64),
        ("expert_count", 64),
        ("expert_used_count", 6),
        ("expert_feed_forward_length", 1408),
        ("expert_shared_count", 2),
        ("leading_dense_block_count", 1),
    ]);
    h.set("rope.freq_base", 1e4f32);
    h.add("output_norm.weight", F32, &[2048]);
    for il in 0..h.layers() {
        h.floats(il, &[("attn_norm.weight", &[2048]), ("ffn_norm.weight", &[2048]), ("attn_kv_a_norm.weight", &[512])]);
        h.dense(il, &[("attn_q", &[2048, 3072]), ("attn_kv_a_mqa", &[2048, 576]), ("attn_output", &[2048, 2048])]);
        // In Q8_0: heads of 128 are not whole blocks of all types.
        for (name, dims) in [("k", [128, 512, 16]), ("v", [512, 128, 16])] {
            h.add(format!("blk.{il}.attn_{name}_b.weight"), GgmlType::Q8_0, &dims);
        }
        if il == 0 {
            h.every(il, "", [2048, 10_944]);
        } else {
            h.experts(il, [2048, 1408, 64]);
            h.every(il, "_shexp", [2048, 2816]);
        }
    }
    h
}
