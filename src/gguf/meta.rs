//! GGUF metadata: typed values, and getters whose errors name file, key, expected and got.
//!
//! Must not know: what any key means. That is the model's and the tokenizer's business.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Generates the value enums from one table, so that parser, writer and getters cannot disagree about it.
macro_rules! plain_types {
    ($($variant:ident, $ty:ty, $id:literal, $name:literal;)*) => {
        /// One metadata value.
        #[derive(Clone, Debug, PartialEq)]
        #[allow(missing_docs, reason = "the variants are the format's own types")]
        pub enum Value { $($variant($ty),)* Bool(bool), String(String), Array(Array) }

        /// A metadata array, stored as one typed vector: a vocabulary has 150,000 strings and as many scores.
        #[derive(Clone, Debug, PartialEq)]
        #[allow(missing_docs, reason = "the variants are the format's own types")]
        pub enum Array { $($variant(Vec<$ty>),)* Bool(Vec<bool>), String(Vec<String>), Array(Vec<Array>) }

        impl Value {
            /// The format's number for this value's type.
            pub fn type_id(&self) -> u32 {
                match self { $(Value::$variant(_) => $id,)* Value::Bool(_) => 7, Value::String(_) => 8, Value::Array(_) => 9 }
            }
        }

        impl Array {
            /// The format's number for the type of the elements.
            pub fn type_id(&self) -> u32 {
                match self { $(Array::$variant(_) => $id,)* Array::Bool(_) => 7, Array::String(_) => 8, Array::Array(_) => 9 }
            }
            /// Number of elements.
            pub fn len(&self) -> usize {
                match self {
                    $(Array::$variant(v) => v.len(),)*
                    Array::Bool(v) => v.len(), Array::String(v) => v.len(), Array::Array(v) => v.len(),
                }
            }
        }

        $(
            impl From<$ty> for Value { fn from(v: $ty) -> Value { Value::$variant(v) } }
            impl From<Vec<$ty>> for Value { fn from(v: Vec<$ty>) -> Value { Value::Array(Array::$variant(v)) } }
        )*

        /// The name of a value type, or `unknown`.
        pub(super) fn type_name(id: u32) -> &'static str {
            match id { $($id => $name,)* 7 => "bool", 8 => "string", 9 => "array", _ => "unknown" }
        }

        /// A scalar of type `id` from the bytes that `take` hands out; `None` where `id` is no plain scalar.
        pub(super) fn decode_scalar<'a>(id: u32, take: impl FnOnce(usize) -> Result<&'a [u8]>) -> Option<Result<Value>> {
            match id {
                $($id => Some(take(size_of::<$ty>()).map(|b| {
                    Value::$variant(<$ty>::from_le_bytes(b.try_into().expect("take returned the size asked for")))
                })),)*
                _ => None,
            }
        }

        /// An array of `n` elements of type `id`. `take` is asked for all the bytes before anything is allocated.
        pub(super) fn decode_array<'a>(id: u32, n: u64, take: impl FnOnce(u64) -> Result<&'a [u8]>) -> Option<Result<Array>> {
            match id {
                $($id => Some(take(n.saturating_mul(size_of::<$ty>() as u64)).map(|b| {
                    let (words, _) = b.as_chunks::<{ size_of::<$ty>() }>();
                    Array::$variant(words.iter().map(|w| <$ty>::from_le_bytes(*w)).collect())
                })),)*
                _ => None,
            }
        }

        /// Appends a value's little-endian bytes, without its type.
        pub(super) fn encode(value: &Value, out: &mut Vec<u8>) {
            match value {
                $(Value::$variant(v) => out.extend_from_slice(&v.to_le_bytes()),)*
                Value::Bool(v) => out.push(u8::from(*v)),
                Value::String(v) => encode_str(v, out),
                Value::Array(v) => encode_array(v, out),
            }
        }

        fn encode_array(array: &Array, out: &mut Vec<u8>) {
            out.extend_from_slice(&array.type_id().to_le_bytes());
            out.extend_from_slice(&(array.len() as u64).to_le_bytes());
            match array {
                $(Array::$variant(v) => v.iter().for_each(|x| out.extend_from_slice(&x.to_le_bytes())),)*
                Array::Bool(v) => out.extend(v.iter().map(|x| u8::from(*x))),
                Array::String(v) => v.iter().for_each(|x| encode_str(x, out)),
                Array::Array(v) => v.iter().for_each(|x| encode_array(x, out)),
            }
        }
    };
}

