//! Where the gap between LRU and Belady lies: parts add up, and an oracle with a view of everything is Belady.

mod common;

use common::{
    dice::Dice,
    routing::{Shape, decoding, header, write},
};
use hotset::{
    expert::Scope,
    prefetch::PrefetchKind,
    simulate::{
        self, Compute, Conditions, Detail, Drive, Row, Setting, SimPolicy,
        decompose::{self, Part},
    },
};

const SHAPE: Shape = Shape { layers: 3, experts: 24, used: 3, tokens: 400 };

fn runs(scope: Scope, policies: &[SimPolicy]) -> Vec<(Row, Detail)> {
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("a.trace");
    write(&trace, header(SHAPE), &decoding(&mut Dice(11), SHAPE));
    let future = simulate::future(&trace).unwrap();
    let slots = simulate::slots(scope, 8, &header(SHAPE));
    let drive = Drive { latency_ns: 1000, bytes_per_us: 1000, depth: 1 };
    let run = |&policy: &SimPolicy| {
        let setting = Setting {
            policy,
            scope,
            slots: &slots,
            fill: false,
            prefetch: PrefetchKind::Off,
            vram: None,
            conditions: Conditions { drive, compute: Compute::default(), warmup: 0 },
        };
        let (outcome, detail) = simulate::replay_in_detail(&trace, &setting, Some(&future)).unwrap();
        (Row::new(&setting, &header(SHAPE), &outcome, detail.foresight.clone()), detail)
    };
    policies.iter().map(run).collect()
}

#[test]
fn parts_add_up_to_the_hit_rates() {
    for scope in [Scope::Layer, Scope::Size, Scope::Global] {
        let found = decompose::decompose(&runs(scope, &decompose::policies())).unwrap();
        for parts in [&found.distances, &found.layers] {
            let sum = |of: &dyn Fn(&Part) -> f64| parts.iter().map(of).sum::<f64>();
            assert!((sum(&|p| p.wanted) - 1.0).abs() < 1e-9, "{parts:?}");
            for i in 0..3 {
                assert!((sum(&|p| p.hit[i]) - found.hit_rates[i]).abs() < 1e-9, "{i}: {parts:?}");
            }
        }
        // Nobody hits what was never used, and all that is used again a token later is wanted by someone.
        assert_eq!((found.distances[0].name.as_str(), found.distances[0].hit), ("first use", [0.0; 3]));
        assert!(found.distances[1].wanted > 0.1, "{:?}", found.distances);
        let won: Vec<f64> = found.windows.iter().map(|w| w.gap_won.unwrap()).collect();
        assert!(won.is_sorted() && won[0] < 0.8 && won[6] > 0.95, "more foresight wins more: {won:?}");
    }
}

#[test]
fn a_window_over_everything_is_belady() {
    for scope in [Scope::Layer, Scope::Global] {
        let all = runs(scope, &[SimPolicy::Window(u32::MAX), SimPolicy::Belady, SimPolicy::Window(0)]);
        let [whole, belady, nothing] = all.as_slice() else { unreachable!() };
        assert_eq!(whole.0.miss, belady.0.miss, "{}", scope.name());
        assert!(nothing.0.miss > belady.0.miss);
    }
}
