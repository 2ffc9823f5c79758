//! A trace as what notebooks read: CSV, or NumPy arrays in an `.npz` that [`super::import`] takes back.
//!
//! CSV: a line a choice, `token, prompt, position, phase, layer, rank, expert, weight`. `.npz`: `experts` (token, MoE layer,
//! k; 65535: no entry), `weights` (the same shape, if the trace has them), `phase` (token; 0 prompt, 1 decode),
//! `prompt_start` (first token of each prompt), `n_expert`, `expert_bytes` (MoE layer). Tokens whose last layers the trace
//! lacks, at its damaged or growing end, are left out.
//!
//! Memory: one batch of the trace; an `.npz` reads the trace once for each array.

use std::{
    io::{self, Write},
    path::Path,
};

use zip::{ZipWriter, write::SimpleFileOptions};

use super::{
    Phase, Routed,
    file::{Header, TraceReader},
};
use crate::{Error, Result, new_file::NewFile};

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
}

impl Batch {
    /// Choices of a token in a layer, of which there are `k` at most.
    fn choices(&self, layer: usize, token: usize, k: usize) -> &[Routed] {
        let all = &self.layers[layer];
        // Only imported tokens, which come one by one, can have fewer.
        if self.n_token == 1 { &all[..all.len().min(k)] } else { &all[token * k..(token + 1) * k] }
    }
}

/// Gives each whole batch of the trace to `take`.
fn batches(path: &Path, mut take: impl FnMut(&Header, &Batch) -> Result<()>) -> Result<Exported> {
    let mut trace = TraceReader::open(path)?;
    let header = trace.header().clone();
    let layers = vec![Vec::new(); header.n_layer];
    let mut batch = Batch { phase: Phase::Prompt, first_token: 0, n_token: 0, layers };
    let (mut next, mut done) = (0, Exported::default());
    while let Some(event) = trace.next_event()? {
        let layer = usize::from(event.layer);
        if layer == 0 {
            (batch.phase, batch.first_token, batch.n_token) = (event.phase, event.first_token, event.n_tokens as usize);
        }
        let choices = event.routed.len();
        let whole = choices == batch.n_token.saturating_mul(header.n_expert_used);
        if layer != next || event.n_tokens as usize != batch.n_token || !(whole || batch.n_token == 1) {
            let expected = format!("layer {next} of a batch of {} tokens", batch.n_token);
            let got = format!("layer {layer} of {} tokens with {choices} choices", event.n_tokens);
            return Err(Error::format(path, format!("the event after token {}", done.tokens), expected, got));
        }
        batch.layers[layer].clear();
        batch.layers[layer].extend_from_slice(event.routed);
        next = (layer + 1) % header.n_layer;
        if next == 0 {
            done.prompts += u64::from(batch.first_token == 0);
            take(&header, &batch)?;
            done.tokens += batch.n_token as u64;
        }
    }
    Ok(done)
}

/// Writes the trace `from` as `to`, by whose ending `.csv` or `.npz` the form is chosen. Replaces nothing.
///
/// # Errors
/// Another ending; a trace that cannot be read; what the system says of `to`.
pub fn export(from: &Path, to: &Path) -> Result<Exported> {
    match to.extension().and_then(|e| e.to_str()) {
        Some("csv") => csv(from, to),
        Some("npz") => npz(from, to),
        _ => Err(Error::request("the ending of the exported file", ".csv or .npz", to.display())),
    }
}

