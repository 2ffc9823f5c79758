//! How a memory budget is split. One place decides; everything that allocates is told.
//!
//! The budget covers the whole process: dense weights, KV cache, scratch, the program itself (its code, the tokenizer,
//! the heap's odds and ends), and expert slots, which get what the others leave. What is given is what the resident set
//! stays within, file pages of the program included; a budget that cannot be kept is refused with the smallest that can.

use crate::{
    Error, Result,
    backend::{AttentionBytes, AttentionShape},
    blueprint::{Blueprint, Compressed, Gqa, Heads},
    expert::{ExpertStore, Scope},
    human_bytes, human_bytes_up,
    io::Layout,
    model::{Scratch, ScratchShape, Sequence},
    policy::PolicyKind,
    prefetch::PrefetchKind,
    quant::GgmlType,
    retrieval::Retrieval,
};

/// What the program takes with any model beside its code: libraries, heap, stacks. `tests/habits.rs` holds processes to it.
const PROGRAM_BYTES: u64 = 3 << 19;

/// What it takes for each byte of the model's header: names and tokens as strings, the tokenizer's tables.
const HEADER_SHARE: u64 = 8;

/// What a process that holds more than that may still come to hold (indexes, stacks), and in which steps it is charged: a
/// plan must not differ from the one before because of a few pages.
const PROCESS_GRAIN: u64 = 2 << 20;

/// What the process is charged: `code_bytes` is the length of the program's code, `header_bytes` that of the model's header,
/// `resident_bytes` what the process holds already.
///
/// The same for every verb and every run, as long as it holds no more than the program with that model should.
pub fn process_bytes(code_bytes: u64, header_bytes: u64, resident_bytes: u64) -> u64 {
    let header = header_bytes.saturating_mul(HEADER_SHARE).min(u64::MAX / 64);
    let expected = PROGRAM_BYTES + code_bytes.min(u64::MAX / 64) + header;
    if resident_bytes + PROCESS_GRAIN / 2 <= expected {
        expected
    } else {
        (resident_bytes + PROCESS_GRAIN / 2).next_multiple_of(PROCESS_GRAIN)
    }
}

/// Scratch gets at most this share of what dense weights and KV cache leave, so that large batches do not eat the slots.
const SCRATCH_SHARE: u64 = 6;

/// Tokens of a batch where nobody asked: longer ones do not make the kernels faster.
const BATCH: usize = 512;

/// The same where experts are read: each is read once per batch, so that a batch twice as long reads half as much. Slots
/// are what decoding needs, so scratch for more than [`BATCH`] gets a smaller share.
const READ_BATCH: usize = 2048;
const READ_BATCH_SHARE: u64 = 16;

/// What the budget has to serve.
#[derive(Clone, Copy, Debug)]
pub struct Needs {
    /// Tokens of context.
    pub n_ctx: usize,
    /// Sequences of so much context each.
    pub parallel: usize,
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
    /// Bytes that the process is charged, see [`process_bytes`].
    pub process_bytes: u64,
    /// Compute threads.
    pub threads: usize,
    /// What the backend's attention works in.
    pub attention_bytes: AttentionBytes,
}

/// The split. Bytes but where the name says otherwise.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The whole.
    pub budget_bytes: u64,
    /// Dense weights.
    pub dense_bytes: u64,
    /// What all sequences keep of their tokens: KV caches and recurrent memories.
    pub kv_bytes: u64,
    /// Buffers of a forward pass, and what policy and prefetcher learn.
    pub scratch_bytes: u64,
    /// The program itself.
    pub process_bytes: u64,
    /// All expert slots.
    pub slots_bytes: u64,
    /// Tokens of context.
    pub n_ctx: usize,
    /// Sequences of so much context each.
    pub parallel: usize,
    /// Tokens of a batch.
    pub n_batch: usize,
    /// Rows of logits.
    pub n_logits: usize,
    /// Threads that compute.
    pub threads: usize,
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

