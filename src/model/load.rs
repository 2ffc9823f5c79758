//! The dense weights: everything that every token touches. Read once into memory of our own, so that no pressure evicts
//! them. Shapes were checked when the blueprint was made.

use memmap2::MmapMut;

use crate::{
    Error, Result,
    backend::Backend,
    blueprint::{self, Act, NormKind, Tensor},
    gguf::Gguf,
    machine::{Filled, anonymous},
    quant::{FfnMats, GgmlType, QMat, QMatMut, dequantize_row},
};

/// A matrix of ours.
pub struct Mat {
    ty: GgmlType,
    rows: usize,
    cols: usize,
    data: MmapMut,
    interleaved: bool,
}

impl Mat {
    /// For the backend.
    pub fn view(&self) -> QMat<'_> {
        let data = &self.data[..self.bytes()];
        QMat { ty: self.ty, rows: self.rows, cols: self.cols, data, interleaved: self.interleaved }
    }
    /// Has the backend interleave its rows, if it prefers them so.
    pub fn interleave(&mut self, b: &mut impl Backend) {
        if !self.interleaved {
            let n = self.bytes();
            let w = QMatMut { ty: self.ty, rows: self.rows, cols: self.cols, data: &mut self.data[..n] };
            self.interleaved = b.interleave(w);
        }
    }
    fn bytes(&self) -> usize {
        self.rows * (self.cols / self.ty.block_len() * self.ty.block_bytes())
    }
}

/// A matrix and what becomes of its products.
pub struct Linear {
    pub w: Mat,
    scale: f32,
    /// (outputs), or empty.
    bias: Vec<f32>,
}

impl Linear {
    /// Scale and bias, if there are any, on every row of products.
    pub fn finish(&self, b: &mut impl Backend, y: &mut [f32]) {
        let (scale, cols) = (self.scale, self.w.rows);
        if scale != 1.0 {
            b.each_row(y, cols, cols, |_, row| row.iter_mut().for_each(|y| *y *= scale));
        }
        if !self.bias.is_empty() {
            b.add_bias(y, &self.bias);
        }
    }
}

/// A norm.
pub struct Norm {
    kind: NormKind,
    weight: Vec<f32>,
    /// (cols), or empty.
    bias: Vec<f32>,
    pub eps: f32,
}

impl Norm {
    /// Norms rows of `x` into `out`.
    pub fn apply(&self, b: &mut impl Backend, x: &[f32], out: &mut [f32]) {
        match self.kind {
            NormKind::Rms => b.rms_norm(x, &self.weight, self.eps, out),
            NormKind::Layer => {
                let n = self.weight.len();
                b.each_row(out, n, 4 * n, |i, out| {
                    out.copy_from_slice(&x[i * n..(i + 1) * n]);
                    layer_norm(out, &self.weight, self.eps);
                });
            }
        }
        self.add_bias(b, out);
    }

    /// The same in place.
    pub fn apply_onto(&self, b: &mut impl Backend, x: &mut [f32]) {
        match self.kind {
            NormKind::Rms => b.rms_norm_onto(x, &self.weight, self.eps),
            NormKind::Layer => {
                let n = self.weight.len();
                b.each_row(x, n, 4 * n, |_, x| layer_norm(x, &self.weight, self.eps));
            }
        }
        self.add_bias(b, x);
    }

    fn add_bias(&self, b: &mut impl Backend, x: &mut [f32]) {
        if !self.bias.is_empty() {
            b.add_bias(x, &self.bias);
        }
    }
}

fn layer_norm(x: &mut [f32], weight: &[f32], eps: f32) {
    let mean = x.iter().sum::<f32>() / x.len() as f32;
    x.iter_mut().for_each(|x| *x -= mean);
    let variance = x.iter().map(|x| x * x).sum::<f32>() / x.len() as f32;
    let scale = 1.0 / (variance + eps).sqrt();
    x.iter_mut().zip(weight).for_each(|(x, w)| *x = *x * scale * w);
}

/// A feed-forward network.
pub struct Gated {
    pub act: Act,
    /// Gate, if there is one, up and down.
    pub mats: Vec<Mat>,
}

impl Gated {
    /// For the backend.
    pub fn view(&self) -> FfnMats<'_> {
        match &self.mats[..] {
            [gate, up, down] => FfnMats { gate: Some(gate.view()), up: up.view(), down: down.view() },
            [up, down] => FfnMats { gate: None, up: up.view(), down: down.view() },
            _ => unreachable!("a network has two matrices or three"),
        }
    }
}

/// Reads tensors, and tells `progress` the bytes of each.
pub struct Loader<'a> {
    pub gguf: &'a Gguf,
    pub progress: &'a mut dyn FnMut(u64),
}

