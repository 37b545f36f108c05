//! Loading the programs without leaving anything behind.

use std::collections::BTreeMap;

use super::load::{self, LoadError};

/// Loads the object into private maps; the programs' names.
pub fn load(object: &[u8]) -> Result<Vec<String>, LoadError> {
    let loaded = load::load(object, None, &BTreeMap::new())?;
    let mut names: Vec<_> = loaded
        .ebpf
        .programs()
        .map(|(name, _)| name.to_owned())
        .collect();
    names.sort_unstable();
    Ok(names)
}
