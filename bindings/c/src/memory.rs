//! The caller's memory: strings, arrays and structs that say how large they are.

use std::{
    ffi::{CStr, c_char},
    mem::{MaybeUninit, offset_of},
    ptr, slice,
};

use crate::error::{Code, Failure};

/// Bytes that a struct may say it has: far more than any version will.
const MAX_STRUCT_BYTES: usize = 4096;

/// A struct that begins with its size.
///
/// # Safety
/// It is `repr(C)`, its first field is its size as a `usize`, and it may have any bytes: integers, floats and pointers alone.
pub(crate) unsafe trait Growing: Copy {
    /// For messages.
    const NAME: &'static str;
    /// Bytes of its first version.
    const LEAST: usize;
}

/// The size that the struct says it has.
///
/// # Safety
/// `from` can be read as far as its size.
unsafe fn said<T: Growing>(from: *const T) -> Result<usize, Failure> {
    // SAFETY: the size stands first. Unaligned, since nobody checks what C passes.
    let size = unsafe { from.cast::<usize>().read_unaligned() };
    if !(T::LEAST..=MAX_STRUCT_BYTES).contains(&size) {
        let sentence = format!("{}.size must be sizeof({0}), which is {}, not {size}", T::NAME, size_of::<T>());
        return Err(Failure::invalid(sentence));
    }
    Ok(size)
}

/// The caller's struct as this version knows it: fields that the caller does not know are zero. NULL: all zero.
///
/// # Safety
/// `from` is NULL, or can be read as far as its first field says.
pub(crate) unsafe fn read<T: Growing>(from: *const T) -> Result<T, Failure> {
    let mut value = MaybeUninit::<T>::zeroed();
    if !from.is_null() {
        // SAFETY: the caller's promise.
        let size = unsafe { said(from) }?;
        let known = size.min(size_of::<T>());
        // SAFETY: `known` bytes are within both, which do not overlap: one is new.
        unsafe { ptr::copy_nonoverlapping(from.cast::<u8>(), value.as_mut_ptr().cast::<u8>(), known) };
        // SAFETY: within the size that it says it has.
        let newer = unsafe { slice::from_raw_parts(from.cast::<u8>().add(known), size - known) };
        if newer.iter().any(|&byte| byte != 0) {
            return Err(Failure::invalid(format!("{} has fields that this version of hotset does not know", T::NAME)));
        }
    }
    // SAFETY: all bytes are set, and the type may have any.
    Ok(unsafe { value.assume_init() })
}

/// Fills the caller's struct as far as it goes; its size stays, and fields that this version does not know become zero.
///
/// # Safety
/// `to` is NULL, or can be read and written as far as its first field says.
pub(crate) unsafe fn write<T: Growing>(to: *mut T, value: &T) -> Result<(), Failure> {
    if to.is_null() {
        return Err(Failure::null(T::NAME));
    }
    // SAFETY: the caller's promise.
    let size = unsafe { said(to) }?;
    let (known, head) = (size.min(size_of::<T>()), size_of::<usize>());
    let (from, to) = (ptr::from_ref(value).cast::<u8>(), to.cast::<u8>());
    // SAFETY: from behind the size to `known` is within both, which do not overlap: `value` is ours.
    unsafe { ptr::copy_nonoverlapping(from.add(head), to.add(head), known - head) };
    // SAFETY: within the size that it says it has.
    unsafe { ptr::write_bytes(to.add(known), 0, size - known) };
    Ok(())
}

/// An array of the caller's.
///
/// # Safety
/// `from` is NULL or has `n` items, which stay as they are for `'a`.
pub(crate) unsafe fn array<'a, T>(from: *const T, n: usize, what: &str) -> Result<&'a [T], Failure> {
    if n == 0 {
        return Ok(&[]);
    }
    if from.is_null() {
        return Err(Failure::null(what));
    }
    if !from.is_aligned() || n > isize::MAX as usize / size_of::<T>() {
        return Err(Failure::invalid(format!("{what} is no array of {n} items")));
    }
    // SAFETY: not NULL, aligned, no larger than memory, and the caller says that it has `n` items.
    Ok(unsafe { slice::from_raw_parts(from, n) })
}

/// Text of a known length.
///
/// # Safety
/// As [`array`].
pub(crate) unsafe fn text<'a>(from: *const c_char, len: usize, what: &str) -> Result<&'a str, Failure> {
    // SAFETY: the caller's promise.
    let bytes = unsafe { array(from.cast::<u8>(), len, what) }?;
    str::from_utf8(bytes).map_err(|e| Failure::invalid(format!("{what} is not UTF-8: {e}")))
}

/// Text that ends in NUL; `None` for NULL.
///
/// # Safety
/// `from` is NULL, or ends in NUL and stays as it is for `'a`.
pub(crate) unsafe fn string<'a>(from: *const c_char, what: &str) -> Result<Option<&'a str>, Failure> {
    if from.is_null() {
        return Ok(None);
    }
    // SAFETY: not NULL, and the caller says that it ends in NUL.
    let text = unsafe { CStr::from_ptr(from) }.to_str();
    text.map(Some).map_err(|e| Failure::invalid(format!("{what} is not UTF-8: {e}")))
}

/// Writes a value where the caller wants one.
///
/// # Safety
/// `to` is NULL or can be written.
pub(crate) unsafe fn put<T>(to: *mut T, value: T) {
    if !to.is_null() {
        // SAFETY: not NULL, so the caller says that it can be written.
        unsafe { to.write(value) };
    }
}

/// Copies `items` to the caller's buffer, unless it is NULL: then only their number is asked for.
///
/// # Safety
/// `to` is NULL or has room for `capacity` items; `n` is NULL or can be written.
pub(crate) unsafe fn give<T: Copy>(items: &[T], to: *mut T, capacity: usize, n: *mut usize) -> Result<(), Failure> {
    // SAFETY: the caller's promise.
    unsafe { put(n, items.len()) };
    if to.is_null() {
        return if n.is_null() { Err(Failure::null("the place for the result")) } else { Ok(()) };
    }
    if items.len() > capacity {
        let sentence = format!("the buffer holds {capacity} items, and there are {}", items.len());
        return Err(Failure::new(Code::BufferTooSmall, sentence));
    }
    // SAFETY: there is room for them, and the caller's buffer is none of ours.
    unsafe { ptr::copy_nonoverlapping(items.as_ptr(), to, items.len()) };
    Ok(())
}

/// Whether a number that stands for yes or no is 1.
pub(crate) fn flag(number: u32, what: &str) -> Result<bool, Failure> {
    match number {
        0 => Ok(false),
        1 => Ok(true),
        n => Err(Failure::invalid(format!("{what} must be 0 or 1, not {n}"))),
    }
}

/// Bytes up to the end of a struct's field.
macro_rules! end_of {
    ($type:ty, $field:ident: $of:ty) => {
        std::mem::offset_of!($type, $field) + size_of::<$of>()
    };
}
pub(crate) use end_of;

const _: () = assert!(offset_of!(crate::OpenOptions, size) == 0 && offset_of!(crate::TextOptions, size) == 0);
const _: () = assert!(offset_of!(crate::Stats, size) == 0);
