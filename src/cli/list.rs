//! `hotset list` and `hotset remove`: what `hotset pull` and the hub's own tools have downloaded.

use std::{fmt::Write, process::ExitCode};

use hotset::{Error, human_bytes};
use serde::Serialize;

use super::{
    Ended,
    hub::{Name, cache, cache::Repo, choose},
    json,
    out::{Out, note},
};

/// List the downloaded models
#[derive(clap::Args)]
pub struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// One model. The fields are the JSON's keys.
#[derive(Serialize)]
struct Row {
    name: String,
    bytes: u64,
    path: String,
}

/// The verb.
pub fn run(args: &Args) -> Ended {
    let folder = cache::folder()?;
    let mut rows = Vec::new();
    for repo in cache::repos(&folder)? {
        for model in repo.models()? {
            let name = format!("{}:{}", repo.name, model.label);
            let Some(path) = repo.path_of(&model)? else { continue };
            rows.push(Row { name, bytes: model.bytes(), path: path.display().to_string() });
        }
    }
    let mut text = String::new();
    if args.json {
        text = json::rows(&rows);
    } else {
        let width = rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0);
        for row in &rows {
            let _ = writeln!(text, "{:width$}  {:>9}", row.name, human_bytes(row.bytes));
        }
        if rows.is_empty() {
            note(format_args!("no models in {} (hotset pull OWNER/REPO gets one)", folder.display()));
        }
    }
    Out::new().text(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// Remove a downloaded model
///
/// Only what hotset or a hub's tools downloaded: files elsewhere stay.
#[derive(clap::Args)]
pub struct RemoveArgs {
    /// OWNER/REPO:QUANT as `hotset list` prints it; OWNER/REPO: all of that repository
    #[arg(value_name = "OWNER/REPO[:QUANT]")]
    name: Name,
}

/// The verb.
pub fn remove(args: &RemoveArgs) -> Ended {
    let repo = Repo::of(&cache::folder()?, &args.name.repo);
    let models = repo.models()?;
    if models.is_empty() {
        return Err(Error::invalid(format!("{}: there is no such model here (hotset list)", args.name)).into());
    }
    let freed = match &args.name.wanted {
        None => repo.remove(None)?,
        Some(wanted) => {
            let model = choose::choose(&repo.name, models, Some(wanted)).map_err(Error::invalid)?;
            repo.remove(Some(&model))?
        }
    };
    note(format_args!("{} freed", human_bytes(freed)));
    Ok(ExitCode::SUCCESS)
}
