//! Where each expert's bytes lie in the files, and what matrices they are. Pure layout: opens and reads nothing.
//!
//! Two layouts of GGUF exist: *stacked* (`blk.N.ffn_gate_exps.weight` holds all experts of a layer, one after another;
//! newer converters also fuse gate and up into `ffn_gate_up_exps`), and the old one of a tensor an expert
//! (`blk.N.ffn_gate.7.weight`). Both end up as the same list of extents. A repacked file (`hotset repack`) has the old one,
//! in an order in which an expert's extents adjoin; it is read as what its tensor table says, not as what it says of
//! itself.

use std::path::Path;

use super::Scope;
use crate::{
    Error, Result,
    gguf::{Gguf, Reader, TensorInfo},
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
    gate: Place,
    up: Place,
    down: Place,
    /// (n_expert)
    extents: Vec<Extents>,
}

impl LayerStore {
    /// Bytes that a read of one expert takes.
    pub fn expert_bytes(&self) -> u64 {
        self.extents[0].bytes()
    }
    /// The lengths of an expert's parts.
    pub fn part_bytes(&self) -> Vec<usize> {
        self.extents[0].iter().map(|e| e.len).collect()
    }
    /// Element types of gate, up and down.
    pub fn types(&self) -> [GgmlType; 3] {
        [self.gate.ty, self.up.ty, self.down.ty]
    }
    /// Gate, up and down of an expert.
    pub fn matrices(&self, expert: usize) -> [Matrix; 3] {
        [self.gate, self.up, self.down].map(|place| place.matrix(&self.extents[expert]))
    }
    /// True if every expert is one run of bytes that starts at a multiple of [`BLOCK_BYTES`]: one request to a drive.
    pub fn is_one_read(&self) -> bool {
        let one_run = |e: &Extents| e.windows(2).all(|w| gap(w[0], w[1]) == Some(0));
        self.extents.iter().all(|e| e[0].offset.is_multiple_of(BLOCK_BYTES) && one_run(e))
    }
    /// Width of the experts' hidden layer.
    pub fn n_ff_exp(&self) -> usize {
        self.gate.rows
    }
}

/// The expert index of a model.
pub struct ExpertStore {
    files: Files,
    layers: Vec<LayerStore>,
    n_expert: usize,
}

impl ExpertStore {
    /// Finds the experts of the MoE layers `blocks` (numbers N of `blk.N`), each with `n_expert` experts on a residual
    /// stream of `n_embd`.
    ///
    /// # Errors
    /// Names the tensor that is missing, or whose shape or type does not fit; a file that was repacked in a way that
    /// this build does not know.
    pub fn new(gguf: &Gguf, blocks: &[usize], n_expert: usize, n_embd: usize) -> Result<Self> {
        repack_version(gguf)?;
        let files: Files = gguf.shards().iter().map(|s| (s.path.clone(), s.file.clone())).collect();
        let layers = blocks.iter().map(|&block| find_layer(gguf, block, n_expert, n_embd)).collect::<Result<_>>()?;
        Ok(Self { files, layers, n_expert })
    }

    /// An index without files: `n_expert` experts of `bytes[i]` bytes in MoE layer `i`, for simulation. Their
    /// matrices cannot be viewed.
    pub fn unfiled(bytes: &[u64], n_expert: usize) -> Self {
        let none = Place { ty: GgmlType::F32, rows: 0, cols: 0, part: 0, start: 0 };
        let layer = |(block, &bytes): (usize, &u64)| {
            let extents = Extents::new(&[Extent { file: 0, offset: 0, len: bytes as usize }]);
            LayerStore { block, gate: none, up: none, down: none, extents: vec![extents; n_expert] }
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
    /// `id`'s matrices in the bytes that were read from [`ExpertStore::extents`]; which of gate, up and down have been
    /// interleaved since.
    pub fn view<'a>(&self, id: ExpertId, buf: &'a IoBuf, interleaved: [bool; 3]) -> FfnMats<'a> {
        let LayerStore { gate, up, down, .. } = &self.layers[id.layer as usize];
        let [g, u, d] = interleaved;
        FfnMats { gate: gate.view(buf, g), up: up.view(buf, u), down: down.view(buf, d) }
    }
    /// Gate, up or down of `id` in the bytes that were read, to be interleaved.
    pub fn view_mut<'a>(&self, id: ExpertId, role: usize, buf: &'a mut IoBuf) -> QMatMut<'a> {
        let LayerStore { gate, up, down, .. } = &self.layers[id.layer as usize];
        [gate, up, down][role].view_mut(buf)
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

