//! The block layouts of ggml, and what their bytes mean.
//!
//! Every quantised type is read into one form: unsigned integers `q`, and for each [`GROUP`] of 16 of them a
//! `scale` and a `min`, so that a weight is `scale * (q - OFFSET) - min`. Dequantisation and dot product are
//! written once over that form, bit for bit what ggml's `to_float` gives.
//!
//! Must not know: activations, CPU features.

use half::{bf16, f16};

use super::GgmlType;

/// Elements that share a scale in the common form: the finest that any type has.
pub const GROUP: usize = 16;

/// Elements of the largest block, and of a chunk of activations.
pub const CHUNK: usize = 256;

/// IQ4_NL's and IQ4_XS's sixteen values.
pub const IQ4_VALUES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// MXFP4's sixteen values, doubled to be whole; [`e8m0_half`] halves the scale in return.
pub const MXFP4_VALUES: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// A quantised block type.
pub trait Block: Sized {
    /// ggml's type.
    const TYPE: GgmlType;
    /// What to take from `q` to get the signed integer.
    const OFFSET: u8 = 0;
    /// Whether each half of a span has a scale of its own that is no whole number of a block's: then there are no minimums.
    const HALVES: bool = false;
    /// Reads the block from exactly its bytes, at any alignment.
    fn read(bytes: &[u8]) -> Self;
    /// Writes `block_len` integers and a scale and minimum for each 16 of them. `min` comes zeroed.
    fn unpack(&self, q: &mut [u8], scale: &mut [f32], min: &mut [f32]);
    /// What scales and minimums are made of, in a type that has one for each 16, whole numbers of the block's.
    fn fine(&self) -> Option<Fine> {
        None
    }
}

/// Scales of 16 elements each: the scale of group `i` is `d * scale[i]`, its minimum `dmin * min[i]`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Fine {
    /// Of the block.
    pub d: f32,
    /// Of the block; 0 in a type without minimums.
    pub dmin: f32,
    /// -128 to 127.
    pub scale: [i32; CHUNK / GROUP],
    /// 0 to 15.
    pub min: [i32; CHUNK / GROUP],
}

impl Fine {
    fn fill(&self, scale: &mut [f32], min: &mut [f32]) {
        for j in 0..CHUNK / GROUP {
            scale[j] = self.d * self.scale[j] as f32;
            min[j] = self.dmin * self.min[j] as f32;
        }
    }
}

/// Declares blocks as ggml does, field by field; all fields are bytes, so that alignment is 1 as in a file.
macro_rules! blocks {
    ($($name:ident { $($field:ident: $n:literal),* })*) => { $(
        #[doc = concat!("ggml's `block_", stringify!($name), "`.")]
        #[allow(non_camel_case_types, missing_docs, reason = "the names are ggml's own")]
        #[derive(Clone, Copy)]
        #[repr(C)]
        pub struct $name { $(pub $field: [u8; $n]),* }

        const _: () = assert!(size_of::<$name>() == GgmlType::$name.block_bytes());

        impl $name {
            fn parse(bytes: &[u8]) -> Self {
                assert_eq!(bytes.len(), size_of::<Self>(), concat!("bytes of a ", stringify!($name), " block"));
                $(
                    let ($field, bytes) = bytes.split_first_chunk::<$n>().expect("the length was checked");
                )*
                assert!(bytes.is_empty(), "the fields are the whole block");
                Self { $($field: *$field),* }
            }
        }
    )* };
}

