//! Trace files, versions 1 and 2: who ran, and every layer event in order.
//!
//! ```text
//! "HOTTRACE"  u32 version  u32 bytes of header  header (JSON, see Header)  u32 CRC-32 of header
//! then chunks of whole events:  u32 bytes  u32 CRC-32  bytes
//! event:  u8 flags (1: decode, 2: has lookahead, 4: has lookahead2: only version 2)  u16 layer  u32 first token  u32 tokens  u32 choices
//!         expert of each choice (u8 up to 256 experts, else u16)  weight of each choice (f32, if header.weights)
//!         if it has lookahead: header.lookahead_ranks times (expert, score f32), best first
//!         if it has lookahead2: header.lookahead2_ranks times the same
//! ```
//!
//! Version 1 is what is written. Version 2, of earlier programs, may have the scores of the layer after the next
//! (`lookahead2_ranks` in its header); they are passed over.
//!
//! All little-endian. Chunks make a file readable while it grows, and bound what a damaged tail costs: reading stops at
//! the first chunk that is incomplete or fails its check, and [`TraceReader::damage`] says so. Within a sound chunk a
//! wrong number is an error: somebody wrote it.
//!
//! Memory: one chunk. Must not know: what reads a trace.

use std::{
    fs::File,
    io::{BufReader, Read},
    path::{Path, PathBuf},
};

use crc32fast::hash as crc32;
use serde::{Deserialize, Serialize};

use super::{LayerEvent, Phase, Routed, TraceSink};
use crate::{Error, Result, id::ExpertId, input, new_file::NewFile};

const MAGIC: &[u8; 8] = b"HOTTRACE";
/// That are read; the first is written.
const VERSIONS: [u32; 2] = [1, 2];

/// A header or a chunk has this many bytes at most, so that a damaged length cannot ask for all memory.
pub(super) const MAX_BYTES: usize = 64 << 20;

/// A chunk is written once it has this many bytes.
const CHUNK_BYTES: usize = 16 << 10;

/// Experts a layer, MoE layers and experts of a token at most: more than any model has.
const MAX_SHAPE: usize = 1 << 14;

/// Experts of all layers at most: whoever replays a trace indexes them all before the first event. Some twenty times as many
/// as any model has.
const MAX_EXPERTS: usize = 1 << 20;

/// What a trace says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// The model's name.
    pub model: String,
    /// What tells the model from others of its name: FNV-1a of its tensor table; empty where not known.
    pub model_id: String,
    /// What made the trace.
    pub source: String,
    /// MoE layers.
    pub n_layer: usize,
    /// Experts a layer.
    pub n_expert: usize,
    /// Experts that a token uses in a layer.
    pub n_expert_used: usize,
    /// Bytes of an expert of each MoE layer; 0 where not known.
    pub expert_bytes: Vec<u64>,
    /// Whether choices have their weights; else those read as 0.
    pub weights: bool,
    /// What the lookahead scores are, for people; empty without.
    pub lookahead: String,
    /// How many of a layer's experts have a lookahead score, the best; the others read as minus infinity.
    pub lookahead_ranks: usize,
    /// What ran, in order. An event whose first token is 0 in the first layer begins the next one.
    pub prompts: Vec<Prompt>,
}

/// One of the texts that ran.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prompt {
    /// Its file, or what else names it.
    pub name: String,
    /// Its tokens.
    pub tokens: usize,
    /// FNV-1a of its tokens as little-endian u32, in hexadecimal.
    pub hash: String,
}

/// FNV-1a, 64 bits (Fowler, Noll and Vo), in hexadecimal: names things, protects nothing.
pub fn fnv1a(bytes: impl IntoIterator<Item = u8>) -> String {
    let hash =
        bytes.into_iter().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    format!("{hash:016x}")
}

/// What version 2 has in its header beside a [`Header`].
#[derive(Deserialize)]
struct Second {
    #[serde(default)]
    lookahead2_ranks: usize,
}

