//! Who may be writing into this agent's memory: agents of the same host, this one among them.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use transfer_proto::id::Incarnation;
use transfer_sys::process::Process;

use super::ledger::{Ledger, PeerLedger, View, entries};
use crate::sync::prim::{Ordering, fence};

/// A peer on this host, as one that writes.
#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) name: String,
    pub(crate) incarnation: Incarnation,
    pub(crate) process: Process,
    pub(crate) ledger: PeerLedger,
}

impl Guest {
    /// Whether it will never write again: its agent said so, or its process has ended.
    fn is_gone(&self) -> bool {
        self.ledger.is_retired() || !self.process.is_alive()
    }
}

/// All that were met and are not gone.
///
/// A peer whose connection ended stays: one that was only frozen goes on where it stood when it thaws, and until it
/// has looked at the generations it is a writer like any other.
#[derive(Debug)]
pub(crate) struct Guests {
    own: Arc<Ledger>,
    list: Mutex<Vec<Arc<Guest>>>,
}

impl Guests {
    pub(crate) fn new(own: Arc<Ledger>) -> Self {
        Self { own, list: Mutex::default() }
    }

    fn list(&self) -> MutexGuard<'_, Vec<Arc<Guest>>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in a peer, before it is told of any memory. Those that are gone by now are dropped, and so is what the same
    /// agent was taken in as before; not what another process was that claims to be it.
    pub(crate) fn add(&self, guest: Arc<Guest>) {
        let same = |other: &Guest| {
            (other.incarnation, other.process.pid()) == (guest.incarnation, guest.process.pid())
        };
        let mut list = self.list();
        list.retain(|other| !same(other) && !other.is_gone());
        list.push(guest);
    }

    /// Lets go of those that are gone, and of what is kept to watch them. Cost: a syscall for each that is left.
    pub(crate) fn drop_gone(&self) {
        self.list().retain(|guest| !guest.is_gone());
    }

    /// Those who are writing now, after generations were raised: all whom the new ones do not stop.
    /// Cost: one look at 63 words for each peer of this host; allocates only where somebody is inside.
    pub(crate) fn inside(&self) -> Inside {
        let mut inside = Inside { own: Arc::clone(&self.own), entries: Vec::new() };
        inside.entries.extend(entries(&*self.own).map(|(lane, entry)| (None, lane, entry)));
        for guest in self.list().iter() {
            inside
                .entries
                .extend(entries(&guest.ledger).map(|(lane, entry)| (Some(Arc::clone(guest)), lane, entry)));
        }
        inside.left();
        inside
    }
}

/// Writers that have to be waited for.
#[derive(Debug)]
pub(crate) struct Inside {
    own: Arc<Ledger>,
    entries: Vec<(Option<Arc<Guest>>, usize, u64)>,
}

impl Inside {
    /// Whether all have left; once true, it stays so. Where it is, all that they wrote is there.
    pub(crate) fn left(&mut self) -> bool {
        let own = &self.own;
        self.entries.retain(|(guest, lane, entry)| match guest {
            None => own.entry(*lane) == Some(*entry),
            Some(guest) => guest.ledger.entry(*lane) == Some(*entry) && !guest.is_gone(),
        });
        fence(Ordering::SeqCst);
        self.entries.is_empty()
    }
}

impl Inside {
    /// Whether all had left when it was looked at last.
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

impl fmt::Display for Inside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.entries.first() {
            None => f.write_str("nobody"),
            Some((None, ..)) => f.write_str("this agent"),
            Some((Some(guest), ..)) => write!(f, "{} (process {})", guest.name, guest.process.pid()),
        }
    }
}

#[cfg(not(loom))]
#[cfg(test)]
mod tests {
    use super::*;

    fn guest(ledger: &Ledger, pid: u32) -> Arc<Guest> {
        let process = Process::open(i32::try_from(pid).unwrap()).unwrap();
        let ledger = PeerLedger::map(ledger.file()).unwrap();
        let incarnation = Incarnation::from_bytes([1; 16]);
        Arc::new(Guest { name: "peer".to_owned(), incarnation, process, ledger })
    }

    #[test]
    fn those_who_entered_are_waited_for_and_those_who_come_later_are_not() {
        let own = Arc::new(Ledger::create("own").unwrap());
        let theirs = Ledger::create("theirs").unwrap();
        let guests = Guests::new(Arc::clone(&own));
        guests.add(guest(&theirs, std::process::id()));
        assert!(guests.inside().left());
        let (mine, lane) = (own.enter(), theirs.enter());
        let mut inside = guests.inside();
        let later = theirs.enter();
        assert!(!inside.left());
        drop(mine);
        assert!(!inside.left());
        assert!(inside.to_string().starts_with("peer (process "), "{inside}");
        drop(lane);
        assert!(inside.left());
        drop(later);
    }

    #[test]
    fn a_dead_writer_counts_as_gone() {
        let theirs = Ledger::create("theirs").unwrap();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let guests = Guests::new(Arc::new(Ledger::create("own").unwrap()));
        guests.add(guest(&theirs, child.id()));
        let lane = theirs.enter();
        let mut inside = guests.inside();
        assert!(!inside.left());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(inside.left());
        drop(lane);
    }

    #[test]
    fn nobody_is_forgotten_for_one_who_takes_its_name() {
        let (theirs, liars) = (Ledger::create("theirs").unwrap(), Ledger::create("liars").unwrap());
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let guests = Guests::new(Arc::new(Ledger::create("own").unwrap()));
        guests.add(guest(&theirs, std::process::id()));
        guests.add(guest(&liars, child.id()));
        let lane = theirs.enter();
        let mut inside = guests.inside();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!inside.left());
        drop(lane);
        assert!(inside.left());
    }

    #[test]
    fn a_retired_agent_counts_as_gone() {
        let theirs = Ledger::create("theirs").unwrap();
        let guests = Guests::new(Arc::new(Ledger::create("own").unwrap()));
        guests.add(guest(&theirs, std::process::id()));
        let _lane = theirs.enter();
        theirs.retire();
        assert!(guests.inside().left());
    }
}
