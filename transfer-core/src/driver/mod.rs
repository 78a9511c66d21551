//! What an agent does between its threads: it turns readiness, completions and time into inputs of the state
//! machines, and their outputs into I/O. One thread at a time runs it, in turns.
//!
//! | module | turns |
//! |---|---|
//! | [`fresh`] | accepted connections into control, local and data connections |
//! | [`strangers`] | floods of those into room for everybody else |
//! | [`wire`] | bytes of control connections into what links say, sealed or not |
//! | [`peers`] | control connections into peers that come, change and go |
//! | [`local`] | requests for files behind regions |
//! | [`rails`] | data connections that come and go into what peers and transfers make of it |
//! | [`xfers`] | posted transfers into slices, completions into outcomes |
//! | [`sitter`] | threads that wait into the one that runs all this |

mod fresh;
mod local;
mod peers;
mod rails;
mod regions;
mod sitter;
mod strangers;
mod stream;
mod timers;
mod wire;
mod xfers;

use std::collections::HashMap;
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crossbeam_channel::Receiver;
use rustc_hash::FxHashMap;
use transfer_proto::id::{Incarnation, XferId};
use transfer_proto::proto::control::Farewell;
use transfer_proto::proto::time::Time;
use transfer_proto::proto::xfer::Xfer;
use transfer_sys::poll::{Epoll, Ready};

use self::fresh::FreshConn;
use self::local::LocalConn;
pub(crate) use self::local::probe;
use self::peers::{ControlConn, Early, PeerEntry};
use self::regions::Closing;
pub(crate) use self::sitter::Seat;
use self::strangers::Refusals;
use self::timers::Timers;
pub(crate) use self::wire::Wire;
use self::xfers::{Ended, Xfers};
use crate::backend::shm::CopyThreads;
use crate::backend::tcp::Tcp;
use crate::backend::{Backend, Completion};
use crate::error::Result;
use crate::shared::{Command, POSTS_MAX, Posted, Shared};
use crate::xfer::XferRef;

const WAKE: u64 = 0;
const LISTEN_TCP: u64 = 1;
const LISTEN_LOCAL: u64 = 2;
const KICK: u64 = 3;
/// The end of a process that may write into this agent's memory.
pub(crate) const GUEST: u64 = 4;
const FIRST_CONN: u64 = 5;

/// One turn of so many looks at everything, while data moves.
const LOOKS: u32 = 8;

/// A connection that the driver itself reads; data connections belong to their backend.
enum Conn {
    Fresh(FreshConn),
    Control(Box<ControlConn>),
    Local(LocalConn),
}

/// Ends the queue of posted transfers with the driver, however that ends.
struct PostsEnd(Arc<Shared>);

impl Drop for PostsEnd {
    fn drop(&mut self) {
        self.0.posts.end();
        self.0.drop_posts();
    }
}

/// The state behind the lead.
pub(crate) struct Driver {
    shared: Arc<Shared>,
    tcp_listener: Option<TcpListener>,
    local_listener: Option<UnixListener>,
    commands: Receiver<Command>,
    _posts_end: PostsEnd,
    conns: FxHashMap<u64, Conn>,
    next_token: u64,
    /// When to look at a connection again. It may turn out to be too early; then the timer is set anew.
    conn_timers: Timers<u64>,
    /// Control connections that may have something to send.
    dirty: Vec<u64>,
    peers: HashMap<Incarnation, PeerEntry>,
    early: Vec<Early>,
    copy_threads: CopyThreads,
    tcp: Tcp,
    xfers: Xfers,
    /// Transfers that have ended, and what the application wants done then is not done yet.
    called_back: Vec<XferRef>,
    ready: Vec<Ready>,
    completions: Vec<Completion>,
    closing: Vec<Closing>,
    /// When to accept connections again, after there was no descriptor left for one.
    accept_again: Option<Time>,
    /// Peers are not read from until the application takes events.
    paused: bool,
    /// Whether what becomes ready wakes the sitter.
    watched: bool,
    /// Nobody sleeps before this: data has moved a moment ago.
    busy_until: Time,
    /// When somebody other than the sitter led for the last time.
    led_at: Time,
    /// Turns since everything was looked at, at most.
    looks: u32,
    /// When the next turn is due at the latest.
    expected: Option<Time>,
    refusals: Refusals,
    shutdown: bool,
}

