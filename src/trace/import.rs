//! Routing that others recorded as NumPy arrays, as a trace.
//!
//! `.npz` with `experts` or `ids` (token, MoE layer, k), optionally `n_expert`, `prompt_start` (first token of each
//! prompt), `probs` (token, MoE layer, expert: the router's probabilities, from which weights come, each row's
//! renormalised), `pred_mid_plus1` (token, MoE layer, rank: this layer's router on the state before the previous
//! layer's experts, best first; the first layer has none) and `pred_mid_plus2` (the same on the state before the experts
//! of the layer before that); or `.npy` (MoE layer, token, k), as `hotset logits --experts`
//! writes it. 65535 is no entry.
//!
//! Each token becomes a decode event, unless the file says that some were prompts: what [`super::export`] writes has also
//! `phase`, `batch`, `position`, `weights`, `pred_mid_plus1_score`, `pred_mid_plus2_score` and `header.json`, and becomes the trace that it was.

use std::{collections::BTreeMap, io::Read, path::Path};

use super::{
    LayerEvent, Phase, Routed, TraceSink,
    file::{Header, Prompt, TraceWriter, fnv1a},
};
use crate::{
    Error, Result,
    id::ExpertId,
    npy::{Data, Npy},
};

/// "No entry".
const NONE: i64 = 65535;

/// What an import made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Imported {
    /// Tokens.
    pub tokens: usize,
    /// Layer events.
    pub events: u64,
}

/// Numbers of any integer type, in C order.
struct Ints<'a>(&'a Npy);

impl Ints<'_> {
    fn at(&self, i: usize) -> i64 {
        match &self.0.data {
            Data::I32(v) => i64::from(v[i]),
            Data::I64(v) => v[i],
            Data::U8(v) => i64::from(v[i]),
            Data::U16(v) => i64::from(v[i]),
            Data::F32(_) => -1,
        }
    }
}