/// What a model takes beside its experts' slots, by the tokens of a batch.
struct Costs<'a> {
    m: &'a Blueprint,
    needs: Needs,
    /// Sequences, each of which has a token in a batch.
    parallel: usize,
    n_layer: usize,
    n_expert: usize,
    dense_bytes: u64,
    /// What attention works in, what is learnt of past tokens, which tokens the sequences hold, and how one of them was
    /// before a prompt that needs several batches.
    whatever_the_batch: u64,
}

impl<'a> Costs<'a> {
    fn new(m: &'a Blueprint, store: &ExpertStore, needs: Needs) -> Result<Self> {
        // A window's rows are more where a batch is longer, so that this grows with it.
        Sequence::bytes(m, needs.kv, needs.n_ctx, 1)?;
        let (parallel, n_layer, n_expert) = (needs.parallel.max(1), store.layers().len(), store.n_expert());
        let attention = |gqa: &Gqa| {
            let Heads { n_head, k, v, .. } = gqa.heads;
            let shape = AttentionShape { n_head, head_k: k, head_v: v, n_ctx: needs.n_ctx };
            (needs.attention_bytes)(needs.threads, shape)
        };
        let compressed = |part: &Compressed| {
            let (head, n_ctx) = (part.head, part.most_rows(needs.n_ctx));
            let shape = AttentionShape { n_head: part.n_head, head_k: head, head_v: head, n_ctx };
            (needs.attention_bytes)(needs.threads, shape)
        };
        let attention = m.attentions().map(attention).chain(m.compressed().map(compressed)).max().unwrap_or(0);
        let undo = Sequence::checkpoint_bytes(m, needs.kv, needs.n_ctx, 1)?.min(u64::MAX / 64);
        let tokens =
            ((parallel as u64 + 1) * size_of::<u32>() as u64).saturating_mul(needs.n_ctx as u64).min(u64::MAX / 64);
        // One serves both.
        let past = match needs.policy.wants_retrieval() || needs.prefetch.wants_retrieval() {
            true => Retrieval::bytes(n_layer, n_expert),
            false => 0,
        };
        let whatever_the_batch = attention + past + tokens + undo;
        Ok(Self { m, needs, parallel, n_layer, n_expert, dense_bytes: m.resident_bytes(), whatever_the_batch })
    }

    /// Everything, with batches of `n_batch`.
    fn of(&self, n_batch: usize) -> u64 {
        self.fixed() + self.kv(n_batch) + self.scratch(n_batch)
    }

    /// Dense weights and the program.
    fn fixed(&self) -> u64 {
        self.dense_bytes.min(u64::MAX / 64) + self.needs.process_bytes.min(u64::MAX / 64)
    }

    /// What the sequences keep.
    fn kv(&self, n_batch: usize) -> u64 {
        let bytes = Sequence::bytes(self.m, self.needs.kv, self.needs.n_ctx, n_batch).unwrap_or(u64::MAX);
        bytes.saturating_mul(self.parallel as u64).min(u64::MAX / 64)
    }

    fn shape(&self, n_batch: usize) -> ScratchShape {
        let n_logits = if self.needs.all_logits { n_batch } else { self.parallel.min(n_batch) };
        ScratchShape { n_batch, threads: self.needs.threads, n_logits, n_ctx: self.needs.n_ctx }
    }

    fn scratch(&self, n_batch: usize) -> u64 {
        let learnt = self.needs.prefetch.bytes(self.n_layer, self.n_expert, self.m.n_expert_used(), n_batch);
        Scratch::bytes(self.m, self.shape(n_batch)) + learnt + self.whatever_the_batch
    }

    /// The longest batch of at most `most` tokens that the budget allows.
    fn n_batch(&self, most: usize, budget: u64, least_slots: u64) -> usize {
        let least = self.parallel;
        // Beside what one token at a time takes anyway.
        let fixed = self.fixed() + self.kv(least);
        let fits = |n: &usize| {
            let bytes = self.kv(*n) - self.kv(least) + self.scratch(*n);
            let share = if self.needs.n_batch.is_none() && *n > BATCH { READ_BATCH_SHARE } else { SCRATCH_SHARE };
            fixed + bytes + least_slots <= budget && bytes <= (budget - fixed) / share
        };
        let most = most.min(self.needs.n_ctx).max(least);
        let halves = std::iter::successors(Some(most), |n| (*n > least).then_some((n / 2).max(least)));
        halves.into_iter().find(fits).unwrap_or(least)
    }

