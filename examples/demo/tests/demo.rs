//! The whole demo as a user runs it, with a model that is small enough for a debug build.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed test ends by panicking")]
#![allow(clippy::disallowed_methods, reason = "tests have deadlines")]

use serde_json::Value;
use std::collections::HashSet;
use std::io::{BufRead as _, BufReader, Lines};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// How long parts may need to end; they have some seconds for running requests.
const END_MAX: Duration = Duration::from_secs(40);

fn demo() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_demo"));
    // What a failed or killed demo leaves for its user to read stays with the build.
    command.stdin(Stdio::null()).env("TMPDIR", env!("CARGO_TARGET_TMPDIR"));
    command
}

/// A small model; those of different seeds give different answers.
fn make_model(seed: u8) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("demo-model-{seed}"));
    let seed = seed.to_string();
    let mut making = demo()
        .args(["child", "engine-lite", "make-model"])
        .arg(&dir)
        .args(["--layers", "2", "--hidden-size", "64", "--eos-bias", "-100", "--seed", &seed])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    // `wait` closes stdin, which would end the child.
    let stdin = making.stdin.take();
    assert!(making.wait().unwrap().success());
    drop(stdin);
    dir
}

fn model() -> &'static Path {
    static MODEL: OnceLock<PathBuf> = OnceLock::new();
    MODEL.get_or_init(|| make_model(0))
}

fn run(args: &[&str]) -> (Output, String) {
    let output = demo().arg("--model").arg(model()).args(args).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (output, text)
}

fn rows(args: &[&str]) -> Vec<Value> {
    let (output, text) = run(&[&["--json", "--max-tokens", "12"], args].concat());
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{text}\n{errors}", output.status);
    let report: Value = serde_json::from_str(&text).unwrap();
    assert!(report["warm"]["bytes"].as_u64().unwrap() > 100_000, "{report}");
    report["rows"].as_array().unwrap().clone()
}

/// Every prompt, over one path: identical, handed over by that path, and only what was lacking.
fn every_answer_is_identical(paths: &str, block_size: u64) {
    let rows = rows(&["--paths", paths, "--block-size", &block_size.to_string()]);
    assert_eq!(rows.len(), 7);
    for row in &rows {
        assert_eq!(row["identical"], true, "{row}");
        assert_eq!(row["answer_tokens"], 12, "{row}");
        // The last token is computed anew: its result is what the answer begins with.
        let blocks = (row["prompt_tokens"].as_u64().unwrap() - 1).div_ceil(block_size);
        let (had, moved) = (row["kv_blocks_had"].as_u64().unwrap(), row["kv_blocks_moved"].as_u64().unwrap());
        assert_eq!(had + moved, blocks, "{row}");
        assert!(moved > 0 && row["kv_bytes_moved"].as_u64().unwrap() > 0, "{row}");
        assert_eq!(row["path"], paths, "{row}");
    }
    let row = |name: &str| rows.iter().find(|row| row["prompt"] == name).unwrap();
    assert!(row("long")["prompt_tokens"].as_u64().unwrap() > 1200, "{}", row("long"));
    let document = row("document")["kv_blocks_moved"].as_u64().unwrap();
    assert!(
        row("same document")["kv_blocks_had"].as_u64().unwrap() + 2 >= document,
        "the prefix was moved twice"
    );
}

#[test]
fn answers_are_identical_over_shared_memory() {
    every_answer_is_identical("shm", 16);
}

#[test]
fn answers_are_identical_over_tcp() {
    every_answer_is_identical("tcp", 32);
}

#[test]
fn a_human_sees_answers_and_a_table() {
    let (output, text) = run(&["--prompts", "short,chat", "--max-tokens", "8"]);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("3 of 3 answers have exactly the tokens of the undivided engine"), "{text}");
    assert_eq!(text.lines().filter(|line| line.trim_end().ends_with(" yes")).count(), 3, "{text}");
    assert!(!text.contains('\u{1b}'), "colours are for terminals");
    let width = text.lines().map(|line| line.chars().count()).max().unwrap();
    assert!(width <= 120, "{width}\n{text}");
}