blocks! {
    Q4_0 { d: 2, qs: 16 }
    Q4_1 { d: 2, m: 2, qs: 16 }
    Q5_0 { d: 2, qh: 4, qs: 16 }
    Q5_1 { d: 2, m: 2, qh: 4, qs: 16 }
    Q8_0 { d: 2, qs: 32 }
    Q2_K { scales: 16, qs: 64, d: 2, dmin: 2 }
    Q3_K { hmask: 32, qs: 64, scales: 12, d: 2 }
    Q4_K { d: 2, dmin: 2, scales: 12, qs: 128 }
    Q5_K { d: 2, dmin: 2, scales: 12, qh: 32, qs: 128 }
    Q6_K { ql: 128, qh: 64, scales: 16, d: 2 }
    IQ4_NL { d: 2, qs: 16 }
    IQ4_XS { d: 2, scales_h: 2, scales_l: 4, qs: 128 }
    MXFP4 { e: 1, qs: 16 }
    IQ2_XXS { d: 2, qs: 64 }
    IQ2_XS { d: 2, qs: 64, scales: 8 }
    IQ2_S { d: 2, qs: 32, signs: 32, qh: 8, scales: 8 }
    IQ3_XXS { d: 2, qs: 64, signs: 32 }
    IQ3_S { d: 2, qs: 64, qh: 8, signs: 32, scales: 4 }
    IQ1_S { d: 2, qs: 32, qh: 16 }
    IQ1_M { qs: 32, qh: 16, scales: 8 }
    NVFP4 { d: 4, qs: 32 }
    Q1_0 { d: 2, qs: 16 }
    Q2_0 { d: 2, qs: 16 }
    TQ1_0 { qs: 48, qh: 4, d: 2 }
    TQ2_0 { qs: 64, d: 2 }
}

mod codebook;
mod plain;
pub use plain::ue4m3_half;

fn half(bytes: [u8; 2]) -> f32 {
    f16::from_le_bytes(bytes).to_f32()
}

/// `2^(e - 128)`: half of what the exponent byte of MXFP4 says, see [`MXFP4_VALUES`].
pub fn e8m0_half(e: u8) -> f32 {
    f32::from_bits(if e < 2 { 0x0020_0000 << e } else { u32::from(e - 1) << 23 })
}

/// Low nibbles are the first 16 elements, high ones the next 16.
fn nibbles(qs: &[u8; 16], q: &mut [u8]) {
    for (j, &b) in qs.iter().enumerate() {
        q[j] = b & 15;
        q[j + 16] = b >> 4;
    }
}

/// [`nibbles`] with a fifth bit from `qh`, bit `i` for element `i`.
fn nibbles5(qs: &[u8; 16], qh: [u8; 4], q: &mut [u8]) {
    nibbles(qs, q);
    let qh = u32::from_le_bytes(qh);
    for (i, q) in q.iter_mut().enumerate() {
        *q |= ((qh >> i & 1) as u8) << 4;
    }
}

/// Q4_K's and Q5_K's eight 6-bit scales and eight 6-bit minimums, packed into 12 bytes.
pub fn scales_k4(p: &[u8; 12]) -> ([u8; 8], [u8; 8]) {
    let (mut sc, mut mn) = ([0; 8], [0; 8]);
    for j in 0..4 {
        sc[j] = p[j] & 63;
        mn[j] = p[j + 4] & 63;
        sc[j + 4] = p[j + 8] & 15 | p[j] >> 6 << 4;
        mn[j + 4] = p[j + 8] >> 4 | p[j + 4] >> 6 << 4;
    }
    (sc, mn)
}

/// Q3_K's sixteen 6-bit scales, packed into 12 bytes; 32 stands for 0.
pub fn scales_k3(p: &[u8; 12]) -> [u8; 16] {
    std::array::from_fn(|j| {
        let low = p[j % 8] >> (4 * (j / 8)) & 15;
        low | (p[8 + j % 4] >> (2 * (j / 4)) & 3) << 4
    })
}

/// IQ4_XS's eight 6-bit scales; 32 stands for 0.
pub fn scales_iq4_xs(high: [u8; 2], low: &[u8; 4]) -> [u8; 8] {
    let high = u16::from_le_bytes(high);
    std::array::from_fn(|j| low[j / 2] >> (4 * (j % 2)) & 15 | ((high >> (2 * j) & 3) as u8) << 4)
}

impl Block for Q4_0 {
    const TYPE: GgmlType = GgmlType::Q4_0;
    const OFFSET: u8 = 8;
    fn read(bytes: &[u8]) -> Self {
        Self::parse(bytes)
    }
    fn unpack(&self, q: &mut [u8], scale: &mut [f32], _: &mut [f32]) {
        nibbles(&self.qs, q);
        scale.fill(half(self.d));
    }
}

impl Block for Q4_1 {
    const TYPE: GgmlType = GgmlType::Q4_1;
    fn read(bytes: &[u8]) -> Self {
        Self::parse(bytes)
    }
    fn unpack(&self, q: &mut [u8], scale: &mut [f32], min: &mut [f32]) {
        nibbles(&self.qs, q);
        scale.fill(half(self.d));
        min.fill(-half(self.m));
    }
}

