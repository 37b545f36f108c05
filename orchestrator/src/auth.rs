//! Who asks, and may they: authentication, authorization and the reviews that show both.
//!
//! Decisions are pure ([`rule`], [`rbac`]); this module is the thin shell that gives them live
//! objects and the time.

pub mod claims;
pub mod identity;
pub mod jwt;
pub mod rbac;
pub mod rule;

pub use identity::{Attributes, Decision, ResourceTarget, Target, User, refusal};