    /// The sentence that refuses a budget.
    fn too_small(&self, budget: u64, smallest_bytes: u64, least_slots: u64) -> Error {
        let needs = &self.needs;
        let message = format!(
            "the memory budget of {} is too small: {} takes at least {smallest_bytes} bytes ({}: dense weights {}, KV \
             cache {}, scratch {}, {} slots {} {}, the program {})",
            human_bytes(budget),
            match self.parallel {
                1 => format!("a context of {} tokens", needs.n_ctx),
                n => format!("a context of {} tokens for each of {n} sequences", needs.n_ctx),
            },
            human_bytes_up(smallest_bytes),
            human_bytes(self.dense_bytes),
            human_bytes(self.kv(self.parallel)),
            human_bytes(self.scratch(self.parallel)),
            self.m.n_expert_used(),
            match needs.scope {
                Scope::Layer => "per layer",
                Scope::Size => "per size of experts",
                Scope::Global => "in all",
            },
            human_bytes(least_slots),
            human_bytes(needs.process_bytes),
        );
        Error::BudgetTooSmall { least: smallest_bytes, message }
    }
}

impl Plan {
    /// Splits `budget_bytes`; without one, takes all that the model can use.
    ///
    /// # Errors
    /// If the budget is too small; the sentence names the smallest that works.
    pub fn new(m: &Blueprint, store: &ExpertStore, needs: Needs, budget_bytes: Option<u64>) -> Result<Plan> {
        let costs = Costs::new(m, store, needs)?;
        let pools = Pool::all(store, needs, m.n_expert_used());
        let least_slots = pools.iter().map(|p| p.slot_bytes * p.least as u64).sum::<u64>();
        let all_slots = pools.iter().map(|p| p.slot_bytes * p.most as u64).sum::<u64>();
        let smallest_bytes = costs.of(costs.parallel) + least_slots;
        let full_batch = needs.n_batch.unwrap_or(BATCH).min(needs.n_ctx).max(costs.parallel);
        let full_bytes = costs.of(full_batch) + all_slots;
        let budget = budget_bytes.unwrap_or(full_bytes).min(u64::MAX / 2);
        if budget < smallest_bytes {
            return Err(costs.too_small(budget, smallest_bytes, least_slots));
        }
        let most = needs.n_batch.unwrap_or(if budget < full_bytes { READ_BATCH } else { BATCH });
        let n_batch = costs.n_batch(most, budget, least_slots);
        let slots = deal(&pools, budget - costs.of(n_batch));
        Ok(Plan {
            budget_bytes: budget,
            dense_bytes: costs.dense_bytes,
            kv_bytes: costs.kv(n_batch),
            scratch_bytes: costs.scratch(n_batch),
            process_bytes: needs.process_bytes,
            slots_bytes: pools.iter().zip(&slots).map(|(p, n)| p.slot_bytes * *n as u64).sum(),
            n_ctx: needs.n_ctx,
            parallel: costs.parallel,
            n_batch,
            n_logits: costs.shape(n_batch).n_logits,
            threads: needs.threads,
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
            return Err(Error::invalid(format!(
                "the memory budget of a running session must be from {least} to {most} bytes, not {budget_bytes}"
            )));
        }
        Ok(deal(&self.pools, budget_bytes - (self.budget_bytes - self.room())))
    }

    /// What the budget leaves for slots.
    fn room(&self) -> u64 {
        self.budget_bytes - self.dense_bytes - self.kv_bytes - self.process_bytes - self.scratch_bytes
    }

    /// The shape of the scratch buffers.
    pub fn scratch(&self) -> ScratchShape {
        ScratchShape { n_batch: self.n_batch, threads: self.threads, n_logits: self.n_logits, n_ctx: self.n_ctx }
    }
}

/// Slots of a device's memory for each MoE layer, whose experts take `slot_bytes[i]` there: as many for every layer as fit into
/// `bytes`, at most `n_expert`.
pub fn device_slots(slot_bytes: &[u64], n_expert: usize, bytes: u64) -> Vec<usize> {
    let pool = |&slot_bytes: &u64| Pool { slot_bytes, least: 0, most: n_expert, layers: 1 };
    deal(&slot_bytes.iter().map(pool).collect::<Vec<_>>(), bytes)
}

/// A pool of slots.
#[derive(Clone, Copy, Debug)]
struct Pool {
    slot_bytes: u64,
    /// Slots that one token needs.
    least: usize,
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
            let least = n_used.min(most);
            Pool { slot_bytes, least, most: if needs.keeps { most } else { least }, layers }
        };
        (0..n_pool).map(pool).collect()
    }

    /// Its slots where every layer gets `each`.
    fn slots(&self, each: usize) -> usize {
        each.saturating_mul(self.layers).max(self.least).min(self.most)
    }
}

