//! Where each expert's bytes lie in the files, and what matrices they are. Pure layout: opens and reads nothing.
//!
//! Whatever the layout of the file ([`ExpertTensors`]), an expert is a list of extents. In a repacked file (`hotset
//! repack`) they adjoin; it is read as what its tensor table says, not as what it says of itself.

use std::path::Path;

use super::Scope;
use crate::{
    Error, Result,
    blueprint::{ExpertSet, ExpertTensors, Tensor},
    gguf::Gguf,
    id::ExpertId,
    io::{Extent, Extents, Files, IoBuf, ReadError},
    quant::{FfnMats, GgmlType, QMat, QMatMut},
};

/// The block of drives and page caches. A repacked expert starts at a multiple of it, and its parts lie less than one
/// apart.
pub const BLOCK_BYTES: u64 = 4096;

/// The metadata key that a repacked file has, with [`REPACK_VERSION`] as its value.
pub const REPACK_KEY: &str = "hotset.repack.version";

/// The one layout of repacked files that there is.
pub const REPACK_VERSION: u32 = 1;

/// The version of the layout of a repacked file; `None` for any other file.
///
/// # Errors
/// If the key holds no number, or a version that this build does not know.
pub fn repack_version(gguf: &Gguf) -> Result<Option<u32>> {
    match gguf.meta().u32(REPACK_KEY)? {
        Some(v) if v != REPACK_VERSION => Err(Error::unsupported(gguf.path(), REPACK_KEY, REPACK_VERSION, v)),
        version => Ok(version),
    }
}

/// One projection of one expert, as it lies in the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Matrix {
    /// Element type.
    pub ty: GgmlType,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// The bytes, of which [`Extent::file`] is the shard.
    pub at: Extent,
}

/// How the bytes of an expert in a slot lie: as in the file, or as the backend prefers. Nobody else looks into it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Arranged(
    /// Which of gate, up and down are [interleaved](crate::quant::interleaved).
    pub(super) [bool; 3],
);

/// One projection's place in an expert's bytes.
#[derive(Clone, Copy, Debug)]
struct Place {
    ty: GgmlType,
    rows: usize,
    cols: usize,
    /// Which part (extent) of the buffer.
    part: usize,
    /// First byte in that part.
    start: usize,
}

impl Place {
    fn bytes(&self) -> usize {
        self.rows * (self.cols / self.ty.block_len() * self.ty.block_bytes())
    }
    fn view<'a>(&self, buf: &'a IoBuf, interleaved: bool) -> QMat<'a> {
        let data = &buf.part(self.part)[self.start..self.start + self.bytes()];
        QMat { ty: self.ty, rows: self.rows, cols: self.cols, data, interleaved }
    }
    fn view_mut<'a>(&self, buf: &'a mut IoBuf) -> QMatMut<'a> {
        let data = &mut buf.part_mut(self.part)[self.start..self.start + self.bytes()];
        QMatMut { ty: self.ty, rows: self.rows, cols: self.cols, data }
    }
    fn matrix(&self, extents: &Extents) -> Matrix {
        let Extent { file, offset, .. } = extents[self.part];
        let at = Extent { file, offset: offset + self.start as u64, len: self.bytes() };
        Matrix { ty: self.ty, rows: self.rows, cols: self.cols, at }
    }
}

/// The experts of one MoE layer: alike in shape and types.
#[derive(Debug)]
pub struct LayerStore {
    /// The layer's number among all layers (`blk.N`).
    pub block: usize,
    gate: Option<Place>,
    up: Place,
    down: Place,
    /// (n_expert)
    extents: Vec<Extents>,
}

