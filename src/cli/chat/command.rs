//! What a line of a chat is: something to say, or a command.

use std::path::PathBuf;

use crate::cli::args::Memory;

/// See the module.
#[derive(Clone, Debug, PartialEq)]
pub enum Line {
    /// To the model.
    Say(String),
    Stats,
    /// Without a size: what the budget is.
    Memory(Option<Memory>),
    Reset,
    Undo,
    Save(PathBuf),
    Load(PathBuf),
    /// Without a text: none from now on.
    System(Option<String>),
    Help,
    Exit,
}

/// The commands.
pub const HELP: &str = "\
/stats         what the answers took
/memory SIZE   set another memory budget; without SIZE: show it
/reset         forget the conversation
/undo          forget the last question and its answer
/save FILE     write the conversation to a new file, as JSON
/load FILE     go on with a conversation that was saved
/system TEXT   instructions for the model; without TEXT: none
/help          this list
/exit          leave, as Ctrl-D does
Ctrl-C stops an answer. A line that ends in \\ goes on in the next one. // at the beginning says a /.";

impl Line {
    /// What a line that somebody typed is.
    ///
    /// # Errors
    /// A sentence: there is no such command, or it needs something else.
    pub fn parse(line: &str) -> Result<Self, String> {
        let Some(command) = line.strip_prefix('/') else { return Ok(Line::Say(line.to_owned())) };
        if command.starts_with('/') {
            return Ok(Line::Say(command.to_owned()));
        }
        let (name, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        let rest = rest.trim();
        let file = || match rest {
            "" => Err(format!("/{name} needs the name of a file")),
            path => Ok(PathBuf::from(path)),
        };
        let alone = |line| match rest {
            "" => Ok(line),
            _ => Err(format!("/{name} takes nothing after it")),
        };
        match name {
            "stats" => alone(Line::Stats),
            "memory" if rest.is_empty() => Ok(Line::Memory(None)),
            "memory" => rest.parse().map(|size| Line::Memory(Some(size))).map_err(|e| format!("/memory {rest}: {e}")),
            "reset" => alone(Line::Reset),
            "undo" => alone(Line::Undo),
            "save" => file().map(Line::Save),
            "load" => file().map(Line::Load),
            "system" => Ok(Line::System((!rest.is_empty()).then(|| rest.to_owned()))),
            "help" | "?" => alone(Line::Help),
            "exit" | "quit" | "bye" => alone(Line::Exit),
            _ => Err(format!("there is no command /{name} (see /help)")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_commands_or_said() {
        for (text, line) in [
            ("Hi /there", Line::Say("Hi /there".to_owned())),
            ("//usr is a folder", Line::Say("/usr is a folder".to_owned())),
            ("/memory 2GiB", Line::Memory(Some(Memory::Bytes(2 << 30)))),
            ("/memory", Line::Memory(None)),
            ("/save  my file.json ", Line::Save("my file.json".into())),
            ("/system Be brief.", Line::System(Some("Be brief.".to_owned()))),
            ("/system", Line::System(None)),
            ("/quit", Line::Exit),
        ] {
            assert_eq!(Line::parse(text), Ok(line));
        }
        for (text, words) in [
            ("/nothing", "no command /nothing"),
            ("/save", "needs the name"),
            ("/memory much", "/memory much: "),
            ("/undo 2", "takes nothing"),
        ] {
            let told = Line::parse(text).unwrap_err();
            assert!(told.contains(words), "{told}");
        }
    }
}
