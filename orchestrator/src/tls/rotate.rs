//! A certificate that replaces itself: rustls asks for it on every handshake,
//! a task renews it at two thirds of its life, open connections go on.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use rustls::crypto::ring::sign::any_supported_type;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::sync::watch;

use super::WallClock;
use super::authority::{Authority, Issued, LEAF_LIFE, Leaf, PkiError};

/// Longest sleep of the renewal task: a machine that was suspended, or whose clock was set,
/// is noticed within this time.
const LOOK_AGAIN: Duration = Duration::from_hours(1);
/// Pause after a failed renewal.
const RETRY: Duration = Duration::from_mins(1);

/// When a certificate with this validity is to be replaced: at two thirds of its life.
pub fn renewal_time(not_before: SystemTime, not_after: SystemTime) -> SystemTime {
    let life = not_after
        .duration_since(not_before)
        .unwrap_or(Duration::ZERO);
    not_before + life / 3 * 2
}

/// The current certificate of one purpose, renewed by itself.
pub struct Rotating {
    authority: Arc<Authority>,
    leaf: Leaf,
    life: Duration,
    clock: WallClock,
    current: RwLock<Arc<Current>>,
    changed: watch::Sender<()>,
}

struct Current {
    issued: Issued,
    certified: Arc<CertifiedKey>,
}

impl fmt::Debug for Rotating {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rotating")
            .field("leaf", &self.leaf)
            .finish_non_exhaustive()
    }
}

// === impl Rotating ===

impl Rotating {
    /// Issues the first certificate, living [`LEAF_LIFE`].
    pub fn new(
        authority: Arc<Authority>,
        leaf: Leaf,
        clock: WallClock,
    ) -> Result<Arc<Self>, PkiError> {
        Self::with_life(authority, leaf, LEAF_LIFE, clock)
    }

    /// As [`Self::new`], with a life of its own.
    pub fn with_life(
        authority: Arc<Authority>,
        leaf: Leaf,
        life: Duration,
        clock: WallClock,
    ) -> Result<Arc<Self>, PkiError> {
        let first = Current::issue(&authority, &leaf, clock(), life)?;
        Ok(Arc::new(Self {
            authority,
            leaf,
            life,
            clock,
            current: RwLock::new(Arc::new(first)),
            changed: watch::Sender::new(()),
        }))
    }

    /// Replaces the certificate if it is due. Returns whether it did.
    pub fn renew_if_due(&self) -> Result<bool, PkiError> {
        let now = (self.clock)();
        if now < self.due() {
            return Ok(false);
        }
        let next = Current::issue(&self.authority, &self.leaf, now, self.life)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
        self.changed.send_replace(());
        Ok(true)
    }

    /// When the current certificate is to be replaced.
    pub fn due(&self) -> SystemTime {
        let current = self.current();
        renewal_time(current.issued.not_before, current.issued.not_after)
    }

    /// Calls `see` with the current certificate and its key.
    pub fn with_current<R>(&self, see: impl FnOnce(&Issued) -> R) -> R {
        see(&self.current().issued)
    }

    /// Wakes at each renewal.
    pub fn subscribe(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Renews for ever; run it as a task. Sleeps until due, wakes at least hourly.
    pub async fn keep_fresh(self: Arc<Self>) {
        loop {
            let wait = match self.renew_if_due() {
                Ok(renewed) => {
                    if renewed {
                        tracing::info!(subject = self.leaf.common_name(), "certificate renewed");
                    }
                    self.due()
                        .duration_since((self.clock)())
                        .unwrap_or(Duration::ZERO)
                }
                Err(error) => {
                    let error: &dyn std::error::Error = &error;
                    tracing::error!(subject = self.leaf.common_name(), error, "renewal failed");
                    RETRY
                }
            };
            tokio::time::sleep(wait.clamp(Duration::from_secs(1), LOOK_AGAIN)).await;
        }
    }

    fn current(&self) -> Arc<Current> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl ResolvesServerCert for Rotating {
    fn resolve(&self, _client_hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.current().certified))
    }
}

