//! Times transfers.
#![expect(clippy::disallowed_methods, reason = "owns the clock of its measurement")]

use std::time::{Duration, Instant};

use anyhow::Result;
use transfer_bench::path::Op;
use transfer_bench::report::Figures;
use transfer_bench::shape::{Shape, Side};
use transfer_bench::stats::{gbps, median, percentile};
use transfer_core::{Agent, LocalList, Peer, Region, RegionInfo, RemoteList};

use crate::machine::cpu_time;
use crate::roof::ShapeRoof;

/// How often roof and transfers take turns.
const ROUNDS: u32 = 5;
/// How often lists are prepared to see what that costs.
const PREPARES: usize = 9;
const GIB: f64 = 1_073_741_824.0;

/// Both ends of the transfers of a path.
pub(crate) struct Ends {
    pub(crate) agent: Agent,
    pub(crate) peer: Peer,
    pub(crate) local: Region,
    pub(crate) remote: RegionInfo,
}

/// Transfers of one shape in one direction.
pub(crate) struct Transfers<'a> {
    peer: &'a Peer,
    local: LocalList,
    remote: RemoteList,
    op: Op,
    shape: Shape,
    prepare: Duration,
    latencies_ns: Vec<u64>,
    posts_ns: Vec<u64>,
}

impl<'a> Transfers<'a> {
    /// Prepares both lists.
    pub(crate) fn prepare(ends: &'a Ends, shape: Shape, op: Op) -> Result<Self, transfer_core::Error> {
        let ours = shape.list(Side::Local, ends.local.id());
        let theirs = shape.list(Side::Remote, ends.remote.id);
        let prepare = || -> Result<_, transfer_core::Error> {
            let begin = Instant::now();
            let lists = (ends.agent.prepare(&ours)?, ends.peer.prepare(&theirs)?);
            Ok((lists, begin.elapsed()))
        };
        // The first time also maps the peer's region, which is a matter of regions and not of lists.
        let ((local, remote), _) = prepare()?;
        let times = (0..PREPARES).map(|_| prepare().map(|(_, time)| time.as_secs_f64()));
        let times = times.collect::<Result<Vec<_>, _>>()?;
        let prepare = Duration::from_secs_f64(median(times));
        let (latencies_ns, posts_ns) = (Vec::new(), Vec::new());
        Ok(Self { peer: &ends.peer, local, remote, op, shape, prepare, latencies_ns, posts_ns })
    }

    /// One transfer; how long until it was posted and done.
    pub(crate) fn once(&self) -> Result<(Duration, Duration), transfer_core::Error> {
        let begin = Instant::now();
        let request = match self.op {
            Op::Read => self.peer.read(&self.local, &self.remote),
            Op::Write => self.peer.write(&self.local, &self.remote),
        };
        let xfer = request.post()?;
        let posted = begin.elapsed();
        // It has its own deadline.
        xfer.wait(Duration::MAX)?;
        Ok((posted, begin.elapsed()))
    }

    /// Transfers one after another for about `slot`; bytes moved, and the time it took.
    fn burst(&mut self, slot: Duration) -> Result<(u64, Duration)> {
        let (begin, mut moved) = (Instant::now(), 0);
        loop {
            let (posted, done) = self.once()?;
            self.posts_ns.push(u64::try_from(posted.as_nanos())?);
            self.latencies_ns.push(u64::try_from(done.as_nanos())?);
            moved += self.shape.bytes();
            let elapsed = begin.elapsed();
            if elapsed >= slot {
                return Ok((moved, elapsed));
            }
        }
    }

    /// Rounds of transfers and roof in turns, `seconds` of each in all.
    pub(crate) fn measure(
        mut self,
        roof: &mut ShapeRoof<'_>,
        target: u32,
        seconds: Duration,
    ) -> Result<Figures> {
        let slot = seconds / ROUNDS;
        // Caches, socket windows, and how many rounds the raw sockets need: found out before it counts.
        roof.burst(slot / 4)?;
        self.burst(slot / 4)?;
        (self.latencies_ns, self.posts_ns) = (Vec::new(), Vec::new());
        let (mut rates, mut roofs) = (Vec::new(), Vec::new());
        let (mut moved, mut cpu) = (0, Duration::ZERO);
        for round in 0..ROUNDS {
            // Whoever goes first may find the machine in another state.
            if round % 2 == 0 {
                roofs.push(roof.burst(slot)?);
            }
            let both = || Ok::<_, anyhow::Error>(cpu_time(std::process::id())? + cpu_time(target)?);
            let before = both()?;
            let (bytes, elapsed) = self.burst(slot)?;
            cpu += both()?.saturating_sub(before);
            moved += bytes;
            rates.push(gbps(bytes, elapsed));
            if round % 2 == 1 {
                roofs.push(roof.burst(slot)?);
            }
        }
        Ok(self.figures(&rates, &roofs, moved, cpu))
    }

    #[expect(clippy::cast_precision_loss, reason = "a measurement has fewer digits")]
    fn figures(mut self, rates: &[f64], roofs: &[f64], moved: u64, cpu: Duration) -> Figures {
        self.latencies_ns.sort_unstable();
        self.posts_ns.sort_unstable();
        let micros = |percent| percentile(&self.latencies_ns, percent) as f64 / 1e3;
        let descs = f64::from(self.shape.count());
        Figures {
            gbps: median(rates.iter().copied()),
            p50_us: micros(50),
            p99_us: micros(99),
            prep_ns_per_desc: self.prepare.as_secs_f64() * 1e9 / descs,
            post_ns_per_desc: percentile(&self.posts_ns, 50) as f64 / descs,
            cpu_s_per_gib: cpu.as_secs_f64() / (moved as f64 / GIB),
            roof: median(roofs.iter().copied()),
            share: median(rates.iter().zip(roofs).map(|(rate, roof)| rate / roof)),
        }
    }
}
