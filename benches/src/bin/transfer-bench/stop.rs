//! Ctrl-C and SIGTERM: the first one asks for an orderly end, the second one ends the process as it stands.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result};
use nix::sys::signal::{SigSet, Signal};

/// Somebody asked for the end.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stop(Arc<AtomicBool>);

/// What a measurement ends with where somebody asked for the end.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub(crate) struct Interrupted;

impl Stop {
    /// Catches the signals from now on. To be called before there are other threads, so that all of them leave the
    /// signals to the one that waits for them. `then` runs on that one.
    pub(crate) fn catch(then: impl FnOnce() + Send + 'static) -> Result<Self> {
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGINT);
        signals.add(Signal::SIGTERM);
        signals.thread_block().context("cannot catch signals")?;
        let stop = Self::default();
        let flag = stop.clone();
        std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
            if signals.wait().is_err() {
                return;
            }
            flag.0.store(true, Ordering::Relaxed);
            then();
            // From here on this thread takes them as they come.
            if signals.thread_unblock().is_ok() {
                loop {
                    std::thread::park();
                }
            }
        })?;
        Ok(stop)
    }

    /// Whether somebody asked.
    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// An error where somebody asked.
    pub(crate) fn check(&self) -> Result<(), Interrupted> {
        if self.is_set() { Err(Interrupted) } else { Ok(()) }
    }
}
