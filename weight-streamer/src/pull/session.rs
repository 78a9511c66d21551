//! The chunks on their way: one listening thread for each source, a few landing threads for all.
//!
//! The schedule decides, under one lock; threads only carry out. A landing thread that is done with a slot asks the
//! same source for the next chunk at once, so that the pipe stays full without a detour.

use super::PullOptions;
use super::report::{Progress, PullEvent, Tally};
use super::source::Link;
use crate::clock;
use crate::destination::Partial;
use crate::error::{Error, SourceError, SourceFailure};
use crate::manifest::{Hash, Manifest};
use crate::schedule::Schedule;
use crate::wire::{MAX_REQUESTS, Reply, Request};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use transfer_core::Event;

/// How long a thread waits before it looks around.
const TICK: Duration = Duration::from_millis(50);

/// What one session works on.
pub(super) struct Job<'a> {
    pub(super) options: &'a PullOptions,
    pub(super) manifest: &'a Manifest,
    pub(super) partial: &'a Partial,
    pub(super) links: &'a [Link],
}

/// A chunk that lies in a slot.
struct Landing {
    source: usize,
    ticket: u64,
    chunk: u32,
    slot: usize,
}

/// What threads tell the calling thread.
enum Note {
    Verified { source: usize, bytes: u64 },
    Corrupt { source: usize, chunk: u32, tries: u8 },
    Lost { source: usize, error: SourceError },
    Fatal(Error),
}

struct Shared<'a> {
    job: &'a Job<'a>,
    schedule: Mutex<Schedule>,
    stop: AtomicBool,
    notes: Sender<Note>,
    /// Gone when everything is over, so that no thread waits for more.
    landings: Mutex<Option<Sender<Landing>>>,
}

/// Moves every missing chunk, or says why not. `failures` are the sources that were lost before.
pub(super) fn run(
    job: &Job<'_>,
    tally: &mut Tally,
    progress: &mut dyn Progress,
    failures: Vec<SourceFailure>,
) -> Result<(), Error> {
    let (notes, noted) = mpsc::channel();
    let (landings, landed) = mpsc::channel();
    let count = u32::try_from(job.manifest.chunk_count()).unwrap_or(u32::MAX);
    let missing = (0..count).filter(|id| job.partial.resumed().binary_search(id).is_err()).collect();
    let slots: Vec<_> = job.links.iter().map(|link| link.slots).collect();
    let schedule = Mutex::new(Schedule::new(missing, &slots));
    let landings = Mutex::new(Some(landings));
    let shared = Shared { job, schedule, stop: AtomicBool::new(false), notes, landings };
    let landed = Mutex::new(landed);
    let result = std::thread::scope(|scope| {
        for source in 0..job.links.len() {
            let shared = &shared;
            scope.spawn(move || shared.listen(source));
        }
        for _ in 0..job.options.threads {
            scope.spawn(|| shared.land_all(&landed));
        }
        let result = shared.follow(&noted, tally, progress, failures);
        shared.end();
        result
    });
    tally.asked(shared.lock().asked());
    result
}

