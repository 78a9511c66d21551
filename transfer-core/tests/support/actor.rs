//! What the other process does with an agent of the test, until something ends it.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use transfer_core::{Agent, Desc, DescList, Error, Peer, Region, RegionId};

use crate::support::WAIT;

/// Bytes at both ends of a region that no list of these names.
pub const MARGIN: usize = 4096;
/// How often a list goes over what lies between.
pub const ROUNDS: u32 = 16;

/// The middle of a region, over and over: long enough to be met in the middle.
pub fn middle(region: RegionId, len: usize, rounds: u32) -> DescList {
    DescList::from(Desc::strided(region, MARGIN as u64, (len - 2 * MARGIN) as u64, 0, rounds))
}

/// Transfers of one kind between `region` and the region `target` of the agent at `address`, until one fails.
pub struct Actor {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Option<Error>>,
}

impl Actor {
    pub fn start(agent: &Agent, region: &Region, what: &str, address: &str) -> Self {
        let (agent, region, what) = (agent.clone(), region.clone(), what.to_owned());
        let address = address.parse().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let peer = match agent.connect(&address) {
                Ok(peer) => peer,
                Err(error) => return Some(error),
            };
            while !asked.load(Ordering::SeqCst) {
                match act(&agent, &region, &peer, &what, &asked) {
                    Ok(()) => std::thread::sleep(Duration::from_millis(5)),
                    // The owner has closed it, and may have another one.
                    Err(Error::Stale { .. } | Error::RegionClosed { .. } | Error::TransferFailed { .. })
                        if peer.is_up() => {}
                    Err(error) => return Some(error),
                }
            }
            peer.sync().err()
        });
        Self { stop, thread }
    }

    /// Ends it; how it ended where it has done so by itself.
    pub fn end(self) -> String {
        self.stop.store(true, Ordering::SeqCst);
        let ended = self.thread.join().unwrap();
        ended.map_or_else(|| "stopped".to_owned(), |error| format!("{error:?}"))
    }
}

/// Transfers until one fails or there is nothing to do them with.
fn act(agent: &Agent, region: &Region, peer: &Peer, what: &str, stop: &AtomicBool) -> Result<(), Error> {
    peer.sync()?;
    let Some(theirs) = peer.region("target").filter(|_| what != "idle") else { return Ok(()) };
    let rounds = if what == "posts" { 1 } else { ROUNDS };
    let list = |id| middle(id, region.len(), rounds);
    let (local, remote) = (agent.prepare(&list(region.id()))?, peer.prepare(&list(theirs.id))?);
    let mut round = 0_u64;
    while !stop.load(Ordering::SeqCst) {
        round += 1;
        let writes = what == "writes" || what != "reads" && round.is_multiple_of(2);
        let request = if writes { peer.write(&local, &remote) } else { peer.read(&local, &remote) };
        let xfer = request.notify(b"round").post()?;
        if what == "cancels" {
            xfer.cancel();
        }
        match xfer.wait(WAIT) {
            Ok(_) | Err(Error::Cancelled) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