/// The tensor's type and extent, once its shape is what the model needs.
fn checked(gguf: &Gguf, tensor: &TensorInfo, dims: &[usize]) -> Result<(GgmlType, Extent)> {
    let ty = gguf.computable(tensor, dims)?;
    let len = tensor.require_bytes(gguf.path_of(tensor))? as usize;
    Ok((ty, Extent { file: tensor.shard as u16, offset: tensor.offset, len }))
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
fn close_gaps(experts: &mut [[Extent; 3]]) {
    let Some(&first) = experts.first() else { return };
    for part in 0..2 {
        let padding = gap(first[part], first[part + 1]).filter(|&n| n < BLOCK_BYTES);
        if let Some(n) = padding
            && experts.iter().all(|e| gap(e[part], e[part + 1]) == padding)
        {
            experts.iter_mut().for_each(|e| e[part].len += n as usize);
        }
    }
}

/// The tensors of one layer's experts, as they are named; neither shapes nor types have been looked at.
enum LayerTensors<'a> {
    /// `gate_up_exps` and `down_exps`.
    Fused([&'a TensorInfo; 2]),
    /// `gate_exps`, `up_exps`, `down_exps`.
    Stacked([&'a TensorInfo; 3]),
    /// Gate, up and down of each expert. (n_expert)
    Single(Vec<[&'a TensorInfo; 3]>),
}

impl<'a> LayerTensors<'a> {
    fn find(reader: &Reader<'a>, block: usize, n_expert: usize) -> Result<Self> {
        let name = |role: &str| format!("blk.{block}.ffn_{role}.weight");
        let has = |role: &str| reader.gguf().tensor(&name(role)).is_some();
        let take = |role: &str| reader.require(&name(role));
        if has("gate_up_exps") {
            return Ok(Self::Fused([take("gate_up_exps")?, take("down_exps")?]));
        }
        if has("gate_exps") || !has("gate.0") {
            return Ok(Self::Stacked([take("gate_exps")?, take("up_exps")?, take("down_exps")?]));
        }
        let expert = |e: usize| {
            let take = |role: &str| take(&format!("{role}.{e}"));
            Ok([take("gate")?, take("up")?, take("down")?])
        };
        (0..n_expert).map(expert).collect::<Result<_>>().map(Self::Single)
    }
}

/// Takes the tensors of the routed experts of layer `block` (N of `blk.N`) and says how wide the experts are, if the
/// tensors' shapes have a width at all: they are checked by [`ExpertStore::new`] only.
///
/// # Errors
/// Names the tensor that is missing.
pub fn take_experts(reader: &Reader<'_>, block: usize, n_expert: usize) -> Result<Option<u64>> {
    let dim = |tensor: &TensorInfo| tensor.dims.get(1).copied();
    Ok(match LayerTensors::find(reader, block, n_expert)? {
        LayerTensors::Fused([gate_up, _]) => dim(gate_up).map(|d| d / 2),
        LayerTensors::Stacked([gate, ..]) => dim(gate),
        LayerTensors::Single(experts) => experts.first().and_then(|[gate, ..]| dim(gate)),
    })
}

fn find_layer(gguf: &Gguf, block: usize, n_expert: usize, n_embd: usize) -> Result<LayerStore> {
    // The hidden width is the tensors' own: some models vary it by layer.
    let width = |tensor: &TensorInfo| tensor.dims.get(1).map_or(0, |&d| d as usize);
    // (cols, rows) of gate, up and down
    let dims = |n_ff: usize| [[n_embd, n_ff], [n_embd, n_ff], [n_ff, n_embd]];
    let (types, n_ff, extents) = match LayerTensors::find(&Reader::new(gguf), block, n_expert)? {
        LayerTensors::Fused([gate_up, down]) => {
            let n_ff = width(gate_up) / 2;
            let (ty, both) = checked(gguf, gate_up, &[n_embd, 2 * n_ff, n_expert])?;
            let (down_ty, down) = checked(gguf, down, &[n_ff, n_embd, n_expert])?;
            let gate = Place { ty, rows: n_ff, cols: n_embd, part: 0, start: 0 };
            let up = Place { start: both.len / n_expert / 2, ..gate };
            let down_place = Place { ty: down_ty, rows: n_embd, cols: n_ff, part: 1, start: 0 };
            let extents = |e| Extents::new(&[slice(both, e, n_expert), slice(down, e, n_expert)]);
            return Ok(LayerStore { block, gate, up, down: down_place, extents: (0..n_expert).map(extents).collect() });
        }
        LayerTensors::Stacked(tensors) => {
            let n_ff = width(tensors[0]);
            let mut types = [GgmlType::F32; 3];
            let mut whole = [Extent { file: 0, offset: 0, len: 0 }; 3];
            for (r, [cols, rows]) in dims(n_ff).into_iter().enumerate() {
                (types[r], whole[r]) = checked(gguf, tensors[r], &[cols, rows, n_expert])?;
            }
            let extents = |e| Extents::new(&whole.map(|w| slice(w, e, n_expert)));
            (types, n_ff, (0..n_expert).map(extents).collect())
        }
        LayerTensors::Single(experts) => {
            let n_ff = experts.first().map_or(0, |[gate, ..]| width(gate));
            let (types, mut places) = single_experts(gguf, &experts, dims(n_ff))?;
            close_gaps(&mut places);
            (types, n_ff, places.iter().map(|places| Extents::new(places)).collect())
        }
    };
    let [gate, up, down] = [0, 1, 2].map(|part| {
        let [cols, rows] = dims(n_ff)[part];
        Place { ty: types[part], rows, cols, part, start: 0 }
    });
    Ok(LayerStore { block, gate, up, down, extents })
}

/// Types and places of experts that have tensors of their own: all of a layer must be of the same types.
fn single_experts(
    gguf: &Gguf,
    experts: &[[&TensorInfo; 3]],
    dims: [[usize; 2]; 3],
) -> Result<([GgmlType; 3], Vec<[Extent; 3]>)> {
    let mut types = [GgmlType::F32; 3];
    let mut all = Vec::with_capacity(experts.len());
    for (e, tensors) in experts.iter().enumerate() {
        let mut places = [Extent { file: 0, offset: 0, len: 0 }; 3];
        for (r, tensor) in tensors.iter().enumerate() {
            let ty;
            (ty, places[r]) = checked(gguf, tensor, &dims[r])?;
            if e > 0 && ty != types[r] {
                let what = format!("tensor {}", tensor.name);
                let expected = format!("the layer's type {}", types[r]);
                return Err(Error::format(gguf.path_of(tensor), what, expected, ty));
            }
            types[r] = ty;
        }
        all.push(places);
    }
    Ok((types, all))
}
