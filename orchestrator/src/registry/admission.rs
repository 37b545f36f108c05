//! Admission: cluster-wide rules between the schema and the store.

use std::any::Any;

use serde_json::Value;

use super::{Caller, Target};
use crate::{cache::Cache, status::Status};

/// What is about to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A new object.
    Create,
    /// A changed one; `old` is there.
    Update,
    /// A removal; only `old` is there.
    Delete,
}

/// One write as an admission rule sees it.
#[derive(Debug)]
pub struct Request<'a> {
    /// What is about to happen.
    pub operation: Operation,
    /// To which object; the name of a create may still be empty (`generateName`).
    pub target: Target<'a>,
    /// Who asks.
    pub caller: &'a Caller,
    /// The object as it is, of updates and deletions.
    pub old: Option<&'a Value>,
    /// Whether the commit is left out.
    pub dry_run: bool,
    /// Everything there is.
    pub cache: &'a Cache,
    /// Kept until the commit is done or has failed. A rule that promises
    /// something scarce (an address, a port) puts the promise here; once the
    /// object is in the cache, the object itself is the claim.
    pub holds: &'a mut Vec<Hold>,
    /// Texts for `Warning` headers.
    pub warnings: &'a mut Vec<String>,
}

/// A promise that ends when it is dropped.
pub type Hold = Box<dyn Any + Send>;

/// One rule. Rules run in order on every write, before validation.
pub trait Admission: Send + Sync {
    /// Changes `object` (of a deletion: a copy of the old one) or refuses.
    ///
    /// # Errors
    /// The refusal that the client gets, usually 403.
    fn admit(&self, request: &mut Request<'_>, object: &mut Value) -> Result<(), Status>;

    /// Refuses; runs after all changes, on the valid object (of a deletion: the old one).
    ///
    /// # Errors
    /// The refusal that the client gets, usually 403.
    fn review(&self, request: &mut Request<'_>, object: &Value) -> Result<(), Status> {
        let (_, _) = (request, object);
        Ok(())
    }
}
