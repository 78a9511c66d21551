//! Which rows a run has, and how they are told.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use transfer_bench::path::{Op, PathName};
use transfer_bench::plot;
use transfer_bench::report::{self, RoofKind, Row};
use transfer_bench::shape::Shape;
use transfer_core::Address;

use crate::child::TargetProcess;
use crate::cli::{InitiatorArgs, RoofChoice, RunArgs, SweepArgs, Trust};
use crate::key::KeyFile;
use crate::machine;
use crate::session::{Plan, REGIONS, Session};
use crate::stop::{Interrupted, Stop};

const LENS: [u64; 6] = [4 << 10, 64 << 10, 1 << 20, 16 << 20, 64 << 20, 256 << 20];
const SCATTERED: (u32, u64) = (8192, 16 << 10);
const QUICK_LENS: [u64; 3] = [4 << 10, 64 << 10, 1 << 20];
const QUICK_SCATTERED: (u32, u64) = (512, 16 << 10);
const QUICK_SECONDS: Duration = Duration::from_millis(20);
/// What is moved where only a count is given, or only one length for many spans would be guessed: a page of KV.
const PAGE_BYTES: u64 = 16 << 10;

/// How a sweep ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Every row was verified.
    Verified,
    /// Some was not, or there was none.
    Failed,
    /// The target is gone.
    TargetLost,
    /// Somebody asked for the end.
    Interrupted,
}

/// What is to be measured on one path.
#[derive(Debug, PartialEq, Eq)]
struct PathPlan {
    path: PathName,
    shapes: Vec<Shape>,
    /// Somebody asked for it, so it is an error where it cannot be taken.
    asked_for: bool,
}

/// The shapes that were asked for, or those of the default table.
fn shapes(args: &SweepArgs) -> Result<Vec<Shape>> {
    let (lens, scattered) =
        if args.quick { (&QUICK_LENS[..], QUICK_SCATTERED) } else { (&LENS[..], SCATTERED) };
    let mut shapes = Vec::new();
    if args.len.is_empty() && args.count.is_empty() {
        for len in lens {
            shapes.push(Shape::new(1, *len)?);
        }
        shapes.push(Shape::new(scattered.0, scattered.1)?);
        return Ok(shapes);
    }
    let lens = if args.len.is_empty() { &[PAGE_BYTES][..] } else { &args.len };
    let counts = if args.count.is_empty() { &[1][..] } else { &args.count };
    for count in counts {
        for len in lens {
            shapes.push(Shape::new(*count, *len)?);
        }
    }
    Ok(shapes)
}

fn plan(args: &SweepArgs) -> Result<Vec<PathPlan>> {
    let shapes = shapes(args)?;
    let default = args.len.is_empty() && args.count.is_empty();
    let paths = match &args.path[..] {
        [] if args.encrypt => &[PathName::Tcp][..],
        [] => &PathName::ALL[..],
        paths => paths,
    };
    ensure!(
        !args.encrypt || paths.iter().all(|path| *path == PathName::Tcp),
        "only tcp is encrypted: leave --path out, or name nothing else"
    );
    let of_path = |&path: &PathName| {
        let mut shapes = shapes.clone();
        // Foreign memory is what engines hand over page by page; one span says little more.
        if default && args.path.is_empty() && path == PathName::ProcessVm {
            shapes.retain(|shape| shape.count() > 1);
        }
        PathPlan { path, shapes, asked_for: !args.path.is_empty() }
    };
    Ok(paths.iter().map(of_path).collect())
}

/// Who is measured against.
enum Target {
    /// A process of this run, started again where it is lost, and its core.
    Own(TargetProcess, Option<usize>),
    /// One that somebody else started.
    Other(Address),
}

impl Target {
    fn address(&self) -> &Address {
        match self {
            Self::Own(process, _) => process.address(),
            Self::Other(address) => address,
        }
    }
}

/// A run under way.
struct Sweep<'a> {
    args: SweepArgs,
    trust: &'a Trust,
    target: Target,
    stop: &'a Stop,
    rows: Vec<Row>,
}

