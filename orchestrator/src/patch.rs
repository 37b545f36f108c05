//! Patches: JSON patch, merge patch, strategic merge patch, and server-side apply with the
//! ownership of fields that goes with every write.
//!
//! Pure: values in, values out. What comes out has still to be converted to its type (see
//! `schema::convert`), defaulted and validated by the caller.

mod apply;
mod json;
mod strategic;

use thiserror::Error;

pub use apply::{ApplyError, Conflict, Writer, apply, track_update};
pub use json::{DEPTH_MAX, OPERATIONS_MAX, deeper_than, json_patch, merge_patch};
pub use strategic::strategic_merge;

/// A patch that cannot be applied.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PatchError {
    /// The patch itself makes no sense: 400.
    #[error("{0}")]
    Malformed(String),
    /// The patch does not fit this object: 422.
    #[error("{0}")]
    Unprocessable(String),
    /// Too many operations: 413.
    #[error("The allowed maximum operations in a JSON patch is {OPERATIONS_MAX}, got {0}")]
    TooManyOperations(usize),
}
