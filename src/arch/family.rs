//! What people call the models of an architecture.

/// Architecture and family.
const FAMILIES: &[(&str, &str)] = &[
    ("afmoe", "Trinity"),
    ("bailingmoe2", "Ling 2"),
    ("bailingmoe3", "Ling 3"),
    ("cohere2moe", "North"),
    ("dbrx", "DBRX"),
    ("deepseek2", "DeepSeek V2 and V3, Kimi K2, GLM-4.7-Flash"),
    ("deepseek32", "DeepSeek V3.2"),
    ("deepseek4", "DeepSeek V4"),
    ("dots1", "dots.llm1"),
    ("ernie4_5-moe", "ERNIE 4.5"),
    ("exaone-moe", "K-EXAONE"),
    ("gemma4", "Gemma 4"),
    ("glm-dsa", "GLM-5"),
    ("glm4moe", "GLM-4.5 to 4.7"),
    ("glm5-next", "GLM-5.3-Flash"),
    ("glm5next", "GLM-5.3-Flash"),
    ("gpt-oss", "gpt-oss"),
    ("granite_swa", "Granite 4"),
    ("granitehybrid", "Granite 4.0-H"),
    ("granitemoe", "Granite 3"),
    ("grok", "Grok"),
    ("hunyuan-moe", "Hunyuan"),
    ("hy_v3", "Hy3"),
    ("kimi-linear", "Kimi Linear"),
    ("laguna", "Laguna"),
    ("lfm2moe", "LFM2"),
    ("llama", "Mixtral"),
    ("llama4", "Llama 4"),
    ("mellum", "Mellum 2"),
    ("mimo2", "MiMo V2"),
    ("minimax-m2", "MiniMax M2"),
    ("minimax-m3", "MiniMax M3"),
    ("mistral4", "Mistral Small 4"),
    ("nemotron_h_moe", "Nemotron 3"),
    ("olmoe", "OLMoE"),
    ("phimoe", "Phi 3.5 MoE"),
    ("qwen2moe", "Qwen 1.5 and 2"),
    ("qwen35moe", "Qwen 3.5 and 3.6"),
    ("qwen3moe", "Qwen 3"),
    ("qwen3next", "Qwen3 Next"),
    ("qwen3vlmoe", "Qwen3 VL"),
    ("qwen4exp", "Qwen 3.8 Flash Next"),
    ("smallthinker", "SmallThinker"),
    ("step35", "Step 3.5"),
];

/// The family that a file of this `general.architecture` is usually one of.
pub fn family(architecture: &str) -> Option<&'static str> {
    FAMILIES.iter().find(|(name, _)| *name == architecture).map(|&(_, family)| family)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_architecture_has_a_family() {
        assert!(FAMILIES.is_sorted_by(|a, b| a.0 < b.0));
        for arch in crate::arch::ARCHS {
            assert!(family(arch.name).is_some(), "{}", arch.name);
        }
        assert_eq!(family("mystery"), None);
    }
}
