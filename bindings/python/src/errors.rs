//! The library's errors as the exceptions of `hotset/_errors.py`.

use hotset::Error;
use pyo3::prelude::*;

/// The exception for an error of the library.
pub fn raise(py: Python<'_>, error: &Error) -> PyErr {
    let (class, least) = match error {
        Error::Io { .. } => ("ReadError", None),
        Error::Format { .. } | Error::Truncated { .. } | Error::File { .. } => ("BadFile", None),
        Error::Unsupported { .. } => ("Unsupported", None),
        Error::BudgetTooSmall { least, .. } => ("BudgetTooSmall", Some(*least)),
        _ => ("InvalidRequest", None),
    };
    let made = || {
        let class = py.import("hotset._errors")?.getattr(class)?;
        match least {
            Some(least) => class.call1((error.to_string(), least)),
            None => class.call1((error.to_string(),)),
        }
    };
    made().map_or_else(|e: PyErr| e, PyErr::from_value)
}

/// What [`raise`] makes of an error.
pub trait OrRaise<T> {
    /// The value, or the exception.
    fn or_raise(self, py: Python<'_>) -> PyResult<T>;
}

impl<T> OrRaise<T> for hotset::Result<T> {
    fn or_raise(self, py: Python<'_>) -> PyResult<T> {
        self.map_err(|e| raise(py, &e))
    }
}
