//! `hotset simulate --decompose`: where the gap between LRU and Belady lies, as tables.

use hotset::{
    simulate::decompose::{Decomposition, Part},
    trace::file::Header,
};

use super::out::printable;

/// The results as tables.
pub fn text(header: &Header, all: &[Decomposition]) -> String {
    let (model, used) = (printable(&header.model), header.n_expert_used);
    let mut text = format!("{model}: {} MoE layers, {used} of {} experts\n", header.n_layer, header.n_expert);
    if all.is_empty() {
        text += "\nnothing counts: no token was decoded in the trace\n";
    }
    for d in all {
        let [lru, policy, belady] = d.hit_rates.map(percent);
        text += &format!(
            "\n{} slots per layer ({}%), slots per {}: lru {lru}, {} {policy}, belady {belady}\n",
            d.slots_per_layer,
            percent(d.share).trim_start(),
            d.scope,
            d.policy
        );
        text += &format!("share of the gap between lru and belady in %\n{:14}{}\n", d.policy, won(d.gap_won));
        for window in &d.windows {
            let name = match window.tokens {
                0 => "counts alone".to_owned(),
                1 => "knows 1 token".to_owned(),
                n => format!("knows {n}"),
            };
            text += &format!("{name:14}{}\n", won(window.gap_won));
        }
        text += &parts("tokens since the last use", d.policy, &d.distances);
        text += &parts("MoE layer", d.policy, &d.layers);
    }
    text
}

/// A line for each part that was wanted: its share of all that was wanted, and those of it that were hit, in %.
fn parts(title: &str, policy: &str, parts: &[Part]) -> String {
    let width = policy.len().max(8);
    let mut text = format!("{title:26}{:>8}{:>8} {policy:>width$}{:>8}\n", "wanted", "lru", "belady");
    for part in parts.iter().filter(|part| part.wanted > 0.0) {
        let [lru, policy, belady] = part.hit.map(percent);
        text += &format!("{:26}{}{lru} {policy:>width$}{belady}\n", part.name, percent(part.wanted));
    }
    text
}

fn percent(share: f64) -> String {
    format!("{:>8.2}", share * 100.0)
}

fn won(share: Option<f64>) -> String {
    share.map_or("       -".to_owned(), |share| format!("{:>8.1}", share * 100.0))
}
