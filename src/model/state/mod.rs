//! One sequence of tokens, and what the model's parts keep of it: rows of keys and values, or recurrent memory.
//!
//! What a part keeps is a function of the tokens alone: not of batches, budgets or other sequences.
//!
//! Must not know: what a row or a memory means.

mod recurrent;
mod rows;

pub use rows::{KV_TYPES, KvView};

use self::{recurrent::Recurrent, rows::Rows};
use crate::{Error, Result, blueprint::Blueprint, quant::GgmlType};

/// See the module.
pub struct Sequence {
    n_ctx: usize,
    rows: Rows,
    memory: Recurrent,
    /// The tokens whose rows are there: those of the sequence, then those that a rewind took off. (up to n_ctx)
    tokens: Vec<u32>,
    len: usize,
}

/// A sequence as it was, to come back to. Rows that see everything are not copied: those of the sequence itself serve, as
/// long as the same tokens are there.
pub struct Checkpoint {
    tokens: Vec<u32>,
    rows: Vec<u8>,
    memory: Vec<f32>,
}

impl Checkpoint {
    /// Tokens of the sequence as it was.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Bytes that it takes.
    pub fn bytes(&self) -> u64 {
        (size_of_val(&*self.tokens) + self.rows.len() + size_of_val(&*self.memory)) as u64
    }
}

impl Sequence {
    /// Bytes of a sequence of up to `n_ctx` tokens that come in batches of at most `n_batch`.
    ///
    /// # Errors
    /// If the type is not one of [`KV_TYPES`], or a head's size is no whole number of its blocks.
    pub fn bytes(m: &Blueprint, ty: GgmlType, n_ctx: usize, n_batch: usize) -> Result<u64> {
        let (rows, _) = Rows::bytes(m.states(), ty, n_ctx, n_batch)?;
        // What was and what will be.
        let memory = (Recurrent::floats(m.states()) as u64).saturating_mul(2 * size_of::<f32>() as u64);
        Ok(rows.saturating_add(memory))
    }

    /// Bytes of a [`Checkpoint`] at most, but for its tokens.
    ///
    /// # Errors
    /// As [`Sequence::bytes`].
    pub fn checkpoint_bytes(m: &Blueprint, ty: GgmlType, n_ctx: usize, n_batch: usize) -> Result<u64> {
        let (_, rows) = Rows::bytes(m.states(), ty, n_ctx, n_batch)?;
        let memory = (Recurrent::floats(m.states()) as u64).saturating_mul(size_of::<f32>() as u64);
        Ok(rows.saturating_add(memory))
    }

    /// An empty one for up to `n_ctx` tokens that come in batches of at most `n_batch`.
    ///
    /// # Errors
    /// As [`Sequence::bytes`], or if the system refuses the memory.
    pub fn new(m: &Blueprint, ty: GgmlType, n_ctx: usize, n_batch: usize) -> Result<Self> {
        let states: Vec<_> = m.states().collect();
        let mut tokens = recurrent::zeros(n_ctx)?;
        tokens.clear();
        Ok(Self {
            n_ctx,
            rows: Rows::new(states.iter().copied(), ty, n_ctx, n_batch)?,
            memory: Recurrent::new(states.into_iter())?,
            tokens,
            len: 0,
        })
    }

