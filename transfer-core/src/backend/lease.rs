//! Accesses of which the owner of the memory knows nothing, under its leases; see [`crate::mem`]'s ledger.

use transfer_proto::plan::Piece;
use transfer_proto::proto::data::Status;
use transfer_proto::proto::xfer::SliceError;

use crate::mem::Ledger;
use crate::sync::prim::{Ordering, fence};
use crate::xfer::{Op, XferCore};

/// Runs a copy of these pieces such that it succeeds only with what the transfer was promised.
pub(super) fn guarded(
    core: &XferCore,
    pieces: &[Piece],
    copy: impl FnOnce() -> Result<(), SliceError>,
) -> Result<(), SliceError> {
    let admitted = || admitted(core, pieces);
    match core.op {
        Op::Write => write(&core.local.core.ledger, admitted, copy),
        Op::Read => read(admitted, copy),
    }
}

/// A write is announced first and looked at then: whoever revokes from there on waits until it is over.
fn write<E>(
    own: &Ledger,
    admitted: impl Fn() -> Result<(), E>,
    copy: impl FnOnce() -> Result<(), E>,
) -> Result<(), E> {
    let _lane = own.enter();
    admitted()?;
    copy()
}

/// A read is looked at afterwards: what was revoked by then does not count.
fn read<E>(admitted: impl Fn() -> Result<(), E>, copy: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
    // It would be in vain, and touch what belongs to others.
    admitted()?;
    let copied = copy();
    // After the last byte; pairs with the fence between raising a generation and writing anew.
    fence(Ordering::Acquire);
    admitted()?;
    copied
}

/// Whether the owner still has there what the transfer names; if not, the first piece of which that is not so.
fn admitted(core: &XferCore, pieces: &[Piece]) -> Result<(), SliceError> {
    match pieces.iter().position(|piece| !core.remote.core.admits(piece)) {
        None => Ok(()),
        Some(at) => {
            let span = u32::try_from(at).unwrap_or(u32::MAX);
            Err(SliceError::Refused { status: Status::Stale, span })
        }
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use std::sync::Arc;

    use loom::cell::UnsafeCell;
    use loom::sync::atomic::AtomicU64;
    use transfer_proto::id::Incarnation;
    use transfer_proto::proto::metadata::Generations;
    use transfer_sys::process::Process;

    use super::*;
    use crate::mem::{Guest, Guests, PeerLedger, View};

    /// Memory of one block, its owner's ledger, and a generation that names what was in the block at first.
    struct Owner {
        ledger: Arc<Ledger>,
        block: Generations,
        granted: u64,
    }

    impl Owner {
        fn new() -> Self {
            let ledger = Arc::new(Ledger::create("owner").unwrap());
            let block = ledger.register(1, 1).unwrap();
            let granted = ledger.generation();
            Self { ledger, block, granted }
        }

        /// How somebody who was granted the first generation sees whether it still holds.
        fn looks(&self) -> impl Fn() -> Result<(), ()> + use<> {
            let (seen, block, granted) = (PeerLedger::of(&self.ledger), self.block, self.granted);
            move || if seen.admits(&block, granted, 0, 1) { Ok(()) } else { Err(()) }
        }

        /// As [`crate::Region::revoke`].
        fn revoke(&self, guests: &Guests) {
            self.ledger.raise(&self.block, 0, 1);
            let mut inside = guests.inside();
            while !inside.left() {
                loom::thread::yield_now();
            }
        }
    }

    #[test]
    fn no_read_of_an_old_generation_succeeds_with_new_bytes() {
        loom::model(|| {
            let (owner, memory) = (Owner::new(), Arc::new(AtomicU64::new(1)));
            let reader = {
                let (memory, looks) = (Arc::clone(&memory), owner.looks());
                loom::thread::spawn(move || {
                    let mut copied = 0;
                    let copy = || Ok(copied = memory.load(Ordering::Relaxed));
                    assert!(read(looks, copy).is_err() || copied == 1, "new bytes under an old name");
                })
            };
            owner.ledger.raise(&owner.block, 0, 1);
            memory.store(2, Ordering::Relaxed);
            reader.join().unwrap();
        });
    }

    /// The writer's ledger is its own: that of a peer, or (over TCP) the owner's.
    fn revoke_against_a_writer(owner: &Owner, writer: Arc<Ledger>, guests: &Guests) {
        let memory = Arc::new(UnsafeCell::new(()));
        let thread = {
            let (memory, looks) = (Arc::clone(&memory), owner.looks());
            loom::thread::spawn(move || write(&writer, looks, || Ok(memory.with_mut(|_| ()))))
        };
        owner.revoke(guests);
        // Whatever the writer does to it after this, or at the same time, fails here.
        memory.with_mut(|_| ());
        let _written = thread.join().unwrap();
    }

    #[test]
    fn no_peer_writes_after_revoke_returned() {
        loom::model(|| {
            let (owner, theirs) = (Owner::new(), Arc::new(Ledger::create("peer").unwrap()));
            let guests = Guests::new(Arc::clone(&owner.ledger));
            guests.add(Arc::new(Guest {
                name: "peer".to_owned(),
                incarnation: Incarnation::from_bytes([1; 16]),
                process: Process::open(i32::try_from(std::process::id()).unwrap()).unwrap(),
                ledger: PeerLedger::of(&theirs),
            }));
            revoke_against_a_writer(&owner, theirs, &guests);
        });
    }

    #[test]
    fn nothing_that_comes_over_tcp_is_written_after_revoke_returned() {
        loom::model(|| {
            let owner = Owner::new();
            let guests = Guests::new(Arc::clone(&owner.ledger));
            revoke_against_a_writer(&owner, Arc::clone(&owner.ledger), &guests);
        });
    }
}
