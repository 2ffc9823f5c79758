//! Routing that others recorded as NumPy arrays, as a trace.
//!
//! `.npz` with `experts` or `ids` (token, MoE layer, k), optionally `n_expert`, `prompt_start` (first token of each
//! prompt), `probs` (token, MoE layer, expert: the router's probabilities, from which weights come, each row's
//! renormalised), `pred_mid_plus1` (token, MoE layer, rank: this layer's router on the state before the previous
//! layer's experts, best first; the first layer has none); or `.npy` (MoE layer, token, k), as `hotset logits --experts`
//! writes it. 65535 is no entry.
//!
//! Each token becomes a decode event, unless the file says that some were prompts: what [`super::export`] writes has also
//! `phase`, `batch`, `position`, `weights`, `pred_mid_plus1_score` and `header.json`, and becomes the trace that it was.

use std::{ops::Range, path::Path};

use super::{
    LayerEvent, Phase, Routed, TraceSink,
    arrays::{self, Arrays, Ints},
    file::{Header, Prompt, TraceWriter, check_shape, fnv1a},
};
use crate::{Error, Result, id::ExpertId, new_file::NewFile, npy::Npy};

/// "No entry".
const NONE: i64 = 65535;

/// Prompts of an import at most: their list must fit a trace's header.
const MAX_PROMPTS: usize = 1 << 18;

/// What an import made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Imported {
    /// Tokens.
    pub tokens: usize,
    /// Layer events.
    pub events: u64,
}

/// Reads `from` and writes the trace as a new file `to`: see [`import_to`].
///
/// # Errors
/// Where `to` exists, and as [`import_to`].
pub fn import(from: &Path, to: &Path, expert_bytes: u64) -> Result<Imported> {
    import_to(from, NewFile::create_new(to)?, expert_bytes)
}

/// Reads `from` and writes the trace to `to`. `expert_bytes` is the size of an expert, 0 if it is not known.
///
/// # Errors
/// What is missing or does not fit, by array; what the system says of `to`.
pub fn import_to(from: &Path, to: NewFile, expert_bytes: u64) -> Result<Imported> {
    let (arrays, kept) = arrays::read(from)?;
    let source = Source::new(from, &arrays, kept.as_ref())?;
    let scores = Scores {
        probs: source.floats(&arrays, "probs", source.n_expert)?,
        weights: source.floats(&arrays, "weights", source.k)?,
        ahead: source.ranks(&arrays)?,
    };
    let runs = source.runs(&arrays)?;
    let header = match kept {
        Some(header) => source.kept_header(header, &scores, expert_bytes)?,
        None => source.made_header(&scores, &runs.starts, expert_bytes)?,
    };
    let mut writer = TraceWriter::to(to, header)?;
    let events = source.write(&mut writer, &scores, &runs)?;
    writer.flush()?;
    Ok(Imported { tokens: source.n_token, events })
}

/// Ranks of the lookahead, and what they scored.
struct Ahead<'a> {
    /// (token, layer, n)
    experts: Ints<'a>,
    /// (token, layer, n); without it, ranks stand for scores.
    scores: Option<&'a [f32]>,
    n: usize,
}

/// What goes with the choices.
struct Scores<'a> {
    /// (token, layer, n_expert)
    probs: Option<&'a [f32]>,
    /// (token, layer, k)
    weights: Option<&'a [f32]>,
    ahead: Option<Ahead<'a>>,
}

impl Scores<'_> {
    fn weighted(&self) -> bool {
        self.probs.is_some() || self.weights.is_some()
    }

    fn ranks(&self) -> usize {
        self.ahead.as_ref().map_or(0, |a| a.n)
    }
}

/// Which tokens ran together, in which phase, and where in their text.
struct Runs<'a> {
    phases: Option<Ints<'a>>,
    batch: Option<Ints<'a>>,
    position: Option<Ints<'a>>,
    /// First tokens of prompts, ascending.
    starts: Vec<usize>,
}

/// Tokens that ran together.
struct Run {
    tokens: Range<usize>,
    phase: Phase,
    first_token: u32,
}

/// The routing, and where it came from.
struct Source<'a> {
    path: &'a Path,
    experts: Ints<'a>,
    layer_major: bool,
    n_token: usize,
    n_layer: usize,
    n_expert: usize,
    k: usize,
    /// Whether it was a trace before: then a layer without choices is kept, which others only use for layers without
    /// experts.
    was_trace: bool,
}

