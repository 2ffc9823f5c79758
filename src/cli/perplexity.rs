//! `hotset perplexity`: how well a model foretells a text, by llama.cpp's convention, so that figures compare.
//!
//! The text is tokenised once and cut into consecutive windows. The first token of each is replaced by the
//! beginning-of-text token if the model wants one. Only predictions in a window's second half count: those have seen at
//! least half a window.

use std::{path::PathBuf, process::ExitCode};

use hotset::{
    Error, Result,
    session::{Options, Session},
    tokenizer::Tokenizer,
};

use super::{
    Ended, Stop,
    args::{Engine, count, warn_of_budget},
    model_file,
    out::{Out, Progress, notes},
    stats::{Record, Stats},
    text::{Limit, read_text},
};

/// Measure the perplexity of a text
///
/// Windows, and what counts of them, are as in llama.cpp's llama-perplexity. Prints the value after each window, and
/// last with its standard error.
#[derive(clap::Args)]
pub struct Args {
    /// Model file (GGUF; of a split set any file)
    #[arg(value_name = "MODEL", required_unless_present = "model", conflicts_with = "model")]
    model_file: Option<PathBuf>,
    /// The model file, by an option
    #[arg(short, long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// The text (- is standard input)
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// Tokens of a window
    #[arg(short, long, visible_alias = "ctx-size", value_name = "TOKENS", default_value_t = 512, value_parser = count::<{ u32::MAX as usize }>)]
    ctx: usize,
    /// Windows at most; default: all of the text
    #[arg(long, value_name = "N", value_parser = count::<{ u32::MAX as usize }>)]
    chunks: Option<usize>,
    /// Print all statistics
    #[arg(short, long)]
    verbose: bool,
    #[command(flatten)]
    engine: Engine,
}

/// The smallest window in which a prediction counts.
const MIN_CTX: usize = 4;

/// The verb.
pub fn run(args: &Args) -> Ended {
    if args.ctx < MIN_CTX {
        return Err(Stop::usage(format!("--ctx {}: a window has {MIN_CTX} tokens at least", args.ctx)));
    }
    let model = args.model.as_deref().or(args.model_file.as_deref()).expect("clap asks for one of the two");
    let gguf = model_file::open(model)?;
    let (mut tokens, bos) = {
        let tokenizer = Tokenizer::from_gguf(&gguf)?;
        let adds_bos = tokenizer.encode("a", true, false).first().copied();
        let text = read_text(&args.file, &Limit::of_texts())?;
        let tokens = tokenizer.encode(&text, true, false);
        notes(tokenizer.notes());
        notes(&tokenizer.prompt_notes(&text, &tokens));
        (tokens, tokenizer.bos().filter(|&bos| adds_bos == Some(bos)))
    };
    let windows = (tokens.len() / args.ctx).min(args.chunks.unwrap_or(usize::MAX));
    if windows == 0 {
        let told = format!("the text has {} tokens, fewer than a window of {} (--ctx)", tokens.len(), args.ctx);
        return Err(Error::file(&args.file, told).into());
    }
    tokens.truncate(windows * args.ctx);

    let options = args.engine.options(&gguf, args.ctx)?;
    let half = args.ctx.div_ceil(2);
    let options =
        Options { all_logits: true, n_batch: Some(options.n_batch.unwrap_or(half).min(half)), ..options.clone() };
    let record = Record::new(&gguf);
    warn_of_budget(&gguf, &options, false);
    let mut session = {
        let bar = Progress::bytes("loading", false);
        Session::open(gguf, &options, &mut |done, total| bar.set(done, total))?
    };
    let mut out = Out::new();
    let mut loss = Loss::default();
    for (i, window) in tokens.chunks_exact_mut(args.ctx).enumerate() {
        if let Some(bos) = bos {
            window[0] = bos;
        }
        session.reset();
        measure(&mut session, window, &mut loss)?;
        out.text(&format!("[{}]{:.4},", i + 1, loss.perplexity()))?;
    }
    finish(&mut out, &loss)?;
    Stats::new(&session, &args.engine, record, "length")?.print(args.verbose);
    Ok(ExitCode::SUCCESS)
}

fn finish(out: &mut Out, loss: &Loss) -> Result<(), Stop> {
    let error = loss.standard_error().map_or("(one prediction has no error)".to_owned(), |e| format!("+/- {e:.5}"));
    out.text(&format!("\nFinal estimate: PPL = {:.4} {error}\n", loss.perplexity()))
}

/// Runs one window and adds the losses of its second half.
fn measure(session: &mut Session, window: &[u32], loss: &mut Loss) -> Result<()> {
    let n_batch = session.plan().n_batch;
    let n_vocab = session.blueprint().n_vocab;
    let half = window.len() / 2;
    for batch in window[..half].chunks(n_batch) {
        session.fill(batch)?;
    }
    // The last token foretells one that is not in the window.
    let (known, next) = (&window[half..window.len() - 1], &window[half + 1..]);
    let path = session.path().to_owned();
    for (batch, next) in known.chunks(n_batch).zip(next.chunks(n_batch)) {
        for (logits, &next) in session.feed_all(batch)?.chunks_exact(n_vocab).zip(next) {
            let nll = negative_log_likelihood(logits, next as usize);
            if !nll.is_finite() {
                // One logit that is no number is a token that is never drawn, but what is measured here is about all of them.
                let token = logits.iter().position(|logit| !logit.is_finite()).unwrap_or(next as usize);
                let message = format!("the logit of token {token} is {}, so the text has no perplexity", logits[token]);
                return Err(Error::file(&path, message));
            }
            loss.add(nll);
        }
    }
    Ok(())
}

/// -ln softmax(logits)[token]
fn negative_log_likelihood(logits: &[f32], token: usize) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let over_max = |logit: f32| f64::from(logit) - f64::from(max);
    let sum: f64 = logits.iter().map(|&logit| over_max(logit).exp()).sum();
    sum.ln() - over_max(logits[token])
}

/// The losses so far.
#[derive(Default)]
struct Loss {
    n: u64,
    sum: f64,
    squares: f64,
}

impl Loss {
    fn add(&mut self, nll: f64) {
        self.n += 1;
        self.sum += nll;
        self.squares += nll * nll;
    }

    fn perplexity(&self) -> f64 {
        (self.sum / self.n as f64).exp()
    }

    /// Of the perplexity: that of the mean loss, times the slope of the exponential. `None` for fewer than two losses.
    fn standard_error(&self) -> Option<f64> {
        let n = self.n as f64;
        let mean = self.sum / n;
        let variance = (self.squares / n - mean * mean).max(0.0);
        (self.n > 1).then(|| (variance / (n - 1.0)).sqrt() * mean.exp())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_that_knows_nothing_has_the_vocabulary_as_its_perplexity() {
        let mut loss = Loss::default();
        for token in 0..3 {
            loss.add(negative_log_likelihood(&[7.0; 50], token));
        }
        assert!((loss.perplexity() - 50.0).abs() < 1e-9);
        assert!(loss.standard_error().unwrap() < 1e-6);
    }

    #[test]
    fn the_standard_error_is_that_of_the_mean() {
        let mut loss = Loss::default();
        [1.0, 2.0, 3.0].into_iter().for_each(|nll| loss.add(nll));
        // Variance 2/3 over n - 1 = 2 gives a third.
        assert!((loss.standard_error().unwrap() - (1.0f64 / 3.0).sqrt() * 2.0f64.exp()).abs() < 1e-9);
        assert!((negative_log_likelihood(&[0.0, f32::MIN_POSITIVE], 0) - 2f64.ln()).abs() < 1e-9);
    }
}
