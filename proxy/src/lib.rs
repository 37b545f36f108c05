//! The parts of the node daemon.

pub mod model;
