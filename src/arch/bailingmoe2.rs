//! Ling 2.0, Ring 2.0 (arXiv 2510.22115): the parts of dots.llm1, with experts in groups and prediction heads.

use super::{Arch, dots1};

pub const ARCH: Arch = Arch { name: "bailingmoe2", predicts: true, blueprint: dots1::blueprint };
