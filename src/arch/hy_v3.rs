//! Hy3 (Tencent, 2026): the parts of dots.llm1.

use super::{Arch, dots1};

pub const ARCH: Arch = Arch { name: "hy_v3", predicts: false, blueprint: dots1::blueprint };
