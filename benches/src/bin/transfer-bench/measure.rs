//! Times transfers.
#![expect(clippy::disallowed_methods, reason = "owns the clock of its measurement")]

use std::time::{Duration, Instant};

use anyhow::Result;
use transfer_bench::path::Op;
use transfer_bench::report::{Details, Figures, RoofKind, Wait};
use transfer_bench::shape::Shape;
use transfer_bench::stats::{Histogram, gbps, median, spread};
use transfer_core::{DescList, LocalList, Peer, RemoteList, Request};

use crate::cli::Measure;
use crate::machine::cpu_time;
use crate::roof::ShapeRoof;
use crate::stop::Stop;
use crate::talk::{Ask, Talk};

/// How often lists are prepared to see what that costs.
const PREPARES: usize = 9;
const GIB: f64 = 1_073_741_824.0;

/// Transfers of one shape in one direction.
pub(crate) struct Transfers<'a> {
    talk: &'a Talk,
    local: LocalList,
    remote: RemoteList,
    op: Op,
    shape: Shape,
    wait: Wait,
    prepare: Duration,
    wire_bytes: u64,
    /// Of the window under way.
    latencies_ns: Histogram,
    posts_ns: Histogram,
}

/// What the windows gave.
#[derive(Default)]
struct Windows {
    rates: Vec<f64>,
    p50s_us: Vec<f64>,
    latencies_ns: Histogram,
    /// One more than windows: before and after each.
    roofs: Vec<f64>,
    roof_p50s_us: Vec<f64>,
    moved: u64,
    cpu: Duration,
}

impl<'a> Transfers<'a> {
    /// Prepares both lists.
    pub(crate) fn prepare(
        talk: &'a Talk,
        (ours, theirs): &(DescList, DescList),
        shape: Shape,
        op: Op,
        wait: Wait,
    ) -> Result<Self> {
        let prepare = || -> Result<_, transfer_core::Error> {
            let begin = Instant::now();
            let lists = (talk.agent().prepare(ours)?, talk.peer().prepare(theirs)?);
            Ok((lists, begin.elapsed()))
        };
        // The first time also maps the peer's region, which is a matter of regions and not of lists.
        let ((local, remote), _) = prepare()?;
        let times = (0..PREPARES).map(|_| prepare().map(|(_, time)| time.as_secs_f64()));
        let times = times.collect::<Result<Vec<_>, _>>()?;
        let mut coded = Vec::new();
        theirs.encode(&mut coded);
        Ok(Self {
            talk,
            local,
            remote,
            op,
            shape,
            wait,
            prepare: Duration::from_secs_f64(median(times)),
            wire_bytes: coded.len() as u64,
            latencies_ns: Histogram::default(),
            posts_ns: Histogram::default(),
        })
    }

    /// One transfer; how long until it was posted and done.
    pub(crate) fn once(&self) -> Result<(Duration, Duration), transfer_core::Error> {
        transfer(self.talk.peer(), self.op, &self.local, &self.remote, self.wait)
    }

    /// Transfers one after another for about `slot`; bytes moved, and the time it took.
    fn burst(&mut self, slot: Duration, stop: &Stop) -> Result<(u64, Duration)> {
        let (begin, mut moved) = (Instant::now(), 0);
        loop {
            let (posted, done) = self.once()?;
            self.posts_ns.record(u64::try_from(posted.as_nanos())?);
            self.latencies_ns.record(u64::try_from(done.as_nanos())?);
            moved += self.shape.bytes();
            let elapsed = begin.elapsed();
            stop.check()?;
            if elapsed >= slot {
                return Ok((moved, elapsed));
            }
        }
    }

