//! What an architecture's file reads about attention: heads, rotations, windows.

use super::{
    Heads, LongRope, Reader, Rope, RopeKind, Tensor, Yarn,
    reader::{FACTORS, MAX_LAYERS, MAX_WIDTH},
};
use crate::{Error, Result, gguf::Value};

/// A limit on what a file may claim: bases in use reach some 5e10.
const MAX_FREQ_BASE: f32 = 1e15;

/// Another one: models have 64 elements of a head that rotate.
const MAX_ROT: usize = 1 << 16;

/// Sizes of latent attention, as its tensors have them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LatentSizes {
    /// Query heads.
    pub n_head: usize,
    /// Elements of a latent row.
    pub rank: usize,
    /// The same of queries, where these come from short rows, too.
    pub q_rank: Option<usize>,
    /// Elements of a query or key head that do not rotate.
    pub nope: usize,
    /// Elements of one that do.
    pub rot: usize,
    /// Elements of a value head.
    pub v: usize,
}

/// Which layers see everything, where others see a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FullLayers {
    /// The first of each so many.
    EachFirst(usize),
    /// The last of each so many.
    EachLast(usize),
    /// Those that the file lists.
    Listed,
}

impl LatentSizes {
    /// What comes out, as heads of their own.
    pub fn of_values(&self) -> Heads {
        Heads { n_head: self.n_head, n_head_kv: self.n_head, k: self.nope + self.rot, v: self.v }
    }
}

