//! A data connection between those who may work on it: the driver, and the carrier that has it while much moves.
//!
//! Whoever works on it holds its lock for one turn, of calls that do not block. So the driver, which wants it when slices
//! are called back or the connection is to end, waits for a turn and never for a peer; and while it has the lock,
//! nothing of the connection touches memory. Slices for a connection that is lent lie in its inbox until the carrier
//! looks there, and what completes lies in its report until the driver does: neither waits for the other.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use transfer_proto::id::{Incarnation, RailId};

use super::conn::{Conn, ConnError};
use crate::backend::{Completion, Slice};

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

/// Slices on their way to a carrier.
#[derive(Default)]
struct Inbox {
    /// Who has the connection; changed with its lock only.
    carrier: Option<usize>,
    slices: Vec<Slice>,
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
    inbox: Mutex<Inbox>,
    /// Whether a carrier has it; written with both locks. Only the driver lends: where it finds none, none has it and the
    /// inbox is empty, which saves it most of the locking. Where it finds one, that may be over by now.
    is_lent: AtomicBool,
    /// Written with the lock, so that who ends the connection finds all of it; read without.
    report: Mutex<Report>,
}

impl Line {
    pub(super) fn new(token: u64, conn: Conn) -> Self {
        let (peer, rail, encrypted) = (conn.peer, conn.rail, conn.is_encrypted());
        let (conn, wanted, is_lent) = (Mutex::new(Some(conn)), AtomicUsize::new(0), AtomicBool::new(false));
        let (inbox, report) = (Mutex::default(), Mutex::default());
        Self { token, peer, rail, encrypted, conn, wanted, inbox, is_lent, report }
    }

    /// For the driver: it comes next.
    pub(super) fn claim(&self) -> MutexGuard<'_, Option<Conn>> {
        if let Some(conn) = self.try_carry() {
            return conn;
        }
        self.wanted.fetch_add(1, Ordering::Relaxed);
        let conn = self.conn.lock().unwrap_or_else(PoisonError::into_inner);
        self.wanted.fetch_sub(1, Ordering::Relaxed);
        self.unpacked(conn)
    }

    /// For a carrier, after the driver: a lock that is taken again at once is given to nobody else.
    pub(super) fn carry(&self) -> MutexGuard<'_, Option<Conn>> {
        while self.wanted.load(Ordering::Relaxed) > 0 {
            std::thread::yield_now();
        }
        self.unpacked(self.conn.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The same, where nobody has it.
    pub(super) fn try_carry(&self) -> Option<MutexGuard<'_, Option<Conn>>> {
        let conn = match self.conn.try_lock() {
            Ok(conn) => conn,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        Some(self.unpacked(conn))
    }

    /// Gives the connection what lies in the inbox.
    fn unpacked<'a>(&self, mut conn: MutexGuard<'a, Option<Conn>>) -> MutexGuard<'a, Option<Conn>> {
        if self.is_lent()
            && let Some(conn) = conn.as_mut()
        {
            let mut inbox = self.inbox();
            inbox.slices.drain(..).filter_map(|slice| conn.submit(slice).err()).for_each(|failed| {
                self.report().done.push(failed);
            });
        }
        conn
    }

    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_lent(&self) -> bool {
        self.is_lent.load(Ordering::Acquire)
    }

    /// Who has it. With the lock, that stays so.
    pub(super) fn carrier(&self) -> Option<usize> {
        if self.is_lent() { self.inbox().carrier } else { None }
    }

    /// Lends it to this carrier; with the lock.
    pub(super) fn lend(&self, carrier: usize) {
        let mut inbox = self.inbox();
        inbox.carrier = Some(carrier);
        self.is_lent.store(true, Ordering::Release);
    }

    /// Takes it back, with the lock. False where slices lie in the inbox, which somebody has to unpack first.
    pub(super) fn take_back(&self) -> bool {
        let mut inbox = self.inbox();
        if inbox.slices.is_empty() {
            inbox.carrier = None;
            self.is_lent.store(false, Ordering::Release);
        }
        inbox.carrier.is_none()
    }

    /// Leaves a slice to the carrier that has the connection. Given back where none has.
    pub(super) fn leave(&self, slice: Slice) -> Option<Slice> {
        if !self.is_lent() {
            return Some(slice);
        }
        let mut inbox = self.inbox();
        if inbox.carrier.is_none() {
            return Some(slice);
        }
        inbox.slices.push(slice);
        None
    }

    /// Whether slices lie in the inbox.
    pub(super) fn has_mail(&self) -> bool {
        !self.inbox().slices.is_empty()
    }

    /// What a carrier has to tell, for either side.
    pub(super) fn report(&self) -> MutexGuard<'_, Report> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
