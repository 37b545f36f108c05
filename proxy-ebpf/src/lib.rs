//! The contract between Fairlead's kernel programs and user space, and the
//! pure packet, flow and policy logic that both share.
//!
//! Everything here is `no_std`, without I/O, clock or logging, and runs on any
//! host: the kernel programs in `bin/dataplane` are thin shells around it.
#![cfg_attr(not(any(test, feature = "user")), no_std)]
#![expect(
    clippy::inline_always,
    clippy::many_single_char_names,
    clippy::pub_underscore_fields,
    reason = "kernel programs inline what they can; addresses are taken apart octet by octet; \
              padding is part of the layout"
)]

pub mod abi;
pub mod addr;
pub mod conntrack;
pub mod event;
pub mod nat;
pub mod policy;
#[cfg(feature = "user")]
pub mod record;
pub mod select;
