//! Admission: what a write must be given, or refused for, between schema and store.

pub mod pod_security;
