//! The listening side: connections in, graceful end.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use crate::config::{Checked, Config, ConfigError};
use crate::fleet::Fleet;
use crate::metrics::Metrics;
use crate::upstream::Upstream;
use crate::{clock, intake, probe};

/// How long a connection may take to send a request's head, also when it is idle between two requests.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest request head.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// Pause after an accept failed (no file descriptor is free), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Why a router does not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The configuration cannot work; nothing was started.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The address cannot be listened on.
    #[error("cannot listen on {host}:{port}: {source}; choose another --host or --port")]
    Bind {
        /// The address asked for.
        host: String,
        /// The port asked for.
        port: u16,
        /// What the system says.
        source: std::io::Error,
    },
}

/// What every request sees.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) config: Config,
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) upstream: Upstream,
    pub(crate) metrics: Arc<Metrics>,
}

/// A router that listens. Nobody is answered before [`Router::run`].
#[derive(Debug)]
pub struct Router {
    listener: TcpListener,
    address: SocketAddr,
    state: Arc<State>,
}

impl Router {
    /// Checks the configuration and takes the port.
    ///
    /// # Errors
    /// [`ServeError`], by which of the two did not work.
    pub async fn bind(config: Config) -> Result<Self, ServeError> {
        let checked = Checked::new(config)?;
        let config = checked.config.clone();
        let bind = |source| ServeError::Bind { host: config.host.clone(), port: config.port, source };
        let listener = TcpListener::bind((config.host.as_str(), config.port)).await.map_err(bind)?;
        let address = listener.local_addr().map_err(bind)?;
        let fleet = Arc::new(Fleet::new(&checked, clock::now()));
        let upstream = Upstream::new(&config);
        let state = Arc::new(State { config, fleet, upstream, metrics: Arc::new(Metrics::new()) });
        Ok(Self { listener, address, state })
    }

    /// Where it listens; with port 0 in the configuration, the port it got.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `shutdown` is ready; then takes no new connections, lets running requests end for up to
    /// `drain_timeout`, and closes what is left.
    ///
    /// # Errors
    /// None today; the result leaves room for listeners that can fail for good.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send) -> Result<(), ServeError> {
        let Self { listener, state, .. } = self;
        let mut probes = JoinSet::new();
        for index in 0..state.fleet.workers().len() {
            let (fleet, upstream) = (Arc::clone(&state.fleet), state.upstream.clone());
            probes.spawn(probe::watch(fleet, upstream, index, state.config.health_timeout));
        }
        let graceful = GracefulShutdown::new();
        let permits = Arc::new(Semaphore::new(state.config.connections_max.min(Semaphore::MAX_PERMITS)));
        let mut connections = JoinSet::new();
        let mut shutdown = pin!(shutdown);
        loop {
            tokio::select! {
                () = &mut shutdown => break,
                Some(_) = connections.join_next() => {}
                Some((stream, permit)) = accept(&listener, &permits) => {
                    connections.spawn(connection(Arc::clone(&state), stream, permit, graceful.watcher()));
                }
            }
        }
        drop(listener);
        tracing::info!(connections = connections.len(), "shutting down");
        if tokio::time::timeout(state.config.drain_timeout, graceful.shutdown()).await.is_err() {
            tracing::warn!(connections = connections.len(), "drain timeout passed, closing what is left");
        }
        connections.shutdown().await;
        Ok(())
    }
}

/// Binds and serves until `shutdown` is ready.
///
/// # Errors
/// As [`Router::bind`] and [`Router::run`].
pub async fn serve(config: Config, shutdown: impl Future<Output = ()> + Send) -> Result<(), ServeError> {
    Router::bind(config).await?.run(shutdown).await
}

/// The next connection, when there is room for one; `None` only if the semaphore is closed, which nobody does.
async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> Option<(TcpStream, OwnedSemaphorePermit)> {
    let permit = Arc::clone(permits).acquire_owned().await.ok()?;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return Some((stream, permit)),
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(
    state: Arc<State>,
    stream: TcpStream,
    permit: OwnedSemaphorePermit,
    watcher: hyper_util::server::graceful::Watcher,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "no TCP_NODELAY");
    }
    let service = service_fn(move |request| intake::answer(Arc::clone(&state), request));
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = watcher.watch(serving).await {
        tracing::debug!(%error, "connection ended");
    }
    drop(permit);
}
