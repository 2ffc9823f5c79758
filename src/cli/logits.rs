//! `hotset logits`: a model's raw answers, and which experts gave them, for comparisons with other programs.

use std::{
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, Mutex},
};

use hotset::{
    Error, Result, arch,
    npy::NpyWriter,
    session::{Options, Session},
    trace::{LayerEvent, TraceSink},
};

use super::{
    Ended,
    args::{Engine, warn_of_budget},
    model_file,
    out::Progress,
    outputs::{Force, Outputs},
    text::{Limit, read_text},
};

/// Write the logits of a list of tokens
///
/// The tokens run as one sequence, as they are: nothing is put before them.
#[derive(clap::Args)]
pub struct Args {
    /// Model file (GGUF; of a split set any file)
    model: PathBuf,
    /// Token ids with commas between them
    #[arg(long, value_name = "IDS", required_unless_present = "tokens_file", conflicts_with = "tokens_file")]
    tokens: Option<String>,
    /// File of token ids, with commas or white space between them (- is standard input)
    #[arg(long, value_name = "FILE")]
    tokens_file: Option<PathBuf>,
    /// Where to write the logits (- is standard output): .npy, float32, (tokens, vocabulary). Replaces a file that is there
    #[arg(short, long, visible_alias = "output", value_name = "FILE")]
    out: PathBuf,
    /// Where to write the experts used: .npy, int32, (MoE layers, tokens, experts used), best first. Replaces a file that is
    /// there
    #[arg(long, value_name = "FILE")]
    experts: Option<PathBuf>,
    #[command(flatten)]
    engine: Engine,
}

/// Experts of every layer in the order of tokens, best first within a token.
#[derive(Clone)]
struct Routing(Arc<Mutex<Vec<Vec<i32>>>>);

impl TraceSink for Routing {
    fn record(&mut self, event: LayerEvent<'_>) {
        let mut layers = self.0.lock().expect("nobody panics while holding it");
        layers[usize::from(event.layer)].extend(event.routed.iter().map(|r| i32::from(r.id.expert)));
    }
}

/// The verb.
pub fn run(args: &Args) -> Ended {
    let tokens = tokens(args)?;
    let gguf = model_file::open(&args.model)?;
    let (layers, used, vocab) = {
        let blueprint = arch::blueprint(&gguf)?;
        (blueprint.n_moe(), blueprint.n_expert_used(), blueprint.n_vocab)
    };
    let mut outputs = Outputs::new(&Force::default());
    outputs.reads_model(&gguf);
    args.tokens_file.iter().for_each(|file| outputs.reads("the list of tokens", file));
    let mut logits = NpyWriter::<f32>::new(outputs.replace("--out", &args.out)?, &[tokens.len(), vocab])?;
    let experts = args.experts.as_deref().map(|path| outputs.replace("--experts", path)).transpose()?;
    let shape = [layers, tokens.len(), used];
    let experts = experts.map(|file| NpyWriter::<i32>::new(file, &shape)).transpose()?;

    let routing = Routing(Arc::new(Mutex::new(vec![Vec::new(); layers])));
    let options = Options { all_logits: true, ..args.engine.options(&gguf, tokens.len())? };
    warn_of_budget(&gguf, &options, false);
    let trace: Box<dyn TraceSink> = if experts.is_some() { Box::new(routing.clone()) } else { Box::new(()) };
    let backend = options.cpu()?;
    let mut session = {
        let bar = Progress::bytes("loading", false);
        Session::with_backend(gguf, &options, backend, trace, &mut |done, total| bar.set(done, total))?
    };
    let bar = Progress::tokens("logits", false);
    for batch in tokens.chunks(session.plan().n_batch) {
        for row in session.feed_all(batch)?.chunks_exact(vocab) {
            logits.write(row)?;
        }
        bar.set(session.n_past() as u64, tokens.len() as u64);
    }
    logits.finish()?;
    if let Some(mut experts) = experts {
        for layer in routing.0.lock().expect("nobody panics while holding it").iter() {
            experts.write(layer)?;
        }
        experts.finish()?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The ids that were given.
fn tokens(args: &Args) -> Result<Vec<u32>> {
    let (what, text) = match (&args.tokens, &args.tokens_file) {
        (Some(text), _) => ("--tokens".to_owned(), text.clone()),
        (None, Some(file)) => (file.display().to_string(), read_text(file, &Limit::of_texts())?),
        (None, None) => unreachable!("clap asks for one of the two"),
    };
    let words = text.split(|c: char| c == ',' || c.is_whitespace()).filter(|word| !word.is_empty());
    let ids: Vec<u32> = words
        .map(|word| word.parse().map_err(|_| Error::invalid(format!("{what}: {word:?} is no token id"))))
        .collect::<Result<_>>()?;
    if ids.is_empty() { Err(Error::invalid(format!("{what}: there are no token ids"))) } else { Ok(ids) }
}
