//! hotset runs Mixture-of-Experts language models that are larger than the memory they are given.
//!
//! A MoE layer has many expert FFNs and uses a few a token, so most weights are idle at any moment. hotset reads a
//! quantised GGUF file, keeps dense weights resident and the *hot set* of experts in slots within a budget, reads cold
//! experts from disk while resident ones compute, and guesses the next layer's experts from router scores.
//!
//! # One token
//!
//! ```text
//! session::Session::decode(token)                         // one sequence; engine::Engine::step(batch): several
//!   model::Model::forward(workspace, batch, sequences)         // the page to read: src/model/mod.rs
//!     x = embedding row;  for each block { x += part(norm(x)) };  norm;  head
//!     model::ffn::Moe::add                                  // src/model/ffn/moe.rs
//!       scores = router(x);  routed = top-k;  lookahead = next layer's router(x)
//!       experts.request(LayerEvent { routed, lookahead, .. })       // never blocks
//!       shared expert                                               // computes while the disk works
//!       until experts.next_ready() is empty { out[e] = ffn(e, x) }  // the only place that waits for a disk
//!       x += Σ weight · out[e]                                      // in routing order
//!   expert::ExpertCache                                     // src/expert/cache.rs
//!     request: hit → touch;  miss → policy.evict → slot → io.submit(read);  guesses → low-priority reads
//!   io::ThreadEngine → Pread | Direct | Mapped, io::Uring    // src/io: the disk read
//! ```
//!
//! A prompt is the same path with many tokens: the batch is routed, the union of its experts is streamed through the
//! slots, and each expert is read at most once per layer and batch.
//!
//! # Code map
//!
//! | module | is | must not know |
//! |---|---|---|
//! | [`input`] | files that are read: opened only if regular, read by position, errors that pass | what the bytes mean |
//! | [`gguf`] | files: header, metadata, tensor table, split sets, writer | models |
//! | [`quant`] | ggml's types: blocks, scalar truth | files, CPUs |
//! | [`trace`], [`id`] | the record of a layer event, the interface of everything below | bytes, clocks |
//! | [`retrieval`] | which past tokens resemble this one, and what they used next | bytes, files, clocks |
//! | [`policy`] | who leaves the cache; one file each | bytes, files, clocks, threads |
//! | [`prefetch`] | what may be asked for next | as `policy` |
//! | [`io`] | engines that read extents into buffers | experts, policies |
//! | [`expert`] | expert index, slots, the cache; [`expert::Experts`] is the door | models, arithmetic |
//! | [`backend`] | the arithmetic of a token, kernels, threads | files, expert ids |
//! | [`gpu`] | the same arithmetic for experts in a graphics card's memory | files, expert ids, caches |
//! | [`blueprint`] | what a model is, as data: parts, tensors, hyper-parameters | bytes of weights, caches, threads |
//! | [`arch`] | one file per architecture: from a file's header to a blueprint | the same |
//! | [`model`] | dense weights, forward pass | names of tensors, policies, engines, slots |
//! | [`repack`] | a model rewritten so that an expert is one read | caches, arithmetic |
//! | [`outlook`] | how fast a model should decode in a budget | files, clocks |
//! | [`budget`] | a budget as people write it | what it is split into |
//! | [`plan`], [`pressure`] | how a budget is split; how it follows a machine that is short of memory | |
//! | [`simulate`] | a trace through the live cache on a simulated drive | models, arithmetic |
//! | [`report`] | traces and runs as curves, heat maps and timelines | sessions, clocks, terminals |
//! | [`engine`] | several sequences on one model in one budget, with one expert cache | text |
//! | [`session`] | one sequence on one model in one budget: what a program uses | text |
//! | [`tokenizer`], [`sampler`] | text to tokens, logits to a token | models |
//! | [`scheduler`] | several texts at once on one engine, and what is kept of them | HTTP, templates, clocks |
//! | [`generate`], [`stop`] | the decode loop: a prompt in, text out, and when it stops | terminals, templates |
//! | `chat` | conversations as a model reads and writes them: templates, reasoning, tool calls | models, tokens |
//! | `converse` | a model's tokenizer and its template together | sessions |
//! | `serve` | the HTTP server | |
//!
//! Imports point down; `tests/architecture.rs` has the table.
//!
//! # A new architecture
//!
//! Write `src/arch/NAME.rs`, which reads like a model card: hyper-parameters, then the blocks of a layer, made with
//! [`blueprint::Reader`] and [`blueprint::LayerReader`]. Give it a row in `src/arch/mod.rs`. Where the model computes
//! something that no part does yet, add a field or a variant to the part in `src/blueprint`, and its arithmetic to the part
//! of that name in `src/model`. Whatever the file has and the blueprint does not take is refused by name. Test data: an
//! entry of `tests/data/ref/specs.json` with the logits of another program.
//!
//! # Invariants
//!
//! * Offloading never changes a bit of the output: logits are identical for every budget, policy, prefetcher, read path,
//!   batch size and number of threads. Experts are computed in order of arrival and summed in routing order; every dot
//!   product has one order of additions.
//! * The budget is obeyed: everything that grows with the model is allocated at the start, from one [`plan::Plan`].
//! * Input never panics: a bad file or request is an [`Error`] that names what, where, expected and got.
//! * One control thread owns [`expert::Experts`]. Threads exist only inside [`io`] and the backend's pool.
//!
//! # Use
//!
//! ```no_run
//! use hotset::{Gguf, Options, Session, Tokenizer};
//!
//! let gguf = Gguf::open("model.gguf".as_ref())?;
//! let tokenizer = Tokenizer::from_gguf(&gguf)?;
//! let options = Options { memory_bytes: Some(4 << 30), ..Options::default() };
//! let mut session = Session::open(gguf, &options, &mut |_done, _total| {})?;
//! let logits = session.feed(&tokenizer.encode("Once upon a time", true, false), &mut |_| {})?;
//! # let _ = logits;
//! # Ok::<(), hotset::Error>(())
//! ```
//!
//! `examples/` has whole programs: a text, a budget that changes while the model runs, two texts at once, a policy of one's own.
//! Modules that this page does not list are the program's: public, so that it and its tests can use them, without a promise
//! that they stay as they are.

