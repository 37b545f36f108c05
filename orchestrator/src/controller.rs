//! The controllers: what makes the cluster become what its objects say.
//!
//! Each is a pure core (what should be done about what is seen) and a thin
//! shell on the [`runtime`], in one file per kind.

pub mod apps;
pub mod batch;
pub mod cluster;
pub mod leader;
pub mod network;
pub mod pods;
pub mod runtime;
mod start;
pub mod storage;

pub use start::{Controllers, Measures, Options};
