//! Tells the program whether there is a model to embed: a clone has one, the published crate has not.

fn main() {
    const MODEL: &str = "assets/moe-s-q4_0.gguf";
    println!("cargo::rerun-if-changed={MODEL}");
    println!("cargo::rustc-check-cfg=cfg(bundled_model)");
    if std::path::Path::new(MODEL).is_file() {
        println!("cargo::rustc-cfg=bundled_model");
    }
}