    /// Tokens held.
    pub fn len(&self) -> usize {
        self.len
    }
    /// True before the first token.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
    /// Tokens that fit.
    pub fn n_ctx(&self) -> usize {
        self.n_ctx
    }
    /// Element type of keys and values.
    pub fn ty(&self) -> GgmlType {
        self.rows.ty()
    }
    /// The tokens held.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens[..self.len]
    }

    /// Forgets all tokens.
    pub fn clear(&mut self) {
        self.len = 0;
        self.rows.clear();
        self.memory.clear();
    }

    /// Whether [`Sequence::rewind`] can take the sequence back to its first `len` tokens.
    ///
    /// # Errors
    /// Why it cannot.
    pub fn check_rewind(&self, len: usize) -> Result<()> {
        if len > self.len {
            return Err(Error::invalid(format!("a sequence of {} tokens cannot be rewound to {len}", self.len)));
        }
        let refused = |why| Err(Error::invalid(format!("cannot rewind from {} to {len} tokens: {why}", self.len)));
        if len != self.len && len != 0 && !self.memory.is_empty() {
            return refused("a recurrent memory has no past but its checkpoints");
        }
        if !self.rows.has(len) {
            return refused("rows that its window saw have been overwritten");
        }
        Ok(())
    }

    /// Takes the sequence back to its first `len` tokens, as if no other had come.
    ///
    /// # Errors
    /// As [`Sequence::check_rewind`]; nothing has changed then. What cannot be rewound can be restored from a checkpoint.
    pub fn rewind(&mut self, len: usize) -> Result<()> {
        self.check_rewind(len)?;
        match len {
            0 => self.clear(),
            len => self.len = len,
        }
        Ok(())
    }

    /// The sequence as it is now, to come back to.
    ///
    /// # Errors
    /// If the system refuses the memory.
    pub fn checkpoint(&mut self) -> Result<Checkpoint> {
        let (mut rows, mut memory) = (Vec::new(), recurrent::zeros(self.memory.now().len())?);
        self.rows.save(self.len, &mut rows);
        memory.copy_from_slice(self.memory.now());
        Ok(Checkpoint { tokens: self.tokens().to_vec(), rows, memory })
    }

    /// Goes back to a checkpoint of this sequence, or on to one that a rewind has left behind.
    ///
    /// # Errors
    /// If other tokens have taken the place of the checkpoint's; nothing has changed then.
    ///
    /// # Panics
    /// If it is of a sequence of another shape.
    pub fn restore(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        self.check_restore(checkpoint)?;
        let len = checkpoint.tokens.len();
        self.rows.restore(len, &checkpoint.rows);
        self.memory.restore(&checkpoint.memory);
        self.len = len;
        Ok(())
    }

    /// Whether [`Sequence::restore`] can go to a checkpoint of this sequence.
    ///
    /// # Errors
    /// As that.
    pub fn check_restore(&self, checkpoint: &Checkpoint) -> Result<()> {
        let len = checkpoint.tokens.len();
        if self.tokens.get(..len) == Some(&*checkpoint.tokens) {
            return Ok(());
        }
        let message = format!("the first {len} tokens of the sequence are no longer those of its checkpoint");
        Err(Error::invalid(message))
    }

    /// Becomes the first `len` tokens of `other`, a sequence of the same model and shape, as if they had come here.
    ///
    /// # Errors
    /// As [`Sequence::check_rewind`] of `other`; nothing has changed then.
    ///
    /// # Panics
    /// If the sequences differ in shape.
    pub fn copy_from(&mut self, other: &Sequence, len: usize) -> Result<()> {
        other.check_rewind(len)?;
        self.take_rows(other, len);
        match len {
            0 => self.clear(),
            // Recurrent memories are only ever copied where they are.
            _ => self.memory.restore(other.memory.now()),
        }
        Ok(())
    }

    /// [`Sequence::copy_from`] with a checkpoint of `other`, for what cannot be rewound.
    ///
    /// # Errors
    /// As [`Sequence::restore`] of `other`; nothing has changed then.
    ///
    /// # Panics
    /// If the sequences differ in shape.
    pub fn copy_checkpoint(&mut self, other: &Sequence, checkpoint: &Checkpoint) -> Result<()> {
        other.check_restore(checkpoint)?;
        self.take_rows(other, checkpoint.tokens.len());
        self.restore(checkpoint)
    }

    fn take_rows(&mut self, other: &Sequence, len: usize) {
        assert_eq!(self.n_ctx, other.n_ctx, "sequences of one engine have one shape");
        self.rows.copy_from(&other.rows, len);
        self.tokens.clear();
        self.tokens.extend_from_slice(&other.tokens[..len]);
        self.len = len;
    }

    /// `n` tokens are about to come: what lies behind the sequence will be overwritten.
    pub(super) fn begin(&mut self, n: usize) {
        self.tokens.truncate(self.len);
        self.rows.will_reach(self.len + n);
    }

    /// These tokens have come, in every part.
    pub(super) fn commit(&mut self, tokens: &[u32]) {
        self.tokens.extend_from_slice(tokens);
        self.len += tokens.len();
        self.memory.commit();
    }

    /// Keys (heads, rows, k) and values (heads, rows, v) of an attention, for writing.
    pub(super) fn rows_mut(&mut self, attention: usize) -> (&mut [u8], &mut [u8]) {
        self.rows.of_mut(attention)
    }

    /// Index keys of an attention (blocks, k of its indexer), for writing. Empty: nothing has to be chosen.
    pub(super) fn index_mut(&mut self, attention: usize) -> &mut [u8] {
        self.rows.index_mut(attention)
    }

    /// An attention's keys and values.
    pub(super) fn rows(&self, attention: usize) -> KvView<'_> {
        self.rows.of(attention)
    }

    /// A recurrent part's memory as the batch found it, and where the batch leaves it.
    pub(in crate::model) fn memory(&mut self, part: usize) -> (&[f32], &mut [f32]) {
        self.memory.of_mut(part)
    }
}
