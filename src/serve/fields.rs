//! The fields of a request, each taken by name: what nobody takes is refused, so that nothing is ignored silently.

use serde_json::{Map, Value};

use super::error::ApiError;

/// Lists and objects within each other at most. Also the limit of `serde_json` is higher.
const MAX_DEPTH: usize = 64;

/// Values of a request at most: each takes far more memory than its text does.
const MAX_VALUES: usize = 100_000;

type Result<T> = std::result::Result<T, ApiError>;

/// See the module.
pub struct Fields {
    /// The field that this object is, with a dot; empty for a request.
    path: String,
    map: Map<String, Value>,
}

/// The JSON of a body.
///
/// # Errors
/// What is no JSON, nests too deep or holds too many values.
pub fn parse(body: &[u8]) -> Result<Fields> {
    let text = std::str::from_utf8(body)
        .map_err(|e| ApiError::bad(format!("the body is no UTF-8: byte {} is wrong", e.valid_up_to())))?;
    check_shape(text)?;
    match serde_json::from_str(text) {
        Ok(Value::Object(map)) => Ok(Fields { path: String::new(), map }),
        Ok(_) => Err(ApiError::bad("the body must be a JSON object")),
        Err(e) => Err(ApiError::bad(format!("the body is no JSON: {e}"))),
    }
}

/// Refuses what would take much memory to parse, before it is parsed.
fn check_shape(text: &str) -> Result<()> {
    let (mut depth, mut values, mut quoted, mut escaped) = (0usize, 0usize, false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            _ if quoted => {}
            b'{' | b'[' => (depth, values) = (depth + 1, values + 1),
            b'}' | b']' => depth = depth.saturating_sub(1),
            b',' => values += 1,
            _ => {}
        }
        if depth > MAX_DEPTH {
            return Err(ApiError::bad(format!("the body nests deeper than {MAX_DEPTH} levels")));
        }
        if values > MAX_VALUES {
            return Err(ApiError::bad(format!("the body holds more than {MAX_VALUES} values")));
        }
    }
    Ok(())
}

impl Fields {
    /// An object within a request.
    ///
    /// # Errors
    /// If it is none.
    pub fn of(path: &str, value: Value) -> Result<Self> {
        match value {
            Value::Object(map) => Ok(Self { path: format!("{path}."), map }),
            other => Err(wrong(path, "an object", &other)),
        }
    }

    /// The path of a field.
    pub fn path(&self, name: &str) -> String {
        format!("{}{name}", self.path)
    }

    /// The value of a field; `null` is as good as none.
    pub fn take(&mut self, name: &str) -> Option<Value> {
        self.map.remove(name).filter(|value| !value.is_null())
    }

    /// A field that there must be.
    ///
    /// # Errors
    /// If there is none.
    pub fn require(&mut self, name: &str) -> Result<Value> {
        let path = self.path(name);
        self.take(name).ok_or_else(|| ApiError::field(&path, format!("{path} is missing")))
    }

    /// A text.
    ///
    /// # Errors
    /// If it is something else.
    pub fn string(&mut self, name: &str) -> Result<Option<String>> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong(&self.path(name), "a string", &other)),
        }
    }

    /// A switch.
    ///
    /// # Errors
    /// If it is something else.
    pub fn bool(&mut self, name: &str) -> Result<Option<bool>> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(on)) => Ok(Some(on)),
            Some(other) => Err(wrong(&self.path(name), "true or false", &other)),
        }
    }

    /// A number within limits.
    ///
    /// # Errors
    /// If it is something else, or outside.
    pub fn number(&mut self, name: &str, least: f64, most: f64) -> Result<Option<f32>> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let number = value.as_f64().filter(|n| (least..=most).contains(n));
        let expected = || wrong(&self.path(name), &format!("a number from {least} to {most}"), &value);
        number.map(|n| Some(n as f32)).ok_or_else(expected)
    }

    /// A whole number within limits.
    ///
    /// # Errors
    /// If it is something else, or outside.
    pub fn integer(&mut self, name: &str, least: u64, most: u64) -> Result<Option<u64>> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let number = value.as_u64().filter(|n| (least..=most).contains(n));
        let expected = || wrong(&self.path(name), &format!("a whole number from {least} to {most}"), &value);
        number.map(Some).ok_or_else(expected)
    }

    /// A list.
    ///
    /// # Errors
    /// If it is something else.
    pub fn list(&mut self, name: &str) -> Result<Vec<Value>> {
        match self.take(name) {
            None => Ok(Vec::new()),
            Some(Value::Array(list)) => Ok(list),
            Some(other) => Err(wrong(&self.path(name), "a list", &other)),
        }
    }

    /// A field that means something only with a value other than `idle`, which hotset does not have.
    ///
    /// # Errors
    /// If it has another value.
    pub fn refuse_unless(&mut self, name: &str, idle: &[Value]) -> Result<()> {
        match self.take(name) {
            Some(value)
                if !(idle.contains(&value) || value.as_f64() == Some(0.0) && idle.contains(&Value::from(0))) =>
            {
                let path = self.path(name);
                Err(ApiError::field(&path, format!("{path} is not supported with this value: {}", short(&value))))
            }
            _ => Ok(()),
        }
    }

    /// All fields were taken but for those that change nothing about an answer.
    ///
    /// # Errors
    /// Names the first other one.
    pub fn finish(self, harmless: &[&str]) -> Result<()> {
        match self.map.iter().find(|(name, value)| !harmless.contains(&name.as_str()) && !value.is_null()) {
            Some((name, _)) => {
                let path = self.path(&short(&Value::from(name.as_str())).replace('"', ""));
                Err(ApiError::field(&path, format!("{path} is not supported")))
            }
            None => Ok(()),
        }
    }
}

/// The wrong kind of value.
pub fn wrong(path: &str, expected: &str, got: &Value) -> ApiError {
    ApiError::field(path, format!("{path} must be {expected}, not {}", short(got)))
}

/// The beginning of a value, for a sentence.
fn short(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(40) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}
