//! Controllers of work that ends.

pub mod cronjob;
pub mod job;
pub mod plan;
