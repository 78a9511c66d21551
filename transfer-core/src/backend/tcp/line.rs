//! A data connection between those who may work on it: the driver, and the carrier that has it while much moves.
//!
//! Whoever works on it holds its lock for one turn, of calls that do not block. So the driver, which wants it for a
//! moment, waits for a turn and never for a peer; and what it does inside, nothing of the connection touches memory.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use transfer_proto::id::{Incarnation, RailId};

use super::conn::{Conn, ConnError};
use crate::backend::Completion;

/// What a carrier has to tell the driver.
#[derive(Default)]
pub(super) struct Report {
    pub(super) done: Vec<Completion>,
    /// Bytes of each slice that has left the connection.
    pub(super) freed: Vec<u64>,
    pub(super) moved: bool,
    /// The connection cannot go on.
    pub(super) error: Option<ConnError>,
}

/// A connection that is shared so.
pub(super) struct Line {
    pub(super) token: u64,
    pub(super) peer: Incarnation,
    pub(super) rail: RailId,
    pub(super) encrypted: bool,
    /// `None` once it is over.
    conn: Mutex<Option<Conn>>,
    /// The driver waits for the lock.
    wanted: AtomicUsize,
    /// Written with the lock, so that who ends the connection finds all of it; read without.
    report: Mutex<Report>,
}

impl Line {
    pub(super) fn new(token: u64, conn: Conn) -> Self {
        let (peer, rail, encrypted) = (conn.peer, conn.rail, conn.is_encrypted());
        let (wanted, report) = (AtomicUsize::new(0), Mutex::default());
        Self { token, peer, rail, encrypted, conn: Mutex::new(Some(conn)), wanted, report }
    }

    /// For the driver: it comes next.
    pub(super) fn claim(&self) -> MutexGuard<'_, Option<Conn>> {
        if let Some(conn) = self.try_carry() {
            return conn;
        }
        self.wanted.fetch_add(1, Ordering::Relaxed);
        let conn = self.conn.lock().unwrap_or_else(PoisonError::into_inner);
        self.wanted.fetch_sub(1, Ordering::Relaxed);
        conn
    }

    /// For a carrier, after the driver: a lock that is taken again at once is given to nobody else.
    pub(super) fn carry(&self) -> MutexGuard<'_, Option<Conn>> {
        while self.wanted.load(Ordering::Relaxed) > 0 {
            std::thread::yield_now();
        }
        self.conn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same, where nobody has it.
    pub(super) fn try_carry(&self) -> Option<MutexGuard<'_, Option<Conn>>> {
        match self.conn.try_lock() {
            Ok(conn) => Some(conn),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// What a carrier has to tell, for either side.
    pub(super) fn report(&self) -> MutexGuard<'_, Report> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
