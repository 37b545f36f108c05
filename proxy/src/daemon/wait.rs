//! Plugins that wait for a pod's policy to be in force.

use std::time::Duration;

use proxy_ebpf::record::Answer;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tracing::{debug, info};

use super::core::Core;
use super::pods;

/// Waiting plugins; the control socket's connections bound their number.
#[derive(Debug, Default)]
pub(super) struct Waiters {
    waiters: Vec<Waiter>,
}

#[derive(Debug)]
struct Waiter {
    container_id: String,
    ifname: String,
    deadline: Instant,
    reply: oneshot::Sender<Answer>,
}

/// A plugin waits no longer, whatever it says.
const PATIENCE_MAX: Duration = Duration::from_mins(10);

/// When a plugin that waits for `timeout_ms` is answered at the latest.
pub(super) fn deadline(timeout_ms: u64) -> Instant {
    Instant::now() + Duration::from_millis(timeout_ms).min(PATIENCE_MAX)
}

/// Answers a plugin, which may have gone.
pub(super) fn reply(reply: oneshot::Sender<Answer>, answer: Answer) {
    if reply.send(answer).is_err() {
        debug!("a plugin did not wait for its answer");
    }
}

impl Waiters {
    pub(super) fn add(
        &mut self,
        container_id: String,
        ifname: String,
        deadline: Instant,
        reply: oneshot::Sender<Answer>,
    ) {
        self.waiters.push(Waiter {
            container_id,
            ifname,
            deadline,
            reply,
        });
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.waiters.iter().map(|waiter| waiter.deadline).min()
    }

    /// Answers those whose pod's policy is in force.
    pub(super) fn answer(&mut self, core: &Core) {
        for waiter in std::mem::take(&mut self.waiters) {
            match outcome(core, &waiter) {
                Some(answer) => reply(waiter.reply, answer),
                None => self.waiters.push(waiter),
            }
        }
    }

    /// Answers those whose time is up.
    pub(super) fn expire(&mut self) {
        let now = Instant::now();
        for waiter in std::mem::take(&mut self.waiters) {
            if waiter.deadline <= now {
                info!(container = %waiter.container_id, "no source knows the pod yet");
                reply(waiter.reply, Answer::PodUnknown);
            } else {
                self.waiters.push(waiter);
            }
        }
    }
}

/// `None`: not yet.
fn outcome(core: &Core, waiter: &Waiter) -> Option<Answer> {
    let Some(slot) = core.slot_of(&waiter.container_id, &waiter.ifname) else {
        return Some(Answer::Failed {
            message: format!(
                "there is no endpoint record of container {} interface {}\n\
                 hint: plugin and daemon must use the same state directory",
                waiter.container_id, waiter.ifname
            ),
        });
    };
    if !core.is_synced() || !core.is_in_step() {
        return None;
    }
    let live = core.live();
    let record = &live.get(&slot)?.record;
    let is_known = record.pod.is_none() || pods::known_pod(record, core.compiler.state()).is_some();
    is_known.then_some(Answer::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plugin_that_would_wait_for_ever_is_answered_some_day() {
        assert!(deadline(u64::MAX) <= Instant::now() + PATIENCE_MAX);
    }
}
