//! Recorded routing: as arrays, and through caches of many sizes.

use std::path::PathBuf;

use hotset::{
    Error, Result,
    expert::Scope,
    prefetch::PrefetchKind,
    simulate::{self, Compute, Conditions, Drive, Row, Setting, SimPolicy, SlotSpec},
    trace::{
        export::{Arrays, arrays},
        file::TraceReader,
    },
};
use pyo3::{
    prelude::*,
    types::{PyBytes, PyDict, PyList},
};

use crate::errors::OrRaise;

/// Raw numbers in native byte order, as `array(kind, shape)` reads them.
fn raw<'py, T, const N: usize>(py: Python<'py>, items: &[T], bytes: fn(&T) -> [u8; N]) -> Bound<'py, PyBytes> {
    PyBytes::new(py, &items.iter().flat_map(bytes).collect::<Vec<u8>>())
}

/// A trace: its header, and name → (type, shape, bytes).
#[pyfunction]
#[pyo3(name = "trace")]
pub fn read_trace<'py>(py: Python<'py>, path: PathBuf) -> PyResult<Bound<'py, PyDict>> {
    let all: Arrays = py.detach(|| arrays(&path)).or_raise(py)?;
    let (n, header) = (all.phase.len(), &all.header);
    let each = [n, header.n_layer, header.n_expert_used];
    let dict = PyDict::new(py);
    dict.set_item("experts", ("H", each, raw(py, &all.experts, |n| n.to_ne_bytes())))?;
    if header.weights {
        dict.set_item("weights", ("f", each, raw(py, &all.weights, |n| n.to_ne_bytes())))?;
    }
    dict.set_item("phase", ("B", [n], PyBytes::new(py, &all.phase)))?;
    let expert_bytes: Vec<i64> = header.expert_bytes.iter().map(|&n| n as i64).collect();
    for (name, list) in [
        ("batch", &all.batch),
        ("position", &all.position),
        ("prompt_start", &all.prompt_start),
        ("expert_bytes", &expert_bytes),
    ] {
        dict.set_item(name, ("q", [list.len()], raw(py, list, |n| n.to_ne_bytes())))?;
    }
    dict.set_item("model", &header.model)?;
    dict.set_item("n_expert", header.n_expert)?;
    Ok(dict)
}

/// What is simulated.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub struct Sweep {
    policies: Vec<String>,
    slots: Option<Vec<String>>,
    scope: String,
    prefetch: String,
    warmup: u64,
}

fn one_of<T: Copy>(name: &str, what: &str, all: &[T], name_of: fn(T) -> &'static str) -> Result<T> {
    let names = || all.iter().map(|&item| name_of(item)).collect::<Vec<_>>().join(", ");
    let found = all.iter().copied().find(|&item| name_of(item) == name);
    found.ok_or_else(|| Error::request(what, format!("one of {}", names()), name))
}

/// The trace through every policy and size: names, slots and shares, and tables with a row for each policy and a column for each size.
#[pyfunction]
#[pyo3(name = "simulate")]
pub fn run_sweep<'py>(py: Python<'py>, path: PathBuf, sweep: Sweep) -> PyResult<Bound<'py, PyDict>> {
    let header = py.detach(|| Ok(TraceReader::open(&path)?.header().clone())).or_raise(py)?;
    let policies =
        SimPolicy::choose(&sweep.policies).map_err(|e| Error::invalid(format!("policy {e}"))).or_raise(py)?;
    let scope = one_of(&sweep.scope, "scope", &[Scope::Layer, Scope::Size, Scope::Global], Scope::name).or_raise(py)?;
    let prefetch = one_of(&sweep.prefetch, "prefetch", PrefetchKind::ALL, PrefetchKind::name).or_raise(py)?;
    let counts = counts(&sweep, header.n_expert_used, header.n_expert).or_raise(py)?;
    let needed = policies.iter().any(|policy| policy.needs_future());
    let future = py.detach(|| needed.then(|| simulate::future(&path)).transpose()).or_raise(py)?;
    let conditions = Conditions { drive: Drive::NVME, compute: Compute::default(), warmup: sweep.warmup };
    let mut rows: Vec<Vec<Row>> = Vec::new();
    for &policy in &policies {
        let mut of_policy = Vec::new();
        for &n in &counts {
            let slots = simulate::slots(scope, n, &header);
            let setting = Setting { policy, scope, slots: &slots, prefetch, fill: false, vram: None, conditions };
            let outcome = py.detach(|| simulate::replay(&path, &setting, future.as_ref())).or_raise(py)?;
            of_policy.push(Row::new(&setting, &header, &outcome, Vec::new()));
            py.check_signals()?;
        }
        rows.push(of_policy);
    }
    let dict = PyDict::new(py);
    dict.set_item("policies", policies.iter().map(|policy| policy.name()).collect::<Vec<_>>())?;
    let first = &rows[0];
    dict.set_item("slots", first.iter().map(|row| row.slots_per_layer).collect::<Vec<_>>())?;
    dict.set_item("share", first.iter().map(|row| row.share).collect::<Vec<_>>())?;
    dict.set_item("hit_rate", table(py, &rows, |row| row.hit_rate.unwrap_or(f64::NAN))?)?;
    dict.set_item("hits", table(py, &rows, |row| row.hit)?)?;
    dict.set_item("late", table(py, &rows, |row| row.late)?)?;
    dict.set_item("misses", table(py, &rows, |row| row.miss)?)?;
    dict.set_item("demand_bytes", table(py, &rows, |row| row.demand_bytes)?)?;
    dict.set_item("prefetch_bytes", table(py, &rows, |row| row.prefetch_bytes)?)?;
    dict.set_item("tokens", first[0].tokens)?;
    Ok(dict)
}

/// Slots a layer, ascending, each at least what a token uses.
fn counts(sweep: &Sweep, used: usize, n_expert: usize) -> Result<Vec<usize>> {
    if sweep.policies.is_empty() {
        return Err(Error::invalid("there are no policies to simulate"));
    }
    let Some(slots) = &sweep.slots else { return Ok(simulate::default_slots(used, n_expert)) };
    let specs = slots.iter().map(|text| text.parse::<SlotSpec>()).collect::<Result<Vec<_>>>()?;
    let mut counts: Vec<usize> = specs.into_iter().map(|spec| spec.count(n_expert)).collect();
    counts.sort_unstable();
    counts.dedup();
    match counts.first() {
        None => Err(Error::invalid("there are no slots to simulate")),
        Some(&few) if few < used => {
            Err(Error::invalid(format!("{few} slots are too few: a token uses {used} experts of a layer at once")))
        }
        Some(_) => Ok(counts),
    }
}

fn table<'py, T: IntoPyObject<'py>>(
    py: Python<'py>,
    rows: &[Vec<Row>],
    of: impl Fn(&Row) -> T,
) -> PyResult<Bound<'py, PyList>> {
    let lists = rows.iter().map(|row| PyList::new(py, row.iter().map(&of))).collect::<PyResult<Vec<_>>>()?;
    PyList::new(py, lists)
}
