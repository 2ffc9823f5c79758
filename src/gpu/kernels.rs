//! The kernels: one for each type of weights, and the constants that some of them look up.
//!
//! Their sources are in `shaders/`; `tools/shaders` compiles them, and `tests/gpu.rs` holds the compiled to their sources.

use super::{Buffer, Device, Kernel, Place};
use crate::{
    Result,
    quant::{GgmlType, grids},
};

macro_rules! compiled {
    ($name:expr) => {
        include_bytes!(concat!("shaders/spv/", $name, ".spv"))
    };
}

macro_rules! products {
    ($($ty:ident)*) => {
        /// The kernel that multiplies weights of a type.
        fn product(ty: GgmlType) -> Option<&'static [u8]> {
            match ty {
                $(GgmlType::$ty => Some(compiled!(stringify!($ty))),)*
                _ => None,
            }
        }
    };
}

products! {
    F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS MXFP4 NVFP4 IQ2_XXS IQ2_XS IQ2_S IQ3_XXS IQ3_S
    IQ1_S IQ1_M Q1_0 Q2_0 TQ1_0 TQ2_0
}

const ACTIVATE: &[u8] = compiled!("activate");
const ARITHMETIC: &[u8] = compiled!("arithmetic");

/// Whether there is a kernel for weights of this type.
pub fn computes(ty: GgmlType) -> bool {
    product(ty).is_some()
}

/// The kernels of one device.
pub struct Kernels {
    /// By type.
    products: Vec<(GgmlType, Kernel)>,
    pub(super) activate: Kernel,
    pub(super) arithmetic: Kernel,
    /// The vectors that weights of IQ types name.
    pub(super) grids: Buffer,
    /// Whether they do arithmetic in whole numbers.
    pub(super) soft: bool,
}

impl Kernels {
    /// Builds those for `types`. `soft`: their arithmetic is done in whole numbers, which is slow and right on any device.
    ///
    /// # Errors
    /// If the device refuses something.
    ///
    /// # Panics
    /// If there is none for a type, see [`computes`].
    pub fn build(device: &mut dyn Device, types: &[GgmlType], soft: bool) -> Result<Self> {
        let mut products: Vec<(GgmlType, Kernel)> = Vec::new();
        for &ty in types {
            if products.iter().all(|(built, _)| *built != ty) {
                let code = product(ty).expect("the caller asked whether there is a kernel");
                products.push((ty, device.kernel(code, soft)?));
            }
        }
        let (activate, arithmetic) = (device.kernel(ACTIVATE, soft)?, device.kernel(ARITHMETIC, soft)?);
        let bytes: Vec<u8> = grids::words().flat_map(u32::to_le_bytes).collect();
        let grids = device.allocate(bytes.len() as u64, Place::Input)?;
        device.write(grids, 0, &bytes);
        Ok(Self { products, activate, arithmetic, grids, soft })
    }

    /// The one for `ty`.
    ///
    /// # Panics
    /// If it was not built.
    pub(super) fn product(&self, ty: GgmlType) -> Kernel {
        self.products.iter().find(|(built, _)| *built == ty).expect("a type that kernels were built for").1
    }

    /// The types that they multiply.
    pub fn types(&self) -> impl Iterator<Item = GgmlType> {
        self.products.iter().map(|(ty, _)| *ty)
    }
}