impl Driver {
    pub(crate) fn new(
        shared: Arc<Shared>,
        commands: Receiver<Command>,
        tcp_listener: Option<TcpListener>,
        local_listener: Option<UnixListener>,
    ) -> Result<Self> {
        let epoll = &shared.seat.inner;
        // Each ring is told once; the word is never cleared.
        epoll.add_edge(shared.wake.as_fd(), WAKE)?;
        if let Some(listener) = &tcp_listener {
            epoll.add(listener.as_fd(), LISTEN_TCP, true, false)?;
        }
        if let Some(listener) = &local_listener {
            epoll.add(listener.as_fd(), LISTEN_LOCAL, true, false)?;
        }
        Ok(Self {
            copy_threads: CopyThreads::start(&shared)?,
            tcp: Tcp::new(Arc::clone(&shared), Arc::clone(epoll)),
            tcp_listener,
            local_listener,
            commands,
            _posts_end: PostsEnd(Arc::clone(&shared)),
            conns: FxHashMap::default(),
            next_token: FIRST_CONN,
            conn_timers: Timers::default(),
            dirty: Vec::new(),
            peers: HashMap::new(),
            early: Vec::new(),
            xfers: Xfers::default(),
            called_back: Vec::new(),
            ready: Vec::new(),
            completions: Vec::new(),
            closing: Vec::new(),
            accept_again: None,
            paused: false,
            watched: true,
            busy_until: Time::default(),
            led_at: Time::default(),
            looks: 0,
            expected: None,
            refusals: Refusals::default(),
            shutdown: false,
            shared,
        })
    }

    fn epoll(&self) -> &Epoll {
        &self.shared.seat.inner
    }

    /// Waits until there is something to do, at most for `wait`, and does it. Returns the time of the look.
    fn turn(&mut self, wait: Duration) -> Time {
        let before = self.shared.clock.now();
        self.excuse_if_held_up(before);
        let now = if !self.is_spinning(before) {
            self.wait(wait, before)
        } else if self.tcp.look(before) {
            self.has_moved(before);
            before
        } else {
            self.expected = Some(before);
            return before;
        };
        self.work(now);
        now
    }

    /// Does what there is to do, beside what was ready.
    fn work(&mut self, now: Time) {
        self.handle_commands(now);
        // By the time of the wait: what passes from here on is noticed as a turn that took too long.
        self.handle_timeouts(now);
        self.settle(now);
    }

    /// While data moves, most turns look only where it moved last: asking for everything that is ready takes as long
    /// as reading, and what comes from elsewhere can wait for some of these.
    fn is_spinning(&mut self, now: Time) -> bool {
        self.looks = (self.looks + 1) % LOOKS;
        self.looks > 0 && now < self.busy_until && self.tcp.is_warm()
    }

    /// Waits until something is ready, at most for `wait`, and handles it. Returns the time then.
    fn wait(&mut self, wait: Duration, before: Time) -> Time {
        let busy = before < self.busy_until;
        let timeout = if busy || wait.is_zero() || !self.shared.wake.sleep() {
            Duration::ZERO
        } else {
            self.next_timeout().map_or(wait, |at| at.after(before).min(wait))
        };
        self.expected = Some(before + timeout);
        let mut ready = std::mem::take(&mut self.ready);
        if let Err(error) = self.epoll().wait(Some(timeout), &mut ready) {
            tracing::error!(%error, "the driver cannot wait; the agent ends");
            self.shutdown = true;
        }
        let now = self.take_in(&mut ready);
        self.ready = ready;
        now
    }

