//! Controllers of work that ends.

pub mod job;
pub mod plan;
