//! A trace as what notebooks read: CSV, or NumPy arrays in an `.npz` that [`super::import`] takes back.
//!
//! CSV: a line a choice, `token, prompt, position, phase, layer, rank, expert, weight`, without lookahead. `.npz`: `experts`
//! (token, MoE layer, k; 65535: no entry), `weights` (the same shape, if the trace has them), `phase` (token; 0 prompt,
//! 1 decode), `batch` (token; the same number for those that ran together), `position` (token; in its text), `prompt_start`
//! (first token of each prompt), `n_expert`, `expert_bytes` (MoE layer); if the trace has lookahead `pred_mid_plus1` (token,
//! MoE layer, rank; 65535: none) and `pred_mid_plus1_score`, *for* this layer, made in the one before it; and
//! `header.json`, the trace's header. An import of it is the same trace. Tokens whose last layers the trace lacks, at its damaged or growing end, are left out.
//!
//! Memory: one batch of the trace; an `.npz` reads the trace once for each array.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
};

use zip::{
    ZipWriter,
    write::{SimpleFileOptions, StreamWriter},
};

use super::{
    Phase, Routed,
    file::{Header, TraceReader},
};
use crate::{Error, Result, new_file::NewFile, npy};

/// "No entry".
const NONE: u16 = 65535;

/// What an export wrote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exported {
    /// Tokens.
    pub tokens: u64,
    /// Texts that ran.
    pub prompts: u64,
}

/// Tokens that went through all layers together.
struct Batch {
    phase: Phase,
    first_token: u32,
    n_token: usize,
    /// Each MoE layer's choices, token after token. (n_moe_layer)
    layers: Vec<Vec<Routed>>,
    /// The best of the scores with their experts, from each MoE layer: of a token alone. (n_moe_layer)
    ahead: Vec<Vec<(u16, f32)>>,
}

impl Batch {
    /// Choices of a token in a layer.
    fn choices(&self, layer: usize, token: usize) -> &[Routed] {
        let all = &self.layers[layer];
        let used = all.len() / self.n_token;
        &all[token * used..(token + 1) * used]
    }

    /// A token's choices in all layers, `k` each: `None` where it has fewer.
    fn padded(&self, token: usize, k: usize) -> impl Iterator<Item = Option<&Routed>> {
        let of_layer = move |layer| {
            let there = self.choices(layer, token).iter().map(Some);
            there.chain(std::iter::repeat(None)).take(k)
        };
        (0..self.layers.len()).flat_map(of_layer)
    }
}

/// The `ranks` best experts, best first.
fn best(scores: &[f32], ranks: usize) -> Vec<(u16, f32)> {
    let mut pairs: Vec<(u16, f32)> = (0u16..).zip(scores.iter().copied()).collect();
    pairs.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    pairs.truncate(ranks);
    pairs
}

/// Gives each whole batch of the trace to `take`.
fn batches(path: &Path, mut take: impl FnMut(&Header, &Batch) -> Result<()>) -> Result<Exported> {
    let mut trace = TraceReader::open(path)?;
    let header = trace.header().clone();
    let layers = vec![Vec::new(); header.n_layer];
    let ahead = vec![Vec::new(); header.n_layer];
    let mut batch = Batch { phase: Phase::Prompt, first_token: 0, n_token: 0, layers, ahead };
    let (mut next, mut done) = (0, Exported::default());
    let mut seen = vec![0u64; header.n_expert];
    let mut round = 0;
    while let Some(event) = trace.next_event()? {
        let layer = usize::from(event.layer);
        if layer == 0 {
            (batch.phase, batch.first_token, batch.n_token) = (event.phase, event.first_token, event.n_tokens as usize);
        }
        let choices = event.routed.len();
        // Layers may use fewer than others.
        let used = choices / batch.n_token;
        let fits = used * batch.n_token == choices && used <= header.n_expert_used && (used > 0 || batch.n_token == 1);
        if layer != next || event.n_tokens as usize != batch.n_token || !fits {
            let expected = format!("layer {next} of a batch of {} tokens", batch.n_token);
            let got = format!("layer {layer} of {} tokens with {choices} choices", event.n_tokens);
            return Err(Error::format(path, format!("the event after token {}", done.tokens), expected, got));
        }
        for (i, r) in event.routed.iter().enumerate() {
            round += u64::from(i % used == 0);
            if std::mem::replace(&mut seen[usize::from(r.id.expert)], round) == round {
                let what = format!("expert {} of layer {layer}, after token {}", r.id.expert, done.tokens);
                return Err(Error::format(path, what, "once for a token", "twice"));
            }
        }
        batch.layers[layer].clear();
        batch.layers[layer].extend_from_slice(event.routed);
        batch.ahead[layer] = best(event.lookahead, header.lookahead_ranks);
        next = (layer + 1) % header.n_layer;
        if next == 0 {
            done.prompts += u64::from(batch.first_token == 0);
            take(&header, &batch)?;
            done.tokens += batch.n_token as u64;
        }
    }
    Ok(done)
}