#[test]
fn an_undivided_engine_with_other_weights_is_noticed() {
    let other = make_model(1);
    let (output, text) =
        run(&["--prompts", "short,sampled", "--undivided-model", other.to_str().unwrap(), "--json"]);
    assert_eq!(output.status.code(), Some(1), "{text}");
    let report: Value = serde_json::from_str(&text).unwrap();
    for row in report["rows"].as_array().unwrap() {
        assert_eq!(row["identical"], false, "{row}");
        assert!(row["problem"].as_str().unwrap().contains("of the answer is"), "{row}");
    }
}

#[test]
fn a_part_that_cannot_start_is_explained() {
    let empty = tempfile::tempdir().unwrap();
    std::fs::write(empty.path().join("config.json"), "{}").unwrap();
    let output = demo().arg("--model").arg(empty.path()).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(
        errors.contains("prefill ended with exit status: 1") && errors.contains("config.json"),
        "{errors}"
    );
}

/// A demo that has been started, and everything that it has started.
struct Running {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Running {
    /// Starts it and reads its output until `text` has come.
    fn until(text: &str) -> Self {
        let mut child = demo()
            .args(["--keep", "--prompts", "long", "--max-tokens", "400", "--model"])
            .arg(model())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let found = lines.by_ref().map_while(Result::ok).any(|line| line.contains(text));
        assert!(found, "the demo ended before it said {text:?}");
        Self { child, lines }
    }

    fn signal(&self, name: &str) {
        let killed = Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap();
        assert!(killed.success());
    }

    /// Waits until it and all of `parts` are gone; its exit status.
    fn gone(mut self, parts: &HashSet<u32>) -> Option<i32> {
        let deadline = Instant::now() + END_MAX;
        // What it still has to say must not keep it from ending.
        std::thread::spawn(move || self.lines.by_ref().for_each(drop));
        let status = self.child.wait().unwrap();
        loop {
            let left: Vec<u32> = parts.iter().copied().filter(|&id| is_running(id)).collect();
            if left.is_empty() {
                return status.code();
            }
            assert!(Instant::now() < deadline, "left behind: {left:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// State and parent of a process, from proc(5): the fields behind the name in parentheses.
fn stat(id: u32) -> Option<(String, u32)> {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    Some((fields.next()?.to_owned(), fields.next()?.parse().ok()?))
}

/// A zombie has ended; who reaps it, and when, is the machine's business.
fn is_running(id: u32) -> bool {
    stat(id).is_some_and(|(state, _)| state != "Z" && state != "X")
}

fn children(parent: u32) -> HashSet<u32> {
    let ids = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    ids.filter(|&id| stat(id).is_some_and(|(_, its_parent)| its_parent == parent)).collect()
}

#[test]
fn ctrl_c_ends_a_kept_demo_well_and_leaves_no_process() {
    let running = Running::until("curl -N");
    let parts = children(running.child.id());
    assert_eq!(parts.len(), 4, "prefill, decode, undivided, router");
    running.signal("-INT");
    assert_eq!(running.gone(&parts), Some(0));
}

#[test]
fn signals_during_the_start_and_during_an_answer_leave_no_process() {
    for (text, name) in [("✓ prefill", "-INT"), ("✓ router", "-TERM"), ("✓ decode", "-HUP")] {
        let running = Running::until(text);
        let parts = children(running.child.id());
        assert!(!parts.is_empty());
        running.signal(name);
        assert_eq!(running.gone(&parts), Some(130), "{name}");
    }
}

#[test]
fn kill_9_leaves_no_process() {
    for text in ["✓ decode", "curl -N"] {
        let running = Running::until(text);
        let parts = children(running.child.id());
        assert!(parts.len() >= 2);
        running.signal("-KILL");
        assert_eq!(running.gone(&parts), None);
    }
}
