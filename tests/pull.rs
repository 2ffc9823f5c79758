//! `hotset pull`, `list` and `remove` against a hub on this machine.

mod common;

use std::{fs, path::Path, process::Output, sync::atomic::Ordering};

use common::{
    hub::{COMMIT, HubFile, HubServer, Trouble, serve, sha256},
    program::command,
};
use tempfile::TempDir;

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/moe-s-q4_0.gguf");

fn model() -> Vec<u8> {
    fs::read(MODEL).unwrap()
}

fn files() -> Vec<HubFile> {
    vec![
        HubFile { name: "README.md", bytes: b"a card".to_vec() },
        HubFile { name: "small-Q4_0.gguf", bytes: model() },
        HubFile { name: "mmproj-F16.gguf", bytes: b"no model".to_vec() },
    ]
}

/// A folder for downloads, and a hub.
struct Setup {
    hub: HubServer,
    folder: TempDir,
}

impl Setup {
    fn new(files: Vec<HubFile>, token: Option<&'static str>) -> Self {
        Self { hub: serve(files, token), folder: tempfile::tempdir().unwrap() }
    }

    fn trouble(&self, trouble: Trouble) {
        *self.hub.trouble.lock().unwrap() = trouble;
    }

    fn hotset(&self, args: &[&str], token: Option<&str>) -> Output {
        let mut command = command(env!("CARGO_BIN_EXE_hotset"));
        command.args(args).env("HF_ENDPOINT", &self.hub.endpoint).env("HF_HUB_CACHE", self.folder.path());
        command.env_remove("HF_TOKEN");
        command.envs(token.map(|token| ("HF_TOKEN", token)));
        command.output().unwrap()
    }

    /// Standard output and standard error.
    fn works(&self, args: &[&str]) -> (String, String) {
        let output = self.hotset(args, None);
        let [out, err] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8(bytes.clone()).unwrap());
        assert!(output.status.success(), "{args:?}: {err}");
        (out, err)
    }

    /// The last line on standard error, which is the only one that begins with the program's name and an error.
    fn fails(&self, args: &[&str], token: Option<&str>) -> String {
        let output = self.hotset(args, token);
        let err = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && !err.contains("panicked"), "{args:?}: {err}");
        err.lines().last().unwrap().to_owned()
    }

    fn repo(&self) -> std::path::PathBuf {
        self.folder.path().join("models--owner--model")
    }
}

