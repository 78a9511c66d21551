//! Devices to test on, and two ends of a connection: of the fake, or of a real library with SoftRoCE.
//!
//! `HEADRACE_VERBS=real` takes `libibverbs.so.1` with the devices `rxe0` and `rxe1`; everything else is the same. Tests
//! of a fault that only the fake can make say that they are skipped there.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fake_verbs::{Counts, World};
use transfer_sys::RawRange;
use transfer_sys::verbs::{
    Access, AsyncEvent, Completion, CompletionQueue, Context, GidKind, GlobalRoute, Library, MemoryRegion,
    Mtu, ProtectionDomain, QpConfig, QueuePair, RecvBatch, RemoteMemory, Route, SendBatch, SendFlags, SendOp,
    Sge, ToInit, ToReceive, ToSend,
};

/// How long anything may take before a test fails.
pub const DEADLINE: Duration = Duration::from_secs(30);
pub const PORT: u8 = 1;

/// Whether the real library is tested.
pub fn is_real() -> bool {
    #[allow(clippy::disallowed_methods, reason = "the harness of a test")]
    let chosen = std::env::var("HEADRACE_VERBS");
    match chosen.as_deref() {
        Ok("real") => true,
        Ok("fake") | Err(_) => false,
        Ok(other) => panic!("HEADRACE_VERBS is {other}; it may be real or fake"),
    }
}

/// A pair of devices, and the world that they are in, if it is a fake one.
pub struct Bed {
    pub world: Option<World>,
    pub library: Arc<Library>,
    pub names: [&'static str; 2],
}

impl Bed {
    pub fn new() -> Self {
        if is_real() {
            return Self { world: None, library: Library::open().unwrap(), names: ["rxe0", "rxe1"] };
        }
        let world = World::pair().unwrap();
        Self {
            library: Library::open_at(world.library()).unwrap(),
            world: Some(world),
            names: ["fake0", "fake1"],
        }
    }

    /// A bed whose world can be disturbed; `None`, loudly, where there is no such thing.
    pub fn fake() -> Option<Self> {
        if is_real() {
            println!("SKIPPED: this needs a fault that only the fake provider can make");
            return None;
        }
        Some(Self::new())
    }

    pub fn world(&self) -> &World {
        self.world.as_ref().unwrap()
    }

    pub fn path(&self) -> PathBuf {
        self.library.path().to_owned()
    }

    pub fn open(&self, index: usize) -> Arc<Context> {
        open(&self.library, self.names[index])
    }

    /// One end on each device, connected.
    pub fn connected(&self) -> (End, End) {
        let (a, b) = (End::new(&self.open(0), |_| {}), End::new(&self.open(1), |_| {}));
        a.connect(&b.address());
        b.connect(&a.address());
        (a, b)
    }

    /// Nothing of this process is left, and nothing was refused when it was destroyed.
    pub fn assert_empty(&self) {
        assert_eq!(self.library.destroy_failures(), 0);
        if let Some(world) = &self.world {
            assert_eq!(world.counts(std::process::id()), Counts::default());
        }
    }
}

pub fn open(library: &Arc<Library>, name: &str) -> Arc<Context> {
    let devices = library.devices().unwrap();
    let device = devices.iter().find(|device| device.name() == name);
    device.unwrap_or_else(|| panic!("no device {name} in {devices:?}")).open().unwrap()
}

/// The RoCE v2 address of a device that has an IPv4 address in it.
pub fn address_index(context: &Context) -> (u8, Ipv4Addr, GlobalRoute) {
    let gids = context.gids(PORT).unwrap();
    let found = gids.iter().find(|entry| entry.kind == GidKind::RoceV2 && entry.gid.ipv4().is_some());
    let found = found.unwrap_or_else(|| panic!("no RoCE v2 address with IPv4 in {gids:?}"));
    let index = u8::try_from(found.index).unwrap();
    (index, found.gid.ipv4().unwrap(), GlobalRoute::new(found.gid, index))
}

/// What a peer has to know of an end.
#[derive(Clone, Copy, Debug)]
pub struct Address {
    pub ip: Ipv4Addr,
    pub qp: u32,
    pub psn: u32,
    pub memory: RemoteMemory,
}

/// One end of a connection: everything from the device to a queue pair, and registered memory.
pub struct End {
    // Destroyed from the top down.
    pub qp: QueuePair,
    pub region: MemoryRegion,
    pub cq: Arc<CompletionQueue>,
    pub pd: Arc<ProtectionDomain>,
    pub context: Arc<Context>,
    pub bytes: Memory,
    pub psn: u32,
    pub retries: (u8, u8),
}

/// Memory at one place, touched by address only.
pub struct Memory(Box<[std::cell::UnsafeCell<u8>]>);

pub const BYTES: usize = 1 << 20;

impl Memory {
    pub fn new(len: usize) -> Self {
        Self((0..len).map(|_| std::cell::UnsafeCell::new(0)).collect())
    }