impl Shared<'_> {
    fn lock(&self) -> MutexGuard<'_, Schedule> {
        self.schedule.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Everything is over: no thread waits any longer, for chunks or for its source.
    fn end(&self) {
        self.stop.store(true, Ordering::Release);
        *self.landings.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.job.links.iter().for_each(|link| link.peer.disconnect());
    }

    fn note(&self, note: Note) {
        // The calling thread listens until every other thread is told to stop.
        drop(self.notes.send(note));
    }

    /// The calling thread: counts, shows, and decides when it is over.
    fn follow(
        &self,
        noted: &Receiver<Note>,
        tally: &mut Tally,
        progress: &mut dyn Progress,
        mut failures: Vec<SourceFailure>,
    ) -> Result<(), Error> {
        loop {
            // Looked at before the notes are read, so that the last note is never left unread.
            let (missing, any_live) = {
                let schedule = self.lock();
                (schedule.missing(), schedule.any_live())
            };
            loop {
                let note = if missing == 0 || !any_live {
                    noted.try_recv().map_err(|_| RecvTimeoutError::Timeout)
                } else {
                    noted.recv_timeout(TICK)
                };
                match note {
                    Ok(note) => self.take(note, tally, progress, &mut failures)?,
                    Err(_) => break,
                }
            }
            if missing == 0 {
                return Ok(());
            }
            if !any_live {
                let total = self.job.manifest.chunk_count();
                let kept = self.job.partial.path().to_path_buf();
                return Err(Error::SourcesLost { failures, verified: total - missing, total, kept });
            }
            progress
                .event(&PullEvent::Moved { bytes: tally.verified_bytes(), total_bytes: tally.total_bytes() });
        }
    }

    fn take(
        &self,
        note: Note,
        tally: &mut Tally,
        progress: &mut dyn Progress,
        failures: &mut Vec<SourceFailure>,
    ) -> Result<(), Error> {
        match note {
            Note::Verified { source, bytes } => {
                tally.verified(source, bytes);
                progress.event(&PullEvent::Moved {
                    bytes: tally.verified_bytes(),
                    total_bytes: tally.total_bytes(),
                });
            }
            Note::Corrupt { source, chunk, tries } => {
                tally.corrupt(source);
                let (address, file) = (&self.job.links[source].address, self.job.manifest.chunk_path(chunk));
                progress.event(&PullEvent::Corrupt { address, chunk, file, tries });
            }
            Note::Lost { source, error } => {
                let failure = SourceFailure { address: self.job.links[source].address.clone(), error };
                tally.lost(source, &failure);
                progress.event(&PullEvent::SourceLost(&failure));
                failures.push(failure);
            }
            Note::Fatal(error) => return Err(error),
        }
        Ok(())
    }

    /// Asks a source for as many chunks as it has free slots.
    fn ask(&self, source: usize) {
        let link = &self.job.links[source];
        loop {
            let mut schedule = self.lock();
            let assignments = std::iter::from_fn(|| schedule.assign(source)).take(MAX_REQUESTS);
            let requests: Vec<_> = assignments
                .map(|next| {
                    let offset = u64::try_from(link.slot_offset(next.slot)).unwrap_or(u64::MAX);
                    Request::new(next.ticket, next.chunk, offset, next.recheck)
                })
                .collect();
            drop(schedule);
            if requests.is_empty() {
                return;
            }
            if let Err(error) = link.peer.notify(&Request::encode_all(&requests)) {
                self.leave(source, SourceError::Lost(error));
            }
        }
    }

    /// Stops using a source; says so once.
    fn leave(&self, source: usize, error: SourceError) {
        let mut schedule = self.lock();
        if schedule.is_live(source) {
            schedule.leave(source);
            // Under the lock: who sees that no source is left has every reason before it.
            self.note(Note::Lost { source, error });
            drop(schedule);
            self.job.links[source].peer.disconnect();
        }
    }

    /// One source's events, until it is left or everything is over.
    fn listen(&self, source: usize) {
        let link = &self.job.links[source];
        let mut heard = clock::now();
        while !self.stopped() && self.lock().is_live(source) {
            self.ask(source);
            match link.agent.wait_event(TICK) {
                Some(Event::Notif { bytes, .. }) => {
                    heard = clock::now();
                    if let Err(error) = self.answer(source, &bytes) {
                        self.leave(source, error);
                    }
                }
                Some(Event::PeerLost { reason, .. }) => self.leave(source, SourceError::Lost(reason)),
                _ => {}
            }
            if !self.lock().waits_for(source) {
                heard = clock::now();
            }
            let silence = clock::now().duration_since(heard);
            if silence > self.job.options.stall_timeout {
                self.leave(source, SourceError::Stalled { seconds: silence.as_secs() });
            }
        }
    }

    fn answer(&self, source: usize, bytes: &[u8]) -> Result<(), SourceError> {
        match Reply::decode(bytes)? {
            Reply::Chunk { ticket } => {
                if let Some((chunk, slot)) = self.lock().arrived(source, ticket) {
                    let landings = self.landings.lock().unwrap_or_else(PoisonError::into_inner);
                    if let Some(landings) = landings.as_ref() {
                        drop(landings.send(Landing { source, ticket, chunk, slot }));
                    }
                }
            }
            Reply::Refused { ticket, reason } => {
                if let Some((chunk, _)) = self.lock().arrived(source, ticket) {
                    let file = self.job.manifest.chunk_path(chunk).to_owned();
                    return Err(SourceError::Refused { chunk, file, reason });
                }
            }
            Reply::Alive => {}
        }
        Ok(())
    }

    /// Verifies and writes chunks until everything is over.
    fn land_all(&self, landed: &Mutex<Receiver<Landing>>) {
        let mut buffer = Vec::new();
        while !self.stopped() {
            let next = landed.lock().unwrap_or_else(PoisonError::into_inner).recv_timeout(TICK);
            let Ok(landing) = next else { continue };
            if let Err(error) = self.land(&landing, &mut buffer) {
                self.note(Note::Fatal(error));
                return;
            }
            self.ask(landing.source);
        }
    }

    fn land(&self, landing: &Landing, buffer: &mut Vec<u8>) -> Result<(), Error> {
        let Landing { source, ticket, chunk: id, slot } = *landing;
        let link = &self.job.links[source];
        let Some(chunk) = self.job.manifest.chunk(id) else { return Ok(()) };
        buffer.resize(usize::try_from(chunk.len).unwrap_or(0), 0);
        link.staging.read_at(link.slot_offset(slot), buffer)?;
        if Hash::of(buffer) != chunk.hash {
            let (tries, leave) = self.lock().corrupt(source, ticket);
            self.note(Note::Corrupt { source, chunk: id, tries });
            if leave {
                let file = self.job.manifest.chunk_path(id).to_owned();
                self.leave(source, SourceError::Corrupt { chunk: id, file, tries });
            }
            return Ok(());
        }
        self.job.partial.land(&self.job.manifest.files()[chunk.file], id, chunk, buffer)?;
        let bytes = u64::from(chunk.len);
        // The note goes out under the lock: who sees that nothing is missing has every note before it.
        let mut schedule = self.lock();
        if schedule.verified(source, ticket) {
            self.note(Note::Verified { source, bytes });
        }
        Ok(())
    }
}
