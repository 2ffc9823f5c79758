//! ggml's tensor types: sizes, block layouts, and the scalar arithmetic that is the truth for every kernel.
//!
//! Must not know: files, models, threads, CPU features.

pub mod act;
pub mod block;
pub mod dot;
mod encode;
pub mod expanded;
mod ffn;
mod foreign;
pub(crate) mod grids;
pub mod interleaved;

pub use act::{ActChunk, ActRow, Acts};
pub use block::dequantize_row;
pub use dot::dot;
pub use encode::encode_row;
pub use ffn::FfnMats;
pub use foreign::foreign_type;

/// The types that ggml has given numbers to (ggml.h, `enum ggml_type`), with their block geometry.
///
/// A type being listed means that its size is known, so that a file which merely contains it can be read.
/// Whether hotset can compute with it is [`GgmlType::is_computable`].
macro_rules! ggml_types {
    ($($variant:ident = $id:literal, $name:literal, $len:literal, $bytes:literal;)*) => {
        /// A tensor's element type.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[allow(missing_docs, non_camel_case_types, reason = "the names are ggml's own")]
        pub enum GgmlType { $($variant = $id),* }

        impl GgmlType {
            /// Every type, in the order of ggml's numbers.
            pub const ALL: &[GgmlType] = &[$(GgmlType::$variant),*];
            /// The type that ggml gave this number, if any.
            pub const fn from_id(id: u32) -> Option<GgmlType> {
                match id { $($id => Some(GgmlType::$variant),)* _ => None }
            }
            /// ggml's name: `Q4_K`, `F16`, …
            pub const fn name(self) -> &'static str {
                match self { $(GgmlType::$variant => $name),* }
            }
            /// Elements in a block (1 for plain types).
            pub const fn block_len(self) -> usize {
                match self { $(GgmlType::$variant => $len),* }
            }
            /// Bytes of a block.
            pub const fn block_bytes(self) -> usize {
                match self { $(GgmlType::$variant => $bytes),* }
            }
        }
    };
}

ggml_types! {
    F32 = 0, "F32", 1, 4;
    F16 = 1, "F16", 1, 2;
    Q4_0 = 2, "Q4_0", 32, 18;
    Q4_1 = 3, "Q4_1", 32, 20;
    Q5_0 = 6, "Q5_0", 32, 22;
    Q5_1 = 7, "Q5_1", 32, 24;
    Q8_0 = 8, "Q8_0", 32, 34;
    Q8_1 = 9, "Q8_1", 32, 36;
    Q2_K = 10, "Q2_K", 256, 84;
    Q3_K = 11, "Q3_K", 256, 110;
    Q4_K = 12, "Q4_K", 256, 144;
    Q5_K = 13, "Q5_K", 256, 176;
    Q6_K = 14, "Q6_K", 256, 210;
    Q8_K = 15, "Q8_K", 256, 292;
    IQ2_XXS = 16, "IQ2_XXS", 256, 66;
    IQ2_XS = 17, "IQ2_XS", 256, 74;
    IQ3_XXS = 18, "IQ3_XXS", 256, 98;
    IQ1_S = 19, "IQ1_S", 256, 50;
    IQ4_NL = 20, "IQ4_NL", 32, 18;
    IQ3_S = 21, "IQ3_S", 256, 110;
    IQ2_S = 22, "IQ2_S", 256, 82;
    IQ4_XS = 23, "IQ4_XS", 256, 136;
    I8 = 24, "I8", 1, 1;
    I16 = 25, "I16", 1, 2;
    I32 = 26, "I32", 1, 4;
    I64 = 27, "I64", 1, 8;
    F64 = 28, "F64", 1, 8;
    IQ1_M = 29, "IQ1_M", 256, 56;
    BF16 = 30, "BF16", 1, 2;
    TQ1_0 = 34, "TQ1_0", 256, 54;
    TQ2_0 = 35, "TQ2_0", 256, 66;
    MXFP4 = 39, "MXFP4", 32, 17;
    NVFP4 = 40, "NVFP4", 64, 36;
    Q1_0 = 41, "Q1_0", 128, 18;
    Q2_0 = 42, "Q2_0", 64, 18;
}

