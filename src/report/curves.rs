//! The page's figures of a trace: miss-ratio curves, what each policy wins, heat maps of layers and experts, ranks.

use super::{
    Group, LayerCounts, Traced,
    axis::Axis,
    chart::{Chart, X, Y},
    heat::{self, Heat},
    html::{figure, key, table},
    miss_ratio,
    routing::Routing,
};
use crate::{policy::PolicyKind, simulate::Row};

/// Of all figures of a trace, in the page's order.
pub fn figures(trace: &Traced) -> String {
    let n_expert = trace.header.n_expert;
    let mut out = String::new();
    for group in &trace.groups() {
        let title = group.title();
        out += &misses(trace, group, &title);
        out += &won(group, &title);
        out += &numbers(group, &title);
    }
    let (rows, note) = layer_rates(trace);
    if !rows.is_empty() {
        out += &layers(&rows, n_expert, &note);
    }
    out += &popularity(&trace.routing);
    if !trace.routing.ranks.is_empty() {
        out += &ranks(&trace.routing, trace.header.n_expert_used);
    }
    out
}

/// The class that gives a policy's curve its colour and its dashes; the same in every figure.
fn class(policy: &str, group: &Group<'_>) -> String {
    let named = [
        (PolicyKind::default().name(), "default"),
        ("lru", "lru"),
        ("belady", "belady"),
        ("belady-bypass", "bypass"),
        ("static-oracle", "static"),
        ("random", "random"),
    ];
    if let Some((_, class)) = named.iter().find(|(name, _)| *name == policy) {
        return format!("p-{class}");
    }
    let others = group.policies.iter().map(|(name, _)| *name).filter(|p| named.iter().all(|(name, _)| name != p));
    format!("p-{}", others.take_while(|p| *p != policy).count() % 6)
}

/// In this order the default's curve lies on top.
fn default_last<'a, 'b: 'a>(
    policies: impl IntoIterator<Item = &'a (&'static str, Vec<&'b Row>)>,
) -> Vec<&'a (&'static str, Vec<&'b Row>)> {
    let mut policies: Vec<_> = policies.into_iter().collect();
    policies.sort_by_key(|(name, _)| *name == PolicyKind::default().name());
    policies
}

fn percent(row: &Row) -> f64 {
    row.share * 100.0
}

/// The curves' names with samples, most misses first, as the curves lie.
fn names(group: &Group<'_>, leave_out: &[&str]) -> String {
    let mean = |rows: &[&Row]| rows.iter().filter_map(|r| miss_ratio(r)).sum::<f64>() / rows.len() as f64;
    let policies = group.policies.iter().filter(|(name, _)| !leave_out.contains(name));
    let mut by_misses: Vec<_> = policies.map(|(name, rows)| (mean(rows), class(name, group), *name)).collect();
    by_misses.sort_by(|a, b| b.0.total_cmp(&a.0));
    key("line", by_misses.iter().map(|(_, class, name)| (class.as_str(), *name)))
}

/// What each policy's points are called while a pointer is over them, and the names of the two curves that matter most, where
/// they lie furthest apart: the default policy's and the optimum's. `value` is a point's height.
fn explain(chart: &mut Chart, group: &Group<'_>, value: &dyn Fn(&Row) -> Option<f64>) {
    for (policy, rows) in default_last(&group.policies) {
        for (row, y) in rows.iter().filter_map(|row| Some((row, value(row)?))) {
            let rate = row.hit_rate.map_or(0.0, |rate| rate * 100.0);
            let text =
                format!("{policy}, {} slots per layer ({:.1} %): {rate:.1} % hit", row.slots_per_layer, percent(row));
            chart.hover((percent(row), y), &text);
        }
    }
    let name = PolicyKind::default().name();
    let (own, best) = (group.by_slots(name), group.by_slots("belady"));
    let pairs = own.iter().filter_map(|(n, row)| Some((percent(row), value(row)?, value(best.get(n)?)?)));
    // Right of that there is no room for lines to the names.
    let pairs = pairs.filter(|(x, ..)| *x <= 50.0);
    let apart = |(_, own, best): &(f64, f64, f64)| (own - best).abs();
    if let Some((x, own, best)) = pairs.max_by(|a, b| apart(a).total_cmp(&apart(b))) {
        chart.name("p-default", (x, own), &format!("{name}, the default"), usize::from(own < best));
        chart.name("p-belady", (x, best), "belady, best possible", usize::from(own >= best));
    }
}