impl LayerStore {
    fn new(gguf: &Gguf, set: &ExpertSet) -> Self {
        let n = set.n_expert;
        let whole = |t: &Tensor| {
            let info = &gguf.tensors()[t.index];
            Extent { file: info.shard as u16, offset: info.offset, len: t.bytes as usize }
        };
        let place = |t: &Tensor, part| Place { ty: t.ty, rows: t.rows, cols: t.cols, part, start: 0 };
        let places = |tensors: &[Tensor]| tensors.iter().zip(0..).map(|(t, part)| place(t, part)).collect::<Vec<_>>();
        let stacked = |tensors: &[Tensor]| {
            let expert = |e| Extents::new(&tensors.iter().map(|t| slice(whole(t), e, n)).collect::<Vec<_>>());
            (0..n).map(expert).collect::<Vec<_>>()
        };
        let (places, extents) = match &set.tensors {
            ExpertTensors::Stacked(tensors) => (places(tensors), stacked(tensors)),
            ExpertTensors::Fused(tensors) => {
                let gate = Place { rows: set.n_ff, ..place(&tensors[0], 0) };
                let up = Place { start: gate.bytes(), ..gate };
                (vec![gate, up, place(&tensors[1], 1)], stacked(tensors))
            }
            ExpertTensors::Single(tensors) => {
                let each = set.roles().len();
                let mut wholes: Vec<_> =
                    tensors.chunks_exact(each).map(|t| t.iter().map(whole).collect::<Vec<_>>()).collect();
                close_gaps(&mut wholes);
                (places(&tensors[..each]), wholes.iter().map(|parts| Extents::new(parts)).collect())
            }
        };
        let (gate, up, down) = match places[..] {
            [gate, up, down] => (Some(gate), up, down),
            [up, down] => (None, up, down),
            _ => unreachable!("an expert has two matrices or three"),
        };
        Self { block: set.layer, gate, up, down, extents }
    }

    /// Bytes that a read of one expert takes.
    pub fn expert_bytes(&self) -> u64 {
        self.extents[0].bytes()
    }
    /// The lengths of an expert's parts.
    pub fn part_bytes(&self) -> Vec<usize> {
        self.extents[0].iter().map(|e| e.len).collect()
    }
    fn places(&self) -> [Option<Place>; 3] {
        [self.gate, Some(self.up), Some(self.down)]
    }
    /// Element types of gate, if there is one, up and down.
    pub fn types(&self) -> [Option<GgmlType>; 3] {
        self.places().map(|place| place.map(|place| place.ty))
    }
    /// Gate, if there is one, up and down of an expert.
    pub fn matrices(&self, expert: usize) -> [Option<Matrix>; 3] {
        self.places().map(|place| place.map(|place| place.matrix(&self.extents[expert])))
    }
    /// True if every expert is one run of bytes that starts at a multiple of [`BLOCK_BYTES`]: one request to a drive.
    pub fn is_one_read(&self) -> bool {
        let one_run = |e: &Extents| e.windows(2).all(|w| gap(w[0], w[1]) == Some(0));
        self.extents.iter().all(|e| e[0].offset.is_multiple_of(BLOCK_BYTES) && one_run(e))
    }
    /// Width of the experts' hidden layer.
    pub fn n_ff_exp(&self) -> usize {
        self.up.rows
    }
}

/// The expert index of a model.
pub struct ExpertStore {
    files: Files,
    layers: Vec<LayerStore>,
    n_expert: usize,
}

