//! Which tensors of a file are the model's dense weights, and which shapes they must have: found from the tensor table
//! alone, before any of their bytes are there.

use std::collections::BTreeMap;

use super::{Config, arch::QkNorm};
use crate::{
    Result,
    gguf::{Gguf, Reader, TensorInfo},
    quant::GgmlType,
};

/// A tensor that the model needs.
pub(super) struct Found<'a> {
    pub tensor: &'a TensorInfo,
    /// The shape that it must have, row length first.
    dims: Vec<usize>,
}

impl Found<'_> {
    /// Its type, once shape and type are such that it can be computed with.
    ///
    /// # Errors
    /// Names the tensor, and the shape or type that it has.
    pub fn check(&self, gguf: &Gguf) -> Result<GgmlType> {
        match self.dims[..] {
            // A single row may be stored as a vector.
            [cols, 1] if self.tensor.dims.len() == 1 => gguf.computable(self.tensor, &[cols]),
            ref dims => gguf.computable(self.tensor, dims),
        }
    }

    /// (rows, cols) of a matrix; a vector is a row.
    pub fn shape(&self) -> (usize, usize) {
        (self.dims.get(1).copied().unwrap_or(1), self.dims[0])
    }
}

/// All dense tensors by name. Each is there to be taken once.
pub(super) struct Dense<'a>(BTreeMap<String, Found<'a>>);

impl<'a> Dense<'a> {
    /// Takes them from the reader.
    ///
    /// # Errors
    /// Names the tensor that is missing.
    pub fn find(reader: &Reader<'a>, c: &Config) -> Result<Self> {
        let mut all = Finder { reader, found: BTreeMap::new() };
        all.matrix("token_embd.weight", c.n_embd, c.n_vocab)?;
        all.optional("output.weight", &[c.n_embd, c.n_vocab]);
        all.vector("output_norm.weight", c.n_embd)?;
        all.optional("rope_freqs.weight", &[c.n_rot / 2]);
        for il in 0..c.n_layer {
            all.attention(c, il)?;
            all.vector(&format!("blk.{il}.ffn_norm.weight"), c.n_embd)?;
            if c.moe_layers.binary_search(&il).is_err() {
                all.ffn(il, "", c.n_embd)?;
                continue;
            }
            all.matrix(&format!("blk.{il}.ffn_gate_inp.weight"), c.n_embd, c.n_expert)?;
            if c.arch.shared_gate || all.has_shared_expert(il) {
                all.ffn(il, "_shexp", c.n_embd)?;
                if c.arch.shared_gate {
                    all.matrix(&format!("blk.{il}.ffn_gate_inp_shexp.weight"), c.n_embd, 1)?;
                }
            }
        }
        Ok(Self(all.found))
    }

    /// Takes a tensor out; `None` if the model has none of that name.
    pub fn take(&mut self, name: &str) -> Option<Found<'a>> {
        self.0.remove(name)
    }

    /// Whether a tensor of that name is there to be taken.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Those that have not been taken out.
    pub fn iter(&self) -> impl Iterator<Item = &Found<'a>> {
        self.0.values()
    }

    /// Those that stay in memory, of which the token embedding is none unless it is the output matrix too: each token needs
    /// one row of it.
    pub fn resident(&self) -> impl Iterator<Item = &TensorInfo> {
        let tied = !self.0.contains_key("output.weight");
        self.iter().map(|f| f.tensor).filter(move |t| tied || t.name != "token_embd.weight")
    }
}

struct Finder<'r, 'a> {
    reader: &'r Reader<'a>,
    found: BTreeMap<String, Found<'a>>,
}

impl Finder<'_, '_> {
    fn require(&mut self, name: &str, dims: &[usize]) -> Result<()> {
        let tensor = self.reader.require(name)?;
        self.found.insert(name.to_owned(), Found { tensor, dims: dims.to_vec() });
        Ok(())
    }

    fn matrix(&mut self, name: &str, cols: usize, rows: usize) -> Result<()> {
        self.require(name, &[cols, rows])
    }

    fn vector(&mut self, name: &str, n: usize) -> Result<()> {
        self.require(name, &[n])
    }

    fn optional(&mut self, name: &str, dims: &[usize]) {
        if let Some(tensor) = self.reader.tensor(name) {
            self.found.insert(name.to_owned(), Found { tensor, dims: dims.to_vec() });
        }
    }

    fn attention(&mut self, c: &Config, il: usize) -> Result<()> {
        let name = |role: &str| format!("blk.{il}.attn_{role}");
        let (q, k, v) = (c.n_head * c.n_embd_head_k, c.n_head_kv * c.n_embd_head_k, c.n_head_kv * c.n_embd_head_v);
        self.vector(&name("norm.weight"), c.n_embd)?;
        for (role, cols, rows) in [
            ("q", c.n_embd, q),
            ("k", c.n_embd, k),
            ("v", c.n_embd, v),
            ("output", c.n_head * c.n_embd_head_v, c.n_embd),
        ] {
            self.matrix(&name(&format!("{role}.weight")), cols, rows)?;
            self.optional(&name(&format!("{role}.bias")), &[rows]);
        }
        let norms = match c.arch.qk_norm {
            QkNorm::Off => return Ok(()),
            QkNorm::Head => [c.n_embd_head_k, c.n_embd_head_k],
            QkNorm::Whole => [q, k],
        };
        self.vector(&name("q_norm.weight"), norms[0])?;
        self.vector(&name("k_norm.weight"), norms[1])
    }

    /// A gated feed-forward block, as wide as its gate says.
    fn ffn(&mut self, il: usize, suffix: &str, n_embd: usize) -> Result<()> {
        let name = |role: &str| format!("blk.{il}.ffn_{role}{suffix}.weight");
        let n_ff = self.reader.require(&name("gate"))?.dims.get(1).map_or(0, |&d| d as usize);
        self.matrix(&name("gate"), n_embd, n_ff)?;
        self.matrix(&name("up"), n_embd, n_ff)?;
        self.matrix(&name("down"), n_ff, n_embd)
    }

    /// By any of its parts, so that a model that lacks one is told apart from one without a shared expert.
    fn has_shared_expert(&self, il: usize) -> bool {
        let has = |part: &str| self.reader.gguf().tensor(&format!("blk.{il}.ffn_{part}_shexp.weight")).is_some();
        ["gate", "up", "down", "gate_inp"].into_iter().any(has)
    }
}
