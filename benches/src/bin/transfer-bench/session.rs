//! One path between this process and a target: verified, then measured, row by row.

use std::net::{IpAddr, Ipv4Addr, ToSocketAddrs};

use anyhow::{Context as _, Result};
use transfer_bench::path::{Op, PathName};
use transfer_bench::pattern::{Expected, Pattern, Patterns};
use transfer_bench::report::Row;
use transfer_bench::shape::{Shape, Side};
use transfer_core::{Address, Error, PathSet, Region, RegionId};

use crate::cli::{Measure, RoofChoice, Trust, setup};
use crate::measure::Transfers;
use crate::roof::{Roof, Setup};
use crate::stop::{Interrupted, Stop};
use crate::talk::{Answer, Ask, Talk, unexpected};
use crate::target;

/// How often memory of a region's length is there in a session: both ends, and both of the roof.
pub(crate) const REGIONS: u64 = 4;

/// A path, ready to be measured.
pub(crate) struct Session {
    path: PathName,
    talk: Talk,
    local: Region,
    remote: RegionId,
    setup: Setup,
    /// Made when it is first needed.
    roof: Option<Roof>,
    /// The last pattern; no two fillings share one.
    patterns: u64,
}

/// What it takes to open a session.
pub(crate) struct Plan<'a> {
    pub(crate) address: &'a Address,
    pub(crate) trust: &'a Trust,
    pub(crate) path: PathName,
    pub(crate) region_bytes: u64,
    pub(crate) measure: &'a Measure,
    /// What goes over tcp is encrypted.
    pub(crate) encrypt: bool,
}

impl Session {
    /// Connects to a target by that path alone, so that nothing falls back to another.
    pub(crate) fn open(plan: &Plan<'_>) -> Result<Self> {
        let (path, bytes, measure) = (plan.path, plan.region_bytes, plan.measure);
        let mut config = target::config("bench-initiator", measure.wait);
        config.paths = PathSet::from(path.core());
        if let Some(streams) = measure.streams {
            config.tcp_streams = streams;
        }
        setup(&mut config, plan.trust)?;
        config.encrypt_data = plan.encrypt;
        let streams = config.tcp_streams;
        let talk = Talk::connect(config, plan.address)?;
        let theirs = talk.ask(Ask::Region { bytes, foreign: path.is_foreign() })?;
        let local = target::make_region(talk.agent(), bytes, path.is_foreign(), "bench")?;
        let remote = match theirs.wait()? {
            Answer::Region { id, .. } => RegionId::from_u64(id),
            other => return Err(unexpected(&other)),
        };
        let setup = Setup {
            region_bytes: bytes,
            ip: ip_of(plan.address)?,
            streams,
            wait: measure.wait,
            iperf3: measure.roof == RoofChoice::Iperf3,
            encrypt: plan.encrypt,
        };
        Ok(Self { path, talk, local, remote, setup, roof: None, patterns: 0 })
    }

    /// Whether the target is still there.
    pub(crate) fn is_up(&self) -> bool {
        self.talk.peer().is_up()
    }

    /// Why the path cannot be taken at all, where that is so.
    pub(crate) fn ruled_out(&self) -> Result<Option<String>> {
        let smallest = Shape::new(1, 1)?;
        match self.talk.peer().prepare(&smallest.list(Side::Remote, self.remote)) {
            Ok(_) => Ok(None),
            Err(error @ Error::NoPath { .. }) => Ok(Some(error.to_string())),
            Err(error) => Err(error.into()),
        }
    }

    /// One row. Whatever goes wrong is told in it.
    ///
    /// # Errors
    /// [`Interrupted`] alone.
    pub(crate) fn row(
        &mut self,
        shape: Shape,
        op: Op,
        measure: &Measure,
        stop: &Stop,
    ) -> Result<Row, Interrupted> {
        match self.try_row(shape, op, measure, stop) {
            Ok(row) => Ok(row),
            Err(error) => {
                stop.check()?;
                Ok(Row::failed(self.path, op, shape, format!("{error:#}")))
            }
        }
    }

    fn try_row(&mut self, shape: Shape, op: Op, measure: &Measure, stop: &Stop) -> Result<Row> {
        self.patterns += 2;
        let patterns =
            Patterns { local: Pattern::new(self.patterns), remote: Pattern::new(self.patterns + 1) };
        let Self { path, talk, local, remote, setup, roof, .. } = self;
        let path = *path;
        let theirs = talk.ask(Ask::Fill(patterns.remote))?;
        target::fill(local, patterns.local)?;
        theirs.done()?;
        let lists = (shape.list(Side::Local, local.id()), shape.list(Side::Remote, *remote));
        let transfers = Transfers::prepare(talk, &lists, shape, op, measure.wait)?;
        transfers.once()?;
        let bytes = (shape, op, patterns);
        if let Some(wrong) = verify(talk, local, bytes)? {
            return Ok(Row::failed(path, op, shape, wrong));
        }
        let roof = match roof {
            Some(roof) => roof,
            None => roof.insert(Roof::new(path, talk, setup)?),
        };
        let kind = roof.kind();
        let mut shape_roof = roof.of(talk, shape, op)?;
        let (figures, details) = transfers.measure(&mut shape_roof, kind, measure, stop)?;
        match verify(talk, local, bytes)? {
            Some(wrong) => Ok(Row::failed(path, op, shape, format!("after the measurement: {wrong}"))),
            None => Ok(Row::verified(path, op, shape, figures, details)),
        }
    }
}

/// Compares every byte on both sides; what is wrong, in words.
fn verify(
    talk: &Talk,
    local: &Region,
    (shape, op, patterns): (Shape, Op, Patterns),
) -> Result<Option<String>> {
    let theirs = talk.ask(Ask::Check { shape, op, patterns })?;
    let ours = target::check(local, &Expected::after(shape, op, Side::Local, patterns))?;
    let theirs = theirs.compared()?;
    let ours = ours.map(|wrong| format!("local region: {wrong}"));
    Ok(ours.or_else(|| theirs.map(|wrong| format!("target's region: {wrong}"))))
}

/// The host of an address, for what listens there beside the agent.
fn ip_of(address: &Address) -> Result<IpAddr> {
    match address {
        Address::Tcp { host, port } => {
            let found =
                (host.as_str(), *port).to_socket_addrs().with_context(|| format!("cannot find {host}"))?;
            Ok(found.map(|address| address.ip()).next().with_context(|| format!("{host} has no address"))?)
        }
        _ => Ok(IpAddr::V4(Ipv4Addr::LOCALHOST)),
    }
}
