//! Options that run, chat and serve share, and how a model is opened with them.

use std::path::PathBuf;

use hotset::{Result, arch, converse::Converser, gguf::Gguf, human_bytes, session::Session};

use super::{
    Stop,
    args::{Engine, asked_ctx, ctx, file_bytes},
    hot::{Start, Warm},
    model_file,
    out::{note, notes},
    sampling::Sampling,
    stats,
    text::{Limit, read_text},
};

/// How a model runs that generates text.
#[derive(clap::Args)]
pub struct Running {
    /// Tokens of context; 0: as many as the model was trained for. Default: 4096 (run: what prompt and --max-tokens need; with
    /// -1 of these, 4096 beside the prompt), at most what the model was trained for
    #[arg(short, long, visible_alias = "ctx-size", value_name = "TOKENS", value_parser = ctx)]
    pub ctx: Option<usize>,
    /// Print how the budget is split, and more about what is computed
    #[arg(short, long)]
    pub verbose: bool,
    /// Print nothing but what was asked for, and errors
    #[arg(short, long, conflicts_with = "verbose")]
    pub quiet: bool,
    #[command(flatten)]
    pub sampling: Sampling,
    #[command(flatten)]
    pub engine: Engine,
    /// Keep the experts that this file lists in memory: lines of MoE layer (from 0) and expert
    #[arg(long, value_name = "FILE", help_heading = "Memory and speed")]
    pub pin: Option<PathBuf>,
    /// Read the experts that the last run of this model used most before they are asked for, while the drive is idle
    /// (auto), those of a file as --pin has it, or none (off)
    #[arg(long, value_name = "auto|off|FILE", default_value = "auto", help_heading = "Memory and speed")]
    pub warm: Warm,
}

impl Running {
    /// What can be checked before anything is read.
    ///
    /// # Errors
    /// Sampling options outside their limits.
    pub fn check(&self) -> Result<(), Stop> {
        self.sampling.config(0).validate().map_err(|e| Stop::usage(e.to_string()))
    }

    /// The lists of `--pin` and `--warm`.
    ///
    /// # Errors
    /// As [`Start::read`].
    pub fn start(&self, gguf: &Gguf) -> Result<Start> {
        Start::read(gguf, self.pin.as_deref(), &self.warm)
    }

    /// Tokens of context: as asked for, or `default` where nobody asks, but no more than the model was trained for.
    ///
    /// # Errors
    /// A model without a context length.
    pub fn n_ctx(&self, gguf: &Gguf, default: usize) -> Result<usize> {
        let most = arch::blueprint(gguf)?.n_ctx_train;
        Ok(self.ctx.map_or(default.min(most), |n| asked_ctx(n, most)))
    }

    /// Tells an opened session what `start` has of it, and people how its budget is split where they want to know.
    ///
    /// # Errors
    /// As [`Start::apply`].
    pub fn begin(&self, start: &Start, session: &mut Session) -> Result<()> {
        start.apply(session)?;
        if self.verbose {
            stats::print_plan(session);
        }
        Ok(())
    }
}

/// Which model converses.
#[derive(clap::Args)]
pub struct Talker {
    /// Model file (GGUF; of a split set any file), or OWNER/REPO:QUANT of one that was downloaded; without, the small model
    /// that comes with hotset
    #[arg(value_name = "MODEL")]
    first: Option<PathBuf>,
    /// The model file, by an option
    #[arg(short, long, value_name = "FILE", conflicts_with = "first")]
    model: Option<PathBuf>,
    /// Read the chat template (Jinja) from this file instead of the model's
    #[arg(long, visible_alias = "chat-template-file", value_name = "FILE")]
    chat_template: Option<PathBuf>,
}

/// Tokens of context of a conversation where nobody says.
pub const DEFAULT_CTX: usize = 4096;

impl Talker {
    /// The model's file, its tokenizer and template.
    ///
    /// # Errors
    /// What cannot be read, or is no model that can converse.
    pub fn open(&self) -> Result<(Gguf, Converser), Stop> {
        let gguf =
            self.named().map_or_else(|| model_file::open(&model_file::find()?), |file| model_file::open(file))?;
        let template = self.chat_template.as_deref().map(|file| read_text(file, &Limit::of_texts())).transpose()?;
        let converser = Converser::new(&gguf, template.as_deref())?;
        Ok((gguf, converser))
    }

    fn named(&self) -> Option<&PathBuf> {
        self.first.as_ref().or(self.model.as_ref())
    }

    /// Says what answers, and what is odd about it.
    pub fn introduce(&self, gguf: &Gguf, converser: &Converser) {
        if self.named().is_none() {
            let (path, size) = (gguf.path().display(), human_bytes(file_bytes(gguf)));
            note(format_args!("the bundled model answers ({path}, {size}): a small one, to try things with"));
        }
        if converser.template.is_plain() {
            note(format_args!("the model has no chat template: messages are continued as plain lines of text"));
        }
        notes(converser.tokenizer.notes());
    }
}