#[doc(hidden)]
pub mod arch;
#[doc(hidden)]
pub mod backend;
#[doc(hidden)]
pub mod blueprint;
pub mod budget;
#[cfg(feature = "chat")]
pub mod chat;
#[cfg(feature = "chat")]
pub mod constrain;
#[cfg(feature = "chat")]
pub mod converse;
pub mod engine;
#[doc(hidden)]
pub mod error;
pub mod expert;
pub mod generate;
#[doc(hidden)]
pub mod gguf;
#[doc(hidden)]
pub mod gpu;
pub mod id;
#[doc(hidden)]
pub mod input;
#[doc(hidden)]
pub mod io;
#[doc(hidden)]
pub mod machine;
pub mod model;
#[doc(hidden)]
pub mod new_file;
#[doc(hidden)]
pub mod npy;
#[doc(hidden)]
pub mod outlook;
#[doc(hidden)]
pub mod plan;
pub mod policy;
pub mod prefetch;
#[doc(hidden)]
pub mod pressure;
#[doc(hidden)]
pub mod quant;
#[doc(hidden)]
pub mod repack;
#[doc(hidden)]
pub mod report;
#[doc(hidden)]
pub mod retrieval;
#[doc(hidden)]
pub mod sampler;
pub mod scheduler;
#[cfg(feature = "serve")]
pub mod serve;
pub mod session;
pub mod simulate;
#[doc(hidden)]
pub mod stop;
#[doc(hidden)]
pub mod tokenizer;
pub mod trace;

pub use engine::{Engine, Options};
pub use error::{Error, Result};
pub use gguf::Gguf;
pub use sampler::{Sampler, SamplerConfig};
pub use session::Session;
pub use tokenizer::Tokenizer;

/// Bytes for people, in binary units: `15.2 MiB`.
pub fn human_bytes(bytes: u64) -> String {
    in_units(bytes, |tenths| tenths.round())
}

/// As [`human_bytes`], rounded up: a budget of so much is not too small.
pub fn human_bytes_up(bytes: u64) -> String {
    in_units(bytes, |tenths| tenths.ceil())
}

fn in_units(bytes: u64, round: fn(f64) -> f64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (bytes as f64, "bytes");
    for next in units {
        if value < 1024.0 {
            break;
        }
        (value, unit) = (value / 1024.0, next);
    }
    match unit {
        "bytes" if bytes == 1 => "1 byte".to_owned(),
        "bytes" => format!("{bytes} bytes"),
        unit => format!("{:.1} {unit}", round(value * 10.0) / 10.0),
    }
}
