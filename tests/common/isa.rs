//! The instruction set that a test is run with: the CPU's best, or what `HOTSET_ISA` names, as for the program.

use hotset::backend::cpu::{
    Cpu,
    kernels::{Isa, KernelChoice},
};

pub fn choice() -> KernelChoice {
    let isa = std::env::var("HOTSET_ISA").ok();
    let named = |name: String| *Isa::ALL.iter().find(|isa| isa.name() == name).expect("HOTSET_ISA names a set");
    KernelChoice { isa: isa.map(named), interleave: None }
}

/// Threads with its kernels.
pub fn cpu(threads: usize) -> Cpu {
    Cpu::with(choice(), threads).unwrap()
}
