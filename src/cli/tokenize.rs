//! `hotset tokenize`: text to tokens, as the model will see it.

use std::{
    fmt::Write,
    io::{self, IsTerminal},
    path::{Path, PathBuf},
    process::ExitCode,
};

use hotset::tokenizer::Tokenizer;

use super::{
    Ended, Stop, model_file,
    out::{Out, notes},
    text::{Limit, read_text},
};

/// Show the tokens of a text
///
/// A line for each token: its id, a tab, its text, quoted. Only the header of the model file is needed.
#[derive(clap::Args)]
pub struct Args {
    /// Model file (GGUF)
    model: PathBuf,
    /// The text; without one, standard input is read if it is no terminal
    text: Option<String>,
    /// Read the text from this file (- is standard input)
    #[arg(short, long, value_name = "FILE", conflicts_with = "text")]
    file: Option<PathBuf>,
    /// Print the ids alone, with commas between them: what `hotset logits --tokens` takes
    #[arg(long)]
    ids: bool,
    /// Leave out the tokens that the model wants around a text
    #[arg(long)]
    no_bos: bool,
    /// Read control tokens that are spelled out in the text as such, as `hotset run` does
    #[arg(long)]
    parse_special: bool,
}

/// The verb.
pub fn run(args: &Args) -> Ended {
    let text = text(args)?;
    let tokenizer = Tokenizer::from_gguf(&model_file::open_header(&args.model)?)?;
    let tokens = tokenizer.encode(&text, !args.no_bos, args.parse_special);
    notes(tokenizer.notes());
    notes(&tokenizer.prompt_notes(&text, &tokens));
    let mut lines = String::new();
    if args.ids {
        let ids: Vec<_> = tokens.iter().map(u32::to_string).collect();
        lines = ids.join(",") + "\n";
    } else {
        for token in tokens {
            let mut bytes = Vec::new();
            tokenizer.append_bytes(token, true, &mut bytes);
            writeln!(lines, "{token}\t{}", quoted(&bytes)).expect("a String takes all");
        }
    }
    Out::new().text(&lines)?;
    Ok(ExitCode::SUCCESS)
}

fn text(args: &Args) -> Result<String, Stop> {
    match (&args.text, &args.file) {
        (Some(text), _) => Ok(text.clone()),
        (None, Some(file)) => Ok(read_text(file, &Limit::of_texts())?),
        (None, None) if !io::stdin().is_terminal() => Ok(read_text(Path::new("-"), &Limit::of_texts())?),
        (None, None) => {
            Err(Stop::usage("there is no text: give it by an argument after the model, --file, or standard input"))
        }
    }
}

/// Readable where it is UTF-8, `\xNN` for the bytes of a part of a character.
fn quoted(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => format!("{text:?}"),
        Err(_) => format!("\"{}\"", bytes.escape_ascii()),
    }
}