impl Loader<'_> {
    pub fn mat(&mut self, t: &Tensor) -> Result<Mat> {
        let info = &self.gguf.tensors()[t.index];
        let bytes = t.bytes as usize;
        let refused = |e| Error::request(format!("memory for tensor {}", info.name), format!("{bytes} bytes"), e);
        let mut data = anonymous(bytes, Filled::AtOnce).map_err(refused)?;
        let (take, of) = t.groups.map_or((t.rows, t.rows), |groups| (groups.take, groups.of));
        let (row, mut start) = (bytes / t.rows, t.start);
        for group in data[..bytes].chunks_mut(take * row) {
            self.gguf.read_tensor_part(info, start, group)?;
            start += (of * row) as u64;
        }
        (self.progress)(t.bytes);
        Ok(Mat { ty: t.ty, rows: t.rows, cols: t.cols, data, interleaved: false })
    }

    /// All rows as F32.
    pub fn vector(&mut self, t: &Tensor) -> Result<Vec<f32>> {
        let mut bytes = vec![0; t.bytes as usize];
        self.gguf.read_tensor_part(&self.gguf.tensors()[t.index], t.start, &mut bytes)?;
        (self.progress)(t.bytes);
        let mut values = vec![0.0; t.rows * t.cols];
        for (row, bytes) in values.chunks_exact_mut(t.cols).zip(bytes.chunks_exact(bytes.len() / t.rows)) {
            dequantize_row(t.ty, bytes, row);
        }
        match values.iter().position(|x| !x.is_finite()) {
            None => Ok(values),
            Some(i) => {
                let got = format!("has {} as its element {i}: the file is damaged or was wrongly quantised", values[i]);
                Err(self.wrong(t, got))
            }
        }
    }

    /// [`Loader::vector`] of numbers above 0, since something is divided by them.
    pub fn divisors(&mut self, t: &Tensor) -> Result<Vec<f32>> {
        let values = self.vector(t)?;
        match values.iter().find(|&&x| x <= 0.0) {
            None => Ok(values),
            Some(x) => {
                Err(self
                    .wrong(t, format!("has {x}, and frequencies are divided by it: only numbers above 0 make sense")))
            }
        }
    }

    /// Expert numbers below `n_expert`.
    pub fn expert_numbers(&mut self, t: &Tensor, n_expert: usize) -> Result<Vec<u16>> {
        let mut bytes = vec![0; t.bytes as usize];
        self.gguf.read_tensor_part(&self.gguf.tensors()[t.index], t.start, &mut bytes)?;
        (self.progress)(t.bytes);
        let mut numbers = Vec::with_capacity(t.rows * t.cols);
        for (i, &word) in bytes.as_chunks().0.iter().enumerate() {
            let number = i32::from_le_bytes(word);
            match u16::try_from(number) {
                Ok(expert) if usize::from(expert) < n_expert => numbers.push(expert),
                _ => {
                    let got = format!("has expert {number} for token {}, and there are {n_expert}", i / t.cols);
                    return Err(self.wrong(t, got));
                }
            }
        }
        Ok(numbers)
    }

    fn wrong(&self, t: &Tensor, got: String) -> Error {
        let info = &self.gguf.tensors()[t.index];
        Error::file(self.gguf.path_of(info), format!("tensor {} {got}", info.name))
    }

    /// Empty where there is no tensor.
    pub fn optional(&mut self, t: Option<&Tensor>) -> Result<Vec<f32>> {
        t.map_or_else(|| Ok(Vec::new()), |t| self.vector(t))
    }

    pub fn norm(&mut self, norm: &blueprint::Norm) -> Result<Norm> {
        let mut weight = match &norm.weight {
            Some(weight) => self.vector(weight)?,
            None => vec![1.0; norm.cols],
        };
        if norm.scale != 1.0 {
            weight.iter_mut().for_each(|w| *w *= norm.scale);
        }
        Ok(Norm { kind: norm.kind, weight, bias: self.optional(norm.bias.as_ref())?, eps: norm.eps })
    }

    /// [`Loader::norm`], if there is one.
    pub fn norm_if_there(&mut self, norm: Option<&blueprint::Norm>) -> Result<Option<Norm>> {
        norm.map(|norm| self.norm(norm)).transpose()
    }

    /// A matrix whose products stay as they are.
    pub fn plain(&mut self, w: &Tensor) -> Result<Linear> {
        Ok(Linear { w: self.mat(w)?, scale: 1.0, bias: Vec::new() })
    }

    pub fn linear(&mut self, linear: &blueprint::Linear) -> Result<Linear> {
        let scale = self.optional(linear.scale.as_ref())?.first().copied().unwrap_or(1.0);
        Ok(Linear { w: self.mat(&linear.w)?, scale, bias: self.optional(linear.bias.as_ref())? })
    }

    pub fn gated(&mut self, ffn: &blueprint::Gated) -> Result<Gated> {
        let mats = ffn.gate.iter().chain([&ffn.up, &ffn.down]).map(|t| self.mat(t)).collect::<Result<_>>()?;
        Ok(Gated { act: ffn.act, mats })
    }
}
