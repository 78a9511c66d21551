//! The side that serves: it has a region for each initiator, fills it, and compares every byte of it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::json;
use transfer_bench::pattern::{Expected, Mismatch, Pattern};
use transfer_bench::report::Wait;
use transfer_bench::shape::Side;
use transfer_core::{Agent, Config, Event, Incarnation, Peer, Region};

use crate::cli::{TargetArgs, setup};
use crate::machine;
use crate::roof::{self, sockets};
use crate::stop::Stop;
use crate::talk::{Answer, Ask, IDENTITY, Numbered, SECRET_BYTES};

/// Bytes filled at a time.
const CHUNK_BYTES: usize = 256 << 10;
/// The most initiators at once: one that measures, and those whose end is not known yet.
const INITIATORS_MAX: usize = 16;

/// How long an agent may be silent.
const PEER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long an agent that polls looks again and again: longer than a round trip, and over soon enough not to disturb the
/// roof.
const BUSY_POLL: Duration = Duration::from_millis(1);

/// Why a target ends.
enum End {
    /// Ctrl-C, or whoever started it is gone.
    Asked,
    /// Its initiator has left, and only one was to be served.
    Served,
    /// It cannot go on.
    Failed(anyhow::Error),
}

/// Serves until it is asked to end.
pub(crate) fn serve(args: &TargetArgs) -> Result<()> {
    args.cpu.map_or(Ok(()), machine::pin)?;
    let (ends, end) = channel();
    let interrupted = ends.clone();
    let _stop = Stop::catch(move || {
        let _ending = interrupted.send(End::Asked);
    })?;
    let mut config = config("bench-target", args.wait);
    config.tcp_listen = Some(args.listen);
    config.app_metadata = IDENTITY.to_vec();
    setup(&mut config, &args.trust)?;
    let agent = Agent::new(config)?;
    introduce(&agent, args)?;
    if args.until_stdin_ends {
        let ends = ends.clone();
        std::thread::Builder::new().name("stdin".to_owned()).spawn(move || {
            let _ended = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
            let _ending = ends.send(End::Asked);
        })?;
    }
    let server = Server {
        agent: agent.clone(),
        ip: args.listen.ip(),
        json: args.json,
        once: args.once,
        sessions: HashMap::new(),
    };
    std::thread::Builder::new().name("serving".to_owned()).spawn(move || server.run(&ends))?;
    let result = wait(&end);
    // Initiators are told, instead of finding out.
    agent.peers().iter().for_each(Peer::disconnect);
    result
}

fn wait(end: &Receiver<End>) -> Result<()> {
    match end.recv().context("the serving thread ended")? {
        End::Asked | End::Served => Ok(()),
        End::Failed(error) => Err(error),
    }
}

/// Says where the target is and what to do with it.
fn introduce(agent: &Agent, args: &TargetArgs) -> Result<()> {
    let address = agent.address().context("the agent has no address")?.to_string();
    if args.json {
        println!("{}", json!({ "event": "listening", "address": address }));
        return Ok(());
    }
    let host = if args.listen.ip().is_unspecified() { machine::hostname() } else { None };
    let shown = match (host, address.parse::<transfer_core::Address>()?) {
        (Some(host), transfer_core::Address::Tcp { port, .. }) => format!("tcp://{host}:{port}"),
        _ => address,
    };
    println!("transfer-bench target is ready. Run this at the other end:\n");
    println!("    transfer-bench initiator --connect {shown}{}{}\n", args.trust.shown(), waits(args.wait));
    println!("It serves one run after another; Ctrl-C ends it.");
    Ok(())
}

fn waits(wait: Wait) -> &'static str {
    match wait {
        Wait::Block => "",
        Wait::Poll => " --wait poll",
    }
}

/// What it does for its initiators.
struct Server {
    agent: Agent,
    ip: IpAddr,
    json: bool,
    once: bool,
    sessions: HashMap<Incarnation, Session>,
}

/// What one of them has here.
struct Session {
    label: String,
    region: Option<(Region, u64)>,
    /// Plain memory, for the roof of process-vm.
    memory: Vec<u8>,
}

impl Server {
    fn run(mut self, ends: &Sender<End>) {
        loop {
            let handled = match self.agent.wait_event(Duration::MAX) {
                Some(event) => self.handle(event),
                None => Ok(false),
            };
            let end = match handled {
                Ok(false) => continue,
                Ok(true) => End::Served,
                Err(error) => End::Failed(error),
            };
            // Nobody listens when the end has come already.
            let _ending = ends.send(end);
            return;
        }
    }

    /// Whether it is time to end.
    fn handle(&mut self, event: Event) -> Result<bool> {
        match event {
            Event::PeerUp { peer } => {
                self.tell("connected", &peer, None);
                Ok(false)
            }
            Event::Notif { peer, bytes } => {
                let (number, answer) = match serde_json::from_slice::<Numbered<Ask>>(&bytes) {
                    Ok(ask) => (ask.number, self.answer(&peer, ask.what)),
                    Err(error) => (0, Err(anyhow::anyhow!("a question that is not understood: {error}"))),
                };
                let what = answer.unwrap_or_else(|error| Answer::Failed(format!("{error:#}")));
                // If it is gone, that is the next event.
                let _told = peer.notify(&serde_json::to_vec(&Numbered { number, what })?);
                Ok(false)
            }
            Event::PeerLost { peer, reason } => {
                self.tell("gone", &peer, Some(&reason.to_string()));
                let was_served = self.sessions.remove(&peer.incarnation()).is_some();
                Ok(self.once && was_served)
            }
            _ => Ok(false),
        }
    }