fn csv(from: &Path, to: &Path) -> Result<Exported> {
    let mut out = NewFile::create_new(to)?;
    out.write(b"token,prompt,position,phase,layer,rank,expert,weight\n")?;
    let (mut token, mut prompt) = (0u64, 0u64);
    let done = batches(from, |header, batch| {
        prompt += u64::from(batch.first_token == 0);
        let phase = if batch.phase == Phase::Prompt { "prompt" } else { "decode" };
        for i in 0..batch.n_token {
            let position = u64::from(batch.first_token) + i as u64;
            for layer in 0..header.n_layer {
                for (rank, r) in batch.choices(layer, i, header.n_expert_used).iter().enumerate() {
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

fn npz(from: &Path, to: &Path) -> Result<Exported> {
    let failed = |e: io::Error| match e.downcast::<Error>() {
        Ok(error) => error,
        Err(e) => Error::io(to, "write", e),
    };
    let zip_failed = |e: zip::result::ZipError| failed(e.into());
    let file = NewFile::create_new(to)?;
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
    let (n_layer, k) = (header.n_layer, header.n_expert_used);
    let mut zip = ZipWriter::new_stream(Sink(file));
    let mut member = |name: &str, ty: &str, shape: &[u64], fill: &mut dyn FnMut(&mut dyn Write) -> Result<()>| {
        // Larger than 4 GiB is possible, and the size is not known when a stream begins.
        zip.start_file(format!("{name}.npy"), SimpleFileOptions::default().large_file(true)).map_err(zip_failed)?;
        zip.write_all(&npy_header(ty, shape)).map_err(failed)?;
        fill(&mut zip)
    };
    let shape = [done.tokens, n_layer as u64, k as u64];
    // A trace that grows meanwhile: no more than were counted.
    let each = |out: &mut dyn Write, write: &mut dyn FnMut(&mut dyn Write, &Batch, usize) -> io::Result<()>| {
        let mut left = done.tokens;
        batches(from, |_, batch| {
            for i in 0..batch.n_token.min(usize::try_from(left).unwrap_or(usize::MAX)) {
                write(out, batch, i).map_err(failed)?;
                left -= 1;
            }
            Ok(())
        })
        .map(drop)
    };
    member("experts", "<u2", &shape, &mut |out| {
        each(out, &mut |out, batch, i| {
            for layer in 0..n_layer {
                let choices = batch.choices(layer, i, k);
                let ids = choices.iter().map(|r| r.id.expert).chain(std::iter::repeat(NONE));
                ids.take(k).try_for_each(|id| out.write_all(&id.to_le_bytes()))?;
            }
            Ok(())
        })
    })?;
    if header.weights {
        member("weights", "<f4", &shape, &mut |out| {
            each(out, &mut |out, batch, i| {
                for layer in 0..n_layer {
                    let weights = batch.choices(layer, i, k).iter().map(|r| r.weight).chain(std::iter::repeat(0.0));
                    weights.take(k).try_for_each(|w| out.write_all(&w.to_le_bytes()))?;
                }
                Ok(())
            })
        })?;
    }
    member("phase", "|u1", &shape[..1], &mut |out| {
        each(out, &mut |out, batch, _| out.write_all(&[u8::from(batch.phase == Phase::Decode)]))
    })?;
    let mut numbers = |name: &str, list: &[i64]| {
        member(name, "<i8", &[list.len() as u64], &mut |out| {
            list.iter().try_for_each(|n| out.write_all(&n.to_le_bytes())).map_err(failed)
        })
    };
    numbers("prompt_start", &starts)?;
    numbers("n_expert", &[header.n_expert as i64])?;
    numbers("expert_bytes", &header.expert_bytes.iter().map(|&n| n as i64).collect::<Vec<_>>())?;
    zip.finish().map_err(zip_failed)?.into_inner().0.finish()?;
    Ok(done)
}

/// The start of an `.npy` of format 1.0 (NEP 1), padded to 64 bytes.
fn npy_header(ty: &str, shape: &[u64]) -> Vec<u8> {
    let shape: String = shape.iter().map(|n| format!("{n},")).collect();
    let dict = format!("{{'descr': '{ty}', 'fortran_order': False, 'shape': ({shape}), }}");
    let len = (10 + dict.len() + 1).next_multiple_of(64) - 10;
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((len as u16).to_le_bytes());
    bytes.extend(format!("{dict:<width$}\n", width = len - 1).bytes());
    bytes
}