    pub fn range(&self) -> RawRange {
        RawRange::new(self.0[0].get(), self.0.len())
    }

    pub fn addr(&self, offset: usize) -> u64 {
        self.0[offset].get().addr() as u64
    }

    pub fn fill(&self, offset: usize, bytes: &[u8]) {
        for (cell, byte) in self.0[offset..].iter().zip(bytes) {
            // SAFETY: S1. In bounds, and nobody writes it at this moment.
            unsafe { cell.get().write_volatile(*byte) };
        }
    }

    pub fn get(&self, offset: usize, len: usize) -> Vec<u8> {
        // SAFETY: S1. In bounds; bytes are read one by one, whoever writes them.
        self.0[offset..offset + len].iter().map(|cell| unsafe { cell.get().read_volatile() }).collect()
    }
}

/// Bytes that differ from place to place and from seed to seed.
pub fn pattern(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|at| u8::try_from((at * 7 + at / 251 + seed * 31) % 256).unwrap()).collect()
}

pub const ALL: fn() -> Access =
    || Access::LOCAL_WRITE | Access::REMOTE_WRITE | Access::REMOTE_READ | Access::BIND;

impl End {
    pub fn new(context: &Arc<Context>, configure: impl FnOnce(&mut QpConfig)) -> Self {
        let cq = CompletionQueue::new(context, 4096, None, 1).unwrap();
        Self::with_cq(context, &cq, configure)
    }

    pub fn with_cq(
        context: &Arc<Context>,
        cq: &Arc<CompletionQueue>,
        configure: impl FnOnce(&mut QpConfig),
    ) -> Self {
        let pd = ProtectionDomain::new(context).unwrap();
        Self::in_domain(context, &pd, cq, configure)
    }

    pub fn in_domain(
        context: &Arc<Context>,
        pd: &Arc<ProtectionDomain>,
        cq: &Arc<CompletionQueue>,
        configure: impl FnOnce(&mut QpConfig),
    ) -> Self {
        let bytes = Memory::new(BYTES);
        // SAFETY: V3. The memory is dropped after the region, and only read and written by address.
        let region = unsafe { MemoryRegion::register(pd, bytes.range(), ALL()) }.unwrap();
        let mut config = QpConfig::new(cq);
        config.caps.send_wrs = 1024;
        config.caps.receive_wrs = 1024;
        (config.caps.send_sges, config.caps.receive_sges) = (4, 2);
        config.caps.inline_bytes = 64;
        configure(&mut config);
        let qp = QueuePair::new(pd, config).unwrap();
        let psn = 0x1234;
        let (pd, cq, context) = (Arc::clone(pd), Arc::clone(cq), Arc::clone(context));
        Self { qp, region, cq, pd, context, bytes, psn, retries: (6, 6) }
    }

    pub fn address(&self) -> Address {
        let memory = RemoteMemory::new(self.bytes.addr(0), self.region.remote_key());
        Address { ip: address_index(&self.context).1, qp: self.qp.number(), psn: self.psn, memory }
    }

    pub fn connect(&self, peer: &Address) {
        self.qp.init(&ToInit::new(PORT)).unwrap();
        self.qp.ready_to_receive(&self.to_receive(peer)).unwrap();
        self.qp.ready_to_send(&self.to_send()).unwrap();
    }

