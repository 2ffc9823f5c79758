//! A memory of n-grams (arXiv 2601.07372): a token and those before it choose rows of a table that is far too large for memory,
//! and of which a token needs a few rows. They are read from the file like those of the token embedding.

use super::{Conv, LayerReader, Linear, Norm, Part, Reader, Tensor};
use crate::{
    Error, Result,
    gguf::{Array, Value},
};

/// Limits on what a file may claim: models have n-grams of up to 3 tokens and 8 rows of each.
pub const MAX_TOKENS: usize = 16;
const MAX_HEADS: usize = 256;
const MAX_WIDTH: usize = 1 << 20;
const MAX_KERNEL: usize = 256;

/// The table, and which of its rows a token takes.
#[derive(Clone, Debug, PartialEq)]
pub struct NGramTable {
    /// One row for each head. (rows, cols)
    pub rows: Tensor,
    /// Tokens of the longest n-gram; the shortest has 2.
    pub n_token: usize,
    /// Rows that a token takes for each length: heads of length 2 come first.
    pub heads: usize,
    /// The present token, and each one before it, is multiplied by one of these. (n_token)
    pub multipliers: Vec<u64>,
    /// Where the rows of each head begin. ((n_token - 1) * heads)
    pub first: Vec<u64>,
    /// How many rows each head has. The same number
    pub sizes: Vec<u64>,
    /// The token at which n-grams end: what lies before it is taken for it.
    pub eos: u32,
}

/// What a layer makes of the rows of a token.
#[derive(Clone, Debug)]
pub struct NGram {
    /// Keys for each residual stream. (n_stream * n_embd, [`NGramTable::width`])
    pub key: Linear,
    /// (n_embd, [`NGramTable::width`])
    pub value: Linear,
    /// Norms of keys, of queries (the streams themselves) and of what is convolved, stream by stream: their weights.
    /// (n_stream * n_embd) each
    pub norms: [Tensor; 3],
    /// Norm of a stream, without a weight.
    pub norm: Norm,
    /// Of every `n_token`-th value.
    pub conv: Conv,
}

impl NGramTable {
    /// Rows that a token takes.
    pub fn n_row(&self) -> usize {
        self.first.len()
    }

    /// Elements of all rows of a token.
    pub fn width(&self) -> usize {
        self.n_row() * self.rows.cols
    }

    /// The rows of a token, head by head. `before`: the tokens before it, the last one first; those before the text's
    /// beginning are left out.
    pub fn rows_of(&self, token: u32, before: impl Iterator<Item = u32>) -> impl Iterator<Item = u64> {
        let mut context = [u64::from(self.eos); MAX_TOKENS];
        context[0] = u64::from(token);
        let seen = before.take(self.n_token - 1).take_while(|&token| token != self.eos);
        context[1..].iter_mut().zip(seen).for_each(|(at, token)| *at = u64::from(token));
        (0..self.n_row()).map(move |head| {
            let n = head / self.heads + 2;
            let terms = context[..n].iter().zip(&self.multipliers).map(|(token, by)| token.wrapping_mul(*by));
            terms.fold(0, |mixed, term| mixed ^ term) % self.sizes[head] + self.first[head]
        })
    }
}

impl NGram {
    /// Floats of a sequence's memory.
    pub fn floats(&self) -> usize {
        self.conv.floats()
    }

    pub(super) fn tensors(&self, all: &mut Vec<Tensor>) {
        self.key.tensors(all);
        self.value.tensors(all);
        all.extend(self.norms);
        self.conv.tensors(all);
    }
}

