//! The library as a C program gets it: installed, linked, run as two processes.
#![allow(
    unreachable_pub,
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test"
)]

mod support;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use support::{STRICT, built, csrc, header, output, run, there_is};

/// The library, installed into a directory of its own.
fn install() -> tempfile::TempDir {
    let prefix = tempfile::tempdir().unwrap();
    run(csrc().join("install.sh"), [prefix.path(), &built()]);
    prefix
}

fn pkg_config(prefix: &Path, args: &[&str]) -> Vec<String> {
    let mut command = Command::new("pkg-config");
    command.args(args).arg("headrace").env("PKG_CONFIG_PATH", prefix.join("lib/pkgconfig"));
    output(&mut command).split_whitespace().map(str::to_owned).collect()
}

const C: [&str; 3] = ["cc", "c", "-std=c99"];
const CPLUSPLUS: [&str; 3] = ["c++", "c++", "-std=c++11"];

/// Compiles a program with these further arguments.
fn compile([compiler, language, standard]: [&str; 3], source: &Path, dir: &Path, args: &[String]) -> PathBuf {
    let binary = dir.join("program");
    let mut command = Command::new(compiler);
    // What is named behind the source is no source.
    command.args(STRICT).args([standard, "-x", language]).arg(source).args(["-x", "none"]);
    output(command.args(args).arg("-o").arg(&binary));
    binary
}

fn example(dir: &Path, args: &[String]) -> PathBuf {
    compile(C, &csrc().join("example/kv_handoff.c"), dir, args)
}

/// What tells the program where the shared library is, as it lies in no directory of the system.
fn rpath(prefix: &Path) -> String {
    format!("-Wl,-rpath,{}", prefix.join("lib").display())
}

fn by_hand(prefix: &Path) -> Vec<String> {
    let prefix_text = prefix.display();
    vec![
        format!("-I{prefix_text}/include"),
        format!("-L{prefix_text}/lib"),
        "-lheadrace".into(),
        rpath(prefix),
    ]
}

/// Both processes have compared every byte, and said so.
fn assert_all_told(printed: &str) {
    for line in [
        "prefill: to decode: path: ",
        "prefill: write the last layer: 24576 bytes by ",
        "decode: layer 0 of request 1 is here, every byte is right",
        "decode: layer 7 of request 1 is here, every byte is right",
        "prefill: as it should, page 512 fails: HR_BAD_LIST: ",
        "decode: read request 2: 196608 bytes by ",
        "decode: request 2 is here too, every byte is right",
        "prefill: \"request 2 was fetched\"",
        "both sides are done",
    ] {
        assert!(printed.lines().any(|told| told.starts_with(line)), "{line:?} is missing in\n{printed}");
    }
}

#[test]
fn the_example_hands_a_cache_over_between_two_processes() {
    let prefix = install();
    let binary = example(prefix.path(), &by_hand(prefix.path()));
    assert_all_told(&run(binary, [""; 0]));
}

#[test]
fn the_example_is_cplusplus_as_well() {
    if !there_is("c++") {
        return;
    }
    let (prefix, source) = (install(), csrc().join("example/kv_handoff.c"));
    let binary = compile(CPLUSPLUS, &source, prefix.path(), &by_hand(prefix.path()));
    assert_all_told(&run(binary, [""; 0]));
}

#[test]
fn a_loop_waits_for_a_transfer_a_counter_and_a_peer() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/loop.c");
    let told = "there was found\nthe counter is at 7, byte 65535 is 42\n\
                the callback was called 1 times: HR_OK, 65536 bytes\nthe peer left\n";
    let languages = [Some(C), there_is("c++").then_some(CPLUSPLUS)];
    for language in languages.into_iter().flatten() {
        let prefix = install();
        let binary = compile(language, &source, prefix.path(), &by_hand(prefix.path()));
        assert_eq!(run(&binary, [""; 0]), told, "{language:?}");
        if there_is("valgrind") {
            // Where it knows no pidfd_open(2) (before 3.20) there is no shared memory, which a strict agent would not bear.
            assert_eq!(valgrind(&binary, &["any path"]), told, "{language:?}");
        }
    }
}

