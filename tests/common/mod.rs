//! What several test binaries share.
#![allow(dead_code, reason = "each test binary uses a part")]

pub mod dice;
pub mod header;
pub mod hub;
pub mod isa;
pub mod mutate;
pub mod not_tested;
pub mod npz;
pub mod numpy_rng;
pub mod opened;
pub mod program;
pub mod property;
pub mod ref_models;
pub mod routing;
pub mod samples;
#[cfg(all(target_os = "linux", feature = "serve"))]
pub mod server;
#[cfg(target_os = "linux")]
pub mod terminal;
pub mod tiny;
pub mod vocab;

use std::{
    fs::File,
    path::Path,
    sync::{Arc, OnceLock},
};

use hotset::io::IoKind;

pub(crate) use not_tested::not_tested;

/// The read paths that this system lets us use where tests put their files, and a line for each that it does not: containers
/// often forbid `io_uring`, and not every file system reads past the page cache. Any other reason is a failure.
pub fn read_paths() -> &'static [IoKind] {
    static PATHS: OnceLock<Vec<IoKind>> = OnceLock::new();
    PATHS.get_or_init(|| {
        let kinds = IoKind::ALL.iter().copied();
        kinds
            .filter(|&kind| {
                [&std::env::temp_dir(), Path::new(env!("CARGO_TARGET_TMPDIR"))].iter().all(|f| allows(kind, f))
            })
            .collect()
    })
}

fn allows(kind: IoKind, folder: &Path) -> bool {
    let temporary = tempfile::NamedTempFile::new_in(folder).unwrap();
    std::fs::write(temporary.path(), [7; 100_000]).unwrap();
    let file = Arc::new(File::open(temporary.path()).unwrap());
    let Err(e) = kind.build([(temporary.path().to_owned(), file)].into_iter().collect(), 1) else { return true };
    use std::io::ErrorKind::{InvalidInput, PermissionDenied, Unsupported};
    let forbidden = matches!(kind, IoKind::Direct | IoKind::Uring);
    assert!(forbidden && matches!(e.kind(), InvalidInput | PermissionDenied | Unsupported), "{}: {e}", kind.name());
    not_tested!("the read path {} ({e})", kind.name());
    false
}
