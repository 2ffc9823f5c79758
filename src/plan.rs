//! How a memory budget is split. One place decides; everything that allocates is told.
//!
//! The budget covers the whole process: dense weights, KV cache, scratch, the program itself (its code, the tokenizer,
//! the heap's odds and ends), and expert slots, which get what the others leave.
//!
//! One exception keeps tiny budgets possible: the program is charged at most a twentieth of the budget, and up
//! to [`PROCESS_BYTES`] of it may stand beside the budget. So a budget of some hundred MiB or more bounds the resident
//! set exactly, and one of 8 MiB means 8 MiB and the program.

use crate::{
    Error, Result,
    backend::cpu::attention_bytes,
    expert::{ExpertStore, Scope},
    gguf::Gguf,
    human_bytes,
    io::Layout,
    model::{self, Config, KvCache, Scratch, ScratchShape},
    policy::PolicyKind,
    prefetch::PrefetchKind,
    quant::GgmlType,
};

/// What the program itself may take beside a small budget.
pub const PROCESS_BYTES: u64 = 24 << 20;

/// The program is charged at most this share of the budget, but for what it holds above [`PROCESS_BYTES`].
const PROCESS_SHARE: u64 = 20;

/// The program's memory is rounded up to this and then takes as much again for its code and for what comes later (indexes,
/// stacks): a plan must not differ from the one before because of a few pages.
const PROCESS_GRAIN: u64 = 8 << 20;

/// Scratch gets at most this share of what dense weights and KV cache leave, so that large batches do not eat the slots.
const SCRATCH_SHARE: u64 = 6;

/// Tokens of a batch where nobody asked: longer ones do not make the kernels faster.
const BATCH: usize = 512;

/// The same where experts are read: each is read once a batch, so that a batch twice as long reads half as much. Slots
/// are what decoding needs, so scratch for more than [`BATCH`] gets a smaller share.
const READ_BATCH: usize = 2048;
const READ_BATCH_SHARE: u64 = 16;

/// What the budget has to serve.
#[derive(Clone, Copy, Debug)]
pub struct Needs {
    /// Tokens of context.
    pub n_ctx: usize,
    /// Tokens that a batch holds if the budget allows; `None`: what suits.
    pub n_batch: Option<usize>,
    /// Rows of logits at once, for each row of a batch or one.
    pub all_logits: bool,
    /// Type of the KV cache.
    pub kv: GgmlType,
    /// How slots are shared.
    pub scope: Scope,
    /// Who decides which expert leaves.
    pub policy: PolicyKind,
    /// Who guesses what is read ahead.
    pub prefetch: PrefetchKind,
    /// Whether experts are kept; if not, there are no more slots than a token's layer uses.
    pub keeps: bool,
    /// How slots lie in memory, which decides what one takes.
    pub layout: Layout,
    /// Bytes that the process holds already.
    pub process_bytes: u64,
    /// Compute threads.
    pub threads: usize,
}

/// The split. Bytes but where the name says otherwise.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The whole.
    pub budget_bytes: u64,
    /// Dense weights.
    pub dense_bytes: u64,
    /// KV cache.
    pub kv_bytes: u64,
    /// Buffers of a forward pass, and what policy and prefetcher learn.
    pub scratch_bytes: u64,
    /// What the program itself is charged.
    pub process_bytes: u64,
    /// What the program takes beside the budget; 0 where the budget is large enough to bear it.
    pub beside_bytes: u64,
    /// All expert slots.
    pub slots_bytes: u64,
    /// Tokens of context.
    pub n_ctx: usize,
    /// Tokens of a batch.
    pub n_batch: usize,
    /// Rows of logits.
    pub n_logits: usize,
    /// The widest feed-forward block.
    pub n_ff: usize,
    /// Slots of each pool, as [`ExpertStore::pools`] numbers them.
    pub slots: Vec<usize>,
    /// How slots are shared.
    pub scope: Scope,
    /// Bytes of the slots that one token needs.
    least_slots_bytes: u64,
    pools: Vec<Pool>,
    /// The smallest budget that would do.
    pub smallest_bytes: u64,
    /// The budget at which every expert has a slot.
    pub full_bytes: u64,
}

