//! UDP sockets whose backend has gone from their Service.
//!
//! `sock_connect*` gives a socket its backend once; without a word from us it
//! would send there for ever. Its connection is ended: the program reads
//! `ECONNABORTED`, can send no more, and gets another backend by its next
//! `connect`. TCP connections are not touched, they end by themselves.
//!
//! Looked for only when a UDP Service has lost a backend: the kernel lists what
//! sockets were given, and if any of it is gone, a thread goes from one pod's
//! network namespace to the next.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

use super::Daemon;
use super::core::Core;
use crate::admin::Admin;
use crate::datapath::Datapath;
use crate::datapath::origin::Inspector;
use crate::netlink::udp::UdpSockets;

/// How often in a row, if there are more orphans than a look can hold.
const LOOKS: usize = 16;

/// The network namespaces of this node's pods, by path.
type Places = Arc<BTreeSet<PathBuf>>;

/// What came of a look.
#[derive(Debug, Default)]
struct Outcome {
    ended: u64,
    /// Why a namespace could not be looked through; the others were.
    failure: Option<io::Error>,
}

/// Looks whenever it is told where, until the daemon goes. What it is told
/// meanwhile it does next, once.
async fn run(admin: Admin, mut told: watch::Receiver<Places>) {
    let mut known_failure = String::new();
    while told.changed().await.is_ok() {
        let places = Arc::clone(&told.borrow_and_update());
        let Outcome { ended, failure } =
            tokio::task::block_in_place(|| look(&admin.datapath, &places));
        if ended > 0 {
            info!(
                sockets = ended,
                "UDP sockets of backends that have gone were ended"
            );
            admin.update(|health| health.metrics.sockets_ended += ended);
        }
        // Said once: a kernel that cannot do it never will.
        let failure = failure.map(|error| error.to_string()).unwrap_or_default();
        if failure != known_failure && !failure.is_empty() {
            warn!(%failure, "UDP sockets stay with backends that have gone; `fairlead-proxy doctor` tells whether this kernel can end them");
        }
        known_failure = failure;
    }
}

/// Looks through the node's own namespace and those of `places`.
fn look(datapath: &Datapath, places: &BTreeSet<PathBuf>) -> Outcome {
    let mut outcome = Outcome::default();
    for _ in 0..LOOKS {
        let mut inspector = match datapath.inspect_sockets() {
            Ok(inspector) => inspector,
            Err(error) => {
                outcome.failure = Some(error);
                break;
            }
        };
        if inspector.is_idle() {
            break;
        }
        // The thread ends with the round, wherever it has got to.
        std::thread::scope(|scope| {
            let round = scope.spawn(|| round(&mut inspector, places, &mut outcome));
            round.join().expect("a round does not panic");
        });
        if !inspector.is_partial() {
            break;
        }
    }
    outcome
}

fn round(inspector: &mut Inspector<'_>, places: &BTreeSet<PathBuf>, outcome: &mut Outcome) {
    let mut here = |entered: io::Result<()>| {
        let result = entered.and_then(|()| end_orphans(inspector, &mut outcome.ended));
        if let Err(error) = result {
            outcome.failure = Some(error);
        }
    };
    here(Ok(()));
    for place in places {
        match enter(place) {
            // The pod goes; its sockets go with it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                debug!(place = %place.display(), "a pod's network namespace is gone");
            }
            entered => here(entered),
        }
    }
}

/// Moves this thread into the network namespace at a path.
fn enter(place: &Path) -> io::Result<()> {
    // Should it be no namespace but a pipe, opening must not wait.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let namespace = File::from(rustix::fs::open(place, flags, Mode::empty())?);
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
    Ok(())
}

/// Ends the orphans of this thread's namespace; counts them in `ended`.
fn end_orphans(inspector: &mut Inspector<'_>, ended: &mut u64) -> io::Result<()> {
    let sockets = UdpSockets::open()?;
    let mut orphans = Vec::new();
    let mut failure = Ok(());
    // As many as there are suspects at most.
    sockets.connected(|socket| {
        match inspector.is_orphan(socket.cookie, socket.peer, socket.port) {
            Ok(true) => orphans.push(socket),
            Ok(false) => {}
            Err(error) => failure = Err(error),
        }
    })?;
    for socket in &orphans {
        *ended += u64::from(sockets.destroy(socket)?);
    }
    failure
}

/// Tells [`run`] where to look.
#[derive(Debug)]
pub(super) struct Orphans {
    places: watch::Sender<Places>,
    /// A look since the last audit: a `connect` that was under way may have
    /// been too late for it.
    again: bool,
}

impl Orphans {
    /// With a task that looks.
    pub(super) fn start(admin: Admin, tasks: &mut JoinSet<()>) -> Self {
        let (places, told) = watch::channel(Places::default());
        tasks.spawn(run(admin, told));
        Self {
            places,
            again: false,
        }
    }
}

impl Daemon {
    /// Has orphans looked for, if the kernel has been told of a lost backend.
    /// `audit`: once more for what was lost before.
    pub(super) fn look_for_orphans(&mut self, audit: bool) {
        if !self.core.is_in_step() {
            return;
        }
        let lost = self.core.compiler.take_lost();
        if lost || (audit && self.orphans.again) {
            self.orphans.places.send_replace(self.core.namespaces());
        }
        self.orphans.again = lost || (self.orphans.again && !audit);
    }
}

impl Core {
    /// The network namespaces of the pods here.
    fn namespaces(&self) -> Places {
        let live = self.live();
        let paths = live
            .values()
            .map(|stored| PathBuf::from(&stored.record.netns));
        Arc::new(paths.filter(|path| path.is_absolute()).collect())
    }
}
