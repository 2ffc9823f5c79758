//! Keys and values of the tokens so far, in F32, F16 or Q8_0. Allocated once; pages that no token has reached cost nothing.
//!
//! Layout: for each attention, keys (heads, rows, k), then values (heads, rows, v), then index keys (rows, k of the indexer), if
//! there are any: what one head reads is contiguous. Keys lie as the backend wrote them within a
//! [`KV_GROUP`]; index keys row after row.
//!
//! Where a window leaves old positions out of sight, there are only as many rows as the window and a batch need, in whole
//! groups, and position p is row p modulo their number.

use memmap2::MmapMut;

use crate::{Error, Result, backend::KV_GROUP, blueprint::State, human_bytes, quant::GgmlType};

/// The types that `--kv` takes.
pub const KV_TYPES: &[GgmlType] = &[GgmlType::F16, GgmlType::F32, GgmlType::Q8_0];

/// See the module.
pub(super) struct Rows {
    ty: GgmlType,
    /// Of each attention.
    attentions: Vec<Place>,
    memory: MmapMut,
}

/// Sizes of one attention's keys and values.
#[derive(Clone, Copy)]
struct Size {
    heads: usize,
    /// Bytes of a head's key and of its value.
    row_bytes: [usize; 2],
    /// Bytes of an index key, of which there is one for all heads.
    index_bytes: usize,
    /// Rows of a head.
    rows: usize,
    /// Positions before a token that it sees, where there are fewer rows than the context has positions.
    behind: Option<usize>,
}

/// Where one attention's keys and values are, and which.
struct Place {
    size: Size,
    start: usize,
    /// The first position whose row has not been overwritten by a later one's.
    first: usize,
}

/// An attention's keys and values for reading.
#[derive(Clone, Copy)]
pub struct KvView<'a> {
    /// Element type of both.
    pub ty: GgmlType,
    /// Rows between one head's first row and the next head's; position p is row p modulo this.
    pub n_ctx: usize,
    /// (heads, n_ctx, k)
    pub keys: &'a [u8],
    /// (heads, n_ctx, v)
    pub values: &'a [u8],
    /// (n_ctx, k of the indexer), or empty.
    pub index: &'a [u8],
}

/// Bytes of one head's row of `n` elements.
fn row_bytes(ty: GgmlType, n: usize) -> Result<usize> {
    if !KV_TYPES.contains(&ty) {
        let names: Vec<_> = KV_TYPES.iter().map(|t| t.name()).collect();
        return Err(Error::request("the KV cache type", format!("one of {}", names.join(", ")), ty));
    }
    let bytes = ty.row_bytes(n as u64).ok_or_else(|| {
        Error::request(format!("KV cache type {ty}"), format!("heads of a multiple of {}", ty.block_len()), n)
    })?;
    Ok(bytes as usize)
}

impl Size {
    /// For a context of `n_ctx` tokens that come in batches of at most `n_batch`. `None` of what keeps no rows.
    fn of(state: State, ty: GgmlType, n_ctx: usize, n_batch: usize) -> Result<Option<Self>> {
        let State::Rows { heads, k, v, window, index, each } = state else { return Ok(None) };
        let index_bytes = match index.filter(|index| n_ctx > index.top_k) {
            Some(index) => row_bytes(ty, index.k)?,
            None => 0,
        };
        let row_bytes = [row_bytes(ty, k)?, row_bytes(ty, v)?];
        let (mut rows, mut behind) = (n_ctx / each, None);
        if let Some(window) = window {
            // Whatever a batch's first row sees and its last row's position, in whole tiles: no row that anything sees shares
            // a place with another, even if the batch fails and comes again.
            let all =
                (window - 1).saturating_add(n_batch).div_ceil(KV_GROUP).saturating_add(1).saturating_mul(KV_GROUP);
            if all < n_ctx {
                (rows, behind) = (all, Some(window - 1));
            }
        }
        Ok(Some(Self { heads, row_bytes, index_bytes, rows, behind }))
    }

    /// Keys, values and index keys: heads, and bytes of a row of one.
    fn kinds(&self) -> [(usize, usize); 3] {
        let [k, v] = self.row_bytes;
        [(self.heads, k), (self.heads, v), (1, self.index_bytes)]
    }

    /// Bytes of all keys, of all values and of all index keys.
    fn bytes(&self) -> [usize; 3] {
        self.kinds().map(|(heads, bytes)| bytes.saturating_mul(heads).saturating_mul(self.rows))
    }

    /// Tiles that hold what the token at position `len` sees before it.
    fn tiles(&self, len: usize) -> impl Iterator<Item = usize> {
        let seen = self.behind.map_or(0..0, |behind| len.saturating_sub(behind) / KV_GROUP * KV_GROUP..len);
        seen.step_by(KV_GROUP)
    }

    /// Bytes of a checkpoint at most.
    fn checkpoint_bytes(&self) -> usize {
        let positions = self.behind.map_or(0, |behind| (behind.div_ceil(KV_GROUP) + 1) * KV_GROUP);
        let position = |(heads, bytes): (usize, usize)| bytes.saturating_mul(heads);
        self.kinds().map(position).into_iter().fold(0, usize::saturating_add).saturating_mul(positions)
    }
}

impl Rows {
    fn sizes(
        states: impl Iterator<Item = State>,
        ty: GgmlType,
        n_ctx: usize,
        n_batch: usize,
    ) -> impl Iterator<Item = Result<Size>> {
        states.filter_map(move |state| Size::of(state, ty, n_ctx, n_batch).transpose())
    }