/// Measures between two processes of this machine.
pub(crate) fn run(args: &RunArgs) -> Result<Outcome> {
    let stop = Stop::catch(|| ())?;
    let plan = plan(&args.sweep)?;
    for path in &plan {
        machine::check_memory(REGIONS.saturating_mul(region_bytes(path)))?;
    }
    let (cpu, target_cpu) = args.cpus.unzip();
    cpu.map_or(Ok(()), machine::pin)?;
    let key = args.sweep.encrypt.then(KeyFile::make).transpose()?;
    let keyless = Trust::default();
    let trust = key.as_ref().map_or(&keyless, KeyFile::trust);
    let target = TargetProcess::start(args.sweep.measure.wait, target_cpu, trust)?;
    sweep(&args.sweep, trust, Target::Own(target, target_cpu), &plan, &stop)
}

/// Measures against a target that somebody started.
pub(crate) fn initiate(args: &InitiatorArgs) -> Result<Outcome> {
    let stop = Stop::catch(|| ())?;
    let plan = plan(&args.sweep)?;
    for path in &plan {
        machine::check_memory((REGIONS - 1).saturating_mul(region_bytes(path)))?;
    }
    sweep(&args.sweep, &args.trust, Target::Other(args.connect.clone()), &plan, &stop)
}

fn sweep(args: &SweepArgs, trust: &Trust, target: Target, plan: &[PathPlan], stop: &Stop) -> Result<Outcome> {
    let mut args = args.clone();
    if args.quick {
        args.measure.seconds = QUICK_SECONDS;
    }
    introduce(&args, &target);
    let mut sweep = Sweep { args, trust, target, stop, rows: Vec::new() };
    let mut outcome = sweep.paths(plan);
    if outcome.as_ref().is_err_and(|error| error.is::<Interrupted>()) {
        outcome = Ok(Outcome::Interrupted);
    }
    sweep.conclude()?;
    outcome
}

