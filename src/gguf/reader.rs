//! A file as a model reads it: which keys and tensors were taken is remembered, so that what nothing reads can be named.
//!
//! A key or tensor that is passed over in silence is the worst kind of fault: the model runs, and its text is another
//! one. So leftovers are computed from what was taken, never listed by hand.
//!
//! Must not know: what any key or tensor means.

use std::{cell::RefCell, collections::HashSet};

use super::{Gguf, TensorInfo, Value};
use crate::error::Result;

/// See the module.
pub struct Reader<'a> {
    gguf: &'a Gguf,
    /// What the keys of the architecture begin with: `qwen3moe.`
    prefix: String,
    keys: RefCell<HashSet<String>>,
    tensors: RefCell<HashSet<&'a str>>,
}

impl<'a> Reader<'a> {
    /// A reader that has taken nothing yet.
    pub fn new(gguf: &'a Gguf) -> Self {
        // A file without an architecture has no keys of one.
        let architecture = gguf.meta().str("general.architecture").ok().flatten().unwrap_or_default();
        Self { gguf, prefix: format!("{architecture}."), keys: RefCell::default(), tensors: RefCell::default() }
    }

    /// The file; looking things up there takes nothing.
    pub fn gguf(&self) -> &'a Gguf {
        self.gguf
    }

    /// The full name of the architecture's key `short`, which counts as taken: for the getters of [`super::Metadata`].
    pub fn key(&self, short: &str) -> String {
        let key = format!("{}{short}", self.prefix);
        self.keys.borrow_mut().insert(key.clone());
        key
    }

    /// Takes the tensor of that name, if there is one.
    pub fn tensor(&self, name: &str) -> Option<&'a TensorInfo> {
        let tensor = self.gguf.tensor(name)?;
        self.tensors.borrow_mut().insert(&tensor.name);
        Some(tensor)
    }

    /// Takes the tensor of that name.
    ///
    /// # Errors
    /// If there is none.
    pub fn require(&self, name: &str) -> Result<&'a TensorInfo> {
        let tensor = self.gguf.require(name)?;
        self.tensors.borrow_mut().insert(&tensor.name);
        Ok(tensor)
    }

    /// The architecture's keys that were not taken, without its name, in file order.
    pub fn keys_left(&self) -> Vec<(&'a str, &'a Value)> {
        let keys = self.keys.borrow();
        let left = self.gguf.meta().iter().filter(|(key, _)| !keys.contains(*key));
        left.filter_map(|(key, value)| Some((key.strip_prefix(&self.prefix)?, value))).collect()
    }

    /// The tensors that were not taken, in file order.
    pub fn tensors_left(&self) -> Vec<&'a TensorInfo> {
        let taken = self.tensors.borrow();
        self.gguf.tensors().iter().filter(|t| !taken.contains(t.name.as_str())).collect()
    }
}