impl Block for Q5_0 {
    const TYPE: GgmlType = GgmlType::Q5_0;
    const OFFSET: u8 = 16;
    fn read(bytes: &[u8]) -> Self {
        Self::parse(bytes)
    }
    fn unpack(&self, q: &mut [u8], scale: &mut [f32], _: &mut [f32]) {
        nibbles5(&self.qs, self.qh, q);
        scale.fill(half(self.d));
    }
}

impl Block for Q5_1 {
    const TYPE: GgmlType = GgmlType::Q5_1;
    fn read(bytes: &[u8]) -> Self {
        Self::parse(bytes)
    }
    fn unpack(&self, q: &mut [u8], scale: &mut [f32], min: &mut [f32]) {
        nibbles5(&self.qs, self.qh, q);
        scale.fill(half(self.d));
        min.fill(-half(self.m));
    }
}

impl Block for Q8_0 {
    const TYPE: GgmlType = GgmlType::Q8_0;
    const OFFSET: u8 = 128;
    fn read(bytes: &[u8]) -> Self {
        Self::parse(bytes)
    }
    fn unpack(&self, q: &mut [u8], scale: &mut [f32], _: &mut [f32]) {
        for (q, b) in q.iter_mut().zip(self.qs) {
            *q = b ^ 128;
        }
        scale.fill(half(self.d));
    }
}