plain_types! {
    U8, u8, 0, "u8";
    I8, i8, 1, "i8";
    U16, u16, 2, "u16";
    I16, i16, 3, "i16";
    U32, u32, 4, "u32";
    I32, i32, 5, "i32";
    F32, f32, 6, "f32";
    U64, u64, 10, "u64";
    I64, i64, 11, "i64";
    F64, f64, 12, "f64";
}

/// Appends a string: length as u64, then the bytes.
pub(super) fn encode_str(s: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(&(s.len() as u64).to_le_bytes());
    out.extend_from_slice(s.as_bytes());
}

/// Calls `$f` on an integer scalar or vector, whatever its width; `$other` for the rest.
macro_rules! on_integers {
    ($on:expr, $enum:ident, $v:ident => $f:expr, $other:expr) => {
        match $on {
            $enum::U8($v) => $f,
            $enum::I8($v) => $f,
            $enum::U16($v) => $f,
            $enum::I16($v) => $f,
            $enum::U32($v) => $f,
            $enum::I32($v) => $f,
            $enum::U64($v) => $f,
            $enum::I64($v) => $f,
            _ => $other,
        }
    };
}

impl From<bool> for Value {
    fn from(v: bool) -> Value {
        Value::Bool(v)
    }
}
impl From<&str> for Value {
    fn from(v: &str) -> Value {
        Value::String(v.to_owned())
    }
}
impl From<String> for Value {
    fn from(v: String) -> Value {
        Value::String(v)
    }
}
impl From<Array> for Value {
    fn from(v: Array) -> Value {
        Value::Array(v)
    }
}
impl From<Vec<bool>> for Value {
    fn from(v: Vec<bool>) -> Value {
        Value::Array(Array::Bool(v))
    }
}
impl From<Vec<String>> for Value {
    fn from(v: Vec<String>) -> Value {
        Value::Array(Array::String(v))
    }
}

impl Array {
    /// True where there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Value {
    /// What the value is, in words: `u32`, `array of 3 string`.
    pub fn kind(&self) -> String {
        match self {
            Value::Array(a) => format!("array of {} {}", a.len(), type_name(a.type_id())),
            v => type_name(v.type_id()).to_owned(),
        }
    }

    /// The integer of any width, or `None` for other types.
    pub(crate) fn integer(&self) -> Option<i128> {
        on_integers!(self, Value, v => Some(i128::from(*v)), None)
    }

    /// A number, or all of an array of numbers; a bool is 0 or 1. `None` for what is no number.
    pub fn numbers(&self) -> Option<Vec<f64>> {
        match self {
            Value::F32(x) => Some(vec![f64::from(*x)]),
            Value::F64(x) => Some(vec![*x]),
            Value::Bool(x) => Some(vec![f64::from(u8::from(*x))]),
            Value::Array(Array::F32(x)) => Some(x.iter().map(|&x| f64::from(x)).collect()),
            Value::Array(Array::F64(x)) => Some(x.clone()),
            Value::Array(Array::Bool(x)) => Some(x.iter().map(|&x| f64::from(u8::from(x))).collect()),
            Value::Array(a) => on_integers!(a, Array, x => Some(x.iter().map(|&x| x as f64).collect()), None),
            v => v.integer().map(|x| vec![x as f64]),
        }
    }

