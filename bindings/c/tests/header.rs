//! `hotset.h` is what cbindgen makes of the sources.

use std::path::{Path, PathBuf};

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn fresh() -> String {
    let config = cbindgen::Config::from_file(folder().join("cbindgen.toml")).unwrap();
    let builder = cbindgen::Builder::new().with_config(config).with_src(folder().join("src/lib.rs"));
    let bindings = builder.generate().unwrap();
    let mut header = Vec::new();
    bindings.write(&mut header);
    String::from_utf8(header).unwrap()
}

fn committed(folder: &Path) -> String {
    std::fs::read_to_string(folder.join("hotset.h")).unwrap()
}

#[test]
fn the_header_is_what_the_sources_say() {
    let (fresh, committed) = (fresh(), committed(&folder()));
    let line = fresh.lines().zip(committed.lines()).position(|(a, b)| a != b);
    let hint = "cargo test -p hotset-c --test header -- --ignored";
    assert!(fresh == committed, "hotset.h is old from line {:?} on; write it anew: {hint}", line.map(|n| n + 1));
    for name in ["hotset_open", "hotset_error_free", "hotset_get_stats", "hotset_generate", "hotset_abi_version"] {
        assert_eq!(fresh.matches(&format!(" {name}(")).count(), 1, "{name} is declared once");
    }
}

#[test]
#[ignore = "writes the header"]
fn write_the_header() {
    std::fs::write(folder().join("hotset.h"), fresh()).unwrap();
}
