//! What each path gives: quick figures, taken between two processes of which neither started the other, as engines are.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde::Serialize;
use serde_json::Value;
use transfer_bench::path::{Op, PathName};
use transfer_bench::report::Wait;
use transfer_bench::shape::{Shape, Side};
use transfer_bench::stats::median;
use transfer_core::{Address, Agent, Config, RegionId};

use crate::cli::{Trust, setup};
use crate::measure::transfer;
use crate::talk::{Answer, Ask, Talk, unexpected};
use crate::target;

/// Short, and long enough to leave the caches behind.
const LENS: [u64; 2] = [4 << 10, 64 << 20];
const SECONDS: &str = "0.2";
/// How often a new agent is made to see what that costs.
const SETUPS: usize = 15;
/// How long an idle agent is watched.
const IDLE: Duration = Duration::from_secs(2);

/// A path.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct PathReport {
    pub(crate) path: PathName,
    /// Whether two processes here reach each other by it.
    pub(crate) usable: bool,
    /// Why not.
    pub(crate) why: Option<String>,
    /// Of one long span, read.
    pub(crate) gbps: Option<f64>,
    pub(crate) roof: Option<f64>,
    pub(crate) share: Option<f64>,
    /// Of one span of 4 KiB, read, post to done.
    pub(crate) p50_us: Option<f64>,
}

/// Measures one path against a target, from a process of its own.
pub(crate) fn measure(path: PathName, address: &Address) -> Result<PathReport> {
    let mut command = Command::new(std::env::current_exe().context("cannot find this binary")?);
    command.args(["initiator", "--json", "--connect", &address.to_string(), "--op", "read"]);
    command.args(["--path", &path.to_string(), "--seconds", SECONDS, "--repeats", "3"]);
    command.args(["--len", &LENS.map(|len| len.to_string()).join(",")]);
    let output = command.stdin(Stdio::null()).output().context("cannot start the initiator process")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let rows: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let of = |len: u64| rows.iter().find(|row| row["len"] == len && row["verified"] == true);
    let (short, long) = (of(LENS[0]), of(LENS[1]));
    let figure = |row: Option<&Value>, name: &str| row.and_then(|row| row[name].as_f64());
    let failed = rows.iter().find_map(|row| row["error"].as_str()).map(str::to_owned);
    let said = || String::from_utf8_lossy(&output.stderr).lines().last().unwrap_or_default().to_owned();
    let usable = output.status.success();
    Ok(PathReport {
        path,
        usable,
        why: if usable { None } else { Some(failed.unwrap_or_else(said)) },
        gbps: figure(long, "gbps"),
        roof: figure(long, "roof"),
        share: figure(long, "share"),
        p50_us: figure(short, "p50_us"),
    })
}

/// What agents cost beside their transfers.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Agents {
    /// Creating an agent, connecting, learning the peer's regions, preparing lists and reading one byte; median.
    pub(crate) setup_ms: f64,
    /// The same where both prove to each other that they have a key.
    pub(crate) setup_keyed_ms: f64,
    /// CPU of an idle target with one peer, in percent of a core.
    pub(crate) idle_cpu_percent: f64,
}

/// Makes agents that meet a target, and ones that meet a target with a key; and watches one do nothing.
pub(crate) fn agents(address: &Address, keyed: (&Address, &Trust)) -> Result<Agents> {
    let talk = Talk::connect(target::config("doctor", Wait::Block), address)?;
    let setup_ms = setups(&talk, address, &Trust::default())?;
    let (keyed, trust) = keyed;
    let setup_keyed_ms = setups(&Talk::connect(config("doctor", trust)?, keyed)?, keyed, trust)?;
    let before = talk.ask(Ask::Cpu)?.cpu()?;
    std::thread::sleep(IDLE);
    let used = talk.ask(Ask::Cpu)?.cpu()?.saturating_sub(before);
    Ok(Agents { setup_ms, setup_keyed_ms, idle_cpu_percent: used.as_secs_f64() / IDLE.as_secs_f64() * 100.0 })
}

fn config(name: &str, trust: &Trust) -> Result<Config> {
    let mut config = target::config(name, Wait::Block);
    setup(&mut config, trust)?;
    Ok(config)
}

/// How long a new agent takes to its first byte of that target, in milliseconds; median.
fn setups(talk: &Talk, address: &Address, trust: &Trust) -> Result<f64> {
    let shape = Shape::new(1, 1)?;
    let region = match talk.ask(Ask::Region { bytes: shape.region_bytes(), foreign: false })?.wait()? {
        Answer::Region { id, .. } => RegionId::from_u64(id),
        other => return Err(unexpected(&other)),
    };
    let once = |_| set_up(address, trust, shape, region).map(|time| time.as_secs_f64() * 1e3);
    Ok(median((0..SETUPS).map(once).collect::<Result<Vec<_>>>()?))
}

/// From nothing to the first byte of a peer.
#[expect(clippy::disallowed_methods, reason = "owns the clock of its measurement")]
fn set_up(address: &Address, trust: &Trust, shape: Shape, region: RegionId) -> Result<Duration> {
    let config = config("doctor-anew", trust)?;
    let begin = Instant::now();
    let agent = Agent::new(config)?;
    let peer = agent.connect(address)?;
    let local = agent.alloc(usize::try_from(shape.region_bytes())?, "here")?;
    let ours = agent.prepare(&shape.list(Side::Local, local.id()))?;
    let theirs = peer.prepare(&shape.list(Side::Remote, region))?;
    transfer(&peer, Op::Read, &ours, &theirs, Wait::Block)?;
    let elapsed = begin.elapsed();
    peer.disconnect();
    Ok(elapsed)
}
