//! The table of matrix products of an instruction set.
//!
//! Must not know: how anything is multiplied.

/// Fills an instruction set's table: `matmul` with the set's features enabled for each type.
macro_rules! matmul_table {
    ($simd:ty, #[$feature:meta]) => {{
        use $crate::backend::cpu::kernels::{MatMul, N_TYPE, driver, expanded, scalar};
        use $crate::quant::{ActRow, GgmlType, QMat};
        // SAFETY: needs the CPU's features and what [`super::MatMul`] asks for.
        #[$feature]
        unsafe fn quantized<B>(w: QMat<'_>, x: &[ActRow<'_>], y: &[*mut f32], then: &[u8])
        where
            B: driver::Unpack<<$simd as driver::Simd>::R>,
        {
            // SAFETY: the features are enabled here, which the caller checked; the rest is the caller's promise.
            unsafe {
                if x.len() < <$simd as driver::Simd>::many_tokens::<B>(w.interleaved) {
                    <$simd as driver::Simd>::matmul_few::<B>(w, x, y, then)
                } else {
                    quantized_ahead::<B>(w, x, y, then)
                }
            }
        }
        // Apart, so that only it has the large stack frame.
        // SAFETY: needs the CPU's features and what [`super::MatMul`] asks for.
        #[$feature]
        #[inline(never)]
        unsafe fn quantized_ahead<B>(w: QMat<'_>, x: &[ActRow<'_>], y: &[*mut f32], then: &[u8])
        where
            B: driver::Unpack<<$simd as driver::Simd>::R>,
        {
            // SAFETY: as above.
            unsafe { <$simd as driver::Simd>::matmul_many::<B>(w, x, y, then) }
        }
        // SAFETY: needs the CPU's features and what [`super::MatMul`] asks for.
        #[$feature]
        unsafe fn float<E: $crate::backend::cpu::kernels::ops::Element>(
            w: QMat<'_>,
            x: &[ActRow<'_>],
            y: &[*mut f32],
            _then: &[u8],
        ) {
            // SAFETY: as above.
            unsafe { driver::matmul_float::<driver::L<$simd>, E>(w, x, y) }
        }
        // SAFETY: needs the CPU's features and what [`super::MatMul`] asks for.
        #[$feature]
        unsafe fn by_expanding<B: $crate::quant::block::Block, const SCALES: usize>(
            w: QMat<'_>,
            x: &[ActRow<'_>],
            y: &[*mut f32],
            then: &[u8],
        ) {
            use expanded::Expanded;
            let many = <$simd as driver::Simd>::many_tokens::<Expanded<SCALES>>(false);
            // SAFETY: as above.
            unsafe { expanded::matmul::<B, SCALES>(w, x, y, then, many, quantized::<Expanded<SCALES>>) }
        }
        let mut table: [MatMul; N_TYPE] = [scalar::matmul; N_TYPE];
        matmul_table!(@fill table quantized
            Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS MXFP4);
        matmul_table!(@expand table by_expanding
            IQ2_XXS IQ2_XS IQ2_S IQ3_XXS IQ3_S IQ1_S IQ1_M NVFP4 Q1_0 Q2_0 TQ1_0 TQ2_0);
        table[GgmlType::F32 as usize] = float::<f32>;
        table[GgmlType::F16 as usize] = float::<half::f16>;
        table[GgmlType::BF16 as usize] = float::<half::bf16>;
        table
    }};
    (@expand $table:ident $by_expanding:ident $($ty:ident)*) => {
        $($table[GgmlType::$ty as usize] =
            $by_expanding::<$crate::quant::block::$ty, { $crate::quant::expanded::scales::<$crate::quant::block::$ty>() }>;)*
    };
    (@fill $table:ident $quantized:ident $($ty:ident)*) => {
        $($table[GgmlType::$ty as usize] = $quantized::<$crate::quant::block::$ty>;)*
    };
}
pub(super) use matmul_table;
