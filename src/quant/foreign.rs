//! Types that ggml does not have: names for the numbers that other programs give them, so that a refusal says what a file has.
//!
//! Must not know: files.

/// What the numbers from 133 on stand for.
const IK_LLAMA: &str = "ik_llama.cpp";

/// What others once stood for.
const REMOVED: &str = "llama.cpp of 2024, since removed";

/// Numbers, names, and whose they are.
const TYPES: &[(u32, &str, &str)] = &[
    (4, "Q4_2", "llama.cpp of 2023, since removed"),
    (5, "Q4_3", "llama.cpp of 2023, since removed"),
    (31, "Q4_0_4_4", REMOVED),
    (32, "Q4_0_4_8", REMOVED),
    (33, "Q4_0_8_8", REMOVED),
    (36, "I2_S", "BitNet"),
    (133, "Q6_0", IK_LLAMA),
    (134, "IQ1_BN", IK_LLAMA),
    (135, "IQ2_BN", IK_LLAMA),
    (136, "Q8_K64", IK_LLAMA),
    (137, "IQ2_K", IK_LLAMA),
    (138, "IQ3_K", IK_LLAMA),
    (139, "IQ4_K", IK_LLAMA),
    (140, "IQ5_K", IK_LLAMA),
    (141, "IQ6_K", IK_LLAMA),
    (144, "IQ4_KS", IK_LLAMA),
    (145, "IQ2_KS", IK_LLAMA),
    (146, "IQ4_KSS", IK_LLAMA),
    (147, "Q8_K16", IK_LLAMA),
    (148, "Q8_K32", IK_LLAMA),
    (149, "Q8_KR8", IK_LLAMA),
    (150, "Q8_K128", IK_LLAMA),
    (151, "Q8_KV", IK_LLAMA),
    (152, "IQ5_KS", IK_LLAMA),
    (153, "IQ2_KT", IK_LLAMA),
    (154, "IQ3_KT", IK_LLAMA),
    (155, "IQ4_KT", IK_LLAMA),
    (156, "IQ3_KS", IK_LLAMA),
    (157, "IQ2_KL", IK_LLAMA),
    (158, "IQ1_KT", IK_LLAMA),
    (202, "Q4_0_R8", IK_LLAMA),
    (206, "Q5_0_R4", IK_LLAMA),
    (208, "Q8_0_R8", IK_LLAMA),
    (210, "Q2_K_R4", IK_LLAMA),
    (211, "Q3_K_R4", IK_LLAMA),
    (212, "Q4_K_R4", IK_LLAMA),
    (213, "Q5_K_R4", IK_LLAMA),
    (214, "Q6_K_R4", IK_LLAMA),
    (216, "IQ2_XXS_R4", IK_LLAMA),
    (217, "IQ2_XS_R4", IK_LLAMA),
    (218, "IQ3_XXS_R4", IK_LLAMA),
    (219, "IQ1_S_R4", IK_LLAMA),
    (220, "IQ4_NL_R4", IK_LLAMA),
    (221, "IQ3_S_R4", IK_LLAMA),
    (222, "IQ2_S_R4", IK_LLAMA),
    (223, "IQ4_XS_R8", IK_LLAMA),
    (229, "IQ1_M_R4", IK_LLAMA),
    (230, "BF16_R16", IK_LLAMA),
    (233, "Q6_0_R4", IK_LLAMA),
    (335, "IQ2_BN_R4", IK_LLAMA),
    (337, "IQ2_K_R4", IK_LLAMA),
    (338, "IQ3_K_R4", IK_LLAMA),
    (339, "IQ4_K_R4", IK_LLAMA),
    (340, "IQ5_K_R4", IK_LLAMA),
    (344, "IQ4_KS_R4", IK_LLAMA),
    (352, "IQ5_KS_R4", IK_LLAMA),
    (397, "Q8_K_R16", IK_LLAMA),
    (398, "Q8_KV_R8", IK_LLAMA),
    (399, "Q8_K_R8", IK_LLAMA),
];

/// The name of a type that is not one of [`GgmlType`](super::GgmlType)'s, and the program whose it is, where both are known.
pub fn foreign_type(id: u32) -> Option<(&'static str, &'static str)> {
    TYPES.iter().find(|(number, ..)| *number == id).map(|&(_, name, whose)| (name, whose))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::GgmlType;

    #[test]
    fn a_number_has_one_name() {
        assert!(TYPES.windows(2).all(|two| two[0].0 < two[1].0), "in order, once each");
        assert!(TYPES.iter().all(|(id, ..)| GgmlType::from_id(*id).is_none()), "none of ggml's");
        assert_eq!(foreign_type(339), Some(("IQ4_K_R4", IK_LLAMA)));
        assert_eq!(foreign_type(1000), None);
    }
}
