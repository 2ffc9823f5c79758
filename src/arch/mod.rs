//! The architectures that hotset runs, one file each: from a file's metadata and tensor table to a [`Blueprint`].
//!
//! To add one, write `NAME.rs` beside the others and give it a row in `ARCHS`. It says which parts a layer has and
//! which hyper-parameters they take; everything else reads the blueprint.
//!
//! Must not know: bytes of weights, memory, kernels.

mod afmoe;
mod bailingmoe2;
mod bailingmoe3;
mod cohere2moe;
mod dbrx;
mod deepseek2;
mod deepseek32;
mod deepseek4;
mod dots1;
mod ernie4_5_moe;
mod exaone_moe;
mod family;
mod gemma4;
mod glm4moe;
mod glm5_next;
mod glm_dsa;
mod gpt_oss;
mod granite_swa;
mod granitehybrid;
mod granitemoe;
mod grok;
mod hunyuan_moe;
mod hy_v3;
mod kimi_linear;
mod laguna;
mod lfm2moe;
mod llama;
mod llama4;
mod mellum;
mod mimo2;
mod minimax_m2;
mod minimax_m3;
mod mistral4;
mod nemotron_h_moe;
mod olmoe;
mod phimoe;
mod qwen2moe;
mod qwen35moe;
mod qwen3moe;
mod qwen3next;
mod qwen3vlmoe;
mod qwen4exp;
mod smallthinker;
mod step35;

use crate::{
    Error, Result,
    blueprint::{Blueprint, Reader, Shape},
    gguf::Gguf,
};

pub use family::family;

/// One architecture.
pub struct Arch {
    /// `general.architecture`.
    name: &'static str,
    /// Whether files may end with prediction heads, which are left out.
    predicts: bool,
    blueprint: fn(&Reader<'_>) -> Result<Blueprint>,
}

/// Every architecture that hotset runs.
const ARCHS: &[Arch] = &[
    afmoe::ARCH,
    bailingmoe2::ARCH,
    bailingmoe3::ARCH,
    cohere2moe::ARCH,
    dbrx::ARCH,
    deepseek2::ARCH,
    deepseek32::ARCH,
    deepseek4::ARCH,
    dots1::ARCH,
    ernie4_5_moe::ARCH,
    exaone_moe::ARCH,
    gemma4::ARCH,
    glm4moe::ARCH,
    glm5_next::ARCH,
    glm5_next::EARLY,
    glm_dsa::ARCH,
    gpt_oss::ARCH,
    granite_swa::ARCH,
    granitehybrid::ARCH,
    granitemoe::ARCH,
    grok::ARCH,
    hunyuan_moe::ARCH,
    hy_v3::ARCH,
    kimi_linear::ARCH,
    laguna::ARCH,
    lfm2moe::ARCH,
    llama::ARCH,
    llama4::ARCH,
    mellum::ARCH,
    mimo2::ARCH,
    minimax_m2::ARCH,
    minimax_m3::ARCH,
    mistral4::ARCH,
    nemotron_h_moe::ARCH,
    olmoe::ARCH,
    phimoe::ARCH,
    qwen2moe::ARCH,
    qwen35moe::ARCH,
    qwen3moe::ARCH,
    qwen3next::ARCH,
    qwen3vlmoe::ARCH,
    qwen4exp::ARCH,
    smallthinker::ARCH,
    step35::ARCH,
];

/// Their names, as `general.architecture` has them.
pub fn names() -> impl Iterator<Item = &'static str> {
    ARCHS.iter().map(|arch| arch.name)
}

/// What the model in a file is. No key and no tensor of the file is left over that could change what it computes.
///
/// # Errors
/// An architecture that hotset does not have; a key or tensor that is missing, does not make sense or is left over, by name.
pub fn blueprint(gguf: &Gguf) -> Result<Blueprint> {
    let (arch, reader) = reader(gguf)?;
    // Such keys are not the architecture's, of which none is left over: without this they would go unnoticed.
    if let Some((key, _)) = gguf.meta().iter().find(|(key, _)| key.contains(".hadamard.")) {
        let message = format!("its weights are rotated by Hadamard matrices ({key}), which is not supported");
        return Err(Error::file(gguf.path(), message));
    }
    let blueprint = (arch.blueprint)(&reader)?;
    reader.finish(blueprint)
}

/// What hotset would run of a file that has more than that: an answer about its memory, not about its text.
///
/// # Errors
/// As [`blueprint`], but for what is left over.
pub fn understood(gguf: &Gguf) -> Result<Blueprint> {
    let (arch, reader) = reader(gguf)?;
    (arch.blueprint)(&reader)
}

/// The figures of a file that need not run.
///
/// # Errors
/// An architecture that hotset does not have; a key that is missing or does not make sense, by name.
pub fn shape(gguf: &Gguf) -> Result<Shape> {
    reader(gguf)?.1.shape()
}

fn reader(gguf: &Gguf) -> Result<(&'static Arch, Reader<'_>)> {
    let name = gguf.meta().require_str("general.architecture")?;
    let Some(arch) = ARCHS.iter().find(|arch| arch.name == name) else {
        let known = names().collect::<Vec<_>>().join(", ");
        return Err(Error::unsupported(
            gguf.path(),
            "the architecture",
            format!("one of {known}"),
            name.escape_debug(),
        ));
    };
    Ok((arch, Reader::new(gguf, arch.name, arch.predicts)?))
}