impl ExpertStore {
    /// The index of the experts of each MoE layer.
    ///
    /// # Errors
    /// A file that was repacked in a way that this build does not know.
    pub fn new<'a>(gguf: &Gguf, sets: impl IntoIterator<Item = &'a ExpertSet>) -> Result<Self> {
        repack_version(gguf)?;
        let files: Files = gguf.shards().iter().map(|s| (s.path.clone(), s.file.clone())).collect();
        let layers: Vec<_> = sets.into_iter().map(|set| LayerStore::new(gguf, set)).collect();
        let n_expert = layers.first().map_or(0, |layer| layer.extents.len());
        Ok(Self { files, layers, n_expert })
    }

    /// An index without files: `n_expert` experts of `bytes[i]` bytes in MoE layer `i`, for simulation. Their
    /// matrices cannot be viewed.
    pub fn unfiled(bytes: &[u64], n_expert: usize) -> Self {
        let none = Place { ty: GgmlType::F32, rows: 0, cols: 0, part: 0, start: 0 };
        let layer = |(block, &bytes): (usize, &u64)| {
            let extents = Extents::new(&[Extent { file: 0, offset: 0, len: bytes as usize }]);
            LayerStore { block, gate: Some(none), up: none, down: none, extents: vec![extents; n_expert] }
        };
        Self { files: Files::from([]), layers: bytes.iter().enumerate().map(layer).collect(), n_expert }
    }

    /// The files that the extents point into.
    pub fn files(&self) -> &Files {
        &self.files
    }
    /// The MoE layers.
    pub fn layers(&self) -> &[LayerStore] {
        &self.layers
    }
    /// Experts a layer.
    pub fn n_expert(&self) -> usize {
        self.n_expert
    }
    /// The pool of slots that holds each layer's experts. (n_moe_layer)
    pub fn pools(&self, scope: Scope) -> Vec<usize> {
        let mut sizes = Vec::new();
        let mut by_size = |layer: &LayerStore| {
            let bytes = layer.expert_bytes();
            sizes.iter().position(|size| *size == bytes).unwrap_or_else(|| {
                sizes.push(bytes);
                sizes.len() - 1
            })
        };
        match scope {
            Scope::Layer => (0..self.layers.len()).collect(),
            Scope::Size => self.layers.iter().map(&mut by_size).collect(),
            Scope::Global => vec![0; self.layers.len()],
        }
    }
    /// The part lengths of a slot that holds any expert of `layers`.
    pub fn slot_parts(&self, layers: impl IntoIterator<Item = usize>) -> Vec<usize> {
        let mut largest = Vec::new();
        for layer in layers {
            for (i, len) in self.layers[layer].part_bytes().into_iter().enumerate() {
                if i == largest.len() {
                    largest.push(0);
                }
                largest[i] = largest[i].max(len);
            }
        }
        largest
    }
    /// Where `id` lies.
    pub fn extents(&self, id: ExpertId) -> Extents {
        self.layers[id.layer as usize].extents[id.expert as usize]
    }
    /// `id`'s matrices in the bytes that were read from [`ExpertStore::extents`].
    pub(super) fn view<'a>(&self, id: ExpertId, buf: &'a IoBuf, arranged: Arranged) -> FfnMats<'a> {
        let LayerStore { gate, up, down, .. } = &self.layers[id.layer as usize];
        let Arranged([g, u, d]) = arranged;
        FfnMats { gate: gate.map(|gate| gate.view(buf, g)), up: up.view(buf, u), down: down.view(buf, d) }
    }
    /// Gate, up or down of `id`, if it has that, in the bytes that were read, to be interleaved.
    pub fn view_mut<'a>(&self, id: ExpertId, role: usize, buf: &'a mut IoBuf) -> Option<QMatMut<'a>> {
        Some(self.layers[id.layer as usize].places()[role]?.view_mut(buf))
    }
    /// The whole sentence for a read of `id` that failed.
    pub fn explain(&self, id: ExpertId, error: ReadError) -> Error {
        let path: &Path = &self.files[error.extent.file as usize].0;
        let block = self.layers[id.layer as usize].block;
        let Extent { offset, len, .. } = error.extent;
        if error.source.kind() == std::io::ErrorKind::UnexpectedEof {
            let what = format!("expert {} of blk.{block}", id.expert);
            return Error::format(path, what, format!("{len} bytes at offset {offset}"), "the end of the file");
        }
        Error::io(
            path,
            format!("read {len} bytes at offset {offset} for expert {} of blk.{block}", id.expert),
            error.source,
        )
    }
}

/// The `index`-th of `n` equal slices of `whole`.
fn slice(whole: Extent, index: usize, n: usize) -> Extent {
    let len = whole.len / n;
    Extent { file: whole.file, offset: whole.offset + (index * len) as u64, len }
}

/// Bytes from the end of `a` to the start of `b`, if that is where `b` lies.
fn gap(a: Extent, b: Extent) -> Option<u64> {
    let end = a.offset + a.len as u64;
    if a.file == b.file { b.offset.checked_sub(end) } else { None }
}

/// Takes padding between an expert's parts into the parts, so that they adjoin and make one read. Only where it is
/// less than a block, and the same for each expert: slots are alike.
fn close_gaps(experts: &mut [Vec<Extent>]) {
    let Some(first) = experts.first().cloned() else { return };
    for part in 0..first.len() - 1 {
        let padding = gap(first[part], first[part + 1]).filter(|&n| n < BLOCK_BYTES);
        if let Some(n) = padding
            && experts.iter().all(|e| gap(e[part], e[part + 1]) == padding)
        {
            experts.iter_mut().for_each(|e| e[part].len += n as usize);
        }
    }
}
