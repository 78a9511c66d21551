//! What the tests share: models on disk, real source and receiver processes, and a source that lies.

#![allow(dead_code, reason = "each test file uses a part of it")]

pub mod liar;

use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub const DEADLINE: Duration = Duration::from_secs(60);
/// Chunk size of nearly all tests: small, so that a small model has many chunks.
pub const CHUNK: usize = 64 << 10;
const JOURNAL_HEADER: u64 = 48;
const JOURNAL_RECORD: u64 = 8;

/// Bytes that are the same in every run and differ everywhere.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

pub fn put(dir: &Path, name: &str, bytes: &[u8]) {
    let path = dir.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

/// A safetensors file of one tensor with this many bytes of data.
pub fn tensors(seed: u64, len: usize) -> Vec<u8> {
    let header = format!(r#"{{"t{seed}":{{"dtype":"U8","shape":[{len}],"data_offsets":[0,{len}]}}}}"#);
    let mut file = u64::try_from(header.len()).unwrap().to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend(noise(seed, len));
    file
}

/// A model of about `len` bytes, most of them in two safetensors files.
pub fn model(dir: &Path, len: usize) {
    put(dir, "config.json", br#"{"architectures":["LlamaForCausalLM"]}"#);
    put(dir, "model-00001-of-00002.safetensors", &tensors(1, len / 2 + 17));
    put(dir, "model-00002-of-00002.safetensors", &tensors(2, len / 2));
}

/// Every file below a directory, with its content and whether it may be executed; our own files left out.
pub fn tree(dir: &Path) -> Vec<(String, Vec<u8>, bool)> {
    fn walk(dir: &Path, prefix: &str, out: &mut Vec<(String, Vec<u8>, bool)>) {
        for entry in fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            let name = format!("{prefix}{}", entry.file_name().to_str().unwrap());
            let metadata = fs::metadata(entry.path()).unwrap();
            if metadata.is_dir() {
                walk(&entry.path(), &format!("{name}/"), out);
            } else if !name.starts_with(".headrace") {
                let executable = metadata.permissions().mode() & 0o111 != 0;
                out.push((name, fs::read(entry.path()).unwrap(), executable));
            }
        }
    }
    let mut out = Vec::new();
    walk(dir, "", &mut out);
    out.sort();
    out
}

#[track_caller]
pub fn assert_same(source: &Path, copy: &Path) {
    let (source, copy) = (tree(source), tree(copy));
    let names = |tree: &[(String, Vec<u8>, bool)]| tree.iter().map(|file| file.0.clone()).collect::<Vec<_>>();
    assert_eq!(names(&source), names(&copy));
    for (a, b) in source.iter().zip(&copy) {
        assert!(a.1 == b.1, "{} differs", a.0);
        assert_eq!(a.2, b.2, "mode of {}", a.0);
    }
}

#[track_caller]
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < DEADLINE, "not within {DEADLINE:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub fn command() -> Command {
    Command::new(env!("CARGO_BIN_EXE_weight-streamer"))
}

/// A `weight-streamer serve` process; killed when dropped.
pub struct Source {
    pub child: Child,
    pub root: String,
    pub address: String,
}

impl Source {
    pub fn start(dir: &Path, flags: &[&str]) -> Self {
        Self::try_start(dir, flags).expect("the server says where it is")
    }

    /// None when the server ends before it serves.
    pub fn try_start(dir: &Path, flags: &[&str]) -> Option<Self> {
        let mut command = command();
        command.arg("serve").arg(dir).args(["--chunk-kib", "64"]).args(flags);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let Some((root, address)) = line
            .trim()
            .strip_prefix("weight-streamer serving ")
            .and_then(|rest| rest.split_once(" at "))
            .map(|(root, address)| (root.to_owned(), address.to_owned()))
        else {
            child.wait().unwrap();
            return None;
        };
        Some(Self { child, root, address })
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// What a `weight-streamer pull` process left behind.
#[derive(Debug)]
pub struct Outcome {
    pub code: Option<i32>,
    pub json: Value,
    pub stderr: String,
}

impl Outcome {
    #[track_caller]
    pub fn number(&self, field: &str) -> u64 {
        self.json[field].as_u64().unwrap_or_else(|| panic!("no {field} in {self:?}"))
    }

    #[track_caller]
    pub fn assert_ok(&self) -> &Self {
        assert_eq!(self.code, Some(0), "{self:?}");
        self
    }

    /// The error, which must have ended the process.
    #[track_caller]
    pub fn error(&self) -> &str {
        assert!(self.code.is_some_and(|code| code != 0), "{self:?}");
        self.json["error"].as_str().unwrap_or_else(|| panic!("no error in {self:?}"))
    }
}

pub fn pull_command(sources: &[&str], to: &Path, flags: &[&str]) -> Command {
    let mut command = command();
    command.arg("pull").args(sources).arg("--to").arg(to).arg("--json").args(flags);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

pub fn start_pull(sources: &[&str], to: &Path, flags: &[&str]) -> Child {
    pull_command(sources, to, flags).spawn().unwrap()
}

#[track_caller]
pub fn finish(child: Child) -> Outcome {
    // A hang is ended by the wait inside: the child is killed at the deadline.
    let id = child.id();
    let (tell, told) = std::sync::mpsc::channel::<()>();
    let watchdog = std::thread::spawn(move || {
        if told.recv_timeout(DEADLINE).is_err_and(|error| error == std::sync::mpsc::RecvTimeoutError::Timeout)
        {
            drop(Command::new("kill").args(["-9", &id.to_string()]).status());
        }
    });
    let output = child.wait_with_output().unwrap();
    drop(tell);
    watchdog.join().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    Outcome {
        code: output.status.code(),
        json: serde_json::from_str(&stdout).unwrap_or(Value::Null),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

#[track_caller]
pub fn pull(sources: &[&str], to: &Path, flags: &[&str]) -> Outcome {
    finish(start_pull(sources, to, flags))
}

/// Where a pull into `to` keeps what is not complete.
pub fn partial(to: &Path) -> PathBuf {
    let name = to.file_name().unwrap().to_str().unwrap();
    to.parent().unwrap().join(format!(".{name}.headrace-partial"))
}

/// Chunks that the journal of a pull into `to` claims.
pub fn journaled(to: &Path) -> u64 {
    let len = fs::metadata(partial(to).join("journal")).map_or(0, |metadata| metadata.len());
    len.saturating_sub(JOURNAL_HEADER) / JOURNAL_RECORD
}
