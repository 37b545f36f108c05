//! Services: their addresses and ports, and the pods behind them.

pub mod allocator;
pub mod endpoint_slice;
pub mod packing;
