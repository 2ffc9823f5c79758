//! Finds the first row that is no number any more. Looked at after every part of every layer, so it has to cost nothing
//! beside them: one pass, without a branch for each element, which compilers vectorise.

/// The first row of `x`, rows of `cols`, in which an element is NaN or infinite.
pub(super) fn first_broken_row(x: &[f32], cols: usize) -> Option<usize> {
    x.chunks_exact(cols).position(|row| row.iter().fold(false, |broken, v| broken | !v.is_finite()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_place_in_a_row_is_seen() {
        let good = vec![f32::MAX; 3 * 21];
        assert_eq!(first_broken_row(&good, 21), None);
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for i in 0..good.len() {
                let mut x = good.clone();
                x[i] = bad;
                assert_eq!(first_broken_row(&x, 21), Some(i / 21), "{bad} at {i}");
            }
        }
        assert_eq!(first_broken_row(&[], 21), None);
    }
}