    /// Bytes of the rows, and of a checkpoint of them.
    pub fn bytes(
        states: impl Iterator<Item = State>,
        ty: GgmlType,
        n_ctx: usize,
        n_batch: usize,
    ) -> Result<(u64, u64)> {
        let (mut rows, mut checkpoint) = (0u64, 0u64);
        for size in Self::sizes(states, ty, n_ctx, n_batch) {
            let size = size?;
            size.bytes().into_iter().for_each(|bytes| rows = rows.saturating_add(bytes as u64));
            checkpoint = checkpoint.saturating_add(size.checkpoint_bytes() as u64);
        }
        Ok((rows, checkpoint))
    }

    pub fn new(
        states: impl Iterator<Item = State> + Clone,
        ty: GgmlType,
        n_ctx: usize,
        n_batch: usize,
    ) -> Result<Self> {
        let (bytes, _) = Self::bytes(states.clone(), ty, n_ctx, n_batch)?;
        let refused = |e| Error::invalid(format!("cannot allocate {} for the KV cache: {e}", human_bytes(bytes)));
        let memory = MmapMut::map_anon((bytes as usize).max(1)).map_err(refused)?;
        let mut start = 0;
        let place = |size: Result<Size>| {
            let size = size?;
            let place = Place { size, start, first: 0 };
            start += size.bytes().iter().sum::<usize>();
            Ok(place)
        };
        let attentions = Self::sizes(states, ty, n_ctx, n_batch).map(place).collect::<Result<_>>()?;
        Ok(Self { ty, attentions, memory })
    }

    pub fn ty(&self) -> GgmlType {
        self.ty
    }

    /// An attention's keys (heads, rows, k) and values (heads, rows, v), for writing.
    pub fn of_mut(&mut self, attention: usize) -> (&mut [u8], &mut [u8]) {
        let Place { start, size, .. } = &self.attentions[attention];
        let [keys, values, _] = size.bytes();
        self.memory[*start..start + keys + values].split_at_mut(keys)
    }

    /// An attention's index keys (rows, k of the indexer), for writing, or nothing.
    pub fn index_mut(&mut self, attention: usize) -> &mut [u8] {
        let Place { start, size, .. } = &self.attentions[attention];
        let [keys, values, index] = size.bytes();
        &mut self.memory[start + keys + values..][..index]
    }

    pub fn of(&self, attention: usize) -> KvView<'_> {
        let Place { start, size, .. } = &self.attentions[attention];
        let [keys, values, index] = size.bytes();
        let (keys, rest) = self.memory[*start..start + keys + values + index].split_at(keys);
        let (values, index) = rest.split_at(values);
        KvView { ty: self.ty, n_ctx: size.rows, keys, values, index }
    }

    /// Positions below `end` are about to be written.
    pub fn will_reach(&mut self, end: usize) {
        for place in &mut self.attentions {
            place.first = place.first.max(end.saturating_sub(place.size.rows));
        }
    }

    /// Whether the token at position `len` would find all rows that it sees.
    pub fn has(&self, len: usize) -> bool {
        len == 0
            || self
                .attentions
                .iter()
                .all(|place| place.size.behind.is_none_or(|behind| len.saturating_sub(behind) >= place.first))
    }

    /// Nothing has been written.
    pub fn clear(&mut self) {
        self.attentions.iter_mut().for_each(|place| place.first = 0);
    }

    /// Calls `f` with each piece of bytes that a checkpoint at position `len` consists of, in order.
    fn each_piece(&mut self, len: usize, mut f: impl FnMut(&mut [u8])) {
        for Place { size, start, .. } in &self.attentions {
            let mut start = *start;
            for (heads, row) in size.kinds() {
                for head in 0..heads {
                    for tile in size.tiles(len) {
                        let at = start + (head * size.rows + tile % size.rows) * row;
                        f(&mut self.memory[at..at + KV_GROUP * row]);
                    }
                }
                start += heads * size.rows * row;
            }
        }
    }

    /// Becomes what `other`, of the same shape, holds of its first `len` positions.
    pub fn copy_from(&mut self, other: &Rows, len: usize) {
        for (to, from) in self.attentions.iter_mut().zip(&other.attentions) {
            let size = from.size;
            // Of a window all rows, since their places say nothing of their order.
            let n = size.behind.map_or(len.next_multiple_of(KV_GROUP).min(size.rows), |_| size.rows);
            let mut start = from.start;
            for row in size.row_bytes {
                for head in 0..size.heads {
                    let at = start + head * size.rows * row;
                    self.memory[at..at + n * row].copy_from_slice(&other.memory[at..at + n * row]);
                }
                start += size.heads * size.rows * row;
            }
            to.first = from.first;
        }
    }

    /// Adds what would be overwritten to `to`: of what sees everything, nothing.
    pub fn save(&mut self, len: usize, to: &mut Vec<u8>) {
        self.each_piece(len, |piece| to.extend_from_slice(piece));
    }

    /// Puts back what [`Rows::save`] gave at `len`.
    pub fn restore(&mut self, len: usize, mut from: &[u8]) {
        self.each_piece(len, |piece| {
            let (this, rest) = from.split_at(piece.len());
            piece.copy_from_slice(this);
            from = rest;
        });
        for place in &mut self.attentions {
            place.first = place.size.behind.map_or(0, |behind| len.saturating_sub(behind));
        }
    }
}