impl Plan {
    /// Splits `budget_bytes`; without one, takes all that the model can use.
    ///
    /// # Errors
    /// If the budget is too small; the sentence names the smallest that works.
    pub fn new(gguf: &Gguf, c: &Config, store: &ExpertStore, needs: Needs, budget_bytes: Option<u64>) -> Result<Plan> {
        let n_ff = widest(gguf, c, store);
        let dense_bytes = model::resident_bytes(gguf, c)?;
        let kv_bytes = KvCache::bytes(c, needs.kv, needs.n_ctx)?;
        let model_bytes = dense_bytes.saturating_add(kv_bytes).min(u64::MAX / 64);
        let shape =
            |n_batch: usize| ScratchShape { n_batch, n_logits: if needs.all_logits { n_batch } else { 1 }, n_ff };
        let attention = attention_bytes(needs.threads, c.n_head, c.n_embd_head_k, c.n_embd_head_v, needs.n_ctx);
        let n_layer = store.layers().len();
        let learnt = |n_batch| {
            needs.policy.bytes(n_layer, store.n_expert())
                + needs.prefetch.bytes(n_layer, store.n_expert(), c.n_expert_used, n_batch)
        };
        let scratch = |n_batch: usize| Scratch::bytes(c, shape(n_batch)) + attention + learnt(n_batch);

        let pools = Pool::all(store, needs, c.n_expert_used);
        let all =
            |slots: &dyn Fn(usize) -> usize| pools.iter().map(|p| p.slot_bytes * slots(p.most) as u64).sum::<u64>();
        let least_slots = all(&|max| c.n_expert_used.min(max));
        let process = needs.process_bytes.next_multiple_of(PROCESS_GRAIN) + PROCESS_GRAIN;
        let smallest_bytes = with_process(model_bytes + scratch(1) + least_slots, process);
        let full_bytes = with_process(
            model_bytes + scratch(needs.n_batch.unwrap_or(BATCH).min(needs.n_ctx)) + all(&|max| max),
            process,
        );
        let budget = budget_bytes.unwrap_or(full_bytes).min(u64::MAX / 2);
        if budget < smallest_bytes {
            return Err(Error::request(
                format!(
                    "the memory budget for a context of {} tokens (dense weights {}, KV cache {}, scratch {}, {} slots {})",
                    needs.n_ctx,
                    human_bytes(dense_bytes),
                    human_bytes(kv_bytes),
                    human_bytes(scratch(1)),
                    c.n_expert_used,
                    match needs.scope {
                        Scope::Layer => "a layer",
                        Scope::Size => "for each size of experts",
                        Scope::Global => "in all",
                    }
                ),
                format!("at least {smallest_bytes} bytes ({})", human_bytes(smallest_bytes)),
                format!("{budget} bytes ({})", human_bytes(budget)),
            ));
        }
        let process_bytes = process_charge(budget, process);
        let fixed = model_bytes + process_bytes;
        let fits = |n: &usize| {
            let bytes = scratch(*n);
            let share = if needs.n_batch.is_none() && *n > BATCH { READ_BATCH_SHARE } else { SCRATCH_SHARE };
            fixed + bytes + least_slots <= budget && bytes <= (budget - fixed) / share
        };
        let most = needs.n_batch.unwrap_or(if budget < full_bytes { READ_BATCH } else { BATCH }).min(needs.n_ctx);
        let halves = std::iter::successors(Some(most), |n| (*n > 1).then_some(n / 2));
        let n_batch = halves.into_iter().find(fits).unwrap_or(1);
        let scratch_bytes = scratch(n_batch);
        let slots = deal(&pools, budget - fixed - scratch_bytes);
        Ok(Plan {
            budget_bytes: budget,
            dense_bytes,
            kv_bytes,
            scratch_bytes,
            process_bytes,
            beside_bytes: process - process_bytes,
            slots_bytes: pools.iter().zip(&slots).map(|(p, n)| p.slot_bytes * *n as u64).sum(),
            n_ctx: needs.n_ctx,
            n_batch,
            n_logits: shape(n_batch).n_logits,
            n_ff,
            slots,
            scope: needs.scope,
            least_slots_bytes: least_slots,
            pools,
            smallest_bytes,
            full_bytes,
        })
    }

    /// The smallest budget that the parts which are already allocated leave room in.
    pub fn least_bytes(&self) -> u64 {
        self.budget_bytes - self.room() + self.least_slots_bytes
    }