    /// A turn with what has become ready already. Returns its time.
    fn handle_all(&mut self, ready: &mut Vec<Ready>) -> Time {
        let now = self.take_in(ready);
        self.work(now);
        now
    }

    /// Handles what is ready. Returns the time then.
    fn take_in(&mut self, ready: &mut Vec<Ready>) -> Time {
        self.shared.wake.answer();
        let now = self.shared.clock.now();
        self.excuse_if_held_up(now);
        ready.drain(..).for_each(|ready| self.handle_ready(ready, now));
        now
    }

    /// Data has moved: more may follow at once.
    fn has_moved(&mut self, now: Time) {
        self.busy_until = now + self.shared.config.busy_poll;
    }

    /// A process that was held up itself (stopped, starved, paused with its machine) has not listened, so it cannot
    /// hold silence against its peers: their time begins anew.
    fn excuse_if_held_up(&mut self, now: Time) {
        if self.expected.is_some_and(|expected| now > expected + self.shared.config.peer_timeout / 4) {
            tracing::warn!("this process was held up; peers get new time");
            self.for_each_link(|_, link| link.handle_bytes(&[], now));
            self.expected = Some(now);
            self.tcp.excuse(now);
        }
    }

    fn handle_ready(&mut self, ready: Ready, now: Time) {
        match ready.token {
            // It was answered already, and what it speaks of is looked at in each turn.
            WAKE | KICK => {}
            LISTEN_TCP => self.accept_tcp(),
            LISTEN_LOCAL => self.accept_local(),
            GUEST => self.shared.guests.drop_gone(),
            token if self.tcp.owns(token) => {
                self.tcp.ready(ready, now);
                self.has_moved(now);
            }
            token => match self.conns.get(&token) {
                Some(Conn::Fresh(_)) => self.read_fresh(token),
                Some(Conn::Control(_)) => self.handle_control(token, ready),
                Some(Conn::Local(_)) => self.handle_local(token),
                None => {}
            },
        }
    }

