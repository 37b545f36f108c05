//! Which watches the server has taken up again. The watcher tells of objects and
//! of errors only: after an outage in which nothing changed it says nothing, and
//! the error would stand until something does.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::http::{Request, Response};
use tokio::sync::Notify;
use tower::{Layer, Service};

use super::resource;
use crate::model::Kind;

/// A signal for each kind, in the order of [`Kind::ALL`].
#[derive(Clone, Debug, Default)]
pub(super) struct Accepted(Arc<[Notify; Kind::ALL.len()]>);

impl Accepted {
    /// Waits for the next watch of a kind that the server accepts. One since the
    /// last call counts.
    pub(super) async fn next(&self, kind: Kind) {
        let mut signals = Kind::ALL.iter().zip(&*self.0);
        match signals.find(|(of, _)| **of == kind) {
            Some((_, signal)) => signal.notified().await,
            None => std::future::pending().await,
        }
    }

    fn tell(&self, path: &str) {
        for (kind, signal) in Kind::ALL.into_iter().zip(&*self.0) {
            if path.rsplit('/').next() == Some(&resource(kind).plural) {
                signal.notify_one();
            }
        }
    }
}

impl<S> Layer<S> for Accepted {
    type Service = Listening<S>;

    fn layer(&self, inner: S) -> Listening<S> {
        Listening {
            inner,
            accepted: self.clone(),
        }
    }
}

/// A client's service, listened to.
#[derive(Debug)]
pub(super) struct Listening<S> {
    inner: S,
    accepted: Accepted,
}

impl<S, B, C> Service<Request<B>> for Listening<S>
where
    S: Service<Request<B>, Response = Response<C>>,
    S::Future: Send + 'static,
{
    type Response = Response<C>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<C>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let query = request.uri().query().unwrap_or_default();
        let is_watch = query.split('&').any(|pair| pair == "watch=true");
        let path = is_watch.then(|| request.uri().path().to_owned());
        let accepted = self.accepted.clone();
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await?;
            if let Some(path) = path.filter(|_| answer.status().is_success()) {
                accepted.tell(&path);
            }
            Ok(answer)
        })
    }
}
