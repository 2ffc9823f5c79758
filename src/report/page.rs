//! The page: head, contract, figures. One file without scripts, fonts or pictures from elsewhere, and a content security
//! policy that lets a browser load none.

use super::{Made, Report, Run, Traced, curves, html::escape, timeline};
use crate::{expert::Scope, human_bytes};

const STYLE: &str = include_str!("page.css");

impl Report {
    /// See the module. The source is well-formed XML too.
    pub fn html(&self) -> String {
        let title = match (&self.trace, &self.run) {
            (Some(trace), _) => trace.header.model.clone(),
            (None, Some(run)) => run.model.clone(),
            (None, None) => "nothing".to_owned(),
        };
        let title = escape(&title);
        let mut body = format!("<header><h1>{title} <small>how its experts are cached</small></h1>\n");
        let of_trace = self.trace.iter().flat_map(curves::summary);
        for sentence in of_trace.chain(self.run.as_ref().map(timeline::summary)) {
            body += &format!("<p>{}</p>\n", escape(&sentence));
        }
        body += "</header>\n";
        if let Some(trace) = &self.trace {
            body += &section("Simulated on the trace", &curves::figures(trace));
        }
        if let Some(run) = &self.run {
            let figures = timeline::figures(run);
            if !figures.is_empty() {
                body += &section("Measured in the run", &figures);
            }
        }
        // Folded below the first figure; without figures it is all that there is.
        let made = contract(&self.made, self.trace.as_ref(), self.run.as_ref());
        body.insert_str(body.find("</figure>").unwrap_or(body.len()), &made);
        format!(
            "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"/>\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
             <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\"/>\n\
             <meta name=\"color-scheme\" content=\"light dark\"/>\n\
             <title>{title}: how its experts are cached</title>\n<style>\n{STYLE}</style></head>\n<body><main>\n{body}</main></body></html>\n"
        )
    }
}

fn section(title: &str, figures: &str) -> String {
    format!("<section><h2>{}</h2>\n<div class=\"figures\">\n{figures}</div></section>\n", escape(title))
}

/// A name and what there is to say.
type Fact = (&'static str, String);

/// How the figures came about: without this they compare with nothing.
fn contract(made: &Made, trace: Option<&Traced>, run: Option<&Run>) -> String {
    let report = ("report", format!("hotset {}, {}, on {}", made.version, made.date, made.machine));
    let facts =
        std::iter::once(report).chain(trace.into_iter().flat_map(of_trace)).chain(run.into_iter().flat_map(of_run));
    let fact = |(name, text): Fact| format!("<dt>{name}</dt><dd>{}</dd>\n", escape(&text));
    format!("<details><summary>How it was made</summary><dl>\n{}</dl></details>\n", facts.map(fact).collect::<String>())
}

fn of_trace(t: &Traced) -> Vec<Fact> {
    let mut facts = Vec::new();
    let h = &t.header;
    facts.push(("trace", format!("{} (FNV-1a {}), {}", t.file, t.hash, h.source)));
    facts.push((
        "traced model",
        format!(
            "{}{}: {} MoE layers, {} of {} experts",
            h.model,
            if h.model_id.is_empty() { String::new() } else { format!(" (tensor table {})", h.model_id) },
            h.n_layer,
            h.n_expert_used,
            h.n_expert
        ),
    ));
    facts.push((
        "tokens",
        format!(
            "{} decoded, {} of prompts; from {} text{}",
            t.routing.decode_tokens,
            t.routing.prompt_tokens,
            h.prompts.len(),
            if h.prompts.len() == 1 { "" } else { "s" }
        ),
    ));
    if let Some(damage) = &t.routing.damage {
        facts.push(("damage", damage.clone()));
    }
    let computing = match t.compute_us {
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0] => "computing takes no time".to_owned(),
        [layer, layer_wait, shared, hand_out, expert, wake, token] => format!(
            "computing takes {layer} µs per layer before its experts are known and {layer_wait} µs more for each millisecond that \
                 was waited for the layer before, {shared} µs after that, {hand_out} µs \
                 and {expert} µs per expert for those that are computed together, {wake} µs more after a wait, and {token} µs \
                 a token besides"
        ),
    };
    let warmup = if t.warmup == 0 { String::new() } else { format!(", without the first {} tokens", t.warmup) };
    let depth = if t.drive_depth == 1 { String::new() } else { format!(", {} reads at a time", t.drive_depth) };
    facts.push((
        "simulated",
        format!(
            "the engine’s own cache, empty at the start, on a drive of {} µs and {} MB/s{depth}; {computing}; an expert \
                 counts once per layer and token; decoding only{warmup}",
            t.drive_latency_us, t.drive_bytes_per_us
        ),
    ));
    facts
}

fn of_run(r: &Run) -> Vec<Fact> {
    let mut facts = Vec::new();
    facts.push(("run", format!("hotset {}, {}, on {}", r.version, r.date, r.machine)));
    facts.push(("run’s model", format!("{} (tensor table {})", r.model, r.model_id)));
    let peak = r.peak_rss_bytes.map_or("not known".to_owned(), human_bytes);
    facts.push(("memory", format!("budget {}, peak resident set {peak}", human_bytes(r.budget_bytes))));
    let reason = r.io_reason.as_ref().map_or(String::new(), |reason| format!(" ({reason})"));
    facts.push((
        "ran",
        format!(
            "reads {} {} at a time{reason}; policy {}, {}; prefetch {}; {} on {} threads",
            r.io,
            r.io_depth,
            r.policy,
            Scope::of_slots(&r.scope),
            r.prefetch,
            r.isa,
            r.threads
        ),
    ));
    facts.push((
        "read",
        format!(
            "{} in all; {} prefetched, {} of them used, {} wasted",
            human_bytes(r.bytes_read),
            r.prefetches,
            r.prefetch_useful,
            r.prefetch_wasted
        ),
    ));
    facts
}