    pub(super) fn handle_commands(&mut self, now: Time) {
        // As many as there may be: those who post faster wait for the next turn.
        for _ in 0..POSTS_MAX {
            let Some(posted) = self.shared.posts.take() else { break };
            self.post(posted, now);
        }
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Meet { wire, address, reply } => self.meet(wire, address, reply),
                Command::Opened { peer, opened } => self.opened(&peer, opened),
                Command::Rail { peer, rail, stream } => self.rail_opened(&peer, rail, stream),
                Command::GiveUp { peer, error } => self.give_up(&peer, error),
                Command::Sync { peer, reply } => self.sync(peer, reply),
                Command::Map { peer, region, reply } => self.map(peer, region, reply),
                Command::Notify { peer, bytes, reply } => self.notify(peer, bytes, &reply),
                Command::Tell { peer, word } => self.tell(peer, word),
                Command::Post(posted) => self.post(*posted, now),
                Command::Cancel(core) => {
                    if let Some(raw) = core.id.load(Ordering::Acquire).checked_sub(1) {
                        self.stop_xfer(XferId::from_u64(raw), Xfer::cancel);
                    }
                }
                Command::RegionAdded(info) => self.announce_region(&info),
                Command::RegionClosed { region, reply } => self.close_region(region, reply),
                Command::Disconnect(peer) => self.farewell(peer, Farewell::Closing),
                Command::Shutdown => self.shutdown = true,
            }
        }
    }

    fn post(&mut self, posted: Posted, now: Time) {
        self.has_moved(now);
        // It may have been posted after the turn began.
        let begins = now.max(Time::at(posted.core.started));
        let mut state = self.xfers.state(self.shared.config.slices(), begins + posted.core.timeout);
        if posted.core.is_stopped() {
            state.cancel();
        } else if !posted.core.remote.core.peer.is_up() {
            state.peer_lost();
        }
        let id = self.xfers.insert(posted, state);
        self.pump(id);
    }

    /// Submits what the window allows, calls slices back where the transfer stops, and ends it when it is over.
    fn pump(&mut self, id: XferId) {
        while let Some(slice) = self.xfers.next_slice(id) {
            self.tcp.submit(slice);
        }
        let Some(task) = self.xfers.get(id) else { return };
        if task.take_abandon() {
            let core = task.core().clone();
            // Whoever cancels waits; a deadline or a lost peer does not.
            let now = !core.is_stopped();
            self.tcp.abandon(&core, id, now);
        }
        if let Some(ended) = self.xfers.take_ended(id) {
            self.finish(ended);
        }
    }

    /// Makes a transfer stop, for the reason that `how` gives.
    fn stop_xfer(&mut self, id: XferId, how: impl FnOnce(&mut Xfer)) {
        if let Some(task) = self.xfers.get(id) {
            how(&mut task.state);
            self.pump(id);
        }
    }

    fn finish(&mut self, ended: Ended) {
        let Ended { mut posted, outcome } = ended;
        let result = self.shared.result_of(&posted.core, outcome);
        let word = std::mem::take(&mut posted.word);
        if result.is_ok() && !word.is_empty() {
            self.tell(posted.core.remote.core.peer.key, word);
        }
        if posted.core.finish_unless_told(result) && posted.core.has_callback() {
            self.called_back.push(posted.core.clone());
        }
    }

    /// Brings completions home until nothing moves any more.
    fn settle(&mut self, now: Time) {
        loop {
            let any_news = self.handle_rail_news();
            let mut completions = std::mem::take(&mut self.completions);
            self.tcp.poll(now, &mut completions);
            if completions.is_empty() && !any_news {
                self.completions = completions;
                break;
            }
            for completion in completions.drain(..) {
                if let Some(task) = self.xfers.get(completion.xfer) {
                    task.state.handle_completion(completion.slice, completion.rail, completion.result);
                    let peer = task.core().remote.core.peer.key;
                    task.state.lift_fences(|rail| self.tcp.is_closed(peer, rail));
                    self.pump(completion.xfer);
                }
            }
            self.completions = completions;
        }
        self.shutdown |= self.tcp.is_broken();
        self.check_regions();
        self.flush_controls();
        self.resume_if_room();
    }

    fn handle_timeouts(&mut self, now: Time) {
        self.time_out_conns(now);
        self.resume_accepting(now);
        self.tcp.handle_timeout(now);
        while let Some(id) = self.xfers.take_due(now) {
            self.stop_xfer(id, |state| state.handle_timeout(now));
            // A cancelled slice that is half on the wire may stay there until the deadline, and no longer.
            if let Some(task) = self.xfers.get(id) {
                let core = task.core().clone();
                self.tcp.abandon(&core, id, true);
            }
        }
    }

    fn next_timeout(&self) -> Option<Time> {
        let timeouts = [
            self.xfers.poll_timeout(),
            self.conn_timers.first(),
            self.accept_again,
            self.closing_timeout(),
            self.tcp.poll_timeout(),
        ];
        timeouts.into_iter().flatten().min()
    }

    /// The agent was dropped: says goodbye, and ends what is under way once nothing touches it.
    fn end(mut self: Box<Self>) {
        for peer in self.peers.keys().copied().collect::<Vec<_>>() {
            self.farewell(peer, Farewell::Closing);
        }
        self.flush_controls();
        for id in self.xfers.ids() {
            if let Some(task) = self.xfers.get(id) {
                task.core().stop.store(true, Ordering::Release);
            }
        }
        // The copying threads end with the slices in their hands; the carriers with the turns that they are in.
        drop(self.copy_threads);
        drop(self.tcp);
        // What is left in the driver, and in the channel to it, says so as it is dropped.
        drop(self.xfers);
    }

    fn new_token(&mut self) -> u64 {
        self.next_token += 1;
        self.next_token
    }
}
