//! Who made the CPU: for choices between ways that are right on every CPU and of which none is best on all.
//!
//! Must not know: what is chosen.

/// Whether AMD made this CPU. What is chosen by it has been seen to win on Zen 4 or 5 and to lose on Intel.
pub(super) fn is_amd() -> bool {
    cpu().is_amd
}

/// Whether this CPU works on registers of 512 bits by halves: Zen 4, which has 512 bits as the only one of AMD's family 19h.
pub(super) fn halves_registers() -> bool {
    cpu().is_amd && cpu().family == 0x19
}

/// What `cpuid` says.
#[derive(Clone, Copy)]
struct CpuId {
    /// The maker's name, in leaf 0.
    is_amd: bool,
    /// From leaf 1.
    family: u32,
}

#[cfg(target_arch = "x86_64")]
fn cpu() -> CpuId {
    use std::arch::x86_64::__cpuid;
    use std::sync::LazyLock;
    static CPU: LazyLock<CpuId> = LazyLock::new(|| {
        let (maker, version) = (__cpuid(0), __cpuid(1).eax);
        let name = [maker.ebx, maker.edx, maker.ecx].map(u32::to_le_bytes);
        let (base, extended) = (version >> 8 & 15, version >> 20 & 255);
        CpuId {
            is_amd: name.as_flattened() == b"AuthenticAMD",
            family: if base == 15 { base + extended } else { base },
        }
    });
    *CPU
}

#[cfg(not(target_arch = "x86_64"))]
fn cpu() -> CpuId {
    CpuId { is_amd: false, family: 0 }
}