impl<'a> Source<'a> {
    fn new(path: &'a Path, arrays: &'a Arrays, kept: Option<&Header>) -> Result<Self> {
        let experts = ["experts", "ids", ""].iter().find_map(|name| arrays.get(*name)).ok_or_else(|| {
            let names: Vec<_> = arrays.keys().map(String::as_str).collect();
            let got = if names.is_empty() { "none that is known".to_owned() } else { names.join(", ") };
            Error::format(path, "the archive", "an array named experts or ids", got)
        })?;
        let layer_major = arrays.contains_key("");
        let (n_token, n_layer, k) = match *experts.shape.as_slice() {
            [n_layer, n_token, k] if layer_major => (n_token, n_layer, k),
            [n_token, n_layer, k] => (n_token, n_layer, k),
            _ => return Err(Error::format(path, "the experts' shape", "three axes", format!("{:?}", experts.shape))),
        };
        let experts = Ints::new(experts)?;
        let mut source =
            Source { path, experts, layer_major, n_token, n_layer, n_expert: 0, k, was_trace: kept.is_some() };
        source.n_expert = match (arrays.get("n_expert"), kept) {
            (Some(npy), _) if npy.shape.iter().all(|&n| n == 1) => usize::try_from(Ints::new(npy)?.at(0)).unwrap_or(0),
            (Some(npy), _) => return Err(Error::format(path, "n_expert", "one number", format!("{:?}", npy.shape))),
            (None, Some(header)) => header.n_expert,
            (None, None) => source.largest()?.saturating_add(1),
        };
        // Before anything is made in proportion to them.
        check_shape(path, n_layer, source.n_expert, k)?;
        if u32::try_from(n_token).is_err() {
            return Err(Error::format(path, "the number of tokens", "at most 4294967295", n_token));
        }
        Ok(source)
    }

    fn expert(&self, token: usize, layer: usize, i: usize) -> i64 {
        let row = if self.layer_major { layer * self.n_token + token } else { token * self.n_layer + layer };
        self.experts.at(row * self.k + i)
    }

    fn largest(&self) -> Result<usize> {
        // All axes are of the array, so that their product is its length.
        let all = (0..self.n_token.saturating_mul(self.n_layer).saturating_mul(self.k)).map(|i| self.experts.at(i));
        let largest = all.filter(|&e| e != NONE).max().unwrap_or(-1);
        usize::try_from(largest).map_err(|_| Error::format(self.path, "the experts", "at least one", "none"))
    }

    fn made_header(&self, scores: &Scores<'_>, starts: &[usize], expert_bytes: u64) -> Result<Header> {
        let name = self.path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let ranks = scores.ranks();
        Ok(Header {
            model: name.clone(),
            model_id: String::new(),
            source: format!("imported from {} by hotset {}", self.path.display(), env!("CARGO_PKG_VERSION")),
            n_layer: self.n_layer,
            n_expert: self.n_expert,
            n_expert_used: self.k,
            expert_bytes: vec![expert_bytes; self.n_layer],
            weights: scores.weighted(),
            lookahead: if ranks == 0 { "" } else { "pred_mid_plus1, ranks for scores" }.to_owned(),
            lookahead_ranks: ranks,
            prompts: self.prompts(&name, starts)?,
        })
    }

    /// The trace's own header, if it fits the arrays.
    fn kept_header(&self, mut header: Header, scores: &Scores<'_>, expert_bytes: u64) -> Result<Header> {
        let expected = (self.n_layer, self.k, self.n_expert, scores.weighted(), scores.ranks());
        let got = (header.n_layer, header.n_expert_used, header.n_expert, header.weights, header.lookahead_ranks);
        if expected != got {
            let what = "the shape (layers, used, experts, weights, ranks) in header.json";
            return Err(Error::format(self.path, what, format!("{expected:?} as in the arrays"), format!("{got:?}")));
        }
        if expert_bytes > 0 {
            header.expert_bytes = vec![expert_bytes; self.n_layer];
        }
        Ok(header)
    }

    fn shaped(&self, npy: &Npy, name: &str, last: Option<usize>) -> Result<usize> {
        let n = npy.shape.last().copied().unwrap_or(0);
        if self.layer_major || npy.shape != [self.n_token, self.n_layer, last.unwrap_or(n)] || n == 0 {
            let last = last.map_or("n".to_owned(), |n| n.to_string());
            let expected = format!("({}, {}, {last})", self.n_token, self.n_layer);
            return Err(Error::format(self.path, format!("the shape of {name}"), expected, format!("{:?}", npy.shape)));
        }
        Ok(n)
    }

