//! Fairlead's control plane: one process that Kubernetes clients take for Kubernetes.
//!
//! The life of a write: `api` reads an HTTP request and hands a plain call to
//! `registry`, which defaults, admits, validates and commits it to `store`;
//! the store's writer thread shows the committed change to `cache`; every
//! list, watch and controller reads the cache.

pub mod admission;
pub mod api;
pub mod auth;
pub mod cache;
pub mod config;
pub mod controller;
pub mod defaults;
pub mod hollow;
pub mod openapi;
pub mod patch;
pub mod proto;
pub mod registry;
pub mod resource;
pub mod schedule;
pub mod scheduler;
pub mod schema;
pub mod seed;
pub mod server;
pub mod signer;
pub mod status;
pub mod store;
pub mod tls;
pub mod validation;
