//! A source made of transfer-core and the wire messages, that does one thing wrong.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use transfer_core::{Agent, Config, Desc, DescList, Event, Peer, Region};
use weight_streamer::wire::{Hello, MANIFEST_REGION, Reply, Request, STAGING_REGION};
use weight_streamer::{Hash, Library};

use super::CHUNK;

/// What it does wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Lie {
    /// One bit of this chunk is flipped, so many times.
    Flip { chunk: u32, times: u32 },
    /// The hello names a root that the manifest does not hash to.
    Root,
    /// The manifest breaks off; hello and hash agree with the broken one.
    CutManifest,
    /// The hello names a manifest longer than the region.
    LongManifest,
    /// The hello is of another protocol version.
    Version,
    /// It never answers a request.
    Silence,
    /// It answers tickets that nobody asked for, and bytes that are no message.
    Babble,
}

pub struct Liar {
    pub address: String,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Liar {
    /// Serves `dir`, with a lie.
    pub fn start(dir: &Path, lie: Lie) -> Self {
        let library = Library::scan(dir, u32::try_from(CHUNK).unwrap(), 2).unwrap();
        let mut manifest = library.manifest().encode();
        if lie == Lie::CutManifest {
            manifest.truncate(manifest.len() / 2);
        }
        let root = if lie == Lie::Root { Hash::of(b"another model") } else { Hash::of(&manifest) };
        let len = u64::try_from(manifest.len()).unwrap() + if lie == Lie::LongManifest { 1 << 20 } else { 0 };
        let mut hello = Hello::new(root, len, u32::try_from(CHUNK).unwrap()).encode();
        if lie == Lie::Version {
            hello[4] = 99;
        }
        let mut config = Config::new("liar");
        config.app_metadata = hello;
        let agent = Agent::new(config).unwrap();
        let region = agent.alloc(manifest.len(), MANIFEST_REGION).unwrap();
        region.write_at(0, &manifest).unwrap();
        let address = agent.address().unwrap().to_string();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || serve(&agent, &library, &region, lie, &stopped));
        Self { address, stop, thread: Some(thread) }
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.thread.take().unwrap().join().unwrap();
    }
}

fn serve(agent: &Agent, library: &Library, _manifest: &Region, lie: Lie, stop: &AtomicBool) {
    let staging = agent.alloc(CHUNK, "liar.chunk").unwrap();
    let mut flips = match lie {
        Lie::Flip { times, .. } => times,
        _ => 0,
    };
    while !stop.load(Ordering::Acquire) {
        let Some(Event::Notif { peer, bytes }) = agent.wait_event(Duration::from_millis(20)) else {
            continue;
        };
        for request in Request::decode_all(&bytes).unwrap() {
            match lie {
                Lie::Silence => {}
                Lie::Babble => {
                    // The receiver may have left after the first of them.
                    drop(peer.notify(&Reply::Chunk { ticket: request.ticket + 1_000_000 }.encode()));
                    drop(peer.notify(b"\xffnonsense"));
                }
                _ => {
                    let flip = matches!(lie, Lie::Flip { chunk, .. } if chunk == request.chunk) && flips > 0;
                    flips -= u32::from(flip);
                    send(agent, &peer, &staging, library, request, flip);
                }
            }
        }
    }
}

fn send(agent: &Agent, peer: &Peer, staging: &Region, library: &Library, request: Request, flip: bool) {
    let mut bytes = Vec::new();
    library.read_chunk(request.chunk, &mut bytes).unwrap();
    if flip {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x10;
    }
    staging.write_at(0, &bytes).unwrap();
    let len = u64::try_from(bytes.len()).unwrap();
    let target = peer.region(STAGING_REGION).unwrap();
    let local = agent.prepare(&DescList::from(Desc::contiguous(staging.id(), 0, len))).unwrap();
    let remote = peer.prepare(&DescList::from(Desc::contiguous(target.id, request.offset, len))).unwrap();
    let answer = Reply::Chunk { ticket: request.ticket }.encode();
    // The receiver may have left meanwhile; that is its right.
    if let Ok(transfer) = peer.write(&local, &remote).notify(&answer).post() {
        drop(transfer.wait(Duration::from_secs(10)));
    }
}
