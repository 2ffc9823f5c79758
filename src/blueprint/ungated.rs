//! What an architecture's file reads of feed-forward networks without a gate: `down(act(up x))`.

use super::{Act, Choice, ExpertSet, Gated, LayerReader, Moe, Part, Shared};
use crate::Result;

impl LayerReader<'_, '_> {
    /// Experts without a gate, of which a bias decides which are chosen, and one that every token uses. `latent`: width of
    /// what they read and give, between `ffn_latent_down` and `ffn_latent_up`, where that is not the residual stream's.
    ///
    /// # Errors
    /// A tensor that is missing or does not fit.
    pub fn ungated_moe(&self, act: Act, choice: Choice, latent: Option<usize>) -> Result<Part> {
        let n_embd = self.m.n_embd;
        let experts = ExpertSet::find(self.m, self.layer, latent.unwrap_or(n_embd), false)?;
        let moe = self.biased(self.moe_of(choice, experts)?)?;
        let latent = match latent {
            Some(n) => Some([self.linear("ffn_latent_down", n_embd, n)?, self.linear("ffn_latent_up", n, n_embd)?]),
            None => None,
        };
        let shared = Some(Shared { ffn: self.ungated("_shexp", act)?, gate: None });
        Ok(Part::moe(Moe { act, latent, shared, ..moe }))
    }

    /// `ffn_upX` and `ffn_downX` for the suffix X. The hidden width is the tensors' own.
    fn ungated(&self, suffix: &str, act: Act) -> Result<Gated> {
        let name = |role: &str| self.name(&format!("ffn_{role}{suffix}.weight"));
        let n_ff = self.m.gguf().require(&name("up"))?.dims.get(1).map_or(0, |&d| d as usize);
        let up = self.m.matrix(&name("up"), self.m.n_embd, n_ff)?;
        Ok(Gated { act, gate: None, up, down: self.m.matrix(&name("down"), n_ff, self.m.n_embd)? })
    }
}
