//! Who says how many slots may be in use, and when that is asked.
//!
//! A machine that runs out of memory does not wait for the end of a layer. So the question is put wherever the control
//! thread comes by: at requests and hand-outs, in the middle of attention, and while it waits for a drive.

use super::ExpertCache;

/// Says how many slots may be in use. It is asked some hundred times a token, so most answers must be cheap; and it owns
/// clock and machine, of which nobody here knows.
pub trait Allowance: Send {
    /// The slots that each pool may use from now on, where that is to change. See [`ExpertCache::resize`].
    fn check(&mut self) -> Option<Vec<usize>>;
}

impl ExpertCache {
    /// From now on uses as many slots as `allowance` says, within those that the cache was made with; `None`: as many as it
    /// uses now.
    pub fn follow(&mut self, allowance: Option<Box<dyn Allowance>>) {
        self.allowance = allowance;
    }

    /// Gives slots back, or takes them into use again, where the allowance says so.
    pub(in crate::expert) fn obey(&mut self) {
        if let Some(slots) = self.allowance.as_mut().and_then(|allowance| allowance.check()) {
            self.resize(&slots);
        }
    }
}