/// # Errors
/// What cannot be a model's shape.
pub(super) fn check_shape(path: &Path, n_layer: usize, n_expert: usize, n_expert_used: usize) -> Result<()> {
    for (what, n) in [("n_layer", n_layer), ("n_expert", n_expert), ("n_expert_used", n_expert_used)] {
        if !(1..=MAX_SHAPE).contains(&n) {
            return Err(Error::format(path, what, format!("1 to {MAX_SHAPE}"), n));
        }
    }
    let experts = n_layer * n_expert;
    if experts > MAX_EXPERTS {
        return Err(Error::format(path, "n_layer times n_expert", format!("at most {MAX_EXPERTS}"), experts));
    }
    if n_expert_used > n_expert {
        return Err(Error::format(path, "n_expert_used", format!("at most {n_expert}"), n_expert_used));
    }
    Ok(())
}

/// # Errors
/// More scores than experts.
fn check_ranks(path: &Path, what: &str, ranks: usize, n_expert: usize) -> Result<()> {
    if ranks > n_expert { Err(Error::format(path, what, format!("at most {n_expert}"), ranks)) } else { Ok(()) }
}

impl Header {
    /// # Errors
    /// What cannot be a model's shape.
    fn check(&self, path: &Path) -> Result<()> {
        check_shape(path, self.n_layer, self.n_expert, self.n_expert_used)?;
        check_ranks(path, "lookahead_ranks", self.lookahead_ranks, self.n_expert)?;
        if self.expert_bytes.len() != self.n_layer {
            let expected = format!("{} sizes, one a layer", self.n_layer);
            return Err(Error::format(path, "expert_bytes", expected, self.expert_bytes.len()));
        }
        // 2^48 bytes per expert: sums over all experts stay below 2^64 only with some care about the largest.
        if let Some(bytes) = self.expert_bytes.iter().find(|b| **b > 1 << 36) {
            return Err(Error::format(path, "expert_bytes", "at most 64 GiB per expert", bytes));
        }
        Ok(())
    }
}

/// Writes a trace, which can be read while it grows.
#[derive(Debug)]
pub struct TraceWriter {
    file: NewFile,
    /// Others may be reading it.
    public: bool,
    header: Header,
    chunk: Vec<u8>,
    /// Lookahead ranks, sorted. (n_expert)
    order: Vec<u16>,
    /// The first failure; nothing is written after it.
    failed: Option<Error>,
}

impl TraceWriter {
    /// Begins a trace in a new file, which is there from now on.
    ///
    /// # Errors
    /// If there is such a file already, and as [`TraceWriter::to`].
    pub fn create(path: &Path, header: Header) -> Result<Self> {
        header.check(path)?;
        let mut writer = Self::to(NewFile::create_new(path)?, header)?;
        writer.flush()?;
        Ok(writer)
    }

    /// Begins a trace in a file, which has its name from the first [`TraceWriter::flush`] on.
    ///
    /// # Errors
    /// If the file cannot be written, or the header makes no sense.
    pub fn to(mut file: NewFile, header: Header) -> Result<Self> {
        header.check(file.path())?;
        let json = serde_json::to_vec(&header).expect("a header is plain text and numbers");
        if json.len() > MAX_BYTES {
            return Err(Error::format(file.path(), "the header", format!("at most {MAX_BYTES} bytes"), json.len()));
        }
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&VERSIONS[0].to_le_bytes());
        bytes.extend_from_slice(&(json.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&json);
        bytes.extend_from_slice(&crc32(&json).to_le_bytes());
        file.write(&bytes)?;
        let order = Vec::with_capacity(header.n_expert);
        let chunk = Vec::with_capacity(2 * CHUNK_BYTES);
        Ok(Self { file, public: false, header, chunk, order, failed: None })
    }