// === impl Current ===

impl Current {
    fn issue(
        authority: &Authority,
        leaf: &Leaf,
        now: SystemTime,
        life: Duration,
    ) -> Result<Self, PkiError> {
        let issued = authority.issue(leaf, now, life)?;
        let key = any_supported_type(&issued.key).expect("an ECDSA P-256 key, made just now");
        let certified = Arc::new(CertifiedKey::new(vec![issued.certificate.clone()], key));
        Ok(Self { issued, certified })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    const DAY: u64 = 24 * 3600;

    fn clock_at(start: SystemTime) -> (Arc<AtomicU64>, WallClock) {
        let elapsed = Arc::new(AtomicU64::new(0));
        let seen = Arc::clone(&elapsed);
        let clock: WallClock =
            Arc::new(move || start + Duration::from_secs(seen.load(Ordering::SeqCst)));
        (elapsed, clock)
    }

    fn leaf() -> Leaf {
        Leaf::Client {
            common_name: "someone".into(),
            organizations: Vec::new(),
        }
    }

    #[test]
    fn two_thirds_of_life_is_when_to_renew() {
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let end = start + Duration::from_mins(15);
        assert_eq!(renewal_time(start, end), start + Duration::from_mins(10));
        assert_eq!(
            renewal_time(end, start),
            end,
            "an inverted validity is due at once"
        );
    }

    #[test]
    fn a_certificate_is_replaced_at_two_thirds_and_not_before() {
        let (elapsed, clock) = clock_at(SystemTime::now());
        let authority = Arc::new(Authority::generate(clock()).unwrap());
        let rotating = Rotating::new(authority, leaf(), clock).unwrap();
        let first = rotating.with_current(|issued| issued.certificate.clone());

        elapsed.store(59 * DAY, Ordering::SeqCst);
        assert!(!rotating.renew_if_due().unwrap());
        assert_eq!(
            rotating.with_current(|issued| issued.certificate.clone()),
            first
        );

        elapsed.store(61 * DAY, Ordering::SeqCst);
        let seen = rotating.subscribe();
        assert!(rotating.renew_if_due().unwrap());
        assert!(seen.has_changed().unwrap());
        assert_ne!(
            rotating.with_current(|issued| issued.certificate.clone()),
            first
        );
        assert!(!rotating.renew_if_due().unwrap(), "the new one is not due");
    }

    #[test]
    fn a_leaf_never_outlives_its_ca() {
        let (elapsed, clock) = clock_at(SystemTime::now());
        let authority = Arc::new(Authority::generate(clock()).unwrap());
        elapsed.store(3649 * DAY, Ordering::SeqCst);
        let issued = authority.issue(&leaf(), clock(), LEAF_LIFE).unwrap();
        assert_eq!(issued.not_after, authority.not_after());
        elapsed.store(3651 * DAY, Ordering::SeqCst);
        let refused = authority.issue(&leaf(), clock(), LEAF_LIFE).unwrap_err();
        assert!(matches!(refused, PkiError::CaExpired));
    }

    #[tokio::test(start_paused = true)]
    async fn the_task_renews_when_the_time_comes() {
        // The wall clock follows tokio's paused clock, so a hundred days pass at once.
        let start = tokio::time::Instant::now();
        let epoch = SystemTime::now();
        let clock: WallClock = Arc::new(move || epoch + start.elapsed());
        let authority = Arc::new(Authority::generate(epoch).unwrap());
        let rotating = Rotating::new(authority, leaf(), clock).unwrap();
        let mut seen = rotating.subscribe();
        let task = tokio::spawn(Arc::clone(&rotating).keep_fresh());
        seen.changed().await.unwrap();
        let days = start.elapsed().as_secs() / DAY;
        assert!((59..=60).contains(&days), "renewed after {days} days");
        task.abort();
    }
}
