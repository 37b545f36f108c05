//! Fairlead's orchestrator: API server, store, scheduler and controllers in one process.

pub mod tls;