    /// For errors: a scalar with its type, an array's kind alone.
    fn describe(&self) -> String {
        match self {
            Value::Array(_) => self.kind(),
            v => format!("{} {v}", v.kind()),
        }
    }
}

/// A scalar as people write it, of an array only what it is an array of.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Array(_) => write!(f, "an {}", self.kind()),
            Value::String(s) => write!(f, "{:?}", s.chars().take(60).collect::<String>()),
            Value::Bool(x) => x.fmt(f),
            Value::F32(x) => x.fmt(f),
            Value::F64(x) => x.fmt(f),
            v => v.integer().expect("all other scalars are integers").fmt(f),
        }
    }
}

/// A file's metadata, in file order. Keeps the file's path, so that each getter's error can name it.
#[derive(Clone, Debug)]
pub struct Metadata {
    path: PathBuf,
    entries: Vec<(String, Value)>,
    index: HashMap<String, usize>,
}

/// Most values that a per-layer scalar is repeated to: [`Metadata::u32_or_array`]'s `n` comes from a file.
const MAX_LAYERS: usize = 1 << 14;

impl Metadata {
    /// No entries; `path` is what errors will name.
    pub fn new(path: &Path) -> Metadata {
        Metadata { path: path.to_owned(), entries: Vec::new(), index: HashMap::new() }
    }

    /// Adds an entry at the end; a key that is there already is an [`Error::Format`].
    pub fn insert(&mut self, key: String, value: Value) -> Result<()> {
        if self.index.contains_key(&key) {
            return Err(Error::format(&self.path, format!("metadata key {key:?}"), "one entry", "two entries"));
        }
        self.index.insert(key.clone(), self.entries.len());
        self.entries.push((key, value));
        Ok(())
    }