#[test]
fn pkg_config_knows_how_to_build_the_example() {
    if !there_is("pkg-config") {
        return;
    }
    let prefix = install();
    let mut args = pkg_config(prefix.path(), &["--cflags", "--libs"]);
    args.push(rpath(prefix.path()));
    assert_all_told(&run(example(prefix.path(), &args), [""; 0]));
    assert_eq!(pkg_config(prefix.path(), &["--modversion"]), [env!("CARGO_PKG_VERSION")]);
}

#[test]
fn the_static_library_needs_only_what_pkg_config_says() {
    if !there_is("pkg-config") {
        return;
    }
    let prefix = install();
    let archive = prefix.path().join("lib/libheadrace.a").display().to_string();
    let args = pkg_config(prefix.path(), &["--static", "--cflags", "--libs"]);
    let args: Vec<_> =
        args.into_iter().map(|arg| if arg == "-lheadrace" { archive.clone() } else { arg }).collect();
    assert!(args.contains(&archive), "{args:?}");
    assert_all_told(&run(example(prefix.path(), &args), [""; 0]));
}

/// Runs a program to its end. Nothing is used after it was freed, read before it was written, or lost.
fn valgrind(binary: &Path, own: &[&str]) -> String {
    let leaks = "--errors-for-leak-kinds=definite,indirect";
    let args =
        ["--quiet", "--error-exitcode=9", "--leak-check=full", "--show-leak-kinds=definite,indirect", leaks];
    output(Command::new("valgrind").args(args).arg(binary).args(own))
}

#[test]
fn the_example_is_clean_under_valgrind() {
    if there_is("valgrind") {
        let prefix = install();
        assert_all_told(&valgrind(&example(prefix.path(), &by_hand(prefix.path())), &[]));
    }
}

/// Functions that a header declares: names that are followed by a parenthesis, outside of comments.
fn declared() -> BTreeSet<String> {
    let header = header();
    let (_, code) = header.split_once("extern \"C\" {").unwrap();
    let code = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    let before = code.filter_map(|line| line.split_once('(').map(|(before, _)| before));
    let names = before.filter_map(|before| before.rsplit([' ', '*']).next());
    names.filter(|name| name.starts_with("hr_")).map(str::to_owned).collect()
}

#[test]
fn the_library_exports_what_the_header_declares_and_nothing_else() {
    let declared = declared();
    assert!(declared.len() > 50 && declared.contains("hr_agent_create"), "{declared:?}");
    let exported = run("nm", ["-D", "--defined-only", built().join("libheadrace.so").to_str().unwrap()]);
    let exported: BTreeSet<_> =
        exported.lines().filter_map(|line| line.rsplit(' ').next()).map(str::to_owned).collect();
    assert_eq!(exported, declared);
}

#[test]
fn programs_ask_for_the_library_by_its_major_version() {
    let told = run("readelf", ["-d", built().join("libheadrace.so").to_str().unwrap()]);
    let name = format!("[libheadrace.so.{}]", headrace::HR_VERSION_MAJOR);
    assert!(told.lines().any(|line| line.contains("SONAME") && line.contains(&name)), "{told}");
}

#[test]
fn install_wants_an_absolute_prefix_and_a_built_library() {
    let dir = tempfile::tempdir().unwrap();
    for (args, says) in [
        (vec!["relative"], "absolute path"),
        (vec![], "absolute path"),
        (vec![dir.path().to_str().unwrap(), dir.path().to_str().unwrap()], "run cargo build --release"),
    ] {
        let output = Command::new(csrc().join("install.sh")).args(&args).output().unwrap();
        assert!(!output.status.success(), "{args:?}");
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(told.contains(says), "{args:?}: {told}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "it left something behind");
}
