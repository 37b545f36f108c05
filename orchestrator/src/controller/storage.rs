//! Storage: which volume a claim gets, making volumes, and keeping what is in
//! use. The data themselves are the node's business: a local volume names a
//! directory, and whoever mounts it makes it.

pub mod binder;
pub mod local_path;
pub mod matching;
pub mod protection;

use serde_json::Value;

use self::matching::{Claim, Volume};
use crate::{
    cache::Entry,
    controller::runtime::object::{Meta, decode, list},
    registry::{Target, client::Client},
    resource::storage::{PERSISTENT_VOLUME, PERSISTENT_VOLUME_CLAIM},
    scheduler::SELECTED_NODE,
    status::Status,
};

/// The volumes that are free, or might be kept for the claim. Most volumes are
/// neither, which a look at their text tells without decoding them.
///
/// # Errors
/// 500 if a volume does not fit its type.
pub fn volumes_for(client: &Client, claim: &Claim) -> Result<Vec<Volume>, Status> {
    let may_serve = |entry: &&std::sync::Arc<Entry>| {
        std::str::from_utf8(&entry.bytes)
            .is_ok_and(|text| text.contains("Available") || text.contains(&claim.metadata.name))
    };
    let entries = list(client, &PERSISTENT_VOLUME, "")?;
    entries
        .iter()
        .filter(may_serve)
        .map(|e| decode(e))
        .collect()
}

/// Takes a claim's node back: the scheduler chooses again.
async fn unselect_node(client: &Client, claim: &Meta) -> Result<(), Status> {
    let target = Target::object(&PERSISTENT_VOLUME_CLAIM, &claim.namespace, &claim.name);
    let edit = |new: &mut Value| {
        if let Some(annotations) = new["metadata"]["annotations"].as_object_mut() {
            annotations.remove(SELECTED_NODE);
        }
    };
    client.amend(target, &claim.uid, edit).await
}
