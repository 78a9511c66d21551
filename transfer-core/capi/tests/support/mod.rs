//! What the tests of the C side share: compilers, and the library as cargo built it for this test.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Every warning is an error.
pub const STRICT: [&str; 4] = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"];

/// `csrc` of the source tree.
pub fn csrc() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../csrc")
}

pub fn header() -> String {
    std::fs::read_to_string(csrc().join("headrace.h")).unwrap()
}

/// Where cargo put the library for this test: beside the test itself, whatever the target directory is called.
pub fn built() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let found = test.ancestors().skip(1).take(2).find(|dir| dir.join("libheadrace.so").is_file());
    found.expect("cargo builds the library with its tests").to_owned()
}

/// Whether there is such a program. If not, that is said, since a test then checks less.
pub fn there_is(program: &str) -> bool {
    let there = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    let there = there.is_ok_and(|status| status.success());
    if !there {
        eprintln!("SKIPPED: this machine has no {program}");
    }
    there
}

/// Runs a program to its end and returns what it printed. Panics with all it said where it fails.
pub fn run<S: AsRef<OsStr>>(program: impl AsRef<OsStr>, args: impl IntoIterator<Item = S>) -> String {
    let mut command = Command::new(program);
    command.args(args);
    output(&mut command)
}

pub fn output(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{out}\n{err}", output.status);
    out.into_owned()
}
