//! The kernel's event ring, as batches.

use std::io;

use aya::maps::{Map, MapData, RingBuf};
use proxy_ebpf::event::Event;
use std::os::fd::OwnedFd;
use tokio::io::unix::AsyncFd;

use super::bpf::value_of;
use crate::ready;

/// Events handed on at once.
const BATCH: usize = 512;

/// The reading end; there is one per node, the daemon's.
pub struct Events {
    ring: RingBuf<MapData>,
    ready: AsyncFd<OwnedFd>,
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Events")
    }
}

impl Events {
    /// `ring`: the `EVENTS` map. Must be called within a tokio runtime.
    pub fn open(ring: &OwnedFd) -> io::Result<Self> {
        let ready = ready::watch(ring.try_clone()?)?;
        let data = MapData::from_fd(ring.try_clone()?).map_err(io::Error::other)?;
        let map = Map::from_map_data(data).map_err(io::Error::other)?;
        let ring = RingBuf::try_from(map).map_err(io::Error::other)?;
        Ok(Self { ring, ready })
    }

    /// Waits for events; at least one. Cancellation loses nothing.
    pub async fn next(&mut self) -> io::Result<Vec<Event>> {
        loop {
            let mut guard = self.ready.readable().await?;
            let mut batch = Vec::new();
            while batch.len() < BATCH
                && let Some(item) = self.ring.next()
            {
                // An item of another length is from another build's programs.
                batch.extend(value_of::<Event>(&item));
            }
            if batch.len() < BATCH {
                guard.clear_ready();
            }
            if !batch.is_empty() {
                return Ok(batch);
            }
        }
    }
}