impl Reader<'_> {
    /// The table of n-grams, by `per_layer_token_embd.weight` and the keys that begin with `ple.`.
    ///
    /// # Errors
    /// A key or tensor that is missing or does not make sense.
    pub fn ngram_table(&self) -> Result<NGramTable> {
        let n_token = self.count("ple.ngram_size", MAX_TOKENS)?;
        if n_token < 2 {
            return Err(Error::format(self.gguf().path(), self.key("ple.ngram_size"), "at least 2", n_token));
        }
        let heads = self.count("ple.heads_per_ngram", MAX_HEADS)?;
        let n_row = (n_token - 1) * heads;
        let cols = self.count("embedding_length_per_layer_input", MAX_WIDTH)?;
        let name = "per_layer_token_embd.weight";
        let n = self.gguf().require(name)?.dims.get(1).map_or(0, |&n| n as usize);
        let rows = self.matrix(name, cols, n)?;
        let (first, sizes) = (self.u64s("ple.head_offsets", n_row)?, self.u64s("ple.head_vocab_sizes", n_row)?);
        for (head, (&first, &size)) in first.iter().zip(&sizes).enumerate() {
            if size == 0 || first.checked_add(size).is_none_or(|end| end > n as u64) {
                let got = format!("rows {first} to {} of head {head}", first.saturating_add(size));
                let expected = format!("rows among the {n} of tensor {name}");
                return Err(Error::format(self.gguf().path(), self.key("ple.head_vocab_sizes"), expected, got));
            }
        }
        let key = self.key("ple.eos_token_id");
        let eos = self.gguf().meta().require_u32(&key)?;
        let multipliers = self.u64s("ple.layer_multipliers", n_token)?;
        Ok(NGramTable { rows, n_token, heads, multipliers, first, sizes, eos })
    }

    /// Which layers have a memory of n-grams. (n_layer)
    ///
    /// # Errors
    /// If the list is missing, or names a layer that is not there.
    pub fn ngram_layers(&self) -> Result<Vec<bool>> {
        let (meta, key) = (self.gguf().meta(), self.key("ple.layers"));
        let Some(listed) = meta.u32s(&key)? else { return Err(meta.wrong(&key, "a list of layers", "no such key")) };
        if let Some(layer) = listed.iter().find(|&&layer| layer as usize >= self.n_layer) {
            return Err(meta.wrong(&key, format!("numbers below {}", self.n_layer), layer));
        }
        if !listed.is_sorted_by(|a, b| a < b) {
            return Err(meta.wrong(
                &key,
                "layers in order, each once",
                meta.get(&key).map_or(String::new(), Value::kind),
            ));
        }
        Ok((0..self.n_layer).map(|layer| listed.contains(&(layer as u32))).collect())
    }

    /// A list of `n` numbers.
    fn u64s(&self, short: &str, n: usize) -> Result<Vec<u64>> {
        let (meta, key) = (self.gguf().meta(), self.key(short));
        let expected = format!("a list of {n} whole numbers");
        let listed: Option<Vec<u64>> = match meta.get(&key) {
            None => return Err(meta.wrong(&key, expected, "no such key")),
            Some(Value::Array(Array::U64(list))) => Some(list.clone()),
            Some(Value::Array(Array::U32(list))) => Some(list.iter().map(|&x| x.into()).collect()),
            Some(Value::Array(Array::I64(list))) => list.iter().map(|&x| x.try_into().ok()).collect(),
            Some(Value::Array(Array::I32(list))) => list.iter().map(|&x| x.try_into().ok()).collect(),
            Some(_) => None,
        };
        match listed {
            Some(list) if list.len() == n => Ok(list),
            Some(list) => Err(meta.wrong(&key, expected, format!("{} numbers", list.len()))),
            None => Err(meta.wrong(&key, expected, meta.get(&key).map_or(String::new(), Value::kind))),
        }
    }
}

impl LayerReader<'_, '_> {
    /// The memory of n-grams of a layer with `n_stream` residual streams, by `ple_key`, `ple_value`, `ple_conv1d` and three
    /// norms.
    ///
    /// # Errors
    /// A tensor that is missing or does not fit.
    pub fn ngram(&self, table: &NGramTable, n_stream: usize) -> Result<Part> {
        let (m, all) = (self.m, n_stream * self.m.n_embd);
        let norm = |name: &str| m.vector(&self.name(name), all);
        let conv = self.conv("ple_conv1d", m.count("ple.conv_kernel", MAX_KERNEL)?, all)?;
        Ok(Part::NGram(NGram {
            key: self.linear("ple_key", table.width(), all)?,
            value: self.linear("ple_value", table.width(), m.n_embd)?,
            norms: [norm("ple_norm_key.weight")?, norm("ple_norm_query.weight")?, norm("ple_norm_conv.weight")?],
            norm: m.plain_norm(m.n_embd)?,
            conv: Conv { dilation: table.n_token, ..conv },
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::GgmlType;

    fn table() -> NGramTable {
        let rows = Tensor { index: 0, start: 0, ty: GgmlType::F32, rows: 40, cols: 4, bytes: 640, groups: None };
        NGramTable {
            rows,
            n_token: 3,
            heads: 2,
            multipliers: vec![1, 1 << 32, 1 << 40],
            first: vec![0, 10, 20, 30],
            sizes: vec![7, 9, 8, 10],
            eos: 5,
        }
    }

    fn rows(token: u32, before: &[u32]) -> Vec<u64> {
        table().rows_of(token, before.iter().copied()).collect()
    }

    #[test]
    fn rows_are_those_of_the_token_and_the_ones_before_it() {
        let (two, three) = (3 ^ 4 << 32, 3 ^ 4 << 32 ^ 9 << 40);
        assert_eq!(rows(3, &[4, 9, 1]), [two % 7, 10 + two % 9, 20 + three % 8, 30 + three % 10]);
        assert_ne!(rows(3, &[4, 9]), rows(3, &[4, 8]));
        assert_eq!(rows(3, &[4, 9])[..2], rows(3, &[4, 8])[..2]);
    }

    #[test]
    fn nothing_is_seen_behind_the_end_of_a_text() {
        assert_eq!(rows(3, &[4, 5]), rows(3, &[4]));
        assert_eq!(rows(3, &[5, 9]), rows(3, &[]), "nor what is behind an end that is nearer");
        assert_ne!(rows(5, &[4, 9]), rows(5, &[]), "the end itself sees what it ends");
    }
}