/// Deals slots out of `bytes`: to each pool what a token needs, the same number to every layer, then one more for each from the
/// first on while they last.
fn deal(pools: &[Pool], mut bytes: u64) -> Vec<usize> {
    let with = |each: u64| pools.iter().map(move |p| p.slots(usize::try_from(each).unwrap_or(usize::MAX)));
    let cost = |each: u64| pools.iter().zip(with(each)).map(|(p, n)| p.slot_bytes * n as u64).sum::<u64>();
    // The most for every layer that fits. Pools of few layers may need more than that, and pools of many have less then.
    let round: u64 = pools.iter().map(|p| p.slot_bytes * p.layers as u64).sum();
    let (mut fits, mut too_many) = (0, bytes / round.max(1) + 1);
    while fits + 1 < too_many {
        let each = fits + (too_many - fits) / 2;
        if cost(each) <= bytes { fits = each } else { too_many = each }
    }
    let mut slots: Vec<usize> = with(fits).collect();
    bytes -= cost(fits);
    for (p, n) in pools.iter().zip(&mut slots) {
        let more = (bytes / p.slot_bytes.max(1)).min(p.layers as u64).min((p.most - *n) as u64);
        bytes -= more * p.slot_bytes;
        *n += more as usize;
    }
    slots
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Layers of one size may be few, those of another many: a token needs as many slots for either.
    #[test]
    fn every_pool_has_the_slots_that_a_token_needs() {
        for (n_used, layers, sizes) in
            [(2, [3, 4], [5, 3]), (8, [1, 47], [100, 1]), (8, [47, 1], [1, 100]), (4, [2, 2], [7, 7])]
        {
            let pool = |i: usize| Pool { slot_bytes: sizes[i], least: n_used, most: 64 * layers[i], layers: layers[i] };
            let pools = [pool(0), pool(1)];
            let cost = |slots: &[usize]| slots.iter().zip(&sizes).map(|(n, size)| *n as u64 * size).sum::<u64>();
            let (least, most) = (cost(&[n_used, n_used]), cost(&[64 * layers[0], 64 * layers[1]]));
            for bytes in least..=most {
                let slots = deal(&pools, bytes);
                assert!(slots.iter().all(|n| *n >= n_used) && cost(&slots) <= bytes, "{slots:?} of {bytes} bytes");
            }
            assert_eq!(deal(&pools, least), [n_used, n_used]);
            assert_eq!(deal(&pools, most), [64 * layers[0], 64 * layers[1]]);
        }
    }

    #[test]
    fn the_program_is_charged_by_the_header_until_it_holds_more() {
        let charged = |held| process_bytes(7 << 20, 300 << 10, held);
        let expected = charged(0);
        assert!((0..=expected - PROCESS_GRAIN / 2).step_by(100_000).all(|held| charged(held) == expected));
        for held in (expected..10 * expected).step_by(777_777) {
            assert!(charged(held) >= held + PROCESS_GRAIN / 2 && charged(held) < held + 2 * PROCESS_GRAIN);
        }
        assert!(process_bytes(u64::MAX, u64::MAX, 0) < u64::MAX / 16);
    }
}