impl Block for Q2_K {
    const TYPE: GgmlType = GgmlType::Q2_K;
    fn read(bytes: &[u8]) -> Self {
        Self::parse(bytes)
    }
    fn unpack(&self, q: &mut [u8], scale: &mut [f32], min: &mut [f32]) {
        // Each byte holds four elements that lie 32 apart.
        for (i, q) in q.iter_mut().enumerate() {
            *q = self.qs[i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3;
        }
        self.fine().unwrap_or_default().fill(scale, min);
    }
    fn fine(&self) -> Option<Fine> {
        let scale = self.scales.map(|sc| i32::from(sc & 15));
        let min = self.scales.map(|sc| i32::from(sc >> 4));
        Some(Fine { d: half(self.d), dmin: half(self.dmin), scale, min })
    }
}

impl Block for Q3_K {
    const TYPE: GgmlType = GgmlType::Q3_K;
    const OFFSET: u8 = 4;
    fn read(bytes: &[u8]) -> Self {
        Self::parse(bytes)
    }
    fn unpack(&self, q: &mut [u8], scale: &mut [f32], min: &mut [f32]) {
        for (i, q) in q.iter_mut().enumerate() {
            let low = self.qs[i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3;
            *q = low | (self.hmask[i % 32] >> (i / 32) & 1) << 2;
        }
        self.fine().unwrap_or_default().fill(scale, min);
    }
    fn fine(&self) -> Option<Fine> {
        let scale = scales_k3(&self.scales).map(|sc| i32::from(sc) - 32);
        Some(Fine { d: half(self.d), scale, ..Fine::default() })
    }
}

impl Block for Q4_K {
    const TYPE: GgmlType = GgmlType::Q4_K;
    fn read(bytes: &[u8]) -> Self {
        Self::parse(bytes)
    }
    fn unpack(&self, q: &mut [u8], scale: &mut [f32], min: &mut [f32]) {
        // Low nibbles of 32 bytes are 32 elements, the high ones the next 32.
        for (i, q) in q.iter_mut().enumerate() {
            *q = self.qs[i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4) & 15;
        }
        fill_k4(self.d, self.dmin, &self.scales, scale, min);
    }
}

impl Block for Q5_K {
    const TYPE: GgmlType = GgmlType::Q5_K;
    fn read(bytes: &[u8]) -> Self {
        Self::parse(bytes)
    }
    fn unpack(&self, q: &mut [u8], scale: &mut [f32], min: &mut [f32]) {
        for (i, q) in q.iter_mut().enumerate() {
            let low = self.qs[i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4) & 15;
            *q = low | (self.qh[i % 32] >> (i / 32) & 1) << 4;
        }
        fill_k4(self.d, self.dmin, &self.scales, scale, min);
    }
}

fn fill_k4(d: [u8; 2], dmin: [u8; 2], packed: &[u8; 12], scale: &mut [f32], min: &mut [f32]) {
    let (sc, mn) = scales_k4(packed);
    for j in 0..CHUNK / GROUP {
        scale[j] = half(d) * f32::from(sc[j / 2]);
        min[j] = half(dmin) * f32::from(mn[j / 2]);
    }
}

impl Block for Q6_K {
    const TYPE: GgmlType = GgmlType::Q6_K;
    const OFFSET: u8 = 32;
    fn read(bytes: &[u8]) -> Self {
        Self::parse(bytes)
    }
    fn unpack(&self, q: &mut [u8], scale: &mut [f32], min: &mut [f32]) {
        for (i, q) in q.iter_mut().enumerate() {
            let low = self.ql[i / 128 * 64 + i % 64] >> (i / 64 % 2 * 4) & 15;
            let high = self.qh[i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3;
            *q = low | high << 4;
        }
        self.fine().unwrap_or_default().fill(scale, min);
    }
    fn fine(&self) -> Option<Fine> {
        let scale = self.scales.map(|sc| i32::from(sc as i8));
        Some(Fine { d: half(self.d), scale, ..Fine::default() })
    }
}

impl Block for IQ4_NL {
    const TYPE: GgmlType = GgmlType::IQ4_NL;
    const OFFSET: u8 = 128;
    fn read(bytes: &[u8]) -> Self {
        Self::parse(bytes)
    }
    fn unpack(&self, q: &mut [u8], scale: &mut [f32], _: &mut [f32]) {
        nibbles(&self.qs, q);
        look_up(&IQ4_VALUES, Self::OFFSET, q);
        scale.fill(half(self.d));
    }
}

impl Block for IQ4_XS {
    const TYPE: GgmlType = GgmlType::IQ4_XS;
    const OFFSET: u8 = 128;
    fn read(bytes: &[u8]) -> Self {
        Self::parse(bytes)
    }
    fn unpack(&self, q: &mut [u8], scale: &mut [f32], _: &mut [f32]) {
        for (q, qs) in q.chunks_exact_mut(32).zip(self.qs.as_chunks::<16>().0) {
            nibbles(qs, q);
        }
        look_up(&IQ4_VALUES, Self::OFFSET, q);
        let scales = scales_iq4_xs(self.scales_h, &self.scales_l);
        for (j, scale) in scale.iter_mut().enumerate() {
            *scale = half(self.d) * (f32::from(scales[j / 2]) - 32.0);
        }
    }
}

impl Block for MXFP4 {
    const TYPE: GgmlType = GgmlType::MXFP4;
    const OFFSET: u8 = 12;
    fn read(bytes: &[u8]) -> Self {
        Self::parse(bytes)
    }
    fn unpack(&self, q: &mut [u8], scale: &mut [f32], _: &mut [f32]) {
        nibbles(&self.qs, q);
        look_up(&MXFP4_VALUES, Self::OFFSET, q);
        scale.fill(e8m0_half(self.e[0]));
    }
}

/// Replaces each index by its value plus `offset`, which makes it unsigned.
fn look_up(values: &[i8; 16], offset: u8, q: &mut [u8]) {
    for q in q {
        *q = values[usize::from(*q)].wrapping_add_unsigned(offset) as u8;
    }
}

/// Runs `$f::<B>($args)` for the block `B` of a quantised type, `$float` for the rest.
macro_rules! for_block {
    ($ty:expr, $f:ident ( $($arg:expr),* ), $other:ident => $float:expr) => {
        match $ty {
            $crate::quant::GgmlType::Q4_0 => $f::<$crate::quant::block::Q4_0>($($arg),*),
            $crate::quant::GgmlType::Q4_1 => $f::<$crate::quant::block::Q4_1>($($arg),*),
            $crate::quant::GgmlType::Q5_0 => $f::<$crate::quant::block::Q5_0>($($arg),*),
            $crate::quant::GgmlType::Q5_1 => $f::<$crate::quant::block::Q5_1>($($arg),*),
            $crate::quant::GgmlType::Q8_0 => $f::<$crate::quant::block::Q8_0>($($arg),*),
            $crate::quant::GgmlType::Q2_K => $f::<$crate::quant::block::Q2_K>($($arg),*),
            $crate::quant::GgmlType::Q3_K => $f::<$crate::quant::block::Q3_K>($($arg),*),
            $crate::quant::GgmlType::Q4_K => $f::<$crate::quant::block::Q4_K>($($arg),*),
            $crate::quant::GgmlType::Q5_K => $f::<$crate::quant::block::Q5_K>($($arg),*),
            $crate::quant::GgmlType::Q6_K => $f::<$crate::quant::block::Q6_K>($($arg),*),
            $crate::quant::GgmlType::IQ4_NL => $f::<$crate::quant::block::IQ4_NL>($($arg),*),
            $crate::quant::GgmlType::IQ4_XS => $f::<$crate::quant::block::IQ4_XS>($($arg),*),
            $crate::quant::GgmlType::MXFP4 => $f::<$crate::quant::block::MXFP4>($($arg),*),
            $crate::quant::GgmlType::IQ2_XXS => $f::<$crate::quant::block::IQ2_XXS>($($arg),*),
            $crate::quant::GgmlType::IQ2_XS => $f::<$crate::quant::block::IQ2_XS>($($arg),*),
            $crate::quant::GgmlType::IQ2_S => $f::<$crate::quant::block::IQ2_S>($($arg),*),
            $crate::quant::GgmlType::IQ3_XXS => $f::<$crate::quant::block::IQ3_XXS>($($arg),*),
            $crate::quant::GgmlType::IQ3_S => $f::<$crate::quant::block::IQ3_S>($($arg),*),
            $crate::quant::GgmlType::IQ1_S => $f::<$crate::quant::block::IQ1_S>($($arg),*),
            $crate::quant::GgmlType::IQ1_M => $f::<$crate::quant::block::IQ1_M>($($arg),*),
            $crate::quant::GgmlType::NVFP4 => $f::<$crate::quant::block::NVFP4>($($arg),*),
            $crate::quant::GgmlType::Q1_0 => $f::<$crate::quant::block::Q1_0>($($arg),*),
            $crate::quant::GgmlType::Q2_0 => $f::<$crate::quant::block::Q2_0>($($arg),*),
            $crate::quant::GgmlType::TQ1_0 => $f::<$crate::quant::block::TQ1_0>($($arg),*),
            $crate::quant::GgmlType::TQ2_0 => $f::<$crate::quant::block::TQ2_0>($($arg),*),
            $other => $float,
        }
    };
}
pub(crate) use for_block;

/// Element `i` of a row of plain floats, exactly.
///
/// # Panics
/// Where `ty` is not F32, F16 or BF16, or the row is too short.
pub fn float_at(ty: GgmlType, row: &[u8], i: usize) -> f32 {
    let two = || [row[2 * i], row[2 * i + 1]];
    match ty {
        GgmlType::F32 => f32::from_le_bytes(row[4 * i..4 * i + 4].try_into().expect("four bytes")),
        GgmlType::F16 => f16::from_le_bytes(two()).to_f32(),
        GgmlType::BF16 => bf16::from_le_bytes(two()).to_f32(),
        _ => panic!("{ty} is no computable type: GgmlType::is_computable must be asked first"),
    }
}

/// Writes the row's elements as ggml's `to_float` gives them, bit for bit.
///
/// # Panics
/// Where the type is not computable, or `row` is not `out.len()` elements long: both are checked when a file is
/// opened.
pub fn dequantize_row(ty: GgmlType, row: &[u8], out: &mut [f32]) {
    assert_eq!(ty.row_bytes(out.len() as u64), Some(row.len() as u64), "bytes of {} elements of {ty}", out.len());
    for_block!(ty, dequantize(row, out), ty => {
        for (i, out) in out.iter_mut().enumerate() {
            *out = float_at(ty, row, i);
        }
    })
}

fn dequantize<B: Block>(row: &[u8], out: &mut [f32]) {
    let (len, bytes) = (B::TYPE.block_len(), B::TYPE.block_bytes());
    let mut q = [0; CHUNK];
    for (block, out) in row.chunks_exact(bytes).zip(out.chunks_exact_mut(len)) {
        let (mut scale, mut min) = ([0.0; CHUNK / GROUP], [0.0; CHUNK / GROUP]);
        B::read(block).unpack(&mut q[..len], &mut scale[..len / GROUP], &mut min[..len / GROUP]);
        for (i, out) in out.iter_mut().enumerate() {
            *out = scale[i / GROUP] * (f32::from(q[i]) - f32::from(B::OFFSET)) - min[i / GROUP];
        }
    }
}