    /// An array of (token, layer, `last`), if there.
    fn floats(&self, arrays: &'a Arrays, name: &str, last: usize) -> Result<Option<&'a [f32]>> {
        let Some(npy) = arrays.get(name) else { return Ok(None) };
        self.shaped(npy, name, Some(last))?;
        npy.f32s().map(Some)
    }

    /// Ranks of the next layers, if there.
    fn ranks(&self, arrays: &'a Arrays) -> Result<Option<Ahead<'a>>> {
        let name = "pred_mid_plus1";
        let Some(npy) = arrays.get(name) else { return Ok(None) };
        let n = self.shaped(npy, name, None)?;
        if n > self.n_expert {
            let what = format!("the ranks of {name}");
            return Err(Error::format(self.path, what, format!("at most {}", self.n_expert), n));
        }
        let scores = self.floats(arrays, &format!("{name}_score"), n)?;
        Ok(Some(Ahead { experts: Ints::new(npy)?, scores, n }))
    }

    /// A number for each token.
    fn by_token(&self, arrays: &'a Arrays, name: &str) -> Result<Option<Ints<'a>>> {
        let Some(npy) = arrays.get(name) else { return Ok(None) };
        if npy.shape != [self.n_token] {
            let expected = format!("({})", self.n_token);
            return Err(Error::format(self.path, format!("the shape of {name}"), expected, format!("{:?}", npy.shape)));
        }
        Ints::new(npy).map(Some)
    }

    fn runs(&self, arrays: &'a Arrays) -> Result<Runs<'a>> {
        Ok(Runs {
            phases: self.by_token(arrays, "phase")?,
            batch: self.by_token(arrays, "batch")?,
            position: self.by_token(arrays, "position")?,
            starts: arrays.get("prompt_start").map_or_else(|| Ok(vec![0]), |npy| self.starts(npy))?,
        })
    }

    /// First tokens of prompts. A trace that begins in the middle of a text has none at its start.
    fn starts(&self, npy: &Npy) -> Result<Vec<usize>> {
        let n = npy.shape.iter().product();
        if n > MAX_PROMPTS {
            return Err(Error::format(self.path, "prompt_start", format!("at most {MAX_PROMPTS} prompts"), n));
        }
        let numbers = Ints::new(npy)?;
        let list: Vec<_> = (0..n).map(|i| numbers.at(i)).collect();
        let begins = self.was_trace || list.first() == Some(&0);
        let fits = |&start: &i64| usize::try_from(start).is_ok_and(|start| start <= self.n_token);
        if !(begins && list.is_sorted() && list.iter().all(fits)) {
            let expected = format!("ascending token numbers from 0 to {}", self.n_token);
            return Err(Error::format(self.path, "prompt_start", expected, "others"));
        }
        Ok(list.into_iter().map(|start| start as usize).collect())
    }

    fn prompts(&self, name: &str, starts: &[usize]) -> Result<Vec<Prompt>> {
        let ends = starts.iter().skip(1).copied().chain([self.n_token]);
        let prompt = |(i, (&start, end)): (usize, (&usize, usize))| {
            // Tokens are not known, so the choices name the prompt.
            let choices = (start..end).flat_map(|t| (0..self.k).map(move |i| (t, i)));
            let hash = fnv1a(choices.flat_map(|(t, i)| (self.expert(t, 0, i) as u16).to_le_bytes()));
            Prompt { name: format!("{name}, prompt {i}"), tokens: end - start, hash }
        };
        Ok(starts.iter().zip(ends).enumerate().map(prompt).collect())
    }

    /// The tokens from `first` on that ran together: it alone, unless `batch` says more. `start`: of its text.
    fn run(&self, runs: &Runs<'_>, first: usize, start: usize) -> Result<Run> {
        let together = |token: usize| runs.batch.as_ref().is_some_and(|b| b.at(token) == b.at(first));
        let end = (first + 1..self.n_token).find(|&token| !together(token)).unwrap_or(self.n_token);
        let position = |token: usize| runs.position.as_ref().map_or((token - start) as i64, |p| p.at(token));
        let phase = |token: usize| runs.phases.as_ref().map_or(1, |p| p.at(token));
        let first_token = u32::try_from(position(first))
            .map_err(|_| Error::format(self.path, format!("position of token {first}"), "32 bits", position(first)))?;
        for token in first..end {
            let wanted = i64::from(first_token) + (token - first) as i64;
            if position(token) != wanted {
                let what = format!("position of token {token}, in a batch");
                return Err(Error::format(self.path, what, wanted, position(token)));
            }
            if phase(token) != phase(first) || !(0..=1).contains(&phase(token)) {
                let what = format!("phase of token {token}");
                let expected = "0 (prompt) or 1 (decode), one for a batch";
                return Err(Error::format(self.path, what, expected, phase(token)));
            }
        }
        let phase = if phase(first) == 0 { Phase::Prompt } else { Phase::Decode };
        Ok(Run { tokens: first..end, phase, first_token })
    }

    /// Records all events, and says how many they were.
    fn write(&self, out: &mut TraceWriter, scores: &Scores<'_>, runs: &Runs<'_>) -> Result<u64> {
        let (mut events, mut next, mut start) = (0, 0, 0);
        let mut buffers = Buffers { seen: vec![0; self.n_expert], ..Buffers::default() };
        let mut starts = runs.starts.iter().copied().peekable();
        while next < self.n_token {
            while let Some(begins) = starts.next_if(|&begins| begins <= next) {
                start = begins;
            }
            let run = self.run(runs, next, start)?;
            next = run.tokens.end;
            for layer in 0..self.n_layer {
                events += u64::from(self.event(out, scores, &run, layer, &mut buffers)?);
            }
        }
        Ok(events)
    }

    /// Records what a layer did for a run, if anything.
    fn event(
        &self,
        out: &mut TraceWriter,
        scores: &Scores<'_>,
        run: &Run,
        layer: usize,
        Buffers { routed, lookahead, seen, round }: &mut Buffers,
    ) -> Result<bool> {
        routed.clear();
        for token in run.tokens.clone() {
            *round += 1;
            self.choices(token, layer, scores, (seen, *round), routed)?;
        }
        let (n_tokens, used) = (run.tokens.len(), routed.len());
        // Which token a choice belongs to is told by its place alone.
        if n_tokens > 1 && used > 0 && used != n_tokens * self.k {
            let what = format!("layer {layer} of the batch at token {}", run.tokens.start);
            return Err(Error::format(self.path, what, format!("{} experts per token", self.k), "fewer of some"));
        }
        lookahead.clear();
        if let Some(ahead) = scores.ahead.as_ref().filter(|_| layer + 1 < self.n_layer && n_tokens == 1) {
            self.lookahead(run.tokens.start, layer + 1, ahead, lookahead)?;
        }
        if routed.is_empty() && !self.was_trace {
            return Ok(false);
        }
        out.record(LayerEvent {
            phase: run.phase,
            first_token: run.first_token,
            n_tokens: n_tokens as u32,
            layer: layer as u16,
            routed,
            lookahead,
        });
        Ok(true)
    }

    /// Scores for `layer`; none where its first rank is no entry. (n_expert or 0)
    fn lookahead(&self, token: usize, layer: usize, ahead: &Ahead<'_>, scores: &mut Vec<f32>) -> Result<()> {
        let row = (token * self.n_layer + layer) * ahead.n;
        if ahead.experts.at(row) == NONE {
            return Ok(());
        }
        scores.resize(self.n_expert, f32::NEG_INFINITY);
        for i in 0..ahead.n {
            let expert = self.checked(ahead.experts.at(row + i), token, layer)?;
            scores[usize::from(expert)] = ahead.scores.map_or(-(i as f32), |s| s[row + i]);
        }
        Ok(())
    }

    fn checked(&self, expert: i64, token: usize, layer: usize) -> Result<u16> {
        let id = u16::try_from(expert).ok().filter(|&e| usize::from(e) < self.n_expert);
        id.ok_or_else(|| {
            let what = format!("an expert of token {token} in layer {layer}");
            Error::format(self.path, what, format!("a number below {}", self.n_expert), expert)
        })
    }

    /// Appends a token's choices. `seen`: for each expert the last round in which it was chosen, and this one's number.
    fn choices(
        &self,
        token: usize,
        layer: usize,
        scores: &Scores<'_>,
        (seen, round): (&mut [u64], u64),
        routed: &mut Vec<Routed>,
    ) -> Result<()> {
        let (first, row) = (routed.len(), token * self.n_layer + layer);
        for i in 0..self.k {
            let expert = self.expert(token, layer, i);
            if expert == NONE {
                continue;
            }
            let id = ExpertId { layer: layer as u16, expert: self.checked(expert, token, layer)? };
            if std::mem::replace(&mut seen[usize::from(id.expert)], round) == round {
                let what = format!("expert {expert} of token {token} in layer {layer}");
                return Err(Error::format(self.path, what, "once", "twice"));
            }
            routed.push(Routed { id, weight: scores.weights.map_or(0.0, |w| w[row * self.k + i]) });
        }
        if let Some(probs) = scores.probs.filter(|_| routed.len() > first) {
            let p = |r: &Routed| probs[row * self.n_expert + usize::from(r.id.expert)];
            let sum: f32 = routed[first..].iter().map(p).sum();
            if !(sum > 0.0 && sum.is_finite()) {
                let what = format!("the sum of the probabilities of token {token}'s experts in layer {layer}");
                return Err(Error::format(self.path, what, "more than 0", sum));
            }
            routed[first..].iter_mut().for_each(|r| r.weight = p(r) / sum);
        }
        Ok(())
    }
}

/// What one event after the other is put together in.
#[derive(Default)]
struct Buffers {
    routed: Vec<Routed>,
    lookahead: Vec<f32>,
    /// (n_expert)
    seen: Vec<u64>,
    round: u64,
}