impl GgmlType {
    /// ggml's number.
    pub const fn id(self) -> u32 {
        self as u32
    }

    /// Bytes of a row of `n` elements, or `None` where `n` is not a whole number of blocks or the product overflows.
    pub fn row_bytes(self, n: u64) -> Option<u64> {
        let len = self.block_len() as u64;
        if n.is_multiple_of(len) { (n / len).checked_mul(self.block_bytes() as u64) } else { None }
    }

    /// True where hotset has arithmetic for the type. The others can be listed and copied, not computed with.
    pub const fn is_computable(self) -> bool {
        use GgmlType::*;
        matches!(
            self,
            F32 | F16
                | BF16
                | Q8_0
                | Q4_0
                | Q4_1
                | Q5_0
                | Q5_1
                | Q2_K
                | Q3_K
                | Q4_K
                | Q5_K
                | Q6_K
                | IQ4_NL
                | IQ4_XS
                | MXFP4
                | IQ2_XXS
                | IQ2_XS
                | IQ2_S
                | IQ3_XXS
                | IQ3_S
                | IQ1_S
                | IQ1_M
                | NVFP4
                | Q1_0
                | Q2_0
                | TQ1_0
                | TQ2_0
        )
    }
}

impl std::fmt::Display for GgmlType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A matrix in a ggml type: `rows` rows of `cols` elements, without padding.
#[derive(Clone, Copy)]
pub struct QMat<'a> {
    /// Element type.
    pub ty: GgmlType,
    /// Number of rows (outputs).
    pub rows: usize,
    /// Length of a row (inputs), a whole number of blocks.
    pub cols: usize,
    /// `rows * row_bytes` bytes: row after row, or as [`interleaved`] says.
    pub data: &'a [u8],
    /// Whether whole tiles are [`interleaved`].
    pub interleaved: bool,
}

/// A matrix whose bytes may be brought into another order.
pub struct QMatMut<'a> {
    /// Element type.
    pub ty: GgmlType,
    /// Number of rows.
    pub rows: usize,
    /// Length of a row.
    pub cols: usize,
    /// Row after row.
    pub data: &'a mut [u8],
}

impl<'a> QMat<'a> {
    /// Row after row, as in a file.
    pub const fn new(ty: GgmlType, rows: usize, cols: usize, data: &'a [u8]) -> Self {
        Self { ty, rows, cols, data, interleaved: false }
    }
    /// Bytes of one row.
    pub fn row_bytes(&self) -> usize {
        self.cols / self.ty.block_len() * self.ty.block_bytes()
    }
    /// The matrix of rows `range` alone.
    ///
    /// # Panics
    /// Where the range begins or ends inside a tile that is interleaved, or outside.
    pub fn slice(&self, range: std::ops::Range<usize>) -> QMat<'a> {
        let tiles = self.rows / interleaved::TILE_ROWS * interleaved::TILE_ROWS;
        let inside = |at: usize| at < tiles && !at.is_multiple_of(interleaved::TILE_ROWS);
        assert!(!(self.interleaved && (inside(range.start) || inside(range.end))), "whole tiles of interleaved rows");
        let n = self.row_bytes();
        QMat { rows: range.len(), data: &self.data[range.start * n..range.end * n], ..*self }
    }
    /// The bytes of row `r`.
    ///
    /// # Panics
    /// Where rows are interleaved.
    pub fn row(&self, r: usize) -> &'a [u8] {
        assert!(!self.interleaved, "interleaved rows have no bytes of their own");
        let n = self.row_bytes();
        &self.data[r * n..(r + 1) * n]
    }
}