impl Reader<'_> {
    /// Numbers and sizes of heads, the same in all layers.
    ///
    /// # Errors
    /// A key that does not make sense, or says something else of each layer.
    pub fn heads(&self) -> Result<Heads> {
        let heads = self.heads_by_layer()?;
        for (short, of) in [
            ("attention.head_count", (|h| h.n_head) as fn(&Heads) -> usize),
            ("attention.head_count_kv", |h| h.n_head_kv),
        ] {
            if heads.iter().any(|h| of(h) != of(&heads[0])) {
                return Err(Error::unsupported(
                    self.gguf().path(),
                    self.key(short),
                    "one number for all layers",
                    "several",
                ));
            }
        }
        Ok(heads[0])
    }

    /// Numbers and sizes of each layer's heads. (n_layer)
    ///
    /// # Errors
    /// A key that does not make sense, or has another number of layers.
    pub fn heads_by_layer(&self) -> Result<Vec<Heads>> {
        self.heads_of(|_| true)
    }

    /// The same, where layers without key/value heads have no attention.
    ///
    /// # Errors
    /// As [`Reader::heads_by_layer`].
    pub fn heads_if_any(&self) -> Result<Vec<Option<Heads>>> {
        let counts = self.gguf().meta().require_u32_or_array(&self.key("attention.head_count_kv"), self.n_block)?;
        let mut heads = self.heads_of(|layer| counts[layer] > 0)?.into_iter();
        let of = |&n: &u32| if n > 0 { heads.next() } else { None };
        Ok(counts.iter().take(self.n_layer).map(of).collect())
    }

    /// Those of the layers that have an attention.
    fn heads_of(&self, has: impl Fn(usize) -> bool) -> Result<Vec<Heads>> {
        let meta = self.gguf().meta();
        let (key, key_kv) = (self.key("attention.head_count"), self.key("attention.head_count_kv"));
        let n_head = meta.require_u32_or_array(&key, self.n_block)?;
        let n_head_kv = meta.u32_or_array(&key_kv, self.n_block)?.unwrap_or_else(|| n_head.clone());
        let first = self.within(&key, n_head[0] as usize, MAX_WIDTH)?;
        let k = self.head_length("attention.key_length", self.n_embd / first)?;
        let v = self.count_or("attention.value_length", self.n_embd / first, MAX_WIDTH)?;
        let of = |(&n_head, &n_head_kv): (&u32, &u32)| {
            let (n_head, n_head_kv) = (self.within(&key, n_head as usize, MAX_WIDTH)?, n_head_kv as usize);
            if n_head_kv == 0 || n_head % n_head_kv != 0 {
                let expected = format!("a divisor of {n_head}");
                return Err(Error::format(meta.path(), &key_kv, expected, n_head_kv));
            }
            Ok(Heads { n_head, n_head_kv, k, v })
        };
        let layers = (0..self.n_layer).filter(|&layer| has(layer));
        layers.map(|layer| of((&n_head[layer], &n_head_kv[layer]))).collect()
    }

    /// An even length of heads, with a default.
    ///
    /// # Errors
    /// Another number.
    pub fn head_length(&self, short: &str, default: usize) -> Result<usize> {
        let length = self.count_or(short, default, MAX_WIDTH)?;
        self.even(short, length)?;
        Ok(length)
    }

    /// Rotation of heads of `head` elements, with the scaling that the file asks for.
    ///
    /// # Errors
    /// A key that does not make sense, or asks for another scaling; divisors of another shape.
    pub fn rope(&self, kind: RopeKind, head: usize) -> Result<Rope> {
        let n_rot = self.count_or("rope.dimension_count", head, head)?;
        self.even("rope.dimension_count", n_rot)?;
        let base = self.freq_base("rope.freq_base")?.unwrap_or(10_000.0);
        let (ty, legacy) = (self.key("rope.scaling.type"), self.number("rope.scale_linear", FACTORS)?);
        let factor = self.number("rope.scaling.factor", FACTORS)?.or(legacy).unwrap_or(1.0);
        let magnitude = self.number("rope.scaling.attn_factor", FACTORS)?.unwrap_or(1.0);
        let (divisors, long) = self.divisors(n_rot / 2)?;
        let rope = Rope { kind, n_rot, base, scale: 1.0 / factor, divisors, long, yarn: None, magnitude };
        match self.gguf().meta().str(&ty)? {
            Some("none") => Ok(Rope { scale: 1.0, ..rope }),
            None | Some("linear") => Ok(rope),
            Some("longrope") if long.is_some() => Ok(rope),
            Some("yarn") => {
                let magnitude = magnitude * self.number("rope.scaling.yarn_attn_factor", FACTORS)?.unwrap_or(1.0);
                let key = self.key("rope.scaling.yarn_ext_factor");
                match self.gguf().meta().f32(&key)? {
                    // By -1, llama.cpp takes what the kind of scaling means.
                    None | Some(1.0 | -1.0) => {
                        Ok(Rope { yarn: Some(self.yarn()?), magnitude: magnitude * (1.0 + 0.1 * factor.ln()), ..rope })
                    }
                    Some(other) => Err(Error::unsupported(self.gguf().path(), key, "1 or -1", other)),
                }
            }
            Some(other) => {
                let expected = "none, linear, yarn, or longrope with tensors of factors";
                Err(Error::unsupported(self.gguf().path(), ty, expected, other.escape_debug()))
            }
        }
    }

    /// What frequencies are divided by: always, or in short and in long sequences.
    fn divisors(&self, n: usize) -> Result<(Option<Tensor>, Option<LongRope>)> {
        let (short, long) = ("rope_factors_short.weight", "rope_factors_long.weight");
        if self.gguf().tensor(short).is_none() && self.gguf().tensor(long).is_none() {
            return Ok((self.vector_if_there("rope_freqs.weight", n)?, None));
        }
        let n_ctx = self.original_context()?;
        Ok((Some(self.vector(short, n)?), Some(LongRope { divisors: self.vector(long, n)?, n_ctx })))
    }

    /// The context of training before it was extended, in tokens.
    fn original_context(&self) -> Result<usize> {
        self.count_or("rope.scaling.original_context_length", self.n_ctx_train()?, u32::MAX as usize)
    }

    /// Base of the frequencies of a rotation, if there is such a key.
    ///
    /// # Errors
    /// A number that does not make sense.
    pub(super) fn freq_base(&self, short: &str) -> Result<Option<f32>> {
        self.number(short, (1.0, MAX_FREQ_BASE))
    }

    /// [`Reader::window_rope`], if any layer sees a window.
    ///
    /// # Errors
    /// A key that does not make sense.
    pub fn window_rope_if_any(&self, windows: &[Option<usize>], everything: Rope, head: usize) -> Result<Rope> {
        let any = windows.iter().any(Option::is_some);
        if any { self.window_rope(everything, head) } else { Ok(everything) }
    }

    /// The rotation of heads of `head` elements in layers that see a window, where it is not that of the others: unscaled, with a base of its own.
    ///
    /// # Errors
    /// A key that does not make sense.
    pub fn window_rope(&self, everything: Rope, head: usize) -> Result<Rope> {
        let base = self.freq_base("rope.freq_base_swa")?.unwrap_or(everything.base);
        let n_rot = self.count_or("rope.dimension_count_swa", everything.n_rot, head)?;
        self.even("rope.dimension_count_swa", n_rot)?;
        Ok(Rope { n_rot, base, scale: 1.0, divisors: None, long: None, yarn: None, magnitude: 1.0, ..everything })
    }

    fn yarn(&self) -> Result<Yarn> {
        Ok(Yarn {
            n_ctx: self.original_context()?,
            beta_fast: self.number("rope.scaling.yarn_beta_fast", FACTORS)?.unwrap_or(32.0),
            beta_slow: self.number("rope.scaling.yarn_beta_slow", FACTORS)?.unwrap_or(1.0),
        })
    }

    /// Which layers have no key/value heads, and so something else than attention. (n_layer)
    ///
    /// # Errors
    /// A key that does not make sense.
    pub fn layers_without_heads(&self) -> Result<Vec<bool>> {
        let counts = self.gguf().meta().require_u32_or_array(&self.key("attention.head_count_kv"), self.n_block)?;
        Ok(counts.iter().take(self.n_layer).map(|&n| n == 0).collect())
    }

    /// Elements of a head of latent attention that rotate, if any do.
    ///
    /// # Errors
    /// A key that is missing or does not make sense.
    pub fn rotating_length(&self) -> Result<usize> {
        self.count("rope.dimension_count", MAX_ROT)
    }

    /// Sizes of latent attention. `rot`: elements of a head that rotate.
    ///
    /// # Errors
    /// A key that does not make sense or contradicts another.
    pub fn latent_sizes(&self, rot: usize) -> Result<LatentSizes> {
        let n_head = self.count("attention.head_count", MAX_WIDTH)?;
        let rank = self.count("attention.kv_lora_rank", MAX_WIDTH)?;
        let q_rank = match self.gguf().meta().u32(&self.key("attention.q_lora_rank"))? {
            None | Some(0) => None,
            Some(_) => Some(self.count("attention.q_lora_rank", MAX_WIDTH)?),
        };
        // Files that keep latent rows say how long those are in the keys that others have for heads.
        let (absorbed, per_head) = (self.has_key("attention.key_length_mla"), |short: &str| format!("{short}_mla"));
        let sizes = ["attention.key_length", "attention.value_length"];
        let [k, v] = if absorbed {
            for (short, expected) in sizes.into_iter().zip([rank + rot, rank]) {
                let got = self.count(short, MAX_WIDTH)?;
                if got != expected {
                    return Err(Error::format(self.gguf().path(), self.key(short), expected, got));
                }
            }
            sizes.map(|short| self.count(&per_head(short), MAX_WIDTH))
        } else {
            sizes.map(|short| self.count(short, MAX_WIDTH))
        };
        let (k, v, kv_heads) = (k?, v?, self.key("attention.head_count_kv"));
        let expected = if absorbed { 1 } else { n_head };
        let counts = self.gguf().meta().u32_or_array(&kv_heads, self.n_block)?.unwrap_or_default();
        // Layers that are something else than attention have none; some layer is attention.
        let strange = counts.iter().find(|&&n| n != 0 && n as usize != expected);
        let none = counts.first().filter(|_| counts.iter().all(|&n| n == 0));
        if let Some(n) = strange.or(none) {
            return Err(Error::format(self.gguf().path(), kv_heads, expected, n));
        }
        if k <= rot {
            let short = sizes[0].to_owned() + if absorbed { "_mla" } else { "" };
            return Err(Error::format(
                self.gguf().path(),
                self.key(&short),
                format!("more than the {rot} that rotate"),
                k,
            ));
        }
        Ok(LatentSizes { n_head, rank, q_rank, nope: k - rot, rot, v })
    }

    /// What YaRN does to a latent attention: its rotation, and the factor of its scores. `cancels`: with factors for all
    /// dimensions alike, cosines and sines keep their size.
    ///
    /// # Errors
    /// A key that does not make sense.
    pub fn latent_yarn(&self, rope: Rope, cancels: bool) -> Result<(Rope, f32)> {
        let Some(all) = self.factor("rope.scaling.yarn_log_multiplier")?.filter(|_| rope.yarn.is_some()) else {
            return Ok((rope, 1.0));
        };
        let log = -rope.scale.ln();
        let (usual, all) = (1.0 + 0.1 * log, 1.0 + all * log);
        let magnitude = rope.magnitude / if cancels { usual } else { all };
        Ok((Rope { magnitude, ..rope }, all * all))
    }

    /// The window of each layer, where a file that names one and does not list the layers that have it means every layer but
    /// `full`. (n_layer)
    ///
    /// # Errors
    /// A window of 0, or a list that does not make sense or has to be there.
    pub fn windows(&self, full: FullLayers) -> Result<Vec<Option<usize>>> {
        let meta = self.gguf().meta();
        let key = self.key("attention.sliding_window");
        let Some(window) = meta.u32(&key)? else { return Ok(vec![None; self.n_layer]) };
        let window = self.within(&key, window as usize, u32::MAX as usize)?;
        let short = "attention.sliding_window_pattern";
        let key = self.key(short);
        let is_array = matches!(meta.get(&key), Some(Value::Array(_)));
        if is_array || full == FullLayers::Listed {
            return Ok(self.flags_by_layer(short)?.into_iter().map(|has| has.then_some(window)).collect());
        }
        let period = match (meta.u32(&key)?, full) {
            (Some(period), _) => self.within(&key, period as usize, MAX_LAYERS)?,
            (None, FullLayers::EachFirst(period) | FullLayers::EachLast(period)) => period,
            (None, FullLayers::Listed) => unreachable!("lists were read above"),
        };
        let is_full = |layer: usize| match full {
            FullLayers::EachFirst(_) => layer.is_multiple_of(period),
            _ => (layer + 1).is_multiple_of(period),
        };
        Ok((0..self.n_layer).map(|layer| (!is_full(layer)).then_some(window)).collect())
    }

    /// What scores are multiplied by: the file's own, or one over the root of a key head's length.
    ///
    /// # Errors
    /// A number that does not make sense.
    pub fn score_scale(&self, heads: Heads) -> Result<f32> {
        Ok(self.factor("attention.scale")?.unwrap_or(1.0 / (heads.k as f32).sqrt()))
    }

    fn even(&self, short: &str, value: usize) -> Result<()> {
        if value.is_multiple_of(2) {
            return Ok(());
        }
        Err(Error::format(self.gguf().path(), self.key(short), "an even number", value))
    }
}