    pub fn to_receive(&self, peer: &Address) -> ToReceive {
        let mut global = address_index(&self.context).2;
        global.to = transfer_sys::verbs::Gid::new(peer.ip.to_ipv6_mapped().octets());
        let mut to = ToReceive::new(Route::by_gid(PORT, global), peer.qp, peer.psn);
        to.mtu = Mtu::B1024;
        to.reads_served = 4;
        to.not_ready_timer = 10;
        to
    }

    pub fn to_send(&self) -> ToSend {
        let mut to = ToSend::new(self.psn);
        // Short, so that a peer that is gone is noticed soon, also where time is emulated.
        (to.timeout, to.reads) = (12, 4);
        (to.retries, to.not_ready_retries) = self.retries;
        to
    }

    pub fn sge(&self, offset: usize, len: usize) -> Sge {
        Sge::new(self.bytes.addr(offset), u32::try_from(len).unwrap(), self.region.local_key())
    }

    /// Posts one work request that completes.
    pub fn post(&self, wr_id: u64, op: &SendOp<'_>, sges: &[Sge]) {
        let mut batch = SendBatch::new(1, sges.len(), 0);
        batch.push(wr_id, op, SendFlags::SIGNALED, sges).unwrap();
        self.post_batch(&mut batch).unwrap();
    }

    pub fn post_batch(&self, batch: &mut SendBatch) -> Result<(), transfer_sys::verbs::PostError> {
        // SAFETY: V3. The memory lives as long as the queue pair.
        unsafe { self.qp.post_send(batch) }
    }

    pub fn receive(&self, wr_id: u64, sges: &[Sge]) {
        let mut batch = RecvBatch::new(1, sges.len());
        batch.push(wr_id, sges).unwrap();
        // SAFETY: V3. The memory lives as long as the queue pair.
        unsafe { self.qp.post_receive(&mut batch) }.unwrap();
    }

    /// The next `count` completions.
    pub fn poll(&self, count: usize) -> Vec<Completion> {
        poll(&self.cq, count)
    }

    /// The next completion.
    pub fn poll_one(&self) -> Completion {
        self.poll(1)[0]
    }

    /// The next asynchronous event.
    pub fn event(&self) -> AsyncEvent {
        let mut event = None;
        wait_for("an event", || {
            event = self.context.poll_event().unwrap();
            event.is_some()
        });
        event.unwrap()
    }
}

pub fn poll(cq: &CompletionQueue, count: usize) -> Vec<Completion> {
    let mut all = Vec::new();
    let mut some = [Completion::default(); 64];
    wait_for("completions", || {
        let room = some.len().min(count - all.len());
        let found = cq.poll(&mut some[..room]).unwrap();
        all.extend_from_slice(&some[..found]);
        all.len() == count
    });
    all
}

/// Tries until it is so.
pub fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    #[allow(clippy::disallowed_methods, reason = "the deadline of a test")]
    let now = Instant::now;
    let start = now();
    while !is_so() {
        assert!(now() - start < DEADLINE, "no {what}");
        std::thread::yield_now();
    }
}

/// This test program as another process, which runs `test` with `arguments` in its standard input.
pub fn child(test: &str, arguments: &str) -> std::process::Child {
    use std::io::Write as _;
    use std::process::{Command, Stdio};
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--include-ignored"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    writeln!(child.stdin.as_mut().unwrap(), "{arguments}").unwrap();
    child
}

/// What an end says of itself to another process, and back.
pub fn to_line(address: &Address) -> String {
    let Address { ip, qp, psn, memory } = address;
    format!("{ip} {qp} {psn} {} {}", memory.addr, memory.key.raw())
}

pub fn from_line(line: &str) -> Address {
    let words: Vec<&str> = line.split_whitespace().collect();
    let number = |at: usize| words[at].parse::<u64>().unwrap();
    let small = |at: usize| u32::try_from(number(at)).unwrap();
    let key = transfer_sys::verbs::RemoteKey::new(small(4));
    Address {
        ip: words[0].parse().unwrap(),
        qp: small(1),
        psn: small(2),
        memory: RemoteMemory::new(number(3), key),
    }
}

pub fn library(path: &str) -> Arc<Library> {
    Library::open_at(Path::new(path)).unwrap()
}
