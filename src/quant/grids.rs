//! The vectors that blocks of IQ1, IQ2 and IQ3 types name by number.
//!
//! They are constants of the format, published with it (llama.cpp, `ggml-common.h`, MIT): `iq2xxs_grid`, `iq2xs_grid`,
//! `iq2s_grid`, `iq3xxs_grid`, `iq3s_grid` and `iq1s_grid`. `grids.bin` has them in this order, a little-endian word of 16 bits a
//! vector: two bits for each of eight elements, or three for each of four, the first one lowest. Each stands for one of the
//! grid's values, in ascending order.
//!
//! Must not know: scales, signs, blocks.

const PACKED: &[u8; 9216] = include_bytes!("grids.bin");

/// Magnitudes in IQ2 types' vectors.
const IQ2_MAGNITUDES: [u8; 4] = [8, 25, 43, 0];

/// Eight times an element of -1, 0 or 1, plus 8: IQ1 blocks shift elements by an eighth.
const IQ1_STEPS: [u8; 4] = [0, 8, 16, 0];

/// IQ2_XXS's vectors, an element a byte, the first one lowest.
pub static IQ2_XXS: [u64; 256] = eight(0, IQ2_MAGNITUDES);
/// IQ2_XS's.
pub static IQ2_XS: [u64; 512] = eight(256, IQ2_MAGNITUDES);
/// IQ2_S's.
pub static IQ2_S: [u64; 1024] = eight(768, IQ2_MAGNITUDES);
/// IQ3_XXS's, four elements each.
pub static IQ3_XXS: [u32; 256] = four(1792, [4, 12, 20, 28, 36, 44, 52, 62]);
/// IQ3_S's, four elements each.
pub static IQ3_S: [u32; 512] = four(2048, [1, 3, 5, 7, 9, 11, 13, 15]);
/// IQ1_S's and IQ1_M's: 8 for an element of 0, 0 for -1, 16 for 1.
pub static IQ1: [u64; 2048] = eight(2560, IQ1_STEPS);

/// All grids as words, one after another: IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S, IQ1; a vector of eight elements is two words,
/// the first four elements first.
pub(crate) fn words() -> impl Iterator<Item = u32> {
    let eight = |grid: &'static [u64]| grid.iter().flat_map(|v| [*v as u32, (*v >> 32) as u32]);
    let four = |grid: &'static [u32]| grid.iter().copied();
    eight(&IQ2_XXS)
        .chain(eight(&IQ2_XS))
        .chain(eight(&IQ2_S))
        .chain(four(&IQ3_XXS))
        .chain(four(&IQ3_S))
        .chain(eight(&IQ1))
}

/// For eight elements, all bits of those that are negative, by eight bits.
pub static NEGATIVE: [u64; 256] = {
    let (mut masks, mut bits) = ([0; 256], 0);
    while bits < 256 {
        masks[bits] = negative(bits);
        bits += 1;
    }
    masks
};

/// The same by seven bits: the eighth makes their number even.
pub static EVENLY_NEGATIVE: [u64; 128] = {
    let (mut masks, mut bits) = ([0; 128], 0);
    while bits < 128 {
        masks[bits] = negative(bits | (bits.count_ones() as usize & 1) << 7);
        bits += 1;
    }
    masks
};

const fn negative(bits: usize) -> u64 {
    let (mut mask, mut i) = (0, 0);
    while i < 8 {
        mask |= ((bits >> i & 1) as u64 * 255) << (8 * i);
        i += 1;
    }
    mask
}

/// Vector `i` of the file.
const fn packed(i: usize) -> u16 {
    u16::from_le_bytes([PACKED[2 * i], PACKED[2 * i + 1]])
}

/// `N` vectors of eight elements, from vector `first` on.
const fn eight<const N: usize>(first: usize, values: [u8; 4]) -> [u64; N] {
    let (mut grid, mut i) = ([0; N], 0);
    while i < N {
        let mut k = 0;
        while k < 8 {
            grid[i] |= (values[(packed(first + i) >> (2 * k) & 3) as usize] as u64) << (8 * k);
            k += 1;
        }
        i += 1;
    }
    grid
}

/// `N` vectors of four elements, from vector `first` on.
const fn four<const N: usize>(first: usize, values: [u8; 8]) -> [u32; N] {
    let (mut grid, mut i) = ([0; N], 0);
    while i < N {
        let mut k = 0;
        while k < 4 {
            grid[i] |= (values[(packed(first + i) >> (3 * k) & 7) as usize] as u32) << (8 * k);
            k += 1;
        }
        i += 1;
    }
    grid
}

#[cfg(test)]
mod tests {
    use super::*;

    /// FNV-1a of a grid's elements in order.
    fn checksum(elements: impl Iterator<Item = u8>) -> u64 {
        elements.fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3))
    }

    fn of_eight(grid: &[u64]) -> u64 {
        checksum(grid.iter().flat_map(|v| v.to_le_bytes()))
    }

    fn of_four(grid: &[u32]) -> u64 {
        checksum(grid.iter().flat_map(|v| v.to_le_bytes()))
    }

    /// Against checksums of the tables in the Python package `gguf` 0.19, which llama.cpp's authors publish.
    #[test]
    fn every_vector_is_the_published_one() {
        assert_eq!(of_eight(&IQ2_XXS), 0xbb4e_e025_b5ac_6e8e);
        assert_eq!(of_eight(&IQ2_XS), 0xc9b1_ee61_e799_09bd);
        assert_eq!(of_eight(&IQ2_S), 0x123e_dd38_a3b6_2b90);
        assert_eq!(of_four(&IQ3_XXS), 0xdfa5_dc83_d6a1_55d5);
        assert_eq!(of_four(&IQ3_S), 0xfa37_020c_25b4_4829);
        let elements = IQ1.iter().flat_map(|v| v.to_le_bytes()).map(|b| (b / 8).wrapping_sub(1));
        assert_eq!(checksum(elements), 0x6703_ed86_3501_ae2e);
    }

    #[test]
    fn signs_are_bits_and_seven_bits_make_an_even_number() {
        assert_eq!(NEGATIVE[0b1000_0101].to_le_bytes(), [255, 0, 255, 0, 0, 0, 0, 255]);
        assert_eq!(EVENLY_NEGATIVE[0b101], NEGATIVE[0b101]);
        assert!((0..128).all(|i| EVENLY_NEGATIVE[i].count_ones().is_multiple_of(16)), "an even number of bytes");
        assert!((0..128).all(|i| EVENLY_NEGATIVE[i] << 8 == NEGATIVE[i] << 8), "the first seven as said");
    }
}
