//! `hotset inspect`: what a model file holds, what memory it wants, and whether it runs. The text and the JSON say the same.
//!
//! A file that does not run is shown as far as it is understood: that is what the question is about, then.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    path::PathBuf,
    process::ExitCode,
};

use hotset::{
    Error, Result, arch,
    blueprint::{self, Blueprint, Role, Unread, elements},
    expert::{ExpertStore, LayerStore, repack_version},
    gguf::Gguf,
    human_bytes, human_bytes_up,
    io::Layout,
    model::missing_data,
    session::{Options, make_plan},
    tokenizer::Tokenizer,
};
use serde::Serialize;

use super::{
    Ended,
    args::{asked_ctx, ctx},
    json, model_file,
    out::{Out, printable},
    state_notes::state_notes,
};

/// Show what a model file holds
///
/// Active parameters are those that one token is multiplied with: everything dense but a token embedding of its own (of
/// which a token takes a row), and the used share of the experts. Only the file's header is needed: a download may
/// still be under way.
#[derive(clap::Args)]
pub struct Args {
    /// Model file (GGUF; of a split set any file)
    file: PathBuf,
    /// Context for the budgets, in tokens; 0: the model's own; default: that, at most 4096
    #[arg(short, long, visible_alias = "ctx-size", value_name = "TOKENS", value_parser = ctx)]
    ctx: Option<usize>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// See the module. The fields are the JSON's keys.
#[derive(Serialize)]
struct Report {
    path: String,
    name: Option<String>,
    architecture: String,
    /// What people call its models.
    family: Option<&'static str>,
    parameters: u64,
    expert_parameters: u64,
    tokenizer: Option<String>,
    pre_tokenizer: Option<String>,
    types: Vec<TypeRow>,
    /// Of layers with routed experts.
    expert_types: Vec<ExpertTypes>,
    tensor_bytes: u64,
    /// What the architecture says; `None` if hotset does not know it.
    #[serde(flatten)]
    shape: Option<Shape>,
    /// What its layers consist of; empty where tensors are missing or do not fit.
    parts: Vec<Parts>,
    /// `None` where tensors are missing or do not fit.
    #[serde(flatten)]
    memory: Option<Memory>,
    /// Version of the layout if `hotset repack` wrote the file.
    repacked: Option<u32>,
    shards: Vec<Shard>,
    /// Every tensor's bytes are there.
    complete: bool,
    missing_bytes: u64,
    /// A tensor whose bytes are there in length only.
    missing_data: Option<String>,
    /// Keys of the file that change nothing.
    unread: Vec<UnreadKey>,
    runs: bool,
    /// What does not.
    why_not: Option<String>,
}

/// The model's shape.
#[derive(Serialize)]
struct Shape {
    active_parameters: u64,
    layers: usize,
    moe_layers: usize,
    experts: usize,
    experts_used: usize,
    /// Layers with an expert that every token uses.
    shared_expert_layers: usize,
    context_train: usize,
    vocabulary: usize,
}

/// Parts of one kind.
#[derive(Serialize)]
struct Parts {
    kind: &'static str,
    count: usize,
}

/// What the model takes.
#[derive(Serialize)]
struct Memory {
    dense_resident_bytes: u64,
    experts_bytes: u64,
    moe: Vec<Layer>,
    /// Bytes of experts that one token uses.
    token_working_set_bytes: u64,
    budget: Budget,
    /// Every expert lies in one place, from the start of a block: seen, not said by the file.
    one_read_experts: bool,
}

/// A key that is not read, and why that is right.
#[derive(Serialize)]
struct UnreadKey {
    key: String,
    reason: &'static str,
}

/// Tensors of one role and type.
#[derive(Serialize)]
struct TypeRow {
    role: &'static str,
    r#type: String,
    tensors: usize,
    bytes: u64,
}

/// Layers one after another whose experts have the same types.
#[derive(Serialize, PartialEq, Eq)]
struct ExpertTypes {
    first_layer: usize,
    last_layer: usize,
    matrices: Vec<MatrixTypes>,
}

/// Types of a matrix of the experts of a layer: several where experts differ.
#[derive(Serialize, PartialEq, Eq)]
struct MatrixTypes {
    role: &'static str,
    types: BTreeSet<String>,
}

/// A MoE layer.
#[derive(Serialize)]
struct Layer {
    block: usize,
    /// Gate, up, down.
    types: [Option<&'static str>; 3],
    expert_bytes: u64,
    bytes: u64,
}

/// Memory for a context of `n_ctx` tokens.
#[derive(Serialize)]
struct Budget {
    n_ctx: usize,
    kv_bytes: u64,
    /// Layers whose rows are those of a window.
    window_layers: usize,
    /// Layers that keep so many bytes instead of rows, whatever the context.
    recurrent_layers: usize,
    recurrent_bytes: u64,
    #[serde(skip)]
    notes: Vec<String>,
    smallest_bytes: u64,
    full_bytes: u64,
}

#[derive(Serialize)]
struct Shard {
    path: String,
    bytes: u64,
    missing_bytes: u64,
}

/// The verb.
pub fn run(args: &Args) -> Ended {
    let gguf = model_file::open_header(&args.file)?;
    let report = Report::new(&gguf, args.ctx)?;
    let text = if args.json { json::document(&report) } else { report.text() };
    Out::new().text(&text)?;
    Ok(ExitCode::SUCCESS)
}

impl Report {
    fn new(gguf: &Gguf, n_ctx: Option<usize>) -> Result<Self> {
        let understood = arch::understood(gguf).ok();
        let string = |key: &str| gguf.meta().str(key).ok().flatten().map(str::to_owned);
        let shards = shards(gguf);
        let missing_bytes = shards.iter().map(|s| s.missing_bytes).sum();
        let missing_data = if missing_bytes > 0 { None } else { missing_data(gguf).ok().flatten() };
        let missing_data = missing_data.map(|t| t.name.clone());
        let kinds = understood.as_ref().map(Blueprint::kinds).unwrap_or_default();
        let parts = kinds.into_iter().map(|(kind, count)| Parts { kind: kind.name(), count }).collect();
        let memory = understood.map(|blueprint| Memory::new(gguf, &blueprint, n_ctx)).transpose();
        let runs = runs(gguf, missing_bytes, missing_data.as_deref());
        // Where the model is fine, the context that was asked for is not.
        let memory = if runs.is_ok() { memory? } else { memory.ok().flatten() };
        Ok(Report {
            path: gguf.path().display().to_string(),
            name: string("general.name"),
            family: string("general.architecture").and_then(|name| arch::family(&name)),
            architecture: string("general.architecture").unwrap_or_else(|| "not given".to_owned()),
            parameters: elements(gguf, |_| true),
            expert_parameters: elements(gguf, Role::is_routed_expert),
            tokenizer: string("tokenizer.ggml.model"),
            pre_tokenizer: string("tokenizer.ggml.pre"),
            types: types(gguf),
            expert_types: expert_types(gguf),
            tensor_bytes: gguf.tensors().iter().filter_map(|t| t.bytes).sum(),
            shape: arch::shape(gguf).ok().map(Shape::from),
            parts,
            memory,
            repacked: repack_version(gguf).ok().flatten(),
            complete: missing_bytes == 0 && missing_data.is_none(),
            shards,
            missing_bytes,
            missing_data,
            runs: runs.is_ok(),
            unread: runs.as_deref().unwrap_or_default().iter().map(UnreadKey::new).collect(),
            why_not: runs.err().map(|e| without_path(gguf, &e.to_string())),
        })
    }