    /// Slots of each pool within another budget, with all else as it is.
    ///
    /// # Errors
    /// If the budget is below [`Plan::least_bytes`], or above the one that the plan was made for.
    pub fn slots_within(&self, budget_bytes: u64) -> Result<Vec<usize>> {
        let (least, most) = (self.least_bytes(), self.budget_bytes);
        if !(least..=most).contains(&budget_bytes) {
            let expected = format!("{least} to {most} bytes ({} to {})", human_bytes(least), human_bytes(most));
            let got = format!("{budget_bytes} bytes ({})", human_bytes(budget_bytes));
            return Err(Error::request("the memory budget of a running session", expected, got));
        }
        Ok(deal(&self.pools, budget_bytes - (self.budget_bytes - self.room())))
    }

    /// What the budget leaves for slots.
    fn room(&self) -> u64 {
        self.budget_bytes - self.dense_bytes - self.kv_bytes - self.process_bytes - self.scratch_bytes
    }

    /// The shape of the scratch buffers.
    pub fn scratch(&self) -> ScratchShape {
        ScratchShape { n_batch: self.n_batch, n_logits: self.n_logits, n_ff: self.n_ff }
    }
}

/// What a program of `process` bytes is charged in a budget.
fn process_charge(budget: u64, process: u64) -> u64 {
    process.min(budget.div_ceil(PROCESS_SHARE)).max(process.saturating_sub(PROCESS_BYTES))
}

/// The smallest budget that leaves `needed` bytes beside what the program is charged.
fn with_process(needed: u64, process: u64) -> u64 {
    let by_share = (needed * PROCESS_SHARE).div_ceil(PROCESS_SHARE - 1);
    by_share.min(needed + process).max(needed + process.saturating_sub(PROCESS_BYTES))
}

/// A pool of slots.
#[derive(Clone, Copy, Debug)]
struct Pool {
    slot_bytes: u64,
    /// Slots that make sense.
    most: usize,
    /// Layers that share it.
    layers: usize,
}

impl Pool {
    /// The pools of a scope.
    fn all(store: &ExpertStore, needs: Needs, n_used: usize) -> Vec<Pool> {
        let pool_of = store.pools(needs.scope);
        let n_pool = pool_of.iter().max().map_or(0, |last| last + 1);
        let pool = |pool| {
            let members = || (0..pool_of.len()).filter(|&layer| pool_of[layer] == pool);
            let (layers, slot_bytes) = (members().count(), needs.layout.slot_bytes(&store.slot_parts(members())));
            let most = store.n_expert() * layers;
            Pool { slot_bytes, most: if needs.keeps { most } else { most.min(n_used) }, layers }
        };
        (0..n_pool).map(pool).collect()
    }
}

/// Deals slots out of `bytes`: the same number to every layer, then one more for each from the first on while they last.
fn deal(pools: &[Pool], mut bytes: u64) -> Vec<usize> {
    let round: u64 = pools.iter().map(|p| p.slot_bytes * p.layers as u64).sum();
    let each = usize::try_from(bytes / round.max(1)).unwrap_or(usize::MAX);
    let mut slots: Vec<usize> = pools.iter().map(|p| each.saturating_mul(p.layers).min(p.most)).collect();
    bytes -= pools.iter().zip(&slots).map(|(p, n)| p.slot_bytes * *n as u64).sum::<u64>();
    for (p, n) in pools.iter().zip(&mut slots) {
        let more = (bytes / p.slot_bytes.max(1)).min(p.layers as u64).min((p.most - *n) as u64);
        bytes -= more * p.slot_bytes;
        *n += more as usize;
    }
    slots
}

/// The widest feed-forward block: experts, shared experts and dense blocks.
fn widest(gguf: &Gguf, c: &Config, store: &ExpertStore) -> usize {
    let experts = store.layers().iter().map(|l| l.n_ff_exp());
    let dense = (0..c.n_layer).flat_map(|il| {
        ["", "_shexp"].map(|s| gguf.tensor(&format!("blk.{il}.ffn_gate{s}.weight")).and_then(|t| t.dims.get(1)))
    });
    experts.chain(dense.flatten().map(|&n| n as usize)).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_budget_leaves_what_is_needed_and_one_byte_less_does_not() {
        for process in [0, 5 << 20, 16 << 20, 24 << 20, 40 << 20, 1 << 30] {
            for needed in [1, 19, 20, 999, 6_300_000, 30 << 20, 319 << 20, 4 << 30] {
                let budget = with_process(needed, process);
                assert!(budget - process_charge(budget, process) >= needed, "{needed} beside {process}");
                let less = budget - 1;
                assert!(
                    less.saturating_sub(process_charge(less, process)) < needed,
                    "{needed} beside {process}: not least"
                );
            }
        }
    }
}
