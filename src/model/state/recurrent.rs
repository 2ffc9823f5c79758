//! What recurrent parts keep of a sequence, in F32, whatever its length.
//!
//! Twice: a batch reads what was and writes what will be, and only when it is through does one become the other. So a batch
//! that fails leaves no trace, without a copy for each token.

use crate::{Error, Result, blueprint::State, human_bytes};

/// See the module.
pub(super) struct Recurrent {
    /// Where each part's memory begins, and the end of all.
    starts: Vec<usize>,
    /// As the last batch left it, and as the present one does.
    now: Vec<f32>,
    next: Vec<f32>,
}

fn floats(state: State) -> Option<usize> {
    match state {
        State::Recurrent { floats } => Some(floats),
        State::Rows { .. } => None,
    }
}

/// `len` zeros, or an error where the system has no memory for them.
pub(super) fn zeros<T: Clone + Default>(len: usize) -> Result<Vec<T>> {
    let mut all = Vec::new();
    let bytes = human_bytes(len.saturating_mul(size_of::<T>()) as u64);
    all.try_reserve_exact(len)
        .map_err(|e| Error::invalid(format!("cannot allocate {bytes} for the state of a sequence: {e}")))?;
    all.resize(len, T::default());
    Ok(all)
}

impl Recurrent {
    /// Floats of all parts.
    pub fn floats(states: impl Iterator<Item = State>) -> usize {
        states.filter_map(floats).fold(0, usize::saturating_add)
    }

    /// As before the first token.
    pub fn new(states: impl Iterator<Item = State>) -> Result<Self> {
        let mut starts = vec![0];
        states.filter_map(floats).for_each(|n| starts.push(starts.last().map_or(n, |last| last.saturating_add(n))));
        let n = *starts.last().expect("there is one");
        Ok(Self { starts, now: zeros(n)?, next: zeros(n)? })
    }

    pub fn is_empty(&self) -> bool {
        self.now.is_empty()
    }

    /// A part's memory as the batch finds it, and where it leaves it.
    pub fn of_mut(&mut self, part: usize) -> (&[f32], &mut [f32]) {
        let range = self.starts[part]..self.starts[part + 1];
        (&self.now[range.clone()], &mut self.next[range])
    }

    /// The batch is through.
    pub fn commit(&mut self) {
        std::mem::swap(&mut self.now, &mut self.next);
    }

    pub fn clear(&mut self) {
        self.now.fill(0.0);
    }

    pub fn now(&self) -> &[f32] {
        &self.now
    }

    pub fn restore(&mut self, from: &[f32]) {
        self.now.copy_from_slice(from);
    }
}