    /// Writes what has gathered, for all to read.
    ///
    /// # Errors
    /// The first failure since the start.
    pub fn flush(&mut self) -> Result<()> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        self.write_chunk()?;
        self.public = true;
        self.file.publish()
    }

    fn write_chunk(&mut self) -> Result<()> {
        if self.chunk.is_empty() {
            return Ok(());
        }
        let mut head = (self.chunk.len() as u32).to_le_bytes().to_vec();
        head.extend_from_slice(&crc32(&self.chunk).to_le_bytes());
        let written = self.file.write(&head).and_then(|()| self.file.write(&self.chunk));
        self.chunk.clear();
        written
    }

    fn expert(&mut self, expert: u16) {
        if self.header.n_expert <= 256 {
            self.chunk.push(expert as u8);
        } else {
            self.chunk.extend_from_slice(&expert.to_le_bytes());
        }
    }

    /// The best `ranks` experts with their scores, best first.
    fn scores(&mut self, scores: &[f32], ranks: usize) {
        let mut order = std::mem::take(&mut self.order);
        order.clear();
        order.extend(0..scores.len() as u16);
        order.sort_unstable_by(|&a, &b| scores[usize::from(b)].total_cmp(&scores[usize::from(a)]).then(a.cmp(&b)));
        for &expert in order.iter().take(ranks) {
            self.expert(expert);
            self.chunk.extend_from_slice(&scores[usize::from(expert)].to_le_bytes());
        }
        self.order = order;
    }
}

impl TraceSink for TraceWriter {
    fn record(&mut self, event: LayerEvent<'_>) {
        if self.failed.is_some() {
            return;
        }
        let scored = !event.lookahead.is_empty() && self.header.lookahead_ranks > 0;
        self.chunk.push(u8::from(event.phase == Phase::Decode) | (u8::from(scored) << 1));
        self.chunk.extend_from_slice(&event.layer.to_le_bytes());
        for n in [event.first_token, event.n_tokens, event.routed.len() as u32] {
            self.chunk.extend_from_slice(&n.to_le_bytes());
        }
        event.routed.iter().for_each(|r| self.expert(r.id.expert));
        if self.header.weights {
            event.routed.iter().for_each(|r| self.chunk.extend_from_slice(&r.weight.to_le_bytes()));
        }
        self.scores(event.lookahead, self.header.lookahead_ranks);
        if self.chunk.len() > MAX_BYTES {
            // A reader would take it for damage.
            let (what, got) = (format!("an event of {} tokens", event.n_tokens), self.chunk.len());
            self.failed = Some(Error::format(self.file.path(), what, format!("at most {MAX_BYTES} bytes"), got));
            return;
        }
        if self.chunk.len() >= CHUNK_BYTES {
            let written = if self.public { self.flush() } else { self.write_chunk() };
            self.failed = written.err();
        }
    }
    fn wants_scores(&self) -> bool {
        self.header.lookahead_ranks > 0
    }
}

/// Reads a trace from front to back.
#[derive(Debug)]
pub struct TraceReader {
    path: PathBuf,
    file: BufReader<File>,
    header: Header,
    /// Scores of an event that are passed over, of the layer after the next.
    second_ranks: usize,
    chunk: Vec<u8>,
    /// Bytes of the chunk that are read.
    at: usize,
    events: u64,
    damage: Option<String>,
    routed: Vec<Routed>,
    /// (n_expert)
    lookahead: Vec<f32>,
}

impl TraceReader {
    /// Opens a file and reads its header.
    ///
    /// # Errors
    /// What is no trace, of another version, or has a damaged header.
    pub fn open(path: &Path) -> Result<Self> {
        let file = input::open(path)?;
        let mut file = BufReader::with_capacity(CHUNK_BYTES, file);
        let (header, second_ranks) = read_header(path, &mut file)?;
        header.check(path)?;
        check_ranks(path, "lookahead2_ranks", second_ranks, header.n_expert)?;
        let lookahead = vec![f32::NEG_INFINITY; header.n_expert];
        let (path, chunk, routed) = (path.to_owned(), Vec::new(), Vec::new());
        Ok(Self { path, file, header, second_ranks, chunk, at: 0, events: 0, damage: None, routed, lookahead })
    }

    /// What the trace says of itself.
    pub fn header(&self) -> &Header {
        &self.header
    }
    /// Once the last event has been read: why it is the last, if the file does not simply end there.
    pub fn damage(&self) -> Option<&str> {
        self.damage.as_deref()
    }

