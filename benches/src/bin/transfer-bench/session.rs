//! One path between this process and a target: verified, then measured, row by row.

use std::time::Duration;

use anyhow::{Context as _, Result};
use transfer_bench::path::{Op, PathName};
use transfer_bench::pattern::{Expected, Pattern, Patterns};
use transfer_bench::report::Row;
use transfer_bench::shape::{Shape, Side};
use transfer_core::{Agent, Error, PathSet};

use crate::measure::{Ends, Transfers};
use crate::roof::Roof;
use crate::target::{self, LABEL, Target};

/// How often a region of this length is there in a session: both ends, and both of the roof.
pub(crate) const REGIONS: u64 = 4;

/// A path, ready to be measured. Fields end in this order: the target last.
pub(crate) struct Session {
    path: PathName,
    ends: Ends,
    roof: Roof,
    target: Target,
    /// The last pattern; no two fillings share one.
    patterns: u64,
}

impl Session {
    /// Starts a target and connects to it by that path alone, so that nothing falls back to another.
    pub(crate) fn open(path: PathName, region_bytes: u64) -> Result<Self> {
        let foreign = path.is_foreign();
        let (target, hello) = Target::start(region_bytes, foreign)?;
        let mut config = target::config("bench-initiator");
        config.paths = PathSet::from(path.core());
        let agent = Agent::new(config)?;
        let local = target::region(&agent, region_bytes, foreign)?;
        let peer = agent.connect(&hello.agent.parse()?)?;
        let remote = peer.region(LABEL).context("the target has no region")?;
        let roof = match path {
            PathName::Tcp => Roof::sockets(&hello)?,
            _ => Roof::copy(region_bytes)?,
        };
        Ok(Self { path, ends: Ends { agent, peer, local, remote }, roof, target, patterns: 0 })
    }

    /// Whether the target is still there.
    pub(crate) fn is_up(&self) -> bool {
        self.ends.peer.is_up()
    }

    /// Why the path cannot be taken at all, where that is so.
    pub(crate) fn ruled_out(&self) -> Result<Option<String>> {
        let smallest = Shape::new(1, 1)?;
        match self.ends.peer.prepare(&smallest.list(Side::Remote, self.ends.remote.id)) {
            Ok(_) => Ok(None),
            Err(error @ Error::NoPath { .. }) => Ok(Some(error.to_string())),
            Err(error) => Err(error.into()),
        }
    }

    /// One row. Whatever goes wrong is told in it.
    pub(crate) fn row(&mut self, shape: Shape, op: Op, seconds: Duration) -> Row {
        match self.try_row(shape, op, seconds) {
            Ok(row) => row,
            Err(error) => Row::failed(self.path, op, shape, format!("{error:#}")),
        }
    }

    fn try_row(&mut self, shape: Shape, op: Op, seconds: Duration) -> Result<Row> {
        let Self { path, ends, roof, target, patterns } = self;
        *patterns += 2;
        let patterns = Patterns { local: Pattern::new(*patterns), remote: Pattern::new(*patterns + 1) };
        let theirs = target.fill(patterns.remote)?;
        target::fill(&ends.local, patterns.local)?;
        theirs.wait()?;
        let transfers = Transfers::prepare(ends, shape, op)?;
        transfers.once()?;
        if let Some(wrong) = verify(target, ends, (shape, op, patterns))? {
            return Ok(Row::failed(*path, op, shape, wrong));
        }
        let figures = transfers.measure(&mut roof.of(shape, op)?, target.pid(), seconds)?;
        match verify(target, ends, (shape, op, patterns))? {
            Some(wrong) => Ok(Row::failed(*path, op, shape, format!("after the measurement: {wrong}"))),
            None => Ok(Row::verified(*path, op, shape, figures)),
        }
    }
}

/// Compares every byte on both sides; what is wrong, in words.
fn verify(
    target: &mut Target,
    ends: &Ends,
    (shape, op, patterns): (Shape, Op, Patterns),
) -> Result<Option<String>> {
    let theirs = target.check(shape, op, patterns)?;
    let ours = target::check(&ends.local, &Expected::after(shape, op, Side::Local, patterns))?;
    let theirs = theirs.wait()?;
    let ours = ours.map(|wrong| format!("local region: {wrong}"));
    Ok(ours.or_else(|| theirs.map(|wrong| format!("target's region: {wrong}"))))
}
