//! A layer's experts that a device holds: started before the CPU's, waited for after them. Where the device fails, the CPU
//! computes what is left, and everything from then on.

use super::Moe;
use crate::{
    Error,
    backend::{Backend, Pair},
    gpu::Job,
    id::ExpertId,
    model::cx::Cx,
    trace::{LayerEvent, Phase},
};

impl Moe {
    /// Starts the experts of the last request that are on the device.
    pub(super) fn start_on_device<B: Backend>(&self, cx: &mut Cx<'_, B>) {
        let (experts, s) = (&*cx.experts, &*cx.s);
        let (Some(tier), Some(vram)) = (&mut cx.tier, experts.vram()) else { return };
        if vram.hits().is_empty() {
            return;
        }
        let began = experts.now_ns();
        let job = |id: &ExpertId| {
            let (expert, slot) = (usize::from(id.expert), vram.slot(*id).expect("a hit has a slot"));
            let range = s.moe.starts[expert] as usize..s.moe.starts[expert + 1] as usize;
            let pairs: &[Pair] = &s.moe.pairs[range];
            Job { address: tier.address(self.index, slot), scale: self.extras(expert).scale, pairs }
        };
        let jobs: Vec<_> = vram.hits().iter().map(job).collect();
        let started = tier.start(self.index, &s.norm, &jobs);
        cx.device_ns = experts.now_ns() - began;
        if let Err(e) = started {
            self.compute_without(cx, e, &[]);
        }
    }

    /// Begins to copy those of the experts in memory that the last request chose.
    pub(super) fn upload<B: Backend>(&self, cx: &mut Cx<'_, B>) {
        let Cx { b, experts, tier: Some(tier), s, device_ns, .. } = cx else { return };
        for &id in &s.moe.ready {
            let Some(slot) = experts.promote(id) else { continue };
            let began = experts.now_ns();
            let bias = self.extras(usize::from(id.expert)).bias;
            let copied = tier.upload(*b, (self.index, slot), &experts.get(id), bias);
            *device_ns += experts.now_ns() - began;
            if let Err(e) = copied {
                // The event goes on; what is on the device is found out to be gone when it is waited for.
                tier.turn_off(broken(&e));
            }
        }
    }

    /// Waits for the device. False if it failed and there are more experts to wait for.
    pub(super) fn finish_on_device<B: Backend>(&self, cx: &mut Cx<'_, B>) -> bool {
        let phase = cx.phase();
        let Cx { experts, tier, s, .. } = cx;
        let (Some(tier), Some(vram)) = (tier, experts.vram()) else { return true };
        let hits = vram.hits().len();
        let began = experts.now_ns();
        let finished = match tier.off() {
            None => tier.finish(&mut s.moe.out),
            Some(_) => tier.finish(&mut s.moe.out).and(Err(Error::invalid("a copy failed"))),
        };
        if let Err(e) = finished {
            let is_hit = |id: &ExpertId| vram.hits().contains(id);
            let done: Vec<_> = s.moe.routed.iter().map(|r| r.id).filter(|id| !is_hit(id)).collect();
            self.compute_without(cx, e, &done);
            return hits == 0;
        }
        cx.device_ns += experts.now_ns() - began;
        if phase == Phase::Decode && hits > 0 && !tier.device_took(hits, std::mem::take(&mut cx.device_ns)) {
            experts.stop_vram();
            cx.tier = None;
        }
        true
    }

    /// Wants all of the event's experts but those in `done` from memory, and uses the device no longer.
    fn compute_without<B: Backend>(&self, cx: &mut Cx<'_, B>, error: Error, done: &[ExpertId]) {
        if let Some(tier) = cx.tier.take()
            && tier.off().is_none()
        {
            tier.turn_off(broken(&error));
        }
        let event = LayerEvent {
            phase: cx.phase(),
            first_token: cx.first_pos() as u32,
            n_tokens: cx.len() as u32,
            layer: self.index,
            routed: &cx.s.moe.routed,
            lookahead: &[],
        };
        cx.experts.leave_vram(event, done);
    }
}

fn broken(e: &Error) -> String {
    format!("{e}: experts are computed on the CPU from now on")
}
