//! The receiver: takes a model from its sources and leaves a complete directory, or none.
//!
//! Every source gets an agent of its own, with a staging region of its own. A source can then only write where it was
//! asked to write; it cannot spoil what another one brings and have that one blamed, and leaving a source means
//! dropping its agent, after which nothing of it can arrive any more.
//!
//! A chunk is copied out of the staging region first, and the copy is hashed and written: bytes that a source changes
//! after the check are never the bytes that count.

mod report;
mod session;
mod source;

pub use report::{Progress, PullEvent, PullReport, Quiet, SourceReport};

use crate::clock;
use crate::destination::Destination;
use crate::error::{Error, SourceError, SourceFailure};
use crate::manifest::{Hash, Manifest};
use report::Tally;
use source::Link;
use std::hash::{BuildHasher, Hasher};
use std::path::PathBuf;
use std::time::Duration;
use transfer_core::{Address, Key, PathSet};

/// Most sources of one pull.
pub const MAX_SOURCES: usize = 64;

/// What to pull from where to where.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PullOptions {
    /// The sources; chunks are taken from every one that can be reached.
    pub sources: Vec<Address>,
    /// The directory that the model shall be in afterwards.
    pub dir: PathBuf,
    /// The only root hash to accept. Without it the sources are believed about which model this is.
    pub expect: Option<Hash>,
    /// Replace a directory that holds something else.
    pub force: bool,
    /// The key that the sources have. Without one only sources on this host are used.
    pub key: Option<Key>,
    /// Use sources on other hosts although there is no key.
    pub insecure_remote_without_key: bool,
    /// Which paths of the transfer engine may be used.
    pub paths: PathSet,
    /// Memory that chunks arrive in, for each source.
    pub staging_bytes: u64,
    /// Threads that verify and write.
    pub threads: usize,
    /// Longest silence of a source that something was asked of.
    pub stall_timeout: Duration,
}

impl PullOptions {
    /// A pull with 32 MiB of staging memory for each source, on two threads.
    #[must_use]
    pub fn new(sources: Vec<Address>, dir: impl Into<PathBuf>) -> Self {
        Self {
            sources,
            dir: dir.into(),
            expect: None,
            force: false,
            key: None,
            insecure_remote_without_key: false,
            paths: PathSet::ALL,
            staging_bytes: 32 << 20,
            threads: 2,
            stall_timeout: Duration::from_secs(20),
        }
    }
}

/// Pulls a model. Blocks until the directory is complete or there is an error; `progress` is called on this thread.
///
/// # Errors
/// See [`Error`]. What is verified by then is kept beside the destination, and the same call goes on with it.
pub fn pull(options: &PullOptions, progress: &mut dyn Progress) -> Result<PullReport, Error> {
    let started = clock::now();
    check(options)?;
    let destination = Destination::new(&options.dir)?;
    let (mut links, failures) = connect_all(options, progress);
    let (manifest, root) = agree(&mut links, &failures)?;
    let mut tally = Tally::new(&options.dir, root, &manifest, &links, &failures);
    if destination.is_complete(&manifest, options.force, options.threads)? {
        destination.tidy()?;
        return Ok(tally.already_complete(clock::now().duration_since(started)));
    }
    let partial = destination.open(&manifest, root, options.threads)?;
    tally.resumed(&manifest, partial.resumed());
    progress.event(&PullEvent::Started {
        root,
        total_bytes: manifest.total_bytes(),
        resumed_bytes: tally.resumed_bytes(),
        sources: links.len(),
    });
    let moving = clock::now();
    let job = session::Job { options, manifest: &manifest, partial: &partial, links: &links };
    session::run(&job, &mut tally, progress, failures)?;
    let moved = clock::now().duration_since(moving);
    drop(links);
    progress.event(&PullEvent::Checking { bytes: manifest.total_bytes() });
    destination.finish(partial, &manifest, options.threads)?;
    Ok(tally.finished(moved, clock::now().duration_since(started)))
}

fn check(options: &PullOptions) -> Result<(), Error> {
    let wrong = |what: &str| Err(Error::Options(what.into()));
    if options.sources.is_empty() {
        return wrong("name at least one source, as `weight-streamer serve` prints it: tcp://HOST:PORT");
    }
    if options.sources.len() > MAX_SOURCES {
        return wrong("more than 64 sources; name fewer");
    }
    if options.threads == 0 || options.stall_timeout.is_zero() {
        return wrong("threads and stall timeout must not be zero");
    }
    Ok(())
}

/// Meets every source at once; what fails is noted.
fn connect_all(options: &PullOptions, progress: &mut dyn Progress) -> (Vec<Link>, Vec<SourceFailure>) {
    let attempts: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = options
            .sources
            .iter()
            .map(|address| scope.spawn(move || Link::connect(address, options)))
            .collect();
        threads.into_iter().map(std::thread::ScopedJoinHandle::join).collect()
    });
    let (mut links, mut failures) = (Vec::new(), Vec::new());
    for (address, attempt) in options.sources.iter().zip(attempts) {
        let panicked = |_| Err(SourceError::Stalled { seconds: 0 });
        match attempt.unwrap_or_else(panicked) {
            Ok(link) => {
                progress.event(&PullEvent::Connected { address: &link.address, root: link.hello.root });
                links.push(link);
            }
            Err(error) => {
                let failure = SourceFailure { address: address.to_string(), error };
                progress.event(&PullEvent::SourceLost(&failure));
                failures.push(failure);
            }
        }
    }
    (links, failures)
}

/// The one manifest that all sources serve.
fn agree(links: &mut [Link], failures: &[SourceFailure]) -> Result<(Manifest, Hash), Error> {
    if let Some(pair) = links.windows(2).find(|pair| pair[0].hello.root != pair[1].hello.root) {
        return Err(Error::Disagree {
            first: pair[0].address.clone(),
            first_root: pair[0].hello.root,
            second: pair[1].address.clone(),
            second_root: pair[1].hello.root,
        });
    }
    // Equal roots are equal manifests; the first one's copy is as good as any.
    let taken =
        links.first_mut().and_then(|link| link.manifest.take().map(|manifest| (manifest, link.hello.root)));
    taken.ok_or_else(|| Error::NoSource { failures: failures.to_vec() })
}

/// A name for an agent that no other agent has: a word, and a random number from the hasher's seed.
pub(crate) fn unique_name(word: &str) -> String {
    let random = std::hash::RandomState::new().build_hasher().finish();
    format!("{word}-{}-{random:016x}", std::process::id())
}
