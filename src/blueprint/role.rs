//! What a tensor is for, by its name alone: for lists of files that need not run.

/// See the module. In the order of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "each variant is its own name")]
pub enum Role {
    Embedding,
    NGrams,
    Output,
    Attention,
    Norm,
    Bias,
    Router,
    ExpertGate,
    ExpertUp,
    ExpertGateUp,
    ExpertDown,
    SharedExpert,
    DenseFfn,
    Other,
}

impl Role {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Role::Embedding => "embedding",
            Role::NGrams => "n-gram table",
            Role::Output => "output",
            Role::Attention => "attention",
            Role::Norm => "norm",
            Role::Bias => "bias",
            Role::Router => "router",
            Role::ExpertGate => "expert gate",
            Role::ExpertUp => "expert up",
            Role::ExpertGateUp => "expert gate and up",
            Role::ExpertDown => "expert down",
            Role::SharedExpert => "shared expert",
            Role::DenseFfn => "dense feed-forward",
            Role::Other => "other",
        }
    }

    /// Whether it is for routed experts.
    pub fn is_routed_expert(self) -> bool {
        matches!(self, Role::ExpertGate | Role::ExpertUp | Role::ExpertGateUp | Role::ExpertDown)
    }

    /// Of the tensor of this name.
    pub fn of(name: &str) -> Self {
        let part = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')).map_or(name, |(_, part)| part);
        match part {
            "token_embd.weight" => Role::Embedding,
            "per_layer_token_embd.weight" => Role::NGrams,
            "output.weight" => Role::Output,
            p if p.ends_with(".bias") => Role::Bias,
            p if p.contains("norm") => Role::Norm,
            p if p.contains("_shexp") => Role::SharedExpert,
            p if p.starts_with("ffn_gate_inp") => Role::Router,
            p if p.starts_with("ffn_") => match expert_role(p) {
                Some("gate_up") => Role::ExpertGateUp,
                Some("gate") => Role::ExpertGate,
                Some("up") => Role::ExpertUp,
                Some(_) => Role::ExpertDown,
                None => Role::DenseFfn,
            },
            p if p.starts_with("attn_") => Role::Attention,
            _ => Role::Other,
        }
    }
}

/// `gate` of `ffn_gate_exps.weight` and of the old `ffn_gate.7.weight`; `None` for what is no routed expert's.
fn expert_role(part: &str) -> Option<&str> {
    let mut words = part.strip_prefix("ffn_")?.split('.');
    let (role, next) = (words.next()?, words.next()?);
    let single = ["gate", "up", "down"].contains(&role) && next.parse::<u16>().is_ok();
    role.strip_suffix("_exps").or(single.then_some(role))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_have_roles() {
        for (name, expected) in [
            ("token_embd.weight", "embedding"),
            ("per_layer_token_embd.weight", "n-gram table"),
            ("output.weight", "output"),
            ("output_norm.weight", "norm"),
            ("blk.3.attn_q.weight", "attention"),
            ("blk.3.attn_q.bias", "bias"),
            ("blk.3.attn_q_norm.weight", "norm"),
            ("blk.3.ffn_gate_inp.weight", "router"),
            ("blk.3.ffn_gate_inp_shexp.weight", "shared expert"),
            ("blk.3.ffn_gate_exps.weight", "expert gate"),
            ("blk.3.ffn_up.17.weight", "expert up"),
            ("blk.3.ffn_gate_up_exps.weight", "expert gate and up"),
            ("blk.3.ffn_down_exps.weight", "expert down"),
            ("blk.0.ffn_down.weight", "dense feed-forward"),
            ("rope_freqs.weight", "other"),
        ] {
            assert_eq!(Role::of(name).name(), expected, "{name}");
        }
    }
}