impl Sweep<'_> {
    fn paths(&mut self, plan: &[PathPlan]) -> Result<Outcome> {
        for path in plan {
            if !self.path(path)? {
                return Ok(Outcome::TargetLost);
            }
        }
        let all = !self.rows.is_empty() && self.rows.iter().all(|row| row.verified);
        Ok(if all { Outcome::Verified } else { Outcome::Failed })
    }

    /// The rows of a path; whether the target is still to be had.
    fn path(&mut self, path: &PathPlan) -> Result<bool> {
        let mut session = self.open(path)?;
        if let Some(why) = session.ruled_out()?.filter(|_| !path.asked_for) {
            eprintln!("{} is left out: {why}", path.path);
            return Ok(true);
        }
        let mut sound = true;
        let ops = if self.args.op.is_empty() { Op::ALL.to_vec() } else { self.args.op.clone() };
        for op in ops {
            for shape in &path.shapes {
                self.stop.check()?;
                if !sound {
                    // One row that went wrong, and said so, does not cost the others theirs. Whatever it was, it may be
                    // the first sign of a target that is gone.
                    drop(session);
                    session = self.open(path)?;
                }
                let row = session.row(*shape, op, &self.args.measure, self.stop)?;
                println!("{}", if self.args.json { row.json() } else { row.line() });
                sound = row.verified && session.is_up();
                self.rows.push(row);
                if !session.is_up() && matches!(self.target, Target::Other(_)) {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    fn open(&mut self, path: &PathPlan) -> Result<Session> {
        if let Target::Own(process, cpu) = &mut self.target
            && !process.is_alive()
        {
            let cpu = *cpu;
            let process = TargetProcess::start(self.args.measure.wait, cpu, self.trust)?;
            self.target = Target::Own(process, cpu);
        }
        Session::open(&Plan {
            address: self.target.address(),
            trust: self.trust,
            path: path.path,
            region_bytes: region_bytes(path),
            measure: &self.args.measure,
            encrypt: self.args.encrypt,
        })
    }

    /// The last line, and the picture.
    fn conclude(&self) -> Result<()> {
        let good = self.rows.iter().filter(|row| row.verified).count();
        if !self.args.json {
            println!("\n{good} of {} rows verified.", self.rows.len());
        }
        let Some(file) = &self.args.svg else { return Ok(()) };
        match plot::svg(&self.rows, &machine::describe_briefly()) {
            Some(svg) => fs::write(file, svg).with_context(|| format!("cannot write {}", file.display())),
            None => {
                eprintln!(
                    "no row was verified, so there is nothing to draw: {} is not written",
                    file.display()
                );
                Ok(())
            }
        }
    }
}

fn region_bytes(path: &PathPlan) -> u64 {
    path.shapes.iter().map(|shape| shape.region_bytes()).max().unwrap_or(0)
}

/// Says what is measured, on what, against what. Beside JSON it goes to stderr.
fn introduce(args: &SweepArgs, target: &Target) {
    let between = match target {
        Target::Own(..) => "two processes on this machine".to_owned(),
        Target::Other(address) => format!("this process and the target at {address}"),
    };
    let tcp = match args.measure.roof {
        _ if args.encrypt => RoofKind::Cipher,
        RoofChoice::Sockets => RoofKind::Sockets,
        RoofChoice::Iperf3 => RoofKind::Iperf3,
    };
    let text = format!(
        "transfer-bench {}: {between}, one transfer at a time\n\
         {}\n\
         The roof: one thread's memcpy of the same spans for shm, bare process_vm calls for process-vm, {tcp} for tcp;\n\
         measured in turns with the transfers. Other work on the machine shows in every number, least in the share.\n{}",
        env!("CARGO_PKG_VERSION"),
        machine::describe(),
        if cfg!(debug_assertions) {
            "This is a debug build: its numbers say nothing. Use --release.\n"
        } else {
            ""
        },
    );
    if args.json {
        eprint!("{text}");
    } else {
        println!("{text}\n{}", report::heading());
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    fn parse(line: &str) -> SweepArgs {
        match Cli::try_parse_from(line.split_whitespace()).unwrap().command {
            Command::Run(args) => args.sweep,
            _ => panic!("a run"),
        }
    }

    fn told(line: &str) -> Vec<String> {
        let plan = plan(&parse(line)).unwrap();
        let rows = plan.iter().flat_map(|p| p.shapes.iter().map(move |shape| format!("{} {shape}", p.path)));
        rows.collect()
    }

    #[test]
    fn the_default_table_has_every_size_and_process_vm_only_scattered() {
        let rows = told("transfer-bench run");
        assert_eq!(rows.len(), 7 + 1 + 7);
        assert_eq!(rows[0], "shm 1 x 4 KiB");
        assert_eq!(rows[5], "shm 1 x 256 MiB");
        assert_eq!(rows[7], "process-vm 8192 x 16 KiB");
        assert_eq!(rows[14], "tcp 8192 x 16 KiB");
    }

    #[test]
    fn what_is_asked_for_is_taken_as_a_product() {
        let rows = told("transfer-bench run --path process-vm --len 4KiB,1MiB --count 1,8");
        let wanted = ["1 x 4 KiB", "1 x 1 MiB", "8 x 4 KiB", "8 x 1 MiB"];
        assert_eq!(rows, wanted.map(|shape| format!("process-vm {shape}")));
        assert_eq!(told("transfer-bench run --path tcp --count 9"), ["tcp 9 x 16 KiB"]);
        assert_eq!(told("transfer-bench run --path process-vm").len(), 7);
        assert_eq!(told("transfer-bench run --path shm,tcp --len 4KiB").len(), 2);
        assert_eq!(told("transfer-bench run --encrypt --len 4KiB"), ["tcp 1 x 4 KiB"]);
    }

    #[test]
    fn nonsense_is_refused() {
        let lines = [
            "run --len 0x",
            "run --seconds 0",
            "run --path rdma",
            "run --quick --len 4",
            "run --count -1",
            "run --repeats 0",
            "run --streams 1000",
            "run --wait never",
            "initiator",
            "initiator --connect nowhere",
            "target --listen here",
            "run --cpus 1",
        ];
        for line in lines {
            let line = format!("transfer-bench {line}");
            assert!(Cli::try_parse_from(line.split_whitespace()).is_err(), "{line}");
        }
        let refused = plan(&parse("transfer-bench run --encrypt --path shm,tcp")).unwrap_err();
        assert!(refused.to_string().contains("only tcp"), "{refused}");
        assert!(plan(&parse("transfer-bench run --count 0")).unwrap_err().to_string().contains("1 to"));
    }
}
