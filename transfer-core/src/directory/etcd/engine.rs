//! The thread on which everything waits that speaks to etcd, and calls into it from any other thread.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::RecvTimeoutError;
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use transfer_sys::OsError;

use super::super::{DirectoryError, Result};
use super::client::Client;

/// What a call may take longer than it was given, before the thread counts as stuck.
const GRACE: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Engine {
    handle: Handle,
    client: Arc<Client>,
    timeout: Duration,
    /// Dropped to end the thread, and with it all tasks. Nobody joins it, since the last user may be one of them.
    _stop: oneshot::Sender<()>,
}

impl Engine {
    pub(super) fn start(client: Client, timeout: Duration) -> Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|e| OsError::from_io("epoll_create", "runtime", &e))?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        std::thread::Builder::new()
            .name("headrace-etcd".to_owned())
            .spawn(move || {
                // It ends by being dropped.
                let _dropped = runtime.block_on(stopped);
                // A name that is being resolved is not waited for.
                runtime.shutdown_background();
            })
            .map_err(|e| OsError::from_io("pthread_create", "headrace-etcd", &e))?;
        Ok(Self { handle, client: Arc::new(client), timeout, _stop: stop })
    }

    pub(super) fn client(&self) -> Arc<Client> {
        Arc::clone(&self.client)
    }

    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
        self.handle.spawn(task)
    }

    /// Runs `call` there within the timeout of the configuration, and waits for it here.
    pub(super) fn call<T: Send + 'static>(
        &self,
        call: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let (place, timeout) = (self.client.place(), self.timeout);
        let late = DirectoryError::Timeout { place, waited: timeout };
        let in_time = async move { tokio::time::timeout(timeout, call).await };
        match self.wait(timeout, in_time) {
            Some(Ok(result)) => result,
            _ => Err(late),
        }
    }

    /// Runs `task`, which ends within `timeout`, and waits for it here, on whatever thread that is.
    pub(super) fn wait<T: Send + 'static>(
        &self,
        timeout: Duration,
        task: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        let (reply, answer) = crossbeam_channel::bounded(1);
        let task = self.handle.spawn(async move {
            // Whoever asked may have given up.
            let _sent = reply.send(task.await);
        });
        match answer.recv_timeout(timeout.saturating_add(GRACE)) {
            Ok(result) => Some(result),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                task.abort();
                None
            }
        }
    }
}
