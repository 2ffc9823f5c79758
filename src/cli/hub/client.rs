//! The hub's protocol: a repository's files, and bytes of one of them.

use std::{env, io::Read, time::Duration};

use hotset::{Error, Result};
use serde::Deserialize;
use ureq::{
    Agent,
    config::RedirectAuthHeaders,
    http::{Response, StatusCode},
};

use super::is_plain;

/// Where models are if `HF_ENDPOINT` does not say.
const ENDPOINT: &str = "https://huggingface.co";

/// The longest list of files that is read. Bytes
const MAX_LIST: u64 = 32 << 20;

const CONNECT: Duration = Duration::from_secs(20);
const ANSWER: Duration = Duration::from_secs(60);
/// Of one piece of a file: see [`super::download`].
const BODY: Duration = Duration::from_secs(300);

/// A hub, and who asks.
pub struct Hub {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
}

/// What a repository has.
pub struct Listing {
    /// The commit that the revision is now.
    pub commit: String,
    /// Its files.
    pub files: Vec<Remote>,
}

/// A file of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    /// Path in the repository. Each part is [plain](is_plain).
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// What its bytes must hash to, in hexadecimal digits.
    pub sha256: Option<String>,
    /// What the cache calls it.
    pub blob: String,
}

#[derive(Deserialize)]
struct Answer {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    #[serde(rename = "blobId")]
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: String,
    size: u64,
}

impl Hub {
    /// The hub that `HF_ENDPOINT` names, asked with `HF_TOKEN`.
    ///
    /// # Errors
    /// An endpoint that is no address.
    pub fn from_env() -> Result<Self> {
        let set = |key: &str| env::var(key).ok().filter(|value| !value.is_empty());
        let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned()).trim_end_matches('/').to_owned();
        if !endpoint.starts_with("https://") && !endpoint.starts_with("http://") {
            return Err(Error::invalid(format!(
                "HF_ENDPOINT: expected an address with http:// or https://, got {endpoint}"
            )));
        }
        let config = Agent::config_builder()
            .user_agent(concat!("hotset/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(CONNECT))
            .timeout_recv_response(Some(ANSWER))
            .timeout_recv_body(Some(BODY))
            // A token is for the hub, not for where it sends one to.
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            .http_status_as_error(false)
            .build();
        Ok(Self { agent: config.into(), endpoint, token: set("HF_TOKEN") })
    }

    /// The files of a repository.
    ///
    /// # Errors
    /// What the hub says, in a sentence; a list that makes no sense.
    pub fn list(&self, repo: &str, revision: &str) -> Result<Listing> {
        let url = format!("{}/api/models/{repo}/revision/{revision}?blobs=true", self.endpoint);
        let mut answer = self.ask(repo, &url, None)?;
        let text = answer.body_mut().with_config().limit(MAX_LIST).read_to_string();
        let text = text.map_err(|e| Error::invalid(format!("{repo}: the hub's list of files: {e}")))?;
        let answer: Answer = serde_json::from_str(&text)
            .map_err(|e| Error::invalid(format!("{repo}: the hub's list of files makes no sense: {e}")))?;
        if !is_plain(&answer.sha) {
            return Err(Error::invalid(format!("{repo}: the hub names a commit that is none")));
        }
        let files = answer.siblings.into_iter().filter_map(Sibling::remote).collect();
        Ok(Listing { commit: answer.sha, files })
    }

    /// A file's bytes from `from` on, up to `to` where the hub allows that, else to its end; and where they begin.
    ///
    /// # Errors
    /// What the hub or the network says.
    pub fn read(&self, repo: &str, commit: &str, file: &Remote, from: u64, to: u64) -> Result<(u64, impl Read)> {
        let url = format!("{}/{repo}/resolve/{commit}/{}", self.endpoint, file.name);
        let answer = self.ask(repo, &url, Some(format!("bytes={from}-{}", to - 1)))?;
        let start = if answer.status() == StatusCode::PARTIAL_CONTENT { from } else { 0 };
        Ok((start, answer.into_body().into_reader()))
    }

    fn ask(&self, repo: &str, url: &str, range: Option<String>) -> Result<Response<ureq::Body>> {
        let mut request = self.agent.get(url);
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if let Some(range) = range {
            request = request.header("range", range);
        }
        let answer = request.call().map_err(|e| Error::invalid(format!("{repo}: {}: {e}", self.endpoint)))?;
        let wrong = |why: &str| Err(Error::invalid(format!("{repo}: {why}")));
        match answer.status().as_u16() {
            200 | 206 => Ok(answer),
            401 | 403 if self.token.is_none() => {
                wrong("the hub refuses it: there is no such repository, or it is private or gated and wants HF_TOKEN")
            }
            401 | 403 => {
                wrong("the hub refuses it: HF_TOKEN may not read it (a gated one asks to accept its terms first)")
            }
            404 => wrong("the hub has no such repository, revision or file"),
            429 => wrong("the hub asks to wait (429): try again later"),
            code => wrong(&format!("the hub answers with {code}")),
        }
    }
}

impl Sibling {
    /// `None` for what no path of ours could be.
    fn remote(self) -> Option<Remote> {
        let sha256 = self.lfs.as_ref().map(|lfs| lfs.sha256.to_lowercase());
        let bytes = self.lfs.map(|lfs| lfs.size).or(self.size)?;
        let blob = sha256.clone().or(self.blob_id)?;
        let ok = self.rfilename.split('/').all(is_plain) && is_plain(&blob);
        ok.then_some(Remote { name: self.rfilename, bytes, sha256, blob })
    }
}