    /// Windows of transfers and of the roof in turns, beginning and ending with the roof.
    pub(crate) fn measure(
        mut self,
        roof: &mut ShapeRoof<'_>,
        kind: RoofKind,
        measure: &Measure,
        stop: &Stop,
    ) -> Result<(Figures, Details)> {
        let slot = measure.seconds / measure.repeats;
        // Caches, socket windows, and how many rounds the bare sockets need: found out before it counts.
        roof.burst(slot / 4)?;
        self.burst(slot / 4, stop)?;
        roof.take_p50_us();
        (self.latencies_ns, self.posts_ns) = (Histogram::default(), Histogram::default());
        let mut windows = Windows::default();
        windows.add_roof(roof, slot)?;
        for _ in 0..measure.repeats {
            let before = self.talk.ask(Ask::Cpu)?.cpu()? + cpu_time()?;
            let (bytes, elapsed) = self.burst(slot, stop)?;
            let after = cpu_time()? + self.talk.ask(Ask::Cpu)?.cpu()?;
            windows.cpu += after.saturating_sub(before);
            windows.moved += bytes;
            windows.rates.push(gbps(bytes, elapsed));
            windows.add_latencies(&std::mem::take(&mut self.latencies_ns));
            windows.add_roof(roof, slot)?;
            stop.check()?;
        }
        Ok(self.told(&windows, kind))
    }

    #[expect(clippy::cast_precision_loss, reason = "a measurement has fewer digits")]
    fn told(self, windows: &Windows, roof_kind: RoofKind) -> (Figures, Details) {
        let micros = |permille| windows.latencies_ns.quantile(permille) / 1e3;
        let descs = f64::from(self.shape.count());
        let shares = beside(&windows.rates, &windows.roofs);
        let figures = Figures {
            gbps: median(windows.rates.iter().copied()),
            p50_us: micros(500),
            p99_us: micros(990),
            p999_us: micros(999),
            prep_ns_per_desc: self.prepare.as_secs_f64() * 1e9 / descs,
            post_ns_per_desc: self.posts_ns.quantile(500) / descs,
            cpu_s_per_gib: windows.cpu.as_secs_f64() / (windows.moved as f64 / GIB),
            roof: median(windows.roofs.iter().copied()),
            share: median(shares.iter().copied()),
        };
        let (share_min, share_max) = spread(shares.iter().copied());
        let details = Details {
            share_min,
            share_max,
            roof_kind,
            roof_p50_us: median(windows.roof_p50s_us.iter().copied()),
            p50_of_roof: median(beside(&windows.p50s_us, &windows.roof_p50s_us)),
            wait: self.wait,
            windows: u32::try_from(windows.rates.len()).unwrap_or(u32::MAX),
            transfers: windows.latencies_ns.count(),
            wire_bytes: self.wire_bytes,
        };
        (figures, details)
    }
}

impl Windows {
    fn add_roof(&mut self, roof: &mut ShapeRoof<'_>, slot: Duration) -> Result<()> {
        self.roofs.push(roof.burst(slot)?);
        self.roof_p50s_us.push(roof.take_p50_us());
        Ok(())
    }

    fn add_latencies(&mut self, latencies_ns: &Histogram) {
        self.p50s_us.push(latencies_ns.quantile(500) / 1e3);
        self.latencies_ns.add(latencies_ns);
    }
}

/// Each window beside the roof just before and after it, which saw the same neighbours.
fn beside(windows: &[f64], roofs: &[f64]) -> Vec<f64> {
    let roofs = roofs.windows(2).map(|pair| pair.iter().sum::<f64>() / 2.0);
    windows.iter().zip(roofs).map(|(window, roof)| window / roof).collect()
}

/// One transfer; how long until it was posted and done.
pub(crate) fn transfer(
    peer: &Peer,
    op: Op,
    local: &LocalList,
    remote: &RemoteList,
    wait: Wait,
) -> Result<(Duration, Duration), transfer_core::Error> {
    let begin = Instant::now();
    let request: Request = match op {
        Op::Read => peer.read(local, remote),
        Op::Write => peer.write(local, remote),
    };
    let xfer = request.post()?;
    let posted = begin.elapsed();
    match wait {
        // It has its own deadline.
        Wait::Block => xfer.wait(Duration::MAX)?,
        Wait::Poll => loop {
            if let Some(done) = xfer.poll() {
                break done?;
            }
            std::hint::spin_loop();
        },
    };
    Ok((posted, begin.elapsed()))
}
