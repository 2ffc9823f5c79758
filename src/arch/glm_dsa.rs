//! GLM-5 to 5.3 (Zhipu, 2026): the parts of DeepSeek-V3.2.

use super::{Arch, deepseek32};

pub const ARCH: Arch = Arch { name: "glm-dsa", predicts: true, blueprint: deepseek32::blueprint };
