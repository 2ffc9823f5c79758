//! Models on a hub that speaks Hugging Face's protocol, and the folder in which such a hub's own tools keep them: what one
//! has downloaded, the other finds.
//!
//! Must not know: what is in a model file. Planning is `pull`'s business.

pub mod cache;
pub mod choose;
mod client;
mod download;

use std::{fmt, str::FromStr};

pub use client::{Hub, Listing, Remote};
pub use download::{Fetched, download};

/// A model as people name it: `OWNER/REPO`, with `:QUANT` or `:FILE.gguf` behind it where the repository has several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// `OWNER/REPO`.
    pub repo: String,
    /// What is behind the colon.
    pub wanted: Option<String>,
}

/// Prefixes that people paste with a name.
const PREFIXES: [&str; 4] = ["https://huggingface.co/", "huggingface.co/", "https://hf.co/", "hf.co/"];

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bare = PREFIXES.iter().find_map(|prefix| text.strip_prefix(prefix)).unwrap_or(text);
        let (repo, wanted) = match bare.split_once(':') {
            Some((repo, wanted)) => (repo, Some(wanted)),
            None => (bare, None),
        };
        let mut parts = repo.trim_end_matches('/').split('/');
        let (Some(owner), Some(name), None) = (parts.next(), parts.next(), parts.next()) else {
            return Err("expected OWNER/REPO or OWNER/REPO:QUANT".to_owned());
        };
        if !is_plain(owner) || !is_plain(name) {
            return Err("owner and repository are letters, digits, dots, dashes and underscores".to_owned());
        }
        if wanted.is_some_and(|wanted| wanted.is_empty() || !wanted.split('/').all(is_plain)) {
            return Err("expected a type (Q4_K_M) or a file of the repository behind the colon".to_owned());
        }
        Ok(Self { repo: format!("{owner}/{name}"), wanted: wanted.map(str::to_owned) })
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.wanted {
            Some(wanted) => write!(f, "{}:{wanted}", self.repo),
            None => f.write_str(&self.repo),
        }
    }
}

/// Whether it can be a part of a path that stays in its folder, on any system.
pub fn is_plain(part: &str) -> bool {
    let ok = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '+');
    !part.is_empty() && part.len() <= 200 && !part.starts_with('.') && part.chars().all(ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_people_paste_them() {
        let name = |text: &str| text.parse::<Name>();
        let is = |text: &str, repo: &str, wanted: Option<&str>| {
            let expected = Name { repo: repo.to_owned(), wanted: wanted.map(str::to_owned) };
            assert_eq!(name(text), Ok(expected), "{text}");
        };
        is("a/b", "a/b", None);
        is("hf.co/a/b:Q4_K_M", "a/b", Some("Q4_K_M"));
        is("https://huggingface.co/a/b-GGUF/", "a/b-GGUF", None);
        is("a/b:sub/x-00001-of-00002.gguf", "a/b", Some("sub/x-00001-of-00002.gguf"));
        for bad in
            ["", "a", "a/b/c", "a/", "/b", "../b", "a/..", "a/b:", "a/b:../x", "a b/c", "a/b:x/.git", "a/b\u{1b}"]
        {
            assert!(name(bad).is_err(), "{bad:?}");
        }
    }
}