#[test]
fn a_model_is_planned_downloaded_checked_and_runs_by_its_name() {
    let setup = Setup::new(files(), None);
    let (out, err) = setup.works(&["pull", "owner/model"]);
    let path = out.trim_end();
    assert!(fs::read(path).unwrap() == model());
    assert!(err.contains("owner/model:Q4_0: ") && err.contains("On this machine: "), "{err}");
    // The layout of the hub's own tools.
    let blob = setup.repo().join("blobs").join(sha256(&model()));
    assert_eq!(fs::canonicalize(path).unwrap(), fs::canonicalize(&blob).unwrap());
    assert!(Path::new(path).ends_with(format!("snapshots/{COMMIT}/small-Q4_0.gguf")));
    assert_eq!(fs::read_to_string(setup.repo().join("refs/main")).unwrap(), COMMIT);
    #[cfg(unix)]
    assert!(fs::read_link(path).unwrap().is_relative(), "a cache that is moved still works");

    let sent = setup.hub.sent.load(Ordering::SeqCst);
    let (_, err) = setup.works(&["pull", "owner/model:q4_0"]);
    assert!(err.contains("all of it was there"), "{err}");
    let header = setup.hub.sent.load(Ordering::SeqCst) - sent;
    assert!(header <= 4 << 20, "{header} bytes of a file that was there");

    let named = setup.works(&["run", "owner/model:Q4_0", "abc", "-n", "4", "--temp", "0"]).0;
    assert_eq!(named, setup.works(&["run", MODEL, "abc", "-n", "4", "--temp", "0"]).0);
    assert!(setup.works(&["inspect", "owner/model"]).0.contains("runs: yes"));
    let (list, _) = setup.works(&["list"]);
    assert!(list.starts_with("owner/model:Q4_0  ") && list.lines().count() == 1, "{list}");
    let (json, _) = setup.works(&["list", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["rows"][0]["bytes"], model().len());

    assert!(setup.works(&["remove", "owner/model:Q4_0"]).1.contains("freed"));
    assert!(!setup.repo().exists());
    assert_eq!(setup.works(&["list"]).0, "");
    assert!(setup.fails(&["remove", "owner/model"], None).contains("no such model"));
    assert!(setup.fails(&["run", "owner/model", "abc"], None).contains("hotset pull owner/model"));
}

#[test]
fn a_dry_run_downloads_a_header_and_leaves_nothing() {
    let setup = Setup::new(files(), None);
    let (out, err) = setup.works(&["pull", "owner/model", "--dry-run"]);
    assert!(out.is_empty() && err.contains("On this machine: "), "{err}");
    assert!(setup.hub.sent.load(Ordering::SeqCst) <= 4 << 20);
    assert!(!setup.repo().exists());
}

#[test]
fn a_connection_that_breaks_is_taken_up_where_it_broke() {
    let setup = Setup::new(files(), None);
    setup.trouble(Trouble { cut_after: Some(5 << 20), ..Trouble::default() });
    let (out, _) = setup.works(&["pull", "owner/model"]);
    assert!(fs::read(out.trim_end()).unwrap() == model());
}

#[test]
fn a_download_that_fails_goes_on_with_the_next_command() {
    let setup = Setup::new(files(), None);
    setup.trouble(Trouble { dead_after: Some(12 << 20), ..Trouble::default() });
    let error = setup.fails(&["pull", "owner/model"], None);
    assert!(error.contains("goes on from there") || error.contains("sends nothing"), "{error}");
    assert_eq!(setup.works(&["list"]).0, "", "half a model is none");
    setup.trouble(Trouble::default());
    let sent = setup.hub.sent.load(Ordering::SeqCst);
    let (out, _) = setup.works(&["pull", "owner/model"]);
    assert!(fs::read(out.trim_end()).unwrap() == model());
    let again = setup.hub.sent.load(Ordering::SeqCst) - sent;
    assert!(again < model().len() as u64, "{again} bytes: all of it came again");
}

#[test]
fn a_hub_without_ranges_works_too() {
    let setup = Setup::new(files(), None);
    setup.trouble(Trouble { no_ranges: true, ..Trouble::default() });
    let (out, _) = setup.works(&["pull", "owner/model"]);
    assert!(fs::read(out.trim_end()).unwrap() == model());
}

#[test]
fn other_bytes_than_promised_are_removed() {
    let setup = Setup::new(files(), None);
    setup.trouble(Trouble { wrong_hash: true, ..Trouble::default() });
    let error = setup.fails(&["pull", "owner/model"], None);
    assert!(error.contains("came damaged"), "{error}");
    assert_eq!(fs::read_dir(setup.repo().join("blobs")).unwrap().count(), 0);
}

#[test]
fn a_gated_repository_wants_the_token() {
    let setup = Setup::new(files(), Some("secret"));
    assert!(setup.fails(&["pull", "owner/model"], None).contains("HF_TOKEN"));
    assert!(setup.fails(&["pull", "owner/model"], Some("wrong")).contains("HF_TOKEN"));
    assert!(setup.hotset(&["pull", "owner/model"], Some("secret")).status.success());
}

#[test]
fn what_is_not_there_or_does_not_run_is_said_before_anything_comes() {
    let mut broken = model();
    let at = broken.windows(8).position(|w| w == b"qwen3moe").unwrap();
    broken[at..at + 8].copy_from_slice(b"gwen3moe");
    let more = [
        HubFile { name: "small-Q8_0.gguf", bytes: model() },
        HubFile { name: "other-Q2_K.gguf", bytes: broken },
        HubFile { name: "../../evil-Q4_0.gguf", bytes: model() },
    ];
    let setup = Setup::new([files(), more.to_vec()].concat(), None);
    assert!(setup.fails(&["pull", "owner/none"], None).contains("no such repository"));
    assert!(setup.fails(&["pull", "owner/model:Q5_K_M"], None).contains("has no Q5_K_M, but "));
    assert!(setup.fails(&["pull", "owner"], None).contains("OWNER/REPO"));
    let error = setup.fails(&["pull", "owner/model:Q2_K"], None);
    assert!(error.contains("nothing was downloaded"), "{error}");
    assert!(!setup.repo().exists());
    assert!(setup.hotset(&["pull", "owner/model:Q2_K", "--force"], None).status.success());
    let mut command = command(env!("CARGO_BIN_EXE_hotset"));
    let output = command.args(["pull", "owner/model"]).env("HF_ENDPOINT", "ftp://x").output().unwrap();
    assert!(String::from_utf8(output.stderr).unwrap().contains("HF_ENDPOINT"));
}