fn misses(trace: &Traced, group: &Group<'_>, title: &str) -> String {
    let ratio = |r: &Row| miss_ratio(r).map(|m| m * 100.0);
    let most = group.policies.iter().flat_map(|(_, rows)| rows.iter().filter_map(|r| ratio(r))).fold(0.0, f64::max);
    let header = &trace.header;
    let x_name = format!("slots, % of the {} experts of a layer", header.n_expert);
    let about = format!("Miss ratio of each policy against the number of slots, {title}");
    let (x, y) = (Axis::exact(0.0, 100.0, X.0, X.1), Axis::new(0.0, most, Y.0, Y.1));
    let mut chart = Chart::new(&about, x, &x_name, y, "misses, % of wanted experts");
    let cliff = header.n_expert_used as f64 * 100.0 / header.n_expert as f64;
    let why = format!("{} slots per layer:", header.n_expert_used);
    chart.cliff(cliff, &[&why, "one token’s experts"]);
    for (policy, rows) in default_last(&group.policies) {
        let points: Vec<_> = rows.iter().map(|r| (percent(r), ratio(r))).collect();
        chart.line(&class(policy, group), &points);
    }
    explain(&mut chart, group, &ratio);
    let note = "Experts that had to be read, or whose read was late, of those that decoding wanted. Left of the dashed \
                line a layer cannot hold the experts of one token: nothing can run there, and one LRU pool for all \
                layers that is so small hits nothing. belady knows the future; no policy of this cache can be below it.";
    figure(&format!("Miss ratio: {title}"), &chart.finish(), &names(group, &[]), note)
}

fn won(group: &Group<'_>, title: &str) -> String {
    let lru = group.by_slots("lru");
    let left_out = ["lru", "belady-bypass", "static-oracle", "random"];
    let gain = |r: &Row| Some((r.hit_rate? - lru.get(&r.slots_per_layer)?.hit_rate?) * 100.0);
    let policies: Vec<_> = group.policies.iter().filter(|(name, _)| !left_out.contains(name)).collect();
    let gains: Vec<f64> = policies.iter().flat_map(|(_, rows)| rows.iter().filter_map(|r| gain(r))).collect();
    if gains.is_empty() {
        return String::new();
    }
    let (lo, hi) = gains.iter().fold((0.0, 0.0), |(lo, hi): (f64, f64), &g| (lo.min(g), hi.max(g)));
    let about = format!("Hit rate of each policy above that of LRU against the number of slots, {title}");
    let (x, y) = (Axis::exact(0.0, 100.0, X.0, X.1), Axis::new(lo, hi, Y.0, Y.1));
    let mut chart = Chart::new(&about, x, "slots, % of the experts of a layer", y, "hit rate above LRU’s, points");
    chart.line("zero", &[(0.0, Some(0.0)), (100.0, Some(0.0))]);
    for (policy, rows) in default_last(policies.iter().copied()) {
        let points: Vec<_> = rows.iter().map(|r| (percent(r), gain(r))).collect();
        chart.line(&class(policy, group), &points);
    }
    let drawn =
        Group { policies: policies.into_iter().cloned().collect(), scope: group.scope, prefetch: group.prefetch };
    explain(&mut chart, &drawn, &gain);
    let note =
        "A point is one wanted expert in a hundred. The space below belady is what a better policy could still win.";
    figure(&format!("Won over LRU: {title}"), &chart.finish(), &names(group, &left_out), note)
}

fn numbers(group: &Group<'_>, title: &str) -> String {
    let Some((_, first)) = group.policies.first() else { return String::new() };
    let mut rows = vec![vec!["slots per layer".to_owned()], vec!["share".to_owned()]];
    rows[0].extend(first.iter().map(|r| r.slots_per_layer.to_string()));
    rows[1].extend(first.iter().map(|r| format!("{:.1} %", percent(r))));
    if first.iter().any(|r| r.budget_bytes.is_some()) {
        let bytes = |r: &&Row| r.budget_bytes.map_or("–".to_owned(), crate::human_bytes);
        rows.push(std::iter::once("all slots".to_owned()).chain(first.iter().map(bytes)).collect());
    }
    for (policy, of) in &group.policies {
        let rate = |r: &&Row| r.hit_rate.map_or("–".to_owned(), |rate| format!("{:.2}", rate * 100.0));
        rows.push(std::iter::once((*policy).to_owned()).chain(of.iter().map(rate)).collect());
    }
    table(&format!("Hit rates in %: {title}"), &rows)
}

/// Of the engine's default policy, or else of the first, in the first group: each size's counts, and whose they are.
fn layer_rates(trace: &Traced) -> (Vec<&LayerCounts>, String) {
    let Some(first) = trace.layers.first() else { return (Vec::new(), String::new()) };
    let default = trace.layers.iter().any(|l| l.policy == PolicyKind::default().name());
    let policy = if default { PolicyKind::default().name() } else { first.policy };
    let like = |l: &&LayerCounts| (l.policy, l.scope, l.prefetch) == (policy, first.scope, first.prefetch);
    let note = format!(
        "Of the experts that decoding wanted in a layer, the share that was in a slot: {policy}, slots per {}, \
                        prefetch {}.",
        first.scope, first.prefetch
    );
    (trace.layers.iter().filter(like).collect(), note)
}