/// A whole trace in memory, as the `.npz` has it, without lookahead.
#[derive(Clone, Debug, PartialEq)]
pub struct Arrays {
    /// What the trace says of itself.
    pub header: Header,
    /// 65535: no entry. (token, MoE layer, k)
    pub experts: Vec<u16>,
    /// Of the same shape; empty if the trace has none.
    pub weights: Vec<f32>,
    /// 0: prompt, 1: decode. (token)
    pub phase: Vec<u8>,
    /// The same number for those that ran together. (token)
    pub batch: Vec<i64>,
    /// In its text. (token)
    pub position: Vec<i64>,
    /// First token of each text. (prompt)
    pub prompt_start: Vec<i64>,
}

/// Reads a whole trace: two bytes a choice, and four more with weights.
///
/// # Errors
/// A trace that cannot be read.
pub fn arrays(from: &Path) -> Result<Arrays> {
    let header = TraceReader::open(from)?.header().clone();
    let (experts, weights, phase) = (Vec::new(), Vec::new(), Vec::new());
    let (batch, position, prompt_start) = (Vec::new(), Vec::new(), Vec::new());
    let mut all = Arrays { header, experts, weights, phase, batch, position, prompt_start };
    let mut number = 0;
    batches(from, |header, batch| {
        if batch.first_token == 0 {
            all.prompt_start.push(all.phase.len() as i64);
        }
        for i in 0..batch.n_token {
            let choices = || batch.padded(i, header.n_expert_used);
            all.experts.extend(choices().map(|r| r.map_or(NONE, |r| r.id.expert)));
            if header.weights {
                all.weights.extend(choices().map(|r| r.map_or(0.0, |r| r.weight)));
            }
            all.phase.push(u8::from(batch.phase == Phase::Decode));
            all.batch.push(number);
            all.position.push(i64::from(batch.first_token) + i as i64);
        }
        number += 1;
        Ok(())
    })?;
    Ok(all)
}

/// Writes the trace `from` as a new file `to`: see [`export_to`].
///
/// # Errors
/// Where `to` exists, and as [`export_to`].
pub fn export(from: &Path, to: &Path) -> Result<Exported> {
    export_to(from, NewFile::create_new(to)?)
}

/// Writes the trace `from` to `to`, by whose ending `.csv` or `.npz` the form is chosen. What is written in place, such as a
/// pipe, has no ending that means something: it gets CSV.
///
/// # Errors
/// Another ending; a trace that cannot be read; what the system says of `to`.
pub fn export_to(from: &Path, to: NewFile) -> Result<Exported> {
    match to.path().extension().and_then(|e| e.to_str()) {
        Some("npz") => npz(from, to),
        Some("csv") => csv(from, to),
        _ if to.in_place() => csv(from, to),
        _ => Err(Error::request("the ending of the exported file", ".csv or .npz", to.path().display())),
    }
}

fn csv(from: &Path, mut out: NewFile) -> Result<Exported> {
    out.write(b"token,prompt,position,phase,layer,rank,expert,weight\n")?;
    let (mut token, mut prompt) = (0u64, 0u64);
    let done = batches(from, |header, batch| {
        prompt += u64::from(batch.first_token == 0);
        let phase = if batch.phase == Phase::Prompt { "prompt" } else { "decode" };
        for i in 0..batch.n_token {
            let position = u64::from(batch.first_token) + i as u64;
            for layer in 0..header.n_layer {
                for (rank, r) in batch.choices(layer, i).iter().enumerate() {
                    let (expert, weight) = (r.id.expert, r.weight);
                    let prompt = prompt.saturating_sub(1);
                    let line = format!("{token},{prompt},{position},{phase},{layer},{rank},{expert},{weight}\n");
                    out.write(line.as_bytes())?;
                }
            }
            token += 1;
        }
        Ok(())
    })?;
    out.finish()?;
    Ok(done)
}

/// A file that a zip is streamed into.
struct Sink(NewFile);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // The error's own sentence has the path; the zip writer would only wrap it.
        self.0.write(bytes).map(|()| bytes.len()).map_err(io::Error::other)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The archive that is being written.
struct Archive<'a> {
    from: &'a Path,
    to: PathBuf,
    zip: ZipWriter<StreamWriter<Sink>>,
    tokens: u64,
}

