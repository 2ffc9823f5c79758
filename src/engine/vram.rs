//! The tier of experts in a device's memory: what of a model can go there, and how many slots its budget gives.

use super::{Options, options::Vram};
use crate::{
    Error, Result,
    blueprint::Blueprint,
    expert::{DeviceSlots, ExpertStore},
    gpu::{self, Choice, Device, Ffns, Limits, MAX_ROWS, Shape},
    human_bytes,
    model::Tier,
    plan::device_slots,
};

/// What `auto` leaves of a device's free memory to others: a tenth, and at least this.
const RESERVE: u64 = 256 << 20;

/// Tries with ever fewer slots where a device has less memory than it said.
const TRIES: usize = 8;

/// A tier, its slots, and what there is to say of it.
pub struct Opened {
    pub tier: Tier,
    pub slots: DeviceSlots,
    /// Slots that its budget would have had but the device did not.
    pub note: Option<String>,
}

/// The device that `options` ask for, ready for the model's experts: before the budget of RAM is split, since its driver takes of
/// that too. Or why there is none; the model runs without it.
pub fn prepare(
    options: &Options,
    is_cpu: bool,
    device: impl FnOnce(Choice) -> Result<Box<dyn Device>>,
    m: &Blueprint,
    store: &ExpertStore,
) -> Option<Result<Ffns>> {
    if options.vram == Vram::Off {
        return None;
    }
    let ready = || {
        if !is_cpu {
            return Err(Error::invalid("--vram: only beside the CPU's own arithmetic"));
        }
        let shapes = shapes(m, store)?;
        if shapes.is_empty() {
            return Err(Error::invalid("--vram: the model has no experts"));
        }
        gpu::check(device(options.vram_device)?, &shapes, limits(m))
    };
    Some(ready())
}

/// Slots of each MoE layer that a device would give in `bytes` of its memory, apart from what its driver takes.
///
/// # Errors
/// Experts that no device computes, or a budget without room for one.
pub fn planned_slots(m: &Blueprint, store: &ExpertStore, bytes: u64) -> Result<Vec<usize>> {
    let sizes: Vec<_> = shapes(m, store)?.iter().map(Shape::slot_bytes).collect();
    let scratch = limits(m).scratch_bytes();
    let slots = device_slots(&sizes, store.n_expert(), bytes.saturating_sub(scratch));
    if slots.iter().all(|&n| n == 0) {
        let least = scratch + sizes.iter().min().copied().unwrap_or(0);
        return Err(no_room(bytes, least));
    }
    Ok(slots)
}

fn no_room(budget: u64, least: u64) -> Error {
    Error::invalid(format!(
        "--vram: {} hold no expert beside what the device needs itself: that takes {least} bytes",
        human_bytes(budget)
    ))
}

fn limits(m: &Blueprint) -> Limits {
    let n_ff = m.experts().map(|set| set.n_ff).max().unwrap_or(0);
    Limits { rows: MAX_ROWS, n_expert_used: m.n_expert_used(), n_embd: m.n_embd, n_ff }
}

/// Bytes of RAM that experts are copied from.
pub fn staging_bytes(m: &Blueprint, store: &ExpertStore) -> u64 {
    shapes(m, store).map_or(0, |shapes| Tier::staging_bytes(&shapes))
}

/// The tier that `options` ask for.
///
/// # Errors
/// A budget or a device with too little memory; the model runs without it.
pub fn open(mut ffns: Ffns, options: &Options, m: &Blueprint, store: &ExpertStore) -> Result<Opened> {
    let (shapes, limits) = (shapes(m, store)?, limits(m));
    let free = ffns.device().free_bytes();
    let budget = match options.vram {
        Vram::Bytes(bytes) => bytes,
        Vram::Percent(percent) => (file_bytes(store) as f64 * percent / 100.0) as u64,
        Vram::Auto | Vram::Off => free - RESERVE.max(free / 10).min(free),
    };
    // What the driver takes for itself and for kernels counts, where it tells; buffers that are allocated already are in it.
    let taken = match ffns.device().used_bytes() {
        Some(now) if !ffns.device().shares_memory() => now.max(limits.scratch_bytes()),
        _ => limits.scratch_bytes(),
    };
    let sizes: Vec<_> = shapes.iter().map(Shape::slot_bytes).collect();
    // Of a budget that is what is free now, nothing has been taken yet.
    let taken = if options.vram == Vram::Auto { 0 } else { taken };
    let wanted = device_slots(&sizes, store.n_expert(), budget.saturating_sub(taken));
    let n_wanted: usize = wanted.iter().sum();
    if n_wanted == 0 {
        let least = taken + sizes.iter().min().copied().unwrap_or(0);
        return Err(no_room(budget, least));
    }
    let stays = options.vram_device != Choice::Best;
    let (tier, slots) = allocate(ffns, &shapes, wanted, stays)?;
    let n: usize = slots.iter().sum();
    let note = (n < n_wanted).then(|| format!("{} has room for {n} experts, not {n_wanted}", tier.describe()));
    let slots = DeviceSlots::new(&slots, store.n_expert(), options.policy, limits.rows);
    Ok(Opened { tier, slots, note })
}

/// Bytes of the model's files.
fn file_bytes(store: &ExpertStore) -> u64 {
    store.files().iter().map(|(_, file)| file.metadata().map_or(0, |m| m.len())).sum()
}

/// As many of the slots as the device has memory for.
fn allocate(mut ffns: Ffns, shapes: &[Shape], mut slots: Vec<usize>, stays: bool) -> Result<(Tier, Vec<usize>)> {
    for tried in 0.. {
        match Tier::new(ffns, shapes, &slots, stays) {
            Ok(tier) => return Ok((tier, slots)),
            Err(failed) if tried + 1 == TRIES => return Err(failed.0),
            Err(failed) => ffns = failed.1,
        }
        slots.iter_mut().for_each(|n| *n -= n.div_ceil(8));
    }
    unreachable!("tries end")
}

/// What the experts of each MoE layer are.
///
/// # Errors
/// Experts that no device computes.
fn shapes(m: &Blueprint, store: &ExpertStore) -> Result<Vec<Shape>> {
    let stay = |why: &str| Error::invalid(format!("experts of this model stay on the CPU: {why}"));
    let shape = |(moe, layer): (&crate::blueprint::Moe, &crate::expert::LayerStore)| {
        let [Some(gate), Some(up), Some(down)] = layer.types() else { return Err(stay("they have no gate")) };
        if moe.latent.is_some() {
            return Err(stay("they read rows of a width of their own"));
        }
        Ok(Shape {
            types: [gate, up, down],
            n_embd: m.n_embd,
            n_ff: moe.experts.n_ff,
            act: moe.act,
            biased: moe.biases.each_ref().map(Option::is_some),
        })
    };
    m.moe().zip(store.layers()).map(shape).collect()
}