fn layers(sizes: &[&LayerCounts], n_expert: usize, note: &str) -> String {
    let rate = |c: &LayerCounts, i: usize| {
        let all = c.hit[i] + c.late[i] + c.miss[i];
        (all > 0).then(|| c.hit[i] as f64 / all as f64)
    };
    let n_layer = sizes.first().map_or(0, |c| c.hit.len());
    let picture = heat::svg(&Heat {
        about: "Hit rate of each layer at each number of slots",
        cells: (0..n_layer).map(|i| sizes.iter().map(|c| rate(c, i)).collect()).collect(),
        // Steps of a tenth from 20 % to 90 %.
        level: |rate| (rate * 10.0 - 1.0).clamp(0.0, 8.0) as usize,
        words: |rate| format!("{:.1} % hit", rate * 100.0),
        x_name: &format!("slots per layer ({n_expert} experts)"),
        x_labels: sizes.iter().map(|c| c.slots_per_layer.to_string()).collect(),
        y_name: "MoE layer",
    });
    let names = ["< 20 %", "20–30", "30–40", "40–50", "50–60", "60–70", "70–80", "80–90", "≥ 90 %"];
    figure("Hits layer by layer", &picture, &heat::scale(&names), note)
}

fn popularity(routing: &Routing) -> String {
    let over_mean = |uses: &Vec<u64>| {
        let mean = uses.iter().sum::<u64>() as f64 / uses.len() as f64;
        uses.iter().map(|&n| (mean > 0.0).then(|| n as f64 / mean)).collect()
    };
    let n_expert = routing.uses.first().map_or(0, Vec::len);
    let picture = heat::svg(&Heat {
        about: "How often decoding used each expert of each layer",
        cells: routing.uses.iter().map(over_mean).collect(),
        // Never, and steps of a factor of two from an eighth of the mean on.
        level: |times| if times == 0.0 { 0 } else { (times.log2().floor() + 5.0).clamp(1.0, 8.0) as usize },
        words: |times| format!("{times:.2} × the mean"),
        x_name: "expert",
        x_labels: (0..n_expert).map(|e| e.to_string()).collect(),
        y_name: "MoE layer",
    });
    let names = ["never", "< ⅛", "⅛–¼", "¼–½", "½–1", "1–2", "2–4", "4–8", "≥ 8 × the mean"];
    let tokens = routing.decode_tokens;
    let note = format!("How often each expert was used in {tokens} decoded tokens, over the mean of its layer.");
    figure("Popularity of experts", &picture, &heat::scale(&names), &note)
}

fn ranks(routing: &Routing, used: usize) -> String {
    let n = routing.ranks.len();
    let x = Axis::exact(1.0, n as f64, X.0, X.1).whole();
    let y = Axis::new(0.0, 100.0, Y.0, Y.1);
    let mut chart = Chart::new("Precision and recall of the lookahead by rank", x, "rank", y, "%");
    let line = |of: fn(&super::routing::Rank) -> f64| -> Vec<(f64, Option<f64>)> {
        routing.ranks.iter().enumerate().map(|(i, r)| ((i + 1) as f64, Some(of(r) * 100.0))).collect()
    };
    chart.line("p-default", &line(|r| r.recall));
    chart.line("p-lru", &line(|r| r.precision));
    let entries = [("p-default", "recall up to this rank"), ("p-lru", "precision of this rank")];
    let at = used.min(n);
    let note = format!(
        "The previous layer’s guess of a layer’s experts, best first. Of the {used} experts that a token uses, the best \
         {at} ranks name {:.1} %. Recall: of the experts used, the share that has this rank or a better one. Precision: \
         how often an expert of this rank was used.",
        routing.ranks[at - 1].recall * 100.0
    );
    figure("How good the lookahead is", &chart.finish(), &key("line", entries), &note)
}

/// What the default policy gets at the size nearest to a quarter of the experts, beside the optimum; and exactly which size
/// and policy that is. Empty without such rows.
pub fn summary(trace: &Traced) -> Vec<String> {
    let groups = trace.groups();
    let Some(group) = groups.first() else { return Vec::new() };
    let n_expert = trace.header.n_expert;
    let near = |slots: &&usize| (4 * **slots).abs_diff(n_expert);
    let of = |policy: &str| group.by_slots(policy);
    let (lru, default, best) = (of("lru"), of(PolicyKind::default().name()), of("belady"));
    let Some((slots, row)) = default.keys().min_by_key(near).and_then(|n| Some((*n, *default.get(n)?))) else {
        return Vec::new();
    };
    let rate = |r: Option<&&Row>| r.and_then(|r| r.hit_rate).map(|rate| format!("{:.0}\u{a0}%", rate * 100.0));
    let Some(own) = rate(Some(&row)) else { return Vec::new() };
    let size = if (24.0..=26.0).contains(&percent(row)) {
        "a quarter".to_owned()
    } else {
        format!("{:.0}\u{a0}%", percent(row))
    };
    let best = rate(best.get(&slots)).map_or(String::new(), |best| format!("; the best possible is {best}"));
    let lru = rate(lru.get(&slots)).map_or(String::new(), |lru| format!("; LRU: {lru}"));
    vec![
        format!("At {size} of the experts’ memory, {own} of expert reads hit{best}."),
        format!("{slots} of {n_expert} slots per layer, policy {}, decoding{lru}.", row.policy),
    ]
}
