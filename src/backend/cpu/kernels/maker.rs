//! Who made the CPU: for choices between ways that are right on every CPU and of which none is best on all.
//!
//! Must not know: what is chosen.

/// Whether AMD made this CPU. What is chosen by it has been seen to win on Zen 4 or 5 and to lose on Intel.
pub(super) fn is_amd() -> bool {
    maker_and_family().0 == *b"AuthenticAMD"
}

/// Whether this CPU works on registers of 512 bits by halves: Zen 4, which has 512 bits as the only one of AMD's family 19h.
pub(super) fn halves_registers() -> bool {
    maker_and_family() == (*b"AuthenticAMD", 0x19)
}

/// The maker's name, as leaf 0 of `cpuid` has it, and the family, from leaf 1.
#[cfg(target_arch = "x86_64")]
fn maker_and_family() -> ([u8; 12], u32) {
    use std::arch::x86_64::__cpuid;
    use std::sync::LazyLock;
    static FOUND: LazyLock<([u8; 12], u32)> = LazyLock::new(|| {
        let (maker, version) = (__cpuid(0), __cpuid(1).eax);
        let mut name = [0; 12];
        name.copy_from_slice([maker.ebx, maker.edx, maker.ecx].map(u32::to_le_bytes).as_flattened());
        let (base, extended) = (version >> 8 & 15, version >> 20 & 255);
        (name, if base == 15 { base + extended } else { base })
    });
    *FOUND
}

#[cfg(not(target_arch = "x86_64"))]
fn maker_and_family() -> ([u8; 12], u32) {
    ([0; 12], 0)
}
