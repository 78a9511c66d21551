//! The binary, as its users run it: real processes, every path and direction.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    missing_docs,
    reason = "a test"
)]

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

const BINARY: &str = env!("CARGO_BIN_EXE_transfer-bench");
const DEADLINE: Duration = Duration::from_secs(30);

fn run(args: &[&str]) -> Output {
    Command::new(BINARY).arg("run").args(args).output().unwrap()
}

fn rows(output: &Output) -> Vec<Value> {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Looks again until there is an answer.
fn poll<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "{what}");
        std::thread::yield_now();
    }
}

/// State and parent of a process that has not been cleared away.
fn stat(pid: u32) -> Option<(char, u32)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

fn child_of(parent: u32) -> Option<u32> {
    let pids =
        fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.into_iter().find(|&pid| stat(pid).is_some_and(|(_, its_parent)| its_parent == parent))
}

fn is_gone(pid: u32) -> bool {
    // Whoever inherits a dead process may clear it away when it likes.
    stat(pid).is_none_or(|(state, _)| state == 'Z')
}

#[test]
fn encrypted_rows_are_verified_and_stand_beside_the_cipher() {
    let output = run(&["--encrypt", "--seconds", "0.02", "--len", "4096,300001", "--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let rows = rows(&output);
    assert_eq!(rows.len(), 2 * 2);
    for row in rows {
        assert_eq!((&row["path"], &row["roof_kind"]), (&"tcp".into(), &"cipher".into()), "{row}");
        assert_eq!(row["verified"], true, "{row}");
        assert!(row["share"].as_f64().is_some_and(|share| share > 0.0), "{row}");
    }
}

#[test]
fn every_path_and_direction_is_verified_and_has_all_its_figures() {
    let output = run(&["--seconds", "0.02", "--len", "4096,100001", "--count", "1,20", "--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let rows = rows(&output);
    assert_eq!(rows.len(), 3 * 2 * 4);
    for row in &rows {
        assert_eq!(row["verified"], true, "{row}");
        assert!(row.get("error").is_none(), "{row}");
        let figures =
            ["gbps", "p50_us", "p99_us", "p999_us", "prep_ns_per_desc", "post_ns_per_desc", "roof", "share"];
        for name in
            figures.into_iter().chain(["share_min", "share_max", "windows", "transfers", "wire_bytes"])
        {
            assert!(row[name].as_f64().is_some_and(|value| value > 0.0), "{name} of {row}");
        }
        assert!(row["cpu_s_per_gib"].is_number(), "{row}");
        let (p50, p99) = (row["p50_us"].as_f64().unwrap(), row["p99_us"].as_f64().unwrap());
        assert!(p50 <= p99 && p99 <= row["p999_us"].as_f64().unwrap(), "{row}");
        assert!(row["share_min"].as_f64() <= row["share"].as_f64(), "{row}");
        assert!(row["share"].as_f64() <= row["share_max"].as_f64(), "{row}");
        let kinds = [("shm", "memcpy"), ("process-vm", "process-vm"), ("tcp", "sockets")];
        assert!(kinds.iter().any(|(path, roof)| row["path"] == *path && row["roof_kind"] == *roof), "{row}");
    }
    for path in ["shm", "process-vm", "tcp"] {
        for op in ["read", "write"] {
            for (count, len) in [(1, 4096), (1, 100_001), (20, 4096), (20, 100_001)] {
                let is_it = |row: &&Value| {
                    row["path"] == path && row["op"] == op && row["count"] == count && row["len"] == len
                };
                assert_eq!(rows.iter().filter(is_it).count(), 1, "{path} {op} {count} {len}");
            }
        }
    }
}

#[test]
fn the_table_names_the_machine_and_ends_with_a_count() {
    let output = run(&["--seconds", "0.01", "--path", "shm", "--op", "read", "--len", "4KiB"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    for part in ["cores", "Linux", "roof", "memcpy", "ns/desc", "shm        read"] {
        assert!(text.contains(part), "{part:?} in {text}");
    }
    assert!(text.ends_with("\n1 of 1 rows verified.\n"), "{text}");
}

#[test]
fn what_cannot_be_measured_is_said_before_anything_starts() {
    let output = run(&["--len", "300GiB"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("needs"), "{output:?}");
    assert!(output.stdout.is_empty());
}

#[test]
fn a_killed_run_leaves_no_process_behind() {
    let quiet = Stdio::null;
    let args = ["run", "--seconds", "60", "--len", "4KiB", "--path", "tcp"];
    let mut bench = Command::new(BINARY).args(args).stdout(quiet()).stderr(quiet()).spawn().unwrap();
    let target = poll("a target process starts", || child_of(bench.id()));
    bench.kill().unwrap();
    bench.wait().unwrap();
    poll("the target process ends", || is_gone(target).then_some(()));
}

#[test]
fn a_finished_run_leaves_no_process_behind() {
    let args = ["run", "--seconds", "0.2", "--len", "4KiB", "--path", "shm", "--op", "write"];
    let mut bench = Command::new(BINARY).args(args).stdout(Stdio::null()).spawn().unwrap();
    let target = poll("a target process starts", || child_of(bench.id()));
    assert!(bench.wait().unwrap().success());
    assert!(is_gone(target));
}

#[test]
fn ctrl_c_ends_a_run_with_the_rows_before_and_leaves_no_process_behind() {
    let args = ["run", "--seconds", "0.1", "--len", "1,2,3,4,5,6,7,8,9", "--repeats", "1", "--json"];
    let mut bench =
        Command::new(BINARY).args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(bench.stdout.take().unwrap()).lines().map(Result::unwrap);
    let first = lines.next().unwrap();
    let target = child_of(bench.id()).unwrap();
    assert!(Command::new("kill").args(["-INT", &bench.id().to_string()]).status().unwrap().success());
    let rows: Vec<Value> =
        [first].into_iter().chain(lines).map(|l| serde_json::from_str(&l).unwrap()).collect();
    assert!(rows.len() < 54 && rows.iter().all(|row| row["verified"] == true), "{rows:?}");
    let output = bench.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert!(String::from_utf8_lossy(&output.stderr).contains("interrupted"), "{output:?}");
    poll("the target process ends", || is_gone(target).then_some(()));
}

#[test]
fn the_picture_is_written_with_a_mark_for_every_row() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("rows.svg");
    let svg = ["--svg", file.to_str().unwrap()];
    let output = run(&[&["--seconds", "0.01", "--path", "shm,tcp", "--len", "4KiB,8KiB"], &svg[..]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.starts_with("<svg") && text.ends_with("</svg>\n"), "{text}");
    assert_eq!(text.matches("<title>").count(), 2 * 2 * 2);
}

#[test]
fn polling_is_a_way_of_waiting_for_every_path() {
    let output = run(&[
        "--seconds",
        "0.02",
        "--len",
        "4KiB",
        "--wait",
        "poll",
        "--streams",
        "1",
        "--cpus",
        "0,0",
        "--json",
    ]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let rows = rows(&output);
    assert_eq!(rows.len(), 6);
    for row in rows {
        assert_eq!((&row["verified"], &row["wait"]), (&true.into(), &"poll".into()), "{row}");
        let timed = row["roof_p50_us"].is_number();
        assert_eq!(
            timed && row["p50_of_roof"].is_number(),
            row["path"] != "shm",
            "a bare round trip has a time of its own: {row}"
        );
    }
}

#[test]
fn a_killed_target_costs_its_row_and_no_other() {
    let args = ["run", "--seconds", "0.5", "--len", "1,2,3,4", "--path", "tcp", "--op", "read", "--json"];
    let mut bench =
        Command::new(BINARY).args(args).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(bench.stdout.take().unwrap()).lines().map(Result::unwrap);
    let first = lines.next().unwrap();
    let target = child_of(bench.id()).unwrap();
    assert!(Command::new("kill").args(["-KILL", &target.to_string()]).status().unwrap().success());
    let rows: Vec<Value> =
        [first].into_iter().chain(lines).map(|l| serde_json::from_str(&l).unwrap()).collect();
    assert_eq!(bench.wait().unwrap().code(), Some(1));
    let failed: Vec<&Value> = rows.iter().filter(|row| row["verified"] == false).collect();
    assert_eq!((rows.len(), failed.len()), (4, 1), "{rows:?}");
    assert!(failed[0]["gbps"].is_null() && failed[0]["error"].is_string(), "{failed:?}");
}

#[test]
fn the_doctor_tells_the_machine_every_path_and_what_to_mend() {
    let output = Command::new(BINARY).args(["doctor", "--json"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(report["machine"]["cores"].as_u64().unwrap() > 0);
    let paths = report["paths"].as_array().unwrap();
    let names: Vec<&str> = paths.iter().map(|path| path["path"].as_str().unwrap()).collect();
    assert_eq!(names, ["shm", "process-vm", "tcp"]);
    for path in paths {
        assert!(path["usable"] == true && path["gbps"].is_number() || path["why"].is_string(), "{path}");
    }
    for figure in ["setup_ms", "setup_keyed_ms"] {
        assert!(report["agents"][figure].as_f64().unwrap() > 0.0, "{figure}");
    }
    assert!(report["agents"]["idle_cpu_percent"].is_number());
    for finding in report["findings"].as_array().unwrap() {
        assert!(finding["what"].is_string() && finding["why"].is_string(), "{finding}");
    }
    let debug = report["findings"].to_string().contains("debug build");
    assert_eq!(debug, cfg!(debug_assertions));
}
