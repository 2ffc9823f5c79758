//! `hotset completions` and `hotset man`: what a package of the program brings along, made from the arguments themselves.

use std::{path::PathBuf, process::ExitCode};

use clap::Command;
use clap_complete::Shell;
use hotset::Error;

use super::{
    Ended,
    out::Out,
    outputs::{Force, Outputs},
};

/// Print a script that completes commands and options in a shell
///
/// In bash: hotset completions bash > ~/.local/share/bash-completion/completions/hotset
#[derive(clap::Args)]
pub struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

/// Write the manual pages
///
/// One for hotset and one per command, as hotset.1, hotset-run.1 and so on.
#[derive(clap::Args)]
pub struct ManArgs {
    /// The folder that gets them
    folder: PathBuf,
    #[command(flatten)]
    force: Force,
}

/// The verb `completions`.
pub fn completions(args: &CompletionsArgs, program: &mut Command) -> Ended {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, program, "hotset", &mut script);
    Out::new().text(&String::from_utf8_lossy(&script))?;
    Ok(ExitCode::SUCCESS)
}

/// The verb `man`.
pub fn man(args: &ManArgs, mut program: Command) -> Ended {
    program.build();
    let mut outputs = Outputs::new(&args.force);
    let pages = std::iter::once(&program).chain(program.get_subcommands().filter(|verb| verb.get_name() != "help"));
    for page in pages {
        let name = page.get_display_name().unwrap_or(page.get_name()).to_owned();
        let path = args.folder.join(format!("{name}.1"));
        let mut text = Vec::new();
        // Into memory: cannot fail.
        clap_mangen::Man::new(page.clone()).render(&mut text).map_err(|e| Error::io(&path, "write", e))?;
        let mut file = outputs.create("the folder of the manual", &path)?;
        file.write(&text)?;
        file.finish()?;
    }
    Ok(ExitCode::SUCCESS)
}
