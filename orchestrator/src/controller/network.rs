//! Services: their addresses and ports, and the pods behind them.

pub mod allocator;
pub mod api_server;
mod backend;
pub mod endpoint_slice;
pub mod endpoints;
pub mod mirroring;
pub mod packing;
mod slices;
