//! The ring as bytes, so that the next run of a model need not begin without a past.
//!
//! ```text
//! "hotring1", n_layer u32, n_expert u32, tokens u32
//! the experts of each token in each layer, a bit each, the oldest token first: (tokens, n_layer, words) u64
//! CRC-32 of all that u32
//! ```
//!
//! Little-endian. Similarities are not kept: the next run's text is another one.

use super::{Retrieval, ring_tokens};

const MAGIC: &[u8; 8] = b"hotring1";
const HEADER_BYTES: usize = 20;
const CRC_BYTES: usize = 4;

impl Retrieval {
    /// What [`Retrieval::to_bytes`] gives at most for a model of `n_layer` MoE layers of `n_expert` experts, bytes.
    pub fn max_saved_bytes(n_layer: usize, n_expert: usize) -> u64 {
        let token = n_layer * n_expert.div_ceil(64) * size_of::<u64>();
        (HEADER_BYTES + ring_tokens(n_layer, n_expert) * token + CRC_BYTES) as u64
    }

    /// The tokens in the ring, for [`Retrieval::restore`].
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        for n in [self.n_layer, self.n_expert, self.filled] {
            bytes.extend((n as u32).to_le_bytes());
        }
        for age in (0..self.filled).rev() {
            for layer in 0..self.n_layer {
                let first = (layer * self.n + self.before(age)) * self.words;
                self.sets[first..first + self.words].iter().for_each(|word| bytes.extend(word.to_le_bytes()));
            }
        }
        bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
        bytes
    }

    /// Fills the ring with the tokens that another one of the same model held, the latest if they are too many. What it held
    /// before is forgotten.
    ///
    /// # Errors
    /// What is wrong with the bytes; then nothing has changed.
    pub fn restore(&mut self, bytes: &[u8]) -> Result<(), &'static str> {
        let (n_layer, words) = (self.n_layer, self.words);
        let (header, rest) = bytes.split_at_checked(HEADER_BYTES).ok_or("it is cut off")?;
        let (magic, numbers) = header.split_at(MAGIC.len());
        if magic != MAGIC {
            return Err("it holds no past tokens");
        }
        let mut numbers = numbers.as_chunks::<4>().0.iter().map(|n| u32::from_le_bytes(*n) as usize);
        let mut next = || numbers.next().unwrap_or(0);
        if (next(), next()) != (n_layer, self.n_expert) {
            return Err("it is of a model of another shape");
        }
        let tokens = next();
        let token_words = n_layer * words;
        let wanted = tokens.checked_mul(token_words * size_of::<u64>()).and_then(|n| n.checked_add(CRC_BYTES));
        if wanted != Some(rest.len()) {
            return Err("its length is not that of its tokens");
        }
        let (body, crc) = bytes.split_at(bytes.len() - CRC_BYTES);
        if crc != crc32fast::hash(body).to_le_bytes() {
            return Err("its checksum is wrong");
        }
        let all = || body[HEADER_BYTES..].as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word));
        let unknown = |(i, word): (usize, u64)| super::experts(word).any(|e| i % words * 64 + e >= self.n_expert);
        if all().enumerate().any(unknown) {
            return Err("it names an expert that the model does not have");
        }
        self.clear();
        let kept = tokens.min(self.n);
        for (i, word) in all().skip((tokens - kept) * token_words).enumerate() {
            let (position, layer) = (i / token_words, i / words % n_layer);
            self.sets[(layer * self.n + position) * words + i % words] = word;
            if layer.is_multiple_of(self.every) {
                for e in super::experts(word) {
                    let at = self.place(layer, i % words * 64 + e) + position;
                    self.uses[at] = 1;
                }
            }
        }
        self.filled = kept;
        if kept > 0 {
            self.position = kept - 1;
        }
        Ok(())
    }

    /// As if nothing had been observed.
    fn clear(&mut self) {
        self.uses.fill(0);
        self.sets.fill(0);
        self.similar.fill(0);
        self.greatest.fill(0);
        self.matches.clear();
        (self.position, self.filled, self.batch, self.layer) = (self.n.saturating_sub(1), 0, 0, None);
    }
}
