//! Within one host: copies into and out of the peer's memory, without the peer's help.
//!
//! Allocated regions are mapped here, and a copy kernel does it. Foreign memory is reached through the kernel, with as
//! many ranges in a call as it takes. Nothing has to be waited for, so these transfers do not go through the driver:
//! small ones are copied inside the posting call, and large ones lie here in slices that whoever has time takes,
//! the copying threads of the agent and every thread that waits for that transfer. So a caller that waits pays no
//! hand-over between threads, and one that does not wait is not held up.
//!
//! | module | holds |
//! |---|---|
//! | [`job`] | which slice is next, and who ends a transfer that several threads copy |
//! | [`work`] | a transfer from its beginning to its end |
//! | [`moves`] | the copying of one slice |

mod job;
mod moves;
mod work;

use std::sync::Arc;
use std::thread::JoinHandle;

use transfer_proto::proto::xfer::Failure;
use transfer_sys::OsError;
use transfer_sys::copy::{self, Stores};
use transfer_sys::numa::{self, Nodes};

pub(crate) use self::job::Job;
pub(crate) use self::moves::advance;
use self::moves::{Batch, move_all, move_batch};
pub(crate) use self::work::Work;
use crate::error;
use crate::shared::Shared;
use crate::sync::{Pool, Queue};
use crate::xfer::{XferCore, XferRef};

/// Transfers that wait for a copying thread. Whoever posts one more copies it by himself.
const OPEN_MAX: usize = 4096;
/// Batches that are kept for their next user.
const BATCHES_MAX: usize = 16;

/// What a copying thread is told.
enum Order {
    /// There are slices to copy.
    Copy(XferRef),
    /// The agent ends.
    End,
}

/// The transfers within this host that are under way.
#[derive(Debug)]
pub(crate) struct Copies {
    /// Each transfer with slices that nobody has taken is in here once. It ends with the agent, and every transfer with
    /// it.
    open: Queue<Order>,
    batches: Pool<Batch>,
    /// A transfer of at least so many bytes goes past the caches.
    stream_bytes_min: u64,
    /// Where the machine has several nodes of memory.
    nodes: Option<Nodes>,
}

impl Copies {
    pub(crate) fn new() -> Self {
        Self {
            open: Queue::new(OPEN_MAX),
            batches: Pool::new(BATCHES_MAX),
            // Half the cache for both sides of it together: beyond that they drive each other out, and others' work too.
            stream_bytes_min: copy::cache_bytes() as u64 / 4,
            nodes: Nodes::several(),
        }
    }

    /// Copies a whole transfer in the calling thread. Cost: no allocation, no lock.
    pub(crate) fn copy_all(&self, core: &XferCore) -> Result<u64, Failure> {
        let mut batch = self.batches.take().unwrap_or_default();
        let moved = move_all(core, self.stores(core), &mut batch);
        self.batches.give(batch);
        moved
    }

    /// Has a transfer copied, whose work was begun. Cost: no allocation; a syscall where a copying thread sleeps.
    pub(crate) fn post(&self, agent: &Shared, core: XferRef) {
        if let Err(Order::Copy(core)) = self.open.put(Order::Copy(core)) {
            self.help(agent, &core, || false);
        }
        // The threads may have ended before they could see it.
        if self.open.has_ended() {
            self.drain(agent);
        }
    }

    /// Copies slices of a transfer in the calling thread, until there are none that nobody has taken, or `enough`
    /// says so, which is asked before each slice.
    pub(crate) fn help(&self, agent: &Shared, core: &XferCore, mut enough: impl FnMut() -> bool) {
        let mut batch = self.batches.take().unwrap_or_default();
        while !enough() && self.copy_slice(agent, core, &mut batch) {}
        self.batches.give(batch);
    }

    fn stores(&self, core: &XferCore) -> Stores {
        if core.bytes < self.stream_bytes_min { Stores::Cached } else { Stores::Streaming }
    }

    /// Takes a slice and copies it; false where there was none.
    fn copy_slice(&self, agent: &Shared, core: &XferCore, batch: &mut Batch) -> bool {
        let Some(post) = work::take_slice(agent, core, self.open.has_ended(), batch) else { return false };
        let result = move_batch(core, self.stores(core), batch).map(|()| post.bytes);
        work::complete(agent, core, post, result);
        true
    }

    /// What a copying thread does.
    fn run(&self, agent: &Shared) {
        let (mut batch, mut near) = (Batch::default(), None);
        while let Some(Order::Copy(core)) = self.open.wait() {
            let Some(post) = work::take_slice(agent, &core, self.open.has_ended(), &mut batch) else {
                continue;
            };
            // Before the copy, so that another thread can take the next slice; and behind the other transfers, so
            // that each moves on, and is looked at when its deadline comes.
            let back = self.open.put(Order::Copy(core.clone()));
            self.go_near(&core, &batch, &mut near);
            let result = move_batch(&core, self.stores(&core), &mut batch).map(|()| post.bytes);
            work::complete(agent, &core, post, result);
            if let Err(Order::Copy(core)) = back {
                while self.copy_slice(agent, &core, &mut batch) {}
            }
        }
    }

    /// Moves the calling thread, which is one of ours, next to the local memory of a slice, on a machine where it
    /// matters. The peer's memory lies where the peer wants it, and one of the two has to come across.
    fn go_near(&self, core: &XferCore, batch: &Batch, near: &mut Option<u32>) {
        if let Some(nodes) = &self.nodes {
            let node = batch.first_local(core).and_then(numa::node_of);
            if node != *near {
                nodes.stay_near(node);
                *near = node;
            }
        }
    }

    /// Ends the transfers that no thread has taken.
    fn drain(&self, agent: &Shared) {
        while let Some(order) = self.open.take() {
            if let Order::Copy(core) = order {
                self.help(agent, &core, || false);
            }
        }
    }
}

/// The copying threads of an agent. Dropping this ends every transfer that they were told of, and the threads.
pub(crate) struct CopyThreads {
    agent: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl CopyThreads {
    /// Starts them.
    pub(crate) fn start(agent: &Arc<Shared>) -> error::Result<Self> {
        let mut started = Self { agent: Arc::clone(agent), threads: Vec::new() };
        for _ in 0..agent.config.copy_threads() {
            let (name, agent) = (format!("{}-copy", agent.config.name), Arc::clone(agent));
            let builder = std::thread::Builder::new().name(name.clone());
            let thread = builder.spawn(move || agent.copies.run(&agent));
            started.threads.push(thread.map_err(|e| OsError::from_io("pthread_create", name, &e))?);
        }
        Ok(started)
    }
}

impl Drop for CopyThreads {
    fn drop(&mut self) {
        let copies = &self.agent.copies;
        copies.open.end();
        for _ in &self.threads {
            // A thread that takes a transfer now ends it, so there will be room.
            copies.open.put_when_there_is_room(Order::End);
        }
        for thread in self.threads.drain(..) {
            // A panic there was told on its own thread.
            let _ended = thread.join();
        }
        copies.drain(&self.agent);
    }
}