/// Reads `from` and writes the trace `to`. `expert_bytes` is the size of an expert, 0 if it is not known.
///
/// # Errors
/// What is missing or does not fit, by array.
pub fn import(from: &Path, to: &Path, expert_bytes: u64) -> Result<Imported> {
    let (arrays, kept) = read_arrays(from)?;
    let layer_major = arrays.contains_key("");
    let experts = ["experts", "ids", ""].iter().find_map(|name| arrays.get(*name)).ok_or_else(|| {
        let names: Vec<_> = arrays.keys().map(String::as_str).collect();
        Error::format(from, "the archive", "an array named experts or ids", names.join(", "))
    })?;
    let &[a, b, k] = experts.shape.as_slice() else {
        return Err(Error::format(from, "the experts' shape", "three axes", format!("{:?}", experts.shape)));
    };
    let (n_token, n_layer) = if layer_major { (b, a) } else { (a, b) };
    let source = Source { path: from, experts: Ints(experts), layer_major, n_token, n_layer, k };
    let n_expert = match arrays.get("n_expert") {
        Some(npy) if npy.shape.iter().product::<usize>() == 1 => usize::try_from(Ints(npy).at(0)).unwrap_or(0),
        Some(npy) => return Err(Error::format(from, "n_expert", "one number", format!("{:?}", npy.shape))),
        None => kept.as_ref().map_or_else(|| source.largest().map(|e| e + 1), |h| Ok(h.n_expert))?,
    };
    let probs = arrays.get("probs").map(|p| source.floats(p, "probs", n_expert)).transpose()?;
    let weights = arrays.get("weights").map(|w| source.floats(w, "weights", k)).transpose()?;
    let ahead = [source.ranks(&arrays, 1)?, source.ranks(&arrays, 2)?];
    let ranks = ahead.each_ref().map(|a| a.as_ref().map_or(0, |a| a.n));
    let starts = arrays.get("prompt_start").map(|p| source.starts(p)).transpose()?.unwrap_or_else(|| vec![0]);
    let name = from.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let runs = source.runs(&starts, &arrays)?;
    let made = || -> Result<Header> {
        Ok(Header {
            model: name.clone(),
            model_id: String::new(),
            source: format!("imported from {} by hotset {}", from.display(), env!("CARGO_PKG_VERSION")),
            n_layer,
            n_expert,
            n_expert_used: k,
            expert_bytes: vec![expert_bytes; n_layer],
            weights: probs.is_some() || weights.is_some(),
            lookahead: match ranks {
                [0, 0] => String::new(),
                [_, 0] => "pred_mid_plus1, ranks for scores".to_owned(),
                [0, _] => "pred_mid_plus2, ranks for scores".to_owned(),
                _ => "pred_mid_plus1 and pred_mid_plus2, ranks for scores".to_owned(),
            },
            lookahead_ranks: ranks[0],
            lookahead2_ranks: ranks[1],
            prompts: source.prompts(&name, &starts)?,
        })
    };
    let header = match kept {
        Some(mut header) => {
            let shape = |h: &Header| {
                (h.n_layer, h.n_expert_used, h.n_expert, h.weights, [h.lookahead_ranks, h.lookahead2_ranks])
            };
            let (expected, got) = ((n_layer, k, n_expert, probs.is_some() || weights.is_some(), ranks), shape(&header));
            if expected != got {
                let what = "the shape (layers, used, experts, weights, ranks) in header.json";
                return Err(Error::format(from, what, format!("{expected:?} as in the arrays"), format!("{got:?}")));
            }
            if expert_bytes > 0 {
                header.expert_bytes = vec![expert_bytes; n_layer];
            }
            header
        }
        None => made()?,
    };
    let mut writer = TraceWriter::create(to, header)?;
    let scores = Scores { probs, weights, ahead };
    let written = source.write(&mut writer, n_expert, &scores, &runs);
    let events = written.and_then(|n| writer.flush().map(|()| n)).inspect_err(|_| {
        // Half an import is of no use. If it stays, the error that follows still says what went wrong.
        let _ = std::fs::remove_file(to);
    })?;
    Ok(Imported { tokens: n_token, events })
}

/// Names of arrays that mean something here.
const KNOWN: [&str; 13] = [
    "experts",
    "ids",
    "n_expert",
    "prompt_start",
    "probs",
    "pred_mid_plus1",
    "weights",
    "phase",
    "batch",
    "position",
    "pred_mid_plus1_score",
    "pred_mid_plus2",
    "pred_mid_plus2_score",
];

type Arrays = BTreeMap<String, Npy>;