    /// The next event; `None` at the end, or where damage begins.
    ///
    /// # Errors
    /// Numbers that cannot be, and reads that fail.
    pub fn next_event(&mut self) -> Result<Option<LayerEvent<'_>>> {
        if self.at == self.chunk.len() && !self.next_chunk()? {
            return Ok(None);
        }
        self.events += 1;
        self.parse()
    }

    fn wrong(&self, what: &str, expected: impl ToString, got: impl ToString) -> Error {
        Error::format(&self.path, format!("{what} of event {}", self.events), expected, got)
    }

    /// Bytes `at..at + n` of the chunk, and moves on.
    fn take(&mut self, n: usize) -> Result<std::ops::Range<usize>> {
        let left = self.chunk.len() - self.at;
        if n > left {
            return Err(self.wrong("the length", format!("at most the {left} bytes left in its chunk"), n));
        }
        self.at += n;
        Ok(self.at - n..self.at)
    }

    fn number<const N: usize>(&mut self) -> Result<[u8; N]> {
        let range = self.take(N)?;
        Ok(self.chunk[range].try_into().expect("N bytes"))
    }

    /// The experts in `bytes`, checked.
    fn experts(&self, range: std::ops::Range<usize>, stride: usize) -> Result<impl Iterator<Item = u16> + '_> {
        let (wide, n_expert) = (self.header.n_expert > 256, self.header.n_expert);
        let bytes = &self.chunk[range];
        let expert = move |c: &[u8]| if wide { u16::from_le_bytes([c[0], c[1]]) } else { u16::from(c[0]) };
        if let Some(bad) = bytes.chunks_exact(stride).map(expert).find(|&e| usize::from(e) >= n_expert) {
            return Err(self.wrong("an expert", format!("a number below {n_expert}"), bad));
        }
        Ok(bytes.chunks_exact(stride).map(expert))
    }

    fn parse(&mut self) -> Result<Option<LayerEvent<'_>>> {
        let [flags] = self.number()?;
        let layer = u16::from_le_bytes(self.number()?);
        let first_token = u32::from_le_bytes(self.number()?);
        let n_tokens = u32::from_le_bytes(self.number()?);
        let n_routed = u32::from_le_bytes(self.number()?) as usize;
        let most = if self.second_ranks > 0 { 7 } else { 3 };
        if flags > most {
            return Err(self.wrong("the flags", format!("0 to {most}"), flags));
        }
        if usize::from(layer) >= self.header.n_layer {
            return Err(self.wrong("the layer", format!("a number below {}", self.header.n_layer), layer));
        }
        let most = n_tokens as usize * self.header.n_expert;
        if n_tokens == 0 || n_routed > most {
            let expected = format!("1 token or more and at most {} choices each", self.header.n_expert);
            return Err(self.wrong("the size", expected, format!("{n_tokens} tokens and {n_routed} choices")));
        }
        let width = if self.header.n_expert > 256 { 2 } else { 1 };
        let experts = self.take(n_routed * width)?;
        let weights = if self.header.weights { Some(self.take(4 * n_routed)?) } else { None };
        let mut routed = std::mem::take(&mut self.routed);
        routed.clear();
        routed
            .extend(self.experts(experts, width)?.map(|expert| Routed { id: ExpertId { layer, expert }, weight: 0.0 }));
        if let Some(weights) = weights {
            for (r, w) in routed.iter_mut().zip(self.chunk[weights].as_chunks().0) {
                r.weight = f32::from_le_bytes(*w);
            }
        }
        self.routed = routed;
        if flags & 2 != 0 {
            self.scores(width)?;
        }
        if flags & 4 != 0 {
            let pairs = self.take(self.second_ranks * (width + 4))?;
            let _ = self.experts(pairs, width + 4)?;
        }
        Ok(Some(LayerEvent {
            phase: if flags & 1 == 0 { Phase::Prompt } else { Phase::Decode },
            first_token,
            n_tokens,
            layer,
            routed: &self.routed,
            lookahead: if flags & 2 == 0 { &[] } else { &self.lookahead },
        }))
    }

    /// Reads the best experts, of `width` bytes, with their scores.
    fn scores(&mut self, width: usize) -> Result<()> {
        let pairs = self.take(self.header.lookahead_ranks * (width + 4))?;
        let mut scores = std::mem::take(&mut self.lookahead);
        scores.fill(f32::NEG_INFINITY);
        let values = self.chunk[pairs.clone()].chunks_exact(width + 4);
        for (expert, pair) in self.experts(pairs, width + 4)?.zip(values) {
            scores[usize::from(expert)] = f32::from_le_bytes(pair[width..].try_into().expect("four bytes"));
        }
        self.lookahead = scores;
        Ok(())
    }

    /// Reads the next chunk; false at the end or at damage.
    fn next_chunk(&mut self) -> Result<bool> {
        (self.at, self.damage) = (0, None);
        self.chunk.clear();
        let failed = |e| Error::io(&self.path, "read", e);
        let mut head = Vec::new();
        (&mut self.file).take(8).read_to_end(&mut head).map_err(failed)?;
        let sound = match head.as_slice() {
            [] => return Ok(false),
            &[a, b, c, d, e, f, g, h] => {
                let (bytes, crc) = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]));
                if bytes as usize <= MAX_BYTES {
                    (&mut self.file).take(u64::from(bytes)).read_to_end(&mut self.chunk).map_err(failed)?;
                }
                bytes > 0 && self.chunk.len() == bytes as usize && crc32(&self.chunk) == crc
            }
            _ => false,
        };
        if !sound {
            self.chunk.clear();
            let after = format!("damaged or still being written after event {}: the rest is left out", self.events);
            self.damage = Some(after);
        }
        Ok(sound)
    }
}