impl Archive<'_> {
    fn failed(&self, e: io::Error) -> Error {
        match e.downcast::<Error>() {
            Ok(error) => error,
            Err(e) => Error::io(&self.to, "write", e),
        }
    }

    fn start(&mut self, name: &str) -> Result<()> {
        // Larger than 4 GiB is possible, and the size is not known when a stream begins.
        let options = SimpleFileOptions::default().large_file(true);
        self.zip.start_file(name, options).map_err(|e| self.failed(e.into()))
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.zip.write_all(bytes).map_err(|e| self.failed(e))
    }

    fn numbers(&mut self, name: &str, list: &[i64]) -> Result<()> {
        self.start(&format!("{name}.npy"))?;
        self.bytes(&npy::header("<i8", &[list.len() as u64]))?;
        self.bytes(&list.iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<_>>())
    }

    /// An array along the tokens, an item of shape `item` each: `write` adds that of a batch's token.
    fn array(
        &mut self,
        name: &str,
        ty: &str,
        item: &[usize],
        mut write: impl FnMut(&Batch, usize, &mut Vec<u8>),
    ) -> Result<()> {
        self.start(&format!("{name}.npy"))?;
        let shape: Vec<u64> = [self.tokens].into_iter().chain(item.iter().map(|&n| n as u64)).collect();
        self.bytes(&npy::header(ty, &shape))?;
        // A trace that grows meanwhile: no more than were counted.
        let (mut left, mut bytes) = (self.tokens, Vec::new());
        batches(self.from, |_, batch| {
            for i in 0..batch.n_token.min(usize::try_from(left).unwrap_or(usize::MAX)) {
                bytes.clear();
                write(batch, i, &mut bytes);
                self.bytes(&bytes)?;
                left -= 1;
            }
            Ok(())
        })
        .map(drop)
    }

    fn routing(&mut self, header: &Header) -> Result<()> {
        let (n_layer, k) = (header.n_layer, header.n_expert_used);
        self.array("experts", "<u2", &[n_layer, k], |batch, i, out| {
            batch.padded(i, k).for_each(|r| out.extend(r.map_or(NONE, |r| r.id.expert).to_le_bytes()));
        })?;
        if header.weights {
            self.array("weights", "<f4", &[n_layer, k], |batch, i, out| {
                batch.padded(i, k).for_each(|r| out.extend(r.map_or(0.0, |r| r.weight).to_le_bytes()));
            })?;
        }
        Ok(())
    }

    /// Scores of the next layers, `ranks` of each; nothing for none.
    fn lookahead(&mut self, n_layer: usize, ranks: usize) -> Result<()> {
        if ranks == 0 {
            return Ok(());
        }
        let ahead = |batch: &Batch, each: &mut dyn FnMut(Option<(u16, f32)>)| {
            for layer in 0..n_layer {
                // The first layer has none.
                let list = layer.checked_sub(1).map_or(&[][..], |before| &batch.ahead[before]);
                (0..ranks).for_each(|rank| each(list.get(rank).copied()));
            }
        };
        self.array("pred_mid_plus1", "<u2", &[n_layer, ranks], |batch, _, out| {
            ahead(batch, &mut |a| out.extend(a.map_or(NONE, |a| a.0).to_le_bytes()));
        })?;
        self.array("pred_mid_plus1_score", "<f4", &[n_layer, ranks], |batch, _, out| {
            ahead(batch, &mut |a| out.extend(a.map_or(0.0, |a| a.1).to_le_bytes()));
        })
    }

    fn tokens(&mut self) -> Result<()> {
        self.array("phase", "|u1", &[], |batch, _, out| out.push(u8::from(batch.phase == Phase::Decode)))?;
        let mut number = -1i64;
        self.array("batch", "<i8", &[], |_, i, out| {
            number += i64::from(i == 0);
            out.extend(number.to_le_bytes());
        })?;
        self.array("position", "<i8", &[], |batch, i, out| {
            out.extend((i64::from(batch.first_token) + i as i64).to_le_bytes());
        })
    }
}

fn npz(from: &Path, file: NewFile) -> Result<Exported> {
    let to = file.path().to_owned();
    // Shapes stand before values: one pass to count.
    let (mut token, mut starts) = (0i64, Vec::new());
    let done = batches(from, |_, batch| {
        if batch.first_token == 0 {
            starts.push(token);
        }
        token += batch.n_token as i64;
        Ok(())
    })?;
    let header = TraceReader::open(from)?.header().clone();
    let mut archive = Archive { from, to, zip: ZipWriter::new_stream(Sink(file)), tokens: done.tokens };
    archive.routing(&header)?;
    archive.lookahead(header.n_layer, header.lookahead_ranks)?;
    archive.tokens()?;
    archive.numbers("prompt_start", &starts)?;
    archive.numbers("n_expert", &[header.n_expert as i64])?;
    archive.numbers("expert_bytes", &header.expert_bytes.iter().map(|&n| n as i64).collect::<Vec<_>>())?;
    archive.start("header.json")?;
    archive.bytes(&serde_json::to_vec(&header).expect("a header is plain text and numbers"))?;
    let Archive { to, zip, .. } = archive;
    let finished = zip.finish().map_err(io::Error::from);
    finished.map_err(|e| Error::io(&to, "write", e))?.into_inner().0.finish()?;
    Ok(done)
}
