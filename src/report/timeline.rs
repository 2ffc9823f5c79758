//! The page's figures of a live run: time, hits and bytes from token to token, and hits layer by layer.

use super::{
    axis::Axis,
    chart::{Chart, X, Y},
    html::{figure, key},
    run::Run,
    series::Point,
};

/// Columns that are drawn at most.
const COLUMNS: usize = 180;

/// What hits and the like look like.
const COUNTS: [(&str, &str); 3] = [("s-hit", "hit"), ("s-late", "late"), ("s-miss", "missed")];

/// Of all figures of a run, in the page's order.
pub fn figures(run: &Run) -> String {
    if run.decode.tokens == 0 {
        return String::new();
    }
    let coarse = run.tokens.coarse(COLUMNS);
    let mut edges = vec![0.0];
    coarse.iter().for_each(|(n, _)| edges.push(edges.last().expect("has one") + *n as f64));
    let mean = match coarse.first() {
        Some((n, _)) if *n > 1 => format!(" Each column is the mean of {n} tokens."),
        _ => String::new(),
    };
    time(&coarse, &edges, &mean) + &hits(&coarse, &edges, &mean) + &bytes(&coarse, &edges, &mean) + &layers(run)
}

/// Which tokens a column is of.
fn tokens(edges: &[f64], i: usize) -> String {
    match (edges[i] as u64 + 1, edges[i + 1] as u64) {
        (first, last) if first < last => format!("tokens {first} to {last}"),
        (_, last) => format!("token {last}"),
    }
}

/// Shares in words.
fn words([hit, late, miss]: &[f64; 3]) -> String {
    format!("{hit:.1} % hit, {late:.1} % late, {miss:.1} % missed")
}

fn x(edges: &[f64]) -> Axis {
    Axis::exact(0.0, *edges.last().expect("has one"), X.0, X.1).whole()
}

fn time(coarse: &[(u64, Point)], edges: &[f64], mean: &str) -> String {
    let ms = |ns: u64, tokens: u64| ns as f64 / 1e6 / tokens as f64;
    let most = coarse.iter().map(|(n, p)| ms(p.time_ns, *n)).fold(0.0, f64::max);
    let y = Axis::new(0.0, most, Y.0, Y.1);
    let mut chart = Chart::new("Time of each decoded token", x(edges), "decoded token", y, "ms per token");
    let stall: Vec<f64> = coarse.iter().map(|(n, p)| ms(p.stall_ns, *n)).collect();
    let rest = coarse.iter().map(|(n, p)| ms(p.time_ns.saturating_sub(p.stall_ns), *n)).collect();
    let texts = coarse.iter().enumerate().map(|(i, (n, p))| {
        let (all, waiting) = (ms(p.time_ns, *n), ms(p.stall_ns, *n));
        format!("{}: {all:.2} ms, of which {waiting:.2} waiting", tokens(edges, i))
    });
    chart.stack(edges, &[("s-miss", stall), ("s-rest", rest)], texts);
    let note =
        format!("Waiting: nothing to compute until a read was done. Computing: all other time of a token.{mean}");
    let entries = [("s-rest", "computing"), ("s-miss", "waiting for the drive")];
    figure("Time from token to token", &chart.finish(), &key("area", entries), &note)
}

fn hits(coarse: &[(u64, Point)], edges: &[f64], mean: &str) -> String {
    let y = Axis::new(0.0, 100.0, Y.0, Y.1);
    let about = "Hit, late and missed experts of each decoded token";
    let mut chart = Chart::new(about, x(edges), "decoded token", y, "% of wanted experts");
    let shares = coarse.iter().map(|(_, p)| shares(p.hit, p.late, p.miss)).collect::<Vec<_>>();
    let texts = shares.iter().enumerate().map(|(i, shares)| format!("{}: {}", tokens(edges, i), words(shares)));
    chart.stack(edges, &parts(&shares), texts);
    let note = format!("Late: the read was in flight already when the expert was wanted.{mean}");
    figure("Hits from token to token", &chart.finish(), &key("area", COUNTS), &note)
}

fn bytes(coarse: &[(u64, Point)], edges: &[f64], mean: &str) -> String {
    let mib = |p: &Point, tokens: u64| p.bytes as f64 / f64::from(1 << 20) / tokens as f64;
    let heights: Vec<f64> = coarse.iter().map(|(n, p)| mib(p, *n)).collect();
    let y = Axis::new(0.0, heights.iter().copied().fold(0.0, f64::max), Y.0, Y.1);
    let mut chart = Chart::new("Bytes read for each decoded token", x(edges), "decoded token", y, "MiB per token");
    let texts: Vec<_> =
        heights.iter().enumerate().map(|(i, mib)| format!("{}: {mib:.2} MiB", tokens(edges, i))).collect();
    chart.stack(edges, &[("s-rest", heights)], texts.into_iter());
    let note = format!("Reads that were submitted while the token was decoded, prefetches included.{mean}");
    figure("Bytes from token to token", &chart.finish(), "", &note)
}

fn layers(run: &Run) -> String {
    let edges: Vec<f64> = (0..=run.layers.len()).map(|i| i as f64).collect();
    let x = Axis::exact(0.0, run.layers.len() as f64, X.0, X.1).whole();
    let y = Axis::new(0.0, 100.0, Y.0, Y.1);
    let about = "Hit, late and missed experts of each layer";
    let mut chart = Chart::new(about, x, "MoE layer", y, "% of wanted experts");
    let shares: Vec<_> = run.layers.iter().map(|l| shares(l.hit, l.late, l.miss)).collect();
    let texts = shares.iter().enumerate().map(|(i, shares)| format!("layer {i}: {}", words(shares)));
    chart.stack(&edges, &parts(&shares), texts);
    figure("Hits of the run, layer by layer", &chart.finish(), &key("area", COUNTS), "All decoded tokens.")
}

/// In percent of their sum; nothing of nothing.
fn shares(hit: u64, late: u64, miss: u64) -> [f64; 3] {
    let all = (hit + late + miss).max(1) as f64;
    [hit, late, miss].map(|n| n as f64 * 100.0 / all)
}

fn parts(shares: &[[f64; 3]]) -> Vec<(&'static str, Vec<f64>)> {
    COUNTS.iter().enumerate().map(|(i, (class, _))| (*class, shares.iter().map(|s| s[i]).collect())).collect()
}

/// One sentence of totals.
pub fn summary(run: &Run) -> String {
    let d = &run.decode;
    let all = d.hit + d.late + d.miss;
    if d.tokens == 0 || all == 0 || d.seconds <= 0.0 {
        return "The run decoded nothing.".to_owned();
    }
    format!(
        "The run decoded {} tokens at {:.1} tokens per second: {:.1} % of the wanted experts hit, {:.1} % were late, {:.1} % \
         missed; {:.1} % of the time went into waiting for the drive.",
        d.tokens,
        d.tokens as f64 / d.seconds,
        d.hit as f64 * 100.0 / all as f64,
        d.late as f64 * 100.0 / all as f64,
        d.miss as f64 * 100.0 / all as f64,
        d.stall_ms / 10.0 / d.seconds
    )
}