/// The arrays of an archive by name, of a lone `.npy` by the empty name; and a trace's header, if there.
fn read_arrays(path: &Path) -> Result<(Arrays, Option<Header>)> {
    if path.extension().is_some_and(|e| e == "npy") {
        return Ok((BTreeMap::from([(String::new(), Npy::read(path)?)]), None));
    }
    let file = crate::input::open(path)?;
    let broken = |e: zip::result::ZipError| Error::format(path, "the archive", "an .npz", e);
    let mut archive = zip::ZipArchive::new(std::io::BufReader::new(file)).map_err(broken)?;
    let (mut arrays, mut header) = (BTreeMap::new(), None);
    for i in 0..archive.len() {
        let mut member = archive.by_index(i).map_err(broken)?;
        let name = member.name().map_err(broken)?.trim_end_matches(".npy").to_owned();
        if name != "header.json" && !KNOWN.contains(&name.as_str()) {
            continue;
        }
        let mut bytes = Vec::new();
        member.read_to_end(&mut bytes).map_err(|e| Error::io(path, format!("read {name}"), e))?;
        if name == "header.json" {
            let parsed = serde_json::from_slice(&bytes);
            header = Some(parsed.map_err(|e| Error::format(path, "header.json", "the header of a trace", e))?);
        } else {
            arrays.insert(name.clone(), Npy::parse(&path.join(&name), &bytes)?);
        }
    }
    Ok((arrays, header))
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
    /// By horizon, from 1 on.
    ahead: [Option<Ahead<'a>>; 2],
}

/// Tokens that ran together.
struct Run {
    tokens: std::ops::Range<usize>,
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
    k: usize,
}

impl<'a> Source<'a> {
    fn expert(&self, token: usize, layer: usize, i: usize) -> i64 {
        let row = if self.layer_major { layer * self.n_token + token } else { token * self.n_layer + layer };
        self.experts.at(row * self.k + i)
    }

    fn largest(&self) -> Result<usize> {
        let all = (0..self.n_token * self.n_layer * self.k).map(|i| self.experts.at(i)).filter(|&e| e != NONE);
        let largest = all.max().unwrap_or(-1);
        usize::try_from(largest).map_err(|_| Error::format(self.path, "the experts", "at least one", "none"))
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

    fn floats(&self, npy: &'a Npy, name: &str, last: usize) -> Result<&'a [f32]> {
        self.shaped(npy, name, Some(last))?;
        npy.f32s()
    }

    /// Ranks of the layers that are `horizon` ahead, if there.
    fn ranks(&self, arrays: &'a Arrays, horizon: u8) -> Result<Option<Ahead<'a>>> {
        let name = format!("pred_mid_plus{horizon}");
        let Some(npy) = arrays.get(&name) else { return Ok(None) };
        let (n, name_of_scores) = (self.shaped(npy, &name, None)?, format!("{name}_score"));
        let scores = arrays.get(&name_of_scores).map(|s| self.floats(s, &name_of_scores, n)).transpose()?;
        Ok(Some(Ahead { experts: Ints(npy), scores, n }))
    }

    /// A number for each token.
    fn by_token(&self, arrays: &'a Arrays, name: &str) -> Result<Option<Ints<'a>>> {
        let Some(npy) = arrays.get(name) else { return Ok(None) };
        if npy.shape != [self.n_token] {
            let expected = format!("({})", self.n_token);
            return Err(Error::format(self.path, format!("the shape of {name}"), expected, format!("{:?}", npy.shape)));
        }
        Ok(Some(Ints(npy)))
    }

    /// The tokens in runs: each on its own, unless `batch` says which ran together.
    fn runs(&self, starts: &[usize], arrays: &'a Arrays) -> Result<Vec<Run>> {
        let (phases, batch) = (self.by_token(arrays, "phase")?, self.by_token(arrays, "batch")?);
        let position = self.by_token(arrays, "position")?;
        let mut runs: Vec<Run> = Vec::new();
        let mut start = 0;
        for token in 0..self.n_token {
            if starts.binary_search(&token).is_ok() {
                start = token;
            }
            if token > 0 && batch.as_ref().is_some_and(|b| b.at(token) == b.at(token - 1)) {
                runs.last_mut().expect("token 0 began one").tokens.end = token + 1;
                continue;
            }
            let at = position.as_ref().map_or((token - start) as i64, |p| p.at(token));
            let first_token = u32::try_from(at)
                .map_err(|_| Error::format(self.path, format!("position of token {token}"), "32 bits", at))?;
            let prompt = phases.as_ref().is_some_and(|p| p.at(token) == 0);
            let phase = if prompt { Phase::Prompt } else { Phase::Decode };
            runs.push(Run { tokens: token..token + 1, phase, first_token });
        }
        Ok(runs)
    }

    /// First tokens of prompts: ascending, the first 0.
    fn starts(&self, npy: &Npy) -> Result<Vec<usize>> {
        let list: Vec<_> = (0..npy.shape.iter().product()).map(|i| Ints(npy).at(i)).collect();
        let sound = list.first() == Some(&0) && list.is_sorted() && list.iter().all(|&s| s <= self.n_token as i64);
        if !sound {
            return Err(Error::format(self.path, "prompt_start", "ascending token numbers from 0 on", "others"));
        }
        Ok(list.into_iter().map(|s| s as usize).collect())
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

    fn write(&self, out: &mut TraceWriter, n_expert: usize, scores: &Scores<'_>, runs: &[Run]) -> Result<u64> {
        let (mut events, mut routed, mut lookahead) = (0, Vec::new(), [Vec::new(), Vec::new()]);
        for Run { tokens, phase, first_token } in runs {
            for layer in 0..self.n_layer {
                routed.clear();
                for token in tokens.clone() {
                    self.choices(token, layer, n_expert, scores, &mut routed)?;
                }
                for (target, (ahead, lookahead)) in (layer + 1..).zip(scores.ahead.iter().zip(&mut lookahead)) {
                    lookahead.clear();
                    if let Some(ahead) = ahead.as_ref().filter(|_| target < self.n_layer && tokens.len() == 1) {
                        self.lookahead(tokens.start, target, n_expert, ahead, lookahead)?;
                    }
                }
                if !routed.is_empty() {
                    let (phase, first_token, n_tokens, layer) =
                        (*phase, *first_token, tokens.len() as u32, layer as u16);
                    out.record(LayerEvent {
                        phase,
                        first_token,
                        n_tokens,
                        layer,
                        routed: &routed,
                        lookahead: &lookahead[0],
                        lookahead2: &lookahead[1],
                    });
                    events += 1;
                }
            }
        }
        Ok(events)
    }

    /// Scores for `layer`; none where its first rank is no entry. (n_expert or 0)
    fn lookahead(
        &self,
        token: usize,
        layer: usize,
        n_expert: usize,
        ahead: &Ahead<'_>,
        scores: &mut Vec<f32>,
    ) -> Result<()> {
        let row = (token * self.n_layer + layer) * ahead.n;
        if ahead.experts.at(row) == NONE {
            return Ok(());
        }
        scores.resize(n_expert, f32::NEG_INFINITY);
        for i in 0..ahead.n {
            let expert = self.checked(ahead.experts.at(row + i), n_expert, token, layer)?;
            scores[usize::from(expert)] = ahead.scores.map_or(-(i as f32), |s| s[row + i]);
        }
        Ok(())
    }

    fn checked(&self, expert: i64, n_expert: usize, token: usize, layer: usize) -> Result<u16> {
        let id = u16::try_from(expert).ok().filter(|&e| usize::from(e) < n_expert);
        id.ok_or_else(|| {
            let what = format!("an expert of token {token} in layer {layer}");
            Error::format(self.path, what, format!("a number below {n_expert}"), expert)
        })
    }

    /// Appends a token's choices.
    fn choices(
        &self,
        token: usize,
        layer: usize,
        n_expert: usize,
        scores: &Scores<'_>,
        routed: &mut Vec<Routed>,
    ) -> Result<()> {
        let (first, row) = (routed.len(), token * self.n_layer + layer);
        for i in 0..self.k {
            let expert = self.expert(token, layer, i);
            if expert == NONE {
                continue;
            }
            let id = ExpertId { layer: layer as u16, expert: self.checked(expert, n_expert, token, layer)? };
            if routed[first..].iter().any(|r| r.id == id) {
                let what = format!("expert {expert} of token {token} in layer {layer}");
                return Err(Error::format(self.path, what, "once", "twice"));
            }
            routed.push(Routed { id, weight: scores.weights.map_or(0.0, |w| w[row * self.k + i]) });
        }
        if let Some(probs) = scores.probs {
            let p = |r: &Routed| probs[row * n_expert + usize::from(r.id.expert)];
            let sum: f32 = routed[first..].iter().map(p).sum();
            routed[first..].iter_mut().for_each(|r| r.weight = p(r) / sum);
        }
        Ok(())
    }
}
