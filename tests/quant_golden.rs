//! Quantised models against the *exact* logits: the same weights dequantised by ggml, activations in F32.
//!
//! llama.cpp quantises activations too, and so lies some distance from exact. The claim is that we lie no farther, by
//! the median over rows of the relative RMS distance; the median, because a row after a flipped router choice differs
//! for that reason and not for its arithmetic.
//!
//! Two types' files are small enough to be kept; `HOTSET_REF=…/ref cargo test --release --test quant_golden -- --ignored`
//! runs all of a folder made as `tests/data/ref/README.md` says.

mod common;

use std::path::{Path, PathBuf};

use hotset::{
    backend::{Backend, Reference},
    gguf::Gguf,
    npy::Npy,
    quant::GgmlType,
    session::{Options, Session},
};

const PROMPT: usize = 32;

struct Case {
    folder: PathBuf,
    ty: String,
}

impl Case {
    fn npy(&self, what: &str) -> Npy {
        Npy::read(&self.folder.join(format!("qwen3moe-256.{}.{what}.npy", self.ty))).unwrap()
    }

    /// Logits of a run, (tokens, vocabulary).
    fn run(&self, backend: impl Backend) -> Vec<f32> {
        let tokens: Vec<u32> = self.npy("tokens").i32s().unwrap().iter().map(|&t| t as u32).collect();
        let gguf = Gguf::open(&self.folder.join(format!("qwen3moe-256.{}.gguf", self.ty))).unwrap();
        let options = Options { kv: GgmlType::F32, all_logits: true, ..Options::default() };
        let mut session = Session::with_backend(gguf, &options, backend, Box::new(()), &mut |_, _| {}).unwrap();
        let mut logits = session.feed_all(&tokens[..PROMPT]).unwrap().to_vec();
        for &token in &tokens[PROMPT..] {
            logits.extend_from_slice(session.decode(token).unwrap());
        }
        logits
    }

    fn check(&self) {
        let (exact, theirs) = (self.npy("exact.logits"), self.npy("logits"));
        let (exact, theirs) = (exact.f32s().unwrap(), theirs.f32s().unwrap());
        let n_vocab = exact.len() / self.npy("tokens").i32s().unwrap().len();
        let ours = median_distance(&self.run(common::isa::cpu(2)), exact, n_vocab);
        let llama_cpp = median_distance(theirs, exact, n_vocab);
        // The reference backend keeps F32 activations, so it must meet exact itself, as F32 models do.
        let reference = self.run(Reference);
        let worst = reference.iter().zip(exact).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        eprintln!(
            "{:8} median row distance to exact: hotset {ours:.3e}, llama.cpp {llama_cpp:.3e}; reference backend max {worst:.1e}",
            self.ty
        );
        assert!(worst <= 1e-4, "{}: reference backend is {worst} from exact", self.ty);
        assert!(ours <= llama_cpp, "{}: {ours} from exact, llama.cpp {llama_cpp}", self.ty);
    }
}

/// Median over rows of |a - b| / |b|.
fn median_distance(a: &[f32], b: &[f32], n_vocab: usize) -> f64 {
    assert_eq!(a.len(), b.len());
    let mut rows: Vec<f64> = a
        .chunks(n_vocab)
        .zip(b.chunks(n_vocab))
        .map(|(a, b)| {
            let square = |x: f64| x * x;
            let difference: f64 = a.iter().zip(b).map(|(a, b)| square(f64::from(a - b))).sum();
            (difference / b.iter().map(|b| square(f64::from(*b))).sum::<f64>()).sqrt()
        })
        .collect();
    rows.sort_by(f64::total_cmp);
    rows[rows.len() / 2]
}

fn kept() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/quant")
}

#[test]
fn kept_types_are_no_farther_from_exact_than_llama_cpp() {
    for ty in ["Q2_K", "Q4_0"] {
        Case { folder: kept(), ty: ty.to_owned() }.check();
    }
}

#[test]
#[ignore = "needs HOTSET_REF, the folder of reference data for every type"]
fn every_type_is_no_farther_from_exact_than_llama_cpp() {
    let folder = PathBuf::from(std::env::var_os("HOTSET_REF").expect("HOTSET_REF names the folder")).join("quant");
    let quantised = GgmlType::ALL.iter().filter(|t| t.is_computable() && t.block_len() > 1);
    let mut types: Vec<_> = quantised.map(|t| t.name().to_owned()).collect();
    assert_eq!(types.len(), 25, "all computable block types: {types:?}");
    // ggml's own quantiser leaves a code of Q2_0 unused.
    types.push("Q2_0-all4".to_owned());
    for ty in types {
        Case { folder: folder.clone(), ty }.check();
    }
}
