//! Which rows a run has, and how they are told.

use std::time::Duration;

use anyhow::Result;
use transfer_bench::path::{Op, PathName};
use transfer_bench::report;
use transfer_bench::shape::Shape;
use transfer_core::Config;

use crate::RunArgs;
use crate::machine;
use crate::session::{REGIONS, Session};

const LENS: [u64; 6] = [4 << 10, 64 << 10, 1 << 20, 16 << 20, 64 << 20, 256 << 20];
const SCATTERED: (u32, u64) = (8192, 16 << 10);
const QUICK_LENS: [u64; 3] = [4 << 10, 64 << 10, 1 << 20];
const QUICK_SCATTERED: (u32, u64) = (512, 16 << 10);
const QUICK_SECONDS: Duration = Duration::from_millis(20);
/// What is moved where only a count is given, or only one length for many spans would be guessed: a page of KV.
const PAGE_BYTES: u64 = 16 << 10;

/// What is to be measured on one path.
#[derive(Debug, PartialEq, Eq)]
struct PathPlan {
    path: PathName,
    shapes: Vec<Shape>,
    /// Somebody asked for it, so it is an error where it cannot be taken.
    asked_for: bool,
}

/// The shapes that were asked for, or those of the default table.
fn shapes(args: &RunArgs) -> Result<Vec<Shape>> {
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

fn plan(args: &RunArgs) -> Result<Vec<PathPlan>> {
    let shapes = shapes(args)?;
    let default = args.len.is_empty() && args.count.is_empty();
    let paths = if args.path.is_empty() { &PathName::ALL[..] } else { &args.path };
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

/// Measures and prints; whether every row was verified.
pub(crate) fn run(args: &RunArgs) -> Result<bool> {
    let plan = plan(args)?;
    let ops = if args.op.is_empty() { &Op::ALL[..] } else { &args.op };
    let seconds = if args.quick { QUICK_SECONDS } else { args.seconds };
    for path in &plan {
        machine::check_memory(REGIONS.saturating_mul(region_bytes(path)))?;
    }
    introduce(args.json);
    let (mut rows, mut good) = (0_u32, 0_u32);
    for path in &plan {
        let mut session = Session::open(path.path, region_bytes(path))?;
        if let Some(why) = session.ruled_out()?.filter(|_| !path.asked_for) {
            eprintln!("{} is left out: {why}", path.path);
            continue;
        }
        let mut sound = true;
        for op in ops {
            for shape in &path.shapes {
                if !sound || !session.is_up() {
                    // One row that went wrong, and said so, does not cost the others theirs. Whatever it was, it may be
                    // the first sign of a target that is gone.
                    drop(session);
                    session = Session::open(path.path, region_bytes(path))?;
                }
                let row = session.row(*shape, *op, seconds);
                println!("{}", if args.json { row.json() } else { row.line() });
                sound = row.verified;
                rows += 1;
                good += u32::from(row.verified);
            }
        }
    }
    if !args.json {
        println!("\n{good} of {rows} rows verified.");
    }
    Ok(rows > 0 && good == rows)
}

fn region_bytes(path: &PathPlan) -> u64 {
    path.shapes.iter().map(|shape| shape.region_bytes()).max().unwrap_or(0)
}

/// Says what is measured, on what, against what. Beside JSON it goes to stderr.
fn introduce(json: bool) {
    let streams = Config::new("").tcp_streams;
    let text = format!(
        "transfer-bench {}: two processes on this machine, one transfer at a time\n\
         {}\n\
         The roof: for shm and process-vm one thread's memcpy of the same spans, for tcp plain blocking sockets (up to \
         {streams})\nmoving as many bytes, both measured in turns with the transfers. Other work on the machine shows in \
         every\nnumber; the share of the roof suffers least.\n{}",
        env!("CARGO_PKG_VERSION"),
        machine::describe(),
        if cfg!(debug_assertions) {
            "This is a debug build: its numbers say nothing. Use --release.\n"
        } else {
            ""
        },
    );
    if json {
        eprint!("{text}");
    } else {
        println!("{text}\n{}", report::heading());
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::{Cli, Command};

    fn parse(line: &str) -> RunArgs {
        match Cli::try_parse_from(line.split_whitespace()).unwrap().command {
            Command::Run(args) => *args,
            Command::Target(_) => panic!("a run"),
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
    }

    #[test]
    fn nonsense_is_refused() {
        for line in
            ["run --len 0x", "run --seconds 0", "run --path rdma", "run --quick --len 4", "run --count -1"]
        {
            let line = format!("transfer-bench {line}");
            assert!(Cli::try_parse_from(line.split_whitespace()).is_err(), "{line}");
        }
        assert!(plan(&parse("transfer-bench run --count 0")).unwrap_err().to_string().contains("1 to"));
    }
}
