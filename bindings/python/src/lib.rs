//! hotset for Python: the compiled half of the package `hotset`. What users see, with its documentation, is in `python/hotset`; here
//! arguments arrive checked for type and nothing more.
//!
//! While the model computes, Python's lock is released, so that other threads run; between tokens signals are looked at, so that
//! Ctrl-C works.

mod errors;
mod generation;
mod session;
mod traces;

use pyo3::prelude::*;

/// The module.
#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<session::Session>()?;
    module.add_class::<generation::Generation>()?;
    module.add_function(wrap_pyfunction!(traces::run_sweep, module)?)?;
    module.add_function(wrap_pyfunction!(traces::read_trace, module)?)
}