    fn tell(&self, what: &str, peer: &Peer, why: Option<&str>) {
        let (name, incarnation) = (peer.name(), peer.incarnation());
        if self.json {
            println!("{}", json!({ "event": what, "initiator": name, "why": why }));
        } else {
            println!(
                "{name} ({incarnation}) is {what}{}",
                why.map_or_else(String::new, |why| format!(": {why}"))
            );
        }
    }

    fn answer(&mut self, peer: &Peer, ask: Ask) -> Result<Answer> {
        let incarnation = peer.incarnation();
        ensure!(
            self.sessions.len() < INITIATORS_MAX || self.sessions.contains_key(&incarnation),
            "this target serves {INITIATORS_MAX} initiators already"
        );
        let label = || format!("bench-{incarnation}");
        let new = || Session { label: label(), region: None, memory: Vec::new() };
        let session = self.sessions.entry(incarnation).or_insert_with(new);
        match ask {
            Ask::Region { bytes, foreign } => session.make_region(&self.agent, bytes, foreign),
            Ask::Fill(pattern) => fill(session.region()?.0, pattern).map(|()| Answer::Good),
            Ask::Check { shape, op, patterns } => {
                let (region, bytes) = session.region()?;
                ensure!(shape.region_bytes() <= bytes, "{shape} is more than the region of {bytes} bytes");
                let expected = Expected::after(shape, op, Side::Remote, patterns);
                Ok(check(region, &expected)?.map_or(Answer::Good, Answer::Wrong))
            }
            Ask::Cpu => {
                let nanos = u64::try_from(machine::cpu_time()?.as_nanos())?;
                Ok(Answer::Cpu { nanos })
            }
            Ask::Memory => session.make_memory(),
            Ask::Sockets { streams, wait: _ } => {
                let (_, bytes) = session.region()?;
                let secret = secret()?;
                let port = sockets::listen(self.ip, streams, secret, bytes)?;
                Ok(Answer::Sockets { port, secret })
            }
            Ask::Iperf3 => Ok(Answer::Iperf3 { port: roof::serve_iperf3(self.ip)? }),
        }
    }
}

impl Session {
    fn region(&self) -> Result<(&Region, u64)> {
        let (region, bytes) = self.region.as_ref().context("no region was asked for")?;
        Ok((region, *bytes))
    }

    fn make_region(&mut self, agent: &Agent, bytes: u64, foreign: bool) -> Result<Answer> {
        self.region = None;
        machine::check_memory(bytes)?;
        let region = make_region(agent, bytes, foreign, &self.label)?;
        let id = region.id().to_u64();
        self.region = Some((region, bytes));
        Ok(Answer::Region { id, label: self.label.clone() })
    }

    fn make_memory(&mut self) -> Result<Answer> {
        let (_, bytes) = self.region()?;
        machine::check_memory(bytes)?;
        self.memory = roof::plain(bytes)?;
        let secret = secret()?;
        let memory = roof::aligned(&mut self.memory);
        let Some(begin) = memory.first_chunk_mut() else { bail!("a region shorter than its guards") };
        *begin = secret;
        let address = u64::try_from(memory.as_ptr().addr())?;
        Ok(Answer::Memory { pid: i32::try_from(std::process::id())?, address, secret })
    }
}

fn secret() -> Result<[u8; SECRET_BYTES]> {
    let mut secret = [0; SECRET_BYTES];
    getrandom::fill(&mut secret).context("no random bytes")?;
    Ok(secret)
}

// ---- both sides

/// How both agents are set up: as by default, but a busy machine may hold either process up for seconds without
/// spoiling the run.
pub(crate) fn config(name: &str, wait: Wait) -> Config {
    let mut config = Config::new(name);
    config.peer_timeout = PEER_TIMEOUT;
    if wait == Wait::Poll {
        config.busy_poll = BUSY_POLL;
    }
    config
}

/// A region of the kind that the path takes. Its pages are there once it was filled.
pub(crate) fn make_region(agent: &Agent, bytes: u64, foreign: bool, label: &str) -> Result<Region> {
    let bytes = usize::try_from(bytes)?;
    Ok(if foreign { agent.adopt(vec![0; bytes], label)? } else { agent.alloc(bytes, label)? })
}

/// Fills a region.
pub(crate) fn fill(region: &Region, pattern: Pattern) -> Result<()> {
    let mut chunk = vec![0; CHUNK_BYTES.min(region.len())];
    for start in (0..region.len()).step_by(CHUNK_BYTES) {
        let len = chunk.len().min(region.len() - start);
        pattern.fill(start as u64, &mut chunk[..len]);
        region.write_at(start, &chunk[..len])?;
    }
    Ok(())
}

/// Compares every byte of a region.
pub(crate) fn check(region: &Region, expected: &Expected) -> Result<Option<Mismatch>> {
    expected.check(region.len() as u64, |offset, out| Ok(region.read_at(usize::try_from(offset)?, out)?))
}
