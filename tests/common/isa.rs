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

/// Those that this CPU has; the others are listed as not tested.
pub fn available() -> impl Iterator<Item = Isa> {
    Isa::ALL.iter().copied().filter(|isa| {
        if !isa.is_available() {
            super::not_tested!("kernels of {}, which this CPU lacks", isa.name());
        }
        isa.is_available()
    })
}

/// Threads with its kernels.
pub fn cpu(threads: usize) -> Cpu {
    Cpu::with(choice(), threads).unwrap()
}