    fn text(&self) -> String {
        let mut text = Lines(String::new());
        let b = human_bytes;
        let or_unknown = |text: &Option<String>| text.clone().unwrap_or_else(|| "not given".to_owned());
        text.line("file", &self.path);
        if self.missing_bytes > 0 {
            let missing = format!("{} of tensor data are not there (still downloading?)", b(self.missing_bytes));
            text.line("INCOMPLETE", missing);
        }
        if let Some(tensor) = &self.missing_data {
            text.line("INCOMPLETE", format!("the data of tensor {tensor} is not there (still downloading?)"));
        }
        text.line("name", or_unknown(&self.name));
        let family = self.family.map(|family| format!(" ({family})")).unwrap_or_default();
        text.line("architecture", format!("{}{family}", self.architecture));
        let (all, experts) = (short(self.parameters), short(self.expert_parameters));
        let active = self.shape.as_ref().map(|s| format!(", {} active a token", short(s.active_parameters)));
        text.line("parameters", format!("{all} in all, {experts} in experts{}", active.unwrap_or_default()));
        let pre = self.pre_tokenizer.as_ref().map_or(String::new(), |pre| format!(" ({pre})"));
        let tokenizer = or_unknown(&self.tokenizer) + &pre;
        match &self.shape {
            Some(shape) => shape.lines(&mut text, &tokenizer),
            None => text.line("vocabulary", tokenizer),
        }
        if !self.parts.is_empty() {
            let parts: Vec<_> = self.parts.iter().map(|parts| format!("{} {}", parts.count, parts.kind)).collect();
            text.line("parts", parts.join(", "));
        }
        for shard in &self.shards {
            text.line("shard", format!("{} ({})", shard.path, b(shard.bytes)));
        }
        text.gap();
        for row in &self.types {
            text.line(row.role, format!("{:8} {:>5} tensors {:>12}", row.r#type, row.tensors, b(row.bytes)));
        }
        match &self.memory {
            Some(memory) => {
                text.gap();
                memory.lines(&mut text, self.repacked);
            }
            None if !self.expert_types.is_empty() => {
                text.gap();
                self.expert_types.iter().for_each(|types| types.line(&mut text));
            }
            None => {}
        }
        if !self.unread.is_empty() {
            text.gap();
        }
        for unread in &self.unread {
            text.line("not used", format!("{}: {}", unread.key, unread.reason));
        }
        text.gap();
        match &self.why_not {
            None => text.0 += "runs: yes\n",
            Some(why) => text.0 += &format!("runs: no, because {}\n", printable(why)),
        }
        text.0
    }
}

/// What is not read of a file that runs.
///
/// # Errors
/// Why it does not, in the words in which `hotset run` would say it.
fn runs(gguf: &Gguf, missing_bytes: u64, missing_data: Option<&str>) -> Result<Vec<Unread>> {
    let blueprint = arch::blueprint(gguf)?;
    Memory::new(gguf, &blueprint, None)?;
    Tokenizer::from_gguf(gguf)?;
    let incomplete = |what: String| Err(Error::file(gguf.path(), what + " not there (still downloading?)"));
    match missing_data {
        _ if missing_bytes > 0 => incomplete(format!("{} of tensor data are", human_bytes(missing_bytes))),
        Some(tensor) => incomplete(format!("the data of tensor {tensor} is")),
        None => Ok(blueprint.unread),
    }
}

/// An error's sentence without the file that the report is about.
fn without_path(gguf: &Gguf, sentence: &str) -> String {
    let path = format!("{}: ", gguf.path().display());
    sentence.strip_prefix(&path).unwrap_or(sentence).to_owned()
}

impl UnreadKey {
    fn new(unread: &Unread) -> Self {
        UnreadKey { key: unread.name.clone(), reason: unread.reason }
    }
}

impl From<blueprint::Shape> for Shape {
    fn from(s: blueprint::Shape) -> Self {
        Shape {
            active_parameters: s.active_parameters,
            layers: s.n_layer,
            moe_layers: s.n_moe,
            experts: s.n_expert,
            experts_used: s.n_expert_used,
            shared_expert_layers: s.n_shared,
            context_train: s.n_ctx_train,
            vocabulary: s.n_vocab,
        }
    }
}

impl Shape {
    fn lines(&self, text: &mut Lines, tokenizer: &str) {
        text.line("layers", format!("{}, {} of them with experts", self.layers, self.moe_layers));
        let shared = if self.shared_expert_layers > 0 { ", and a shared one" } else { "" };
        text.line("experts", format!("{} a layer, {} used{shared}", self.experts, self.experts_used));
        text.line("context", format!("{} tokens in training", self.context_train));
        text.line("vocabulary", format!("{} tokens, {tokenizer}", self.vocabulary));
    }
}

impl Memory {
    fn new(gguf: &Gguf, blueprint: &Blueprint, n_ctx: Option<usize>) -> Result<Self> {
        let store = ExpertStore::new(gguf, blueprint.experts())?;
        // A budget without end, since the question is what would be needed, not what is there.
        let n_ctx = n_ctx.map(|n| asked_ctx(n, blueprint.n_ctx_train));
        let options = Options { n_ctx, memory_bytes: Some(u64::MAX), ..Options::default() };
        let plan = make_plan(gguf, blueprint, &store, &options, Layout::Lines)?;
        let (n_expert, n_used) = (blueprint.n_expert as u64, blueprint.n_expert_used() as u64);
        let layer = |l: &LayerStore| Layer {
            block: l.block,
            types: l.types().map(|ty| ty.map(|ty| ty.name())),
            expert_bytes: l.expert_bytes(),
            bytes: l.expert_bytes() * n_expert,
        };
        let moe: Vec<Layer> = store.layers().iter().map(layer).collect();
        Ok(Memory {
            dense_resident_bytes: blueprint.resident_bytes(),
            experts_bytes: moe.iter().map(|l| l.bytes).sum(),
            token_working_set_bytes: moe.iter().map(|l| l.expert_bytes * n_used).sum(),
            moe,
            budget: Budget {
                n_ctx: plan.n_ctx,
                kv_bytes: plan.kv_bytes,
                window_layers: blueprint.windows().map_or(0, |(layers, _)| layers),
                recurrent_layers: blueprint.memories().map_or(0, |(layers, _)| layers),
                recurrent_bytes: blueprint.memories().map_or(0, |(_, bytes)| bytes),
                notes: state_notes(blueprint),
                smallest_bytes: plan.smallest_bytes,
                full_bytes: plan.full_bytes,
            },
            one_read_experts: store.layers().iter().all(|l| l.is_one_read()),
        })
    }

    fn lines(&self, text: &mut Lines, repacked: Option<u32>) {
        let b = human_bytes;
        self.layer_lines(text);
        let in_one_place = "each expert lies in one place, from the start of a block";
        let layout = match (repacked, self.one_read_experts) {
            (None, false) => None,
            (None, true) => Some(in_one_place.to_owned()),
            (Some(v), true) => Some(format!("repacked (version {v}): {in_one_place}")),
            (Some(v), false) => Some(format!("repacked (version {v}), but changed since: an expert's parts lie apart")),
        };
        if let Some(layout) = layout {
            text.line("layout", layout);
        }
        text.line("all experts", b(self.experts_bytes));
        text.line("a token", format!("uses {} of experts", b(self.token_working_set_bytes)));
        text.line("dense", format!("{} stay in memory", b(self.dense_resident_bytes)));
        text.gap();
        let budget = &self.budget;
        text.line("for a context", format!("of {} tokens, whose KV cache takes {}:", budget.n_ctx, b(budget.kv_bytes)));
        budget.notes.iter().for_each(|note| text.line("", note));
        text.line(
            "smallest budget",
            format!("{} ({} bytes)", human_bytes_up(budget.smallest_bytes), budget.smallest_bytes),
        );
        text.line(
            "full budget",
            format!("{} ({} bytes), every expert in memory", b(budget.full_bytes), budget.full_bytes),
        );
    }

    /// A line for each run of layers that are alike.
    fn layer_lines(&self, text: &mut Lines) {
        let alike = |a: &Layer, b: &Layer| a.types == b.types && a.expert_bytes == b.expert_bytes;
        for run in self.moe.chunk_by(alike) {
            let (first, last) = (&run[0], &run[run.len() - 1]);
            let range = range(first.block, last.block);
            let named = ["gate", "up", "down"].into_iter().zip(first.types).filter_map(|(role, ty)| Some((role, ty?)));
            let types: Vec<_> = named.map(|(role, ty)| format!("{role} {ty}")).collect();
            let (expert, layer) = (human_bytes(first.expert_bytes), human_bytes(first.bytes));
            text.line(&range, format!("an expert {expert} ({}), a layer {layer}", types.join(", ")));
        }
        if self.moe.windows(2).any(|w| w[0].expert_bytes != w[1].expert_bytes) {
            text.line("mixed", "experts differ in size by layer");
        }
    }
}

impl ExpertTypes {
    fn line(&self, text: &mut Lines) {
        let matrix = |matrix: &MatrixTypes| {
            let types: Vec<_> = matrix.types.iter().map(String::as_str).collect();
            format!("{} {}", matrix.role, types.join(" and "))
        };
        let matrices: Vec<_> = self.matrices.iter().map(matrix).collect();
        text.line(&range(self.first_layer, self.last_layer), matrices.join(", "));
    }
}

/// "layer 3" or "layer 3-47".
fn range(first: usize, last: usize) -> String {
    if first == last { format!("layer {first}") } else { format!("layer {first}-{last}") }
}

/// Text in two columns.
struct Lines(String);

impl Lines {
    fn line(&mut self, name: &str, value: impl std::fmt::Display) {
        let value = printable(&value.to_string()); // has names from the file
        writeln!(self.0, "{name:20} {value}").expect("a String takes all");
    }
    fn gap(&mut self) {
        self.0.push('\n');
    }
}

/// 25600000 as `25.6M`.
fn short(n: u64) -> String {
    let (unit, name) = match n {
        0..1_000_000 => (1e3, "K"),
        1_000_000..1_000_000_000 => (1e6, "M"),
        _ => (1e9, "B"),
    };
    format!("{:.1}{name}", n as f64 / unit)
}

/// Files of the model, and how many bytes each lacks to the end of its last tensor.
fn shards(gguf: &Gguf) -> Vec<Shard> {
    let end = |i: usize| gguf.tensors().iter().filter(|t| t.shard == i).map(|t| t.offset + t.bytes.unwrap_or(0)).max();
    let shard = |(i, s): (usize, &hotset::gguf::Shard)| Shard {
        path: s.path.display().to_string(),
        bytes: s.len,
        missing_bytes: end(i).unwrap_or(0).saturating_sub(s.len),
    };
    gguf.shards().iter().enumerate().map(shard).collect()
}

/// The types of the experts' matrices, layer by layer, of a file that need not run.
fn expert_types(gguf: &Gguf) -> Vec<ExpertTypes> {
    let mut layers: BTreeMap<usize, BTreeMap<Role, BTreeSet<String>>> = BTreeMap::new();
    for tensor in gguf.tensors() {
        let role = Role::of(&tensor.name);
        let number = || tensor.name.strip_prefix("blk.")?.split('.').next()?.parse().ok();
        if let Some(layer) = number().filter(|_| role.is_routed_expert()) {
            layers.entry(layer).or_default().entry(role).or_default().insert(tensor.ty.to_string());
        }
    }
    let mut rows: Vec<ExpertTypes> = Vec::new();
    for (layer, by_role) in layers {
        let matrices: Vec<_> =
            by_role.into_iter().map(|(role, types)| MatrixTypes { role: role.name(), types }).collect();
        match rows.last_mut() {
            Some(row) if row.last_layer.checked_add(1) == Some(layer) && row.matrices == matrices => {
                row.last_layer = layer;
            }
            _ => rows.push(ExpertTypes { first_layer: layer, last_layer: layer, matrices }),
        }
    }
    rows
}

/// The element types of each role, in the roles' order.
fn types(gguf: &Gguf) -> Vec<TypeRow> {
    let mut rows: BTreeMap<(Role, String), TypeRow> = BTreeMap::new();
    for tensor in gguf.tensors() {
        let (role, ty) = (Role::of(&tensor.name), tensor.ty.to_string());
        let row =
            rows.entry((role, ty.clone())).or_insert(TypeRow { role: role.name(), r#type: ty, tensors: 0, bytes: 0 });
        row.tensors += 1;
        row.bytes += tensor.bytes.unwrap_or(0);
    }
    rows.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        assert_eq!((short(25_600_000), short(30_532_122_624)), ("25.6M".to_owned(), "30.5B".to_owned()));
    }
}
