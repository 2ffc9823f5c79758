//! How a call of a tool is written, in every family: what a model is held to where a call is wanted of it. The readers of
//! calls, beside it in each family's file, read all that is written so.

/// A call from its first character to its last.
#[derive(Clone, Copy, Debug)]
pub struct CallForm {
    /// Before the arguments.
    pub before: &'static [Part],
    /// Between these two.
    pub arguments: Arguments,
    /// After the arguments.
    pub after: &'static [Part],
}

/// Text of a call that is always the same.
#[derive(Clone, Copy, Debug)]
pub enum Part {
    /// A mark, which may be a token of its own.
    Mark(&'static str),
    /// Plain text.
    Text(&'static str),
    /// The name of the tool.
    Name,
    /// The name of the parameter.
    Key,
}

/// How the arguments are written.
#[derive(Clone, Copy, Debug)]
pub enum Arguments {
    /// As one JSON object.
    Object,
    /// Each parameter by itself.
    Each {
        /// Before its value.
        before: &'static [Part],
        /// After its value.
        after: &'static [Part],
        /// Between two.
        between: &'static str,
        /// Strings; all other values are JSON.
        strings: Strings,
        /// Strings within JSON have the escapes `\n`, `\t`, `\r`, `\"` and `\\` only.
        few_escapes: bool,
    },
}

/// How a string is written.
#[derive(Clone, Copy, Debug)]
pub enum Strings {
    /// As JSON.
    Json,
    /// As it is, between these marks.
    Raw {
        /// Before.
        open: &'static [Part],
        /// After.
        close: &'static [Part],
        /// Texts that would end it, which it cannot have.
        without: &'static [&'static str],
    },
}