    /// The file that the metadata came from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All entries, in file order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(k, v)| (k.as_str(), v))
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True where there is no entry.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The raw value.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.index.get(key).map(|&i| &self.entries[i].1)
    }

    /// An [`Error::Format`] about a key, for callers that find a value out of their range.
    pub fn wrong(&self, key: &str, expected: impl ToString, got: impl ToString) -> Error {
        Error::format(&self.path, format!("metadata key {key:?}"), expected, got)
    }

    /// Looks a key up and converts it; `None` from `convert` is an error that names `expected`.
    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        convert: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        convert(value).map(Some).ok_or_else(|| self.wrong(key, expected, value.describe()))
    }

    /// An integer of any type that fits.
    pub fn u32(&self, key: &str) -> Result<Option<u32>> {
        self.typed(key, "an integer below 2^32", |v| v.integer()?.try_into().ok())
    }

    /// An integer of any type that fits.
    pub fn i32(&self, key: &str) -> Result<Option<i32>> {
        self.typed(key, "an integer that fits 32 bits", |v| v.integer()?.try_into().ok())
    }

    /// An integer of any type that fits.
    pub fn u64(&self, key: &str) -> Result<Option<u64>> {
        self.typed(key, "an integer below 2^64", |v| v.integer()?.try_into().ok())
    }

    /// A number in either floating-point type; an f64 is rounded.
    pub fn f32(&self, key: &str) -> Result<Option<f32>> {
        self.typed(key, "an f32", |v| match v {
            Value::F32(x) => Some(*x),
            Value::F64(x) => Some(*x as f32),
            _ => None,
        })
    }

    /// A bool.
    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "a bool", |v| if let Value::Bool(x) = v { Some(*x) } else { None })
    }

    /// A string.
    pub fn str(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "a string", |v| if let Value::String(x) = v { Some(x.as_str()) } else { None })
    }

    /// An array of strings.
    pub fn strings(&self, key: &str) -> Result<Option<&[String]>> {
        self.typed(key, "an array of strings", |v| match v {
            Value::Array(Array::String(x)) => Some(x.as_slice()),
            _ => None,
        })
    }

    /// An array of bools.
    pub fn bools(&self, key: &str) -> Result<Option<&[bool]>> {
        self.typed(key, "an array of bools", |v| match v {
            Value::Array(Array::Bool(x)) => Some(x.as_slice()),
            _ => None,
        })
    }

    /// An array of integers of any type that all fit.
    pub fn u32s(&self, key: &str) -> Result<Option<Cow<'_, [u32]>>> {
        self.typed(key, "an array of integers below 2^32", |v| match v {
            Value::Array(Array::U32(x)) => Some(Cow::Borrowed(x.as_slice())),
            Value::Array(a) => on_integers!(a, Array, x => collect(x).map(Cow::Owned), None),
            _ => None,
        })
    }

    /// An array of integers of any type that all fit.
    pub fn i32s(&self, key: &str) -> Result<Option<Cow<'_, [i32]>>> {
        self.typed(key, "an array of integers that fit 32 bits", |v| match v {
            Value::Array(Array::I32(x)) => Some(Cow::Borrowed(x.as_slice())),
            Value::Array(a) => on_integers!(a, Array, x => collect(x).map(Cow::Owned), None),
            _ => None,
        })
    }

    /// An array of either floating-point type; f64s are rounded.
    pub fn f32s(&self, key: &str) -> Result<Option<Cow<'_, [f32]>>> {
        self.typed(key, "an array of f32", |v| match v {
            Value::Array(Array::F32(x)) => Some(Cow::Borrowed(x.as_slice())),
            Value::Array(Array::F64(x)) => Some(Cow::Owned(x.iter().map(|&x| x as f32).collect())),
            _ => None,
        })
    }

    /// A per-layer value: one integer for all `n` layers, or an array with one for each.
    ///
    /// An array of another length is an error, as is `n` above 16,384 (it was read from the file, too).
    pub fn u32_or_array(&self, key: &str, n: usize) -> Result<Option<Vec<u32>>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        if n > MAX_LAYERS {
            return Err(self.wrong(key, format!("at most {MAX_LAYERS} layers"), n));
        }
        if !matches!(value, Value::Array(_)) {
            return Ok(self.u32(key)?.map(|x| vec![x; n]));
        }
        let values = self.u32s(key)?.expect("the key was there").into_owned();
        if values.len() != n {
            return Err(self.wrong(key, format!("one integer, or {n} of them"), value.kind()));
        }
        Ok(Some(values))
    }

    fn require<T>(&self, key: &str, expected: &str, found: Result<Option<T>>) -> Result<T> {
        found?.ok_or_else(|| self.wrong(key, expected, "no such key"))
    }

    /// [`Metadata::u32`], with an absent key being an error.
    pub fn require_u32(&self, key: &str) -> Result<u32> {
        self.require(key, "an integer", self.u32(key))
    }
    /// [`Metadata::f32`], with an absent key being an error.
    pub fn require_f32(&self, key: &str) -> Result<f32> {
        self.require(key, "an f32", self.f32(key))
    }
    /// [`Metadata::bool`], with an absent key being an error.
    pub fn require_bool(&self, key: &str) -> Result<bool> {
        self.require(key, "a bool", self.bool(key))
    }
    /// [`Metadata::str`], with an absent key being an error.
    pub fn require_str(&self, key: &str) -> Result<&str> {
        self.require(key, "a string", self.str(key))
    }
    /// [`Metadata::strings`], with an absent key being an error.
    pub fn require_strings(&self, key: &str) -> Result<&[String]> {
        self.require(key, "an array of strings", self.strings(key))
    }
    /// [`Metadata::u32_or_array`], with an absent key being an error.
    pub fn require_u32_or_array(&self, key: &str, n: usize) -> Result<Vec<u32>> {
        self.require(key, "an integer or an array of them", self.u32_or_array(key, n))
    }
}

/// All elements converted, or `None` where one does not fit.
fn collect<T: Copy, U: TryFrom<T>>(values: &[T]) -> Option<Vec<U>> {
    values.iter().map(|&x| U::try_from(x).ok()).collect()
}