/// The header, and how many scores of the layer after the next its events have.
fn read_header(path: &Path, file: &mut BufReader<File>) -> Result<(Header, usize)> {
    let mut fixed = Vec::new();
    file.take(16).read_to_end(&mut fixed).map_err(|e| Error::io(path, "read", e))?;
    if !fixed.starts_with(MAGIC) {
        let got = format!("{:?}", String::from_utf8_lossy(&fixed[..fixed.len().min(8)]));
        return Err(Error::format(path, "the first bytes", "HOTTRACE, as a hotset trace has", got));
    }
    let Some((version, bytes)) = fixed[8..].first_chunk().zip(fixed[8..].last_chunk()).filter(|_| fixed.len() == 16)
    else {
        return Err(Error::format(path, "the file", "at least 16 bytes", fixed.len()));
    };
    let (version, bytes) = (u32::from_le_bytes(*version), u32::from_le_bytes(*bytes) as usize);
    if !VERSIONS.contains(&version) {
        return Err(Error::unsupported(path, "the trace version", "1 or 2", version));
    }
    if bytes > MAX_BYTES {
        return Err(Error::format(path, "the header's length", format!("at most {MAX_BYTES} bytes"), bytes));
    }
    let mut json = Vec::new();
    file.take(bytes as u64 + 4).read_to_end(&mut json).map_err(|e| Error::io(path, "read", e))?;
    if json.len() != bytes + 4 {
        return Err(Error::format(path, "the header", format!("{} bytes", bytes + 4), json.len()));
    }
    let crc = u32::from_le_bytes(json.split_off(bytes).try_into().expect("four bytes are left"));
    if crc32(&json) != crc {
        let got = format!("{:08x}", crc32(&json));
        return Err(Error::format(path, "the header's checksum", format!("{crc:08x}"), got));
    }
    let wrong = |e| Error::format(path, "the header", format!("the keys of version {version}"), e);
    let Second { lookahead2_ranks } = serde_json::from_slice(&json).map_err(wrong)?;
    let said = VERSIONS[usize::from(lookahead2_ranks > 0)];
    if said != version {
        return Err(Error::format(path, "the trace version", format!("{said}, as its header says"), version));
    }
    Ok((serde_json::from_slice(&json).map_err(wrong)?, lookahead2_ranks))
}

#[cfg(test)]
mod tests {
    #[test]
    fn checksums_are_the_usual_ones() {
        assert_eq!(super::crc32(b"123456789"), 0xcbf4_3926);
        assert_eq!(super::fnv1a(*b"foobar"), "85944171f73967e8");
    }
}
