//! A pulled directory equals its source, byte for byte, between real processes.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::disallowed_methods,
    missing_docs,
    reason = "a test"
)]
#![allow(
    unreachable_pub,
    missing_debug_implementations,
    clippy::exhaustive_structs,
    clippy::exhaustive_enums,
    unused_results,
    reason = "test support"
)]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use support::{CHUNK, Source, assert_same, command, model, noise, partial, pull, put, tensors};
use tempfile::TempDir;

/// Everything that a directory may hold and a copy may get wrong.
fn odd_model(dir: &Path) {
    model(dir, 5 * CHUNK);
    put(dir, "empty", b"");
    put(dir, "one-byte", b"x");
    put(dir, "chunk", &noise(3, CHUNK));
    put(dir, "chunk-minus-one", &noise(4, CHUNK - 1));
    put(dir, "chunk-plus-one", &noise(5, CHUNK + 1));
    put(dir, "deep/er/and/deeper/file.bin", &noise(6, 100_001));
    put(dir, "deep/tensors.safetensors", &tensors(7, 3 * CHUNK + 5));
    put(dir, "names with spaces/ünïcode.txt", b"hello");
    put(dir, "tokenize.sh", b"#!/bin/sh\n");
    fs::set_permissions(dir.join("tokenize.sh"), fs::Permissions::from_mode(0o755)).unwrap();
    for index in 0..200 {
        put(dir, &format!("many/{index}.json"), format!("{{\"n\":{index}}}").as_bytes());
    }
}

fn copies_over(paths: &str) {
    let dir = TempDir::new().unwrap();
    let (source_dir, to) = (dir.path().join("model"), dir.path().join("out/copy"));
    odd_model(&source_dir);
    let source = Source::start(&source_dir, &["--paths", paths]);
    let outcome = pull(&[&source.address], &to, &["--paths", paths]);
    outcome.assert_ok();
    assert_same(&source_dir, &to);
    assert!(!partial(&to).exists());
    assert_eq!(outcome.json["root"], source.root.as_str());
    assert_eq!(outcome.number("chunks"), outcome.number("chunks_fetched"));
    assert_eq!(outcome.number("bytes"), outcome.number("bytes_fetched"));
    assert_eq!(outcome.number("chunks_refetched"), 0);
    assert_eq!(outcome.json["sources"][0]["path"], paths);

    // As if killed between the last rename and the tidying up.
    put(&partial(&to), "manifest", b"left over");
    let again = pull(&[&source.address], &to, &[]);
    assert_eq!(again.assert_ok().json["already_complete"], true);
    assert_eq!(again.number("chunks_fetched"), 0);
    assert!(!partial(&to).exists());
    let verified = command().arg("verify").arg(&to).args(["--expect", &source.root]).output().unwrap();
    assert!(verified.status.success(), "{verified:?}");
}

#[test]
fn a_copy_equals_its_source_over_shm() {
    copies_over("shm");
}

#[test]
fn a_copy_equals_its_source_over_tcp() {
    copies_over("tcp");
}

#[test]
fn a_model_larger_than_the_cache_and_the_staging_memory_comes_whole() {
    let dir = TempDir::new().unwrap();
    let (source_dir, to) = (dir.path().join("model"), dir.path().join("copy"));
    model(&source_dir, 300 * CHUNK);
    let source = Source::start(&source_dir, &["--cache-mb", "0", "--workers", "3"]);
    let outcome = pull(&[&source.address], &to, &["--staging-mb", "1"]);
    outcome.assert_ok();
    assert_same(&source_dir, &to);
}

#[test]
fn several_receivers_at_once_and_several_sources_each() {
    let dir = TempDir::new().unwrap();
    let source_dir = dir.path().join("model");
    model(&source_dir, 60 * CHUNK);
    let capped = |paths| Source::start(&source_dir, &["--limit-mb-per-s", "20", "--paths", paths]);
    let sources = [capped("all"), capped("tcp")];
    let addresses = [sources[0].address.as_str(), sources[1].address.as_str()];
    let targets: Vec<_> = (0..4).map(|index| dir.path().join(format!("copy-{index}"))).collect();
    let children: Vec<_> = targets.iter().map(|to| support::start_pull(&addresses, to, &[])).collect();
    for (child, to) in children.into_iter().zip(&targets) {
        let outcome = support::finish(child);
        outcome.assert_ok();
        assert_same(&source_dir, to);
        let from_each: Vec<_> =
            (0..2).map(|index| outcome.json["sources"][index]["chunks"].as_u64().unwrap()).collect();
        assert_eq!(from_each.iter().sum::<u64>(), outcome.number("chunks"));
        assert!(from_each.iter().all(|&chunks| chunks > 0), "one source brought nothing: {from_each:?}");
    }
}

#[test]
fn the_egress_cap_holds_for_all_receivers_together() {
    let dir = TempDir::new().unwrap();
    let source_dir = dir.path().join("model");
    model(&source_dir, 1_500_000);
    let source = Source::start(&source_dir, &["--limit-mb-per-s", "2"]);
    let start = std::time::Instant::now();
    let targets = [dir.path().join("a"), dir.path().join("b")];
    let children = targets.each_ref().map(|to| support::start_pull(&[&source.address], to, &[]));
    for child in children {
        support::finish(child).assert_ok();
    }
    // Twice 1.5 MB at 2 MB/s; the last chunk of each leaves without waiting for its own time.
    let least = (2.0 * 1_500_000.0 - 2.0 * 65_536.0) / 2e6;
    assert!(start.elapsed().as_secs_f64() >= least, "{:?} for twice 1.5 MB at 2 MB/s", start.elapsed());
}

#[test]
fn links_to_files_are_served_as_files() {
    let dir = TempDir::new().unwrap();
    let (blobs, source_dir, to) =
        (dir.path().join("blobs"), dir.path().join("snapshot"), dir.path().join("copy"));
    put(&blobs, "abc", &noise(1, 100_000));
    fs::create_dir_all(&source_dir).unwrap();
    std::os::unix::fs::symlink("../blobs/abc", source_dir.join("model.bin")).unwrap();
    let source = Source::start(&source_dir, &[]);
    pull(&[&source.address], &to, &[]).assert_ok();
    assert_same(&source_dir, &to);
    assert!(!fs::symlink_metadata(to.join("model.bin")).unwrap().is_symlink());
}

#[test]
fn the_manifest_is_shown_and_names_the_same_root() {
    let dir = TempDir::new().unwrap();
    odd_model(dir.path());
    let source = Source::start(dir.path(), &[]);
    let output =
        command().arg("manifest").arg(dir.path()).args(["--json", "--chunk-kib", "64"]).output().unwrap();
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["root"], source.root.as_str());
    assert_eq!(json["tensors"].as_array().unwrap().len(), 3);
    let table = command().arg("manifest").arg(dir.path()).args(["--chunk-kib", "64"]).output().unwrap();
    let table = String::from_utf8(table.stdout).unwrap();
    assert!(table.contains("deep/tensors.safetensors") && table.contains(&source.root), "{table}");
}

#[test]
fn help_teaches() {
    for (arguments, words) in [
        (&["--help"][..], &["serve", "pull", "manifest", "verify", "resume"][..]),
        (&["serve", "--help"], &["--limit-mb-per-s", "--cache-mb", "--listen"]),
        (&["pull", "--help"], &["--to", "--expect", "--force", "--json"]),
    ] {
        let output = command().args(arguments).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && words.iter().all(|word| text.contains(word)), "{text}");
    }
    assert_eq!(command().arg("pull").output().unwrap().status.code(), Some(2));
}

/// What an engine does: no process, two calls.
#[test]
fn the_library_serves_and_pulls() {
    struct Seen(Vec<String>);
    impl weight_streamer::Progress for Seen {
        fn event(&mut self, event: &weight_streamer::PullEvent<'_>) {
            let text = format!("{event:?}");
            self.0.push(text.split([' ', '(']).next().unwrap().to_owned());
        }
    }
    let dir = TempDir::new().unwrap();
    let (source_dir, to) = (dir.path().join("model"), dir.path().join("copy"));
    model(&source_dir, 10 * CHUNK);
    let server = weight_streamer::Server::start(&weight_streamer::ServeOptions::new(&source_dir)).unwrap();
    let mut options = weight_streamer::PullOptions::new(vec![server.address()], &to);
    options.expect = Some(server.root());
    let mut seen = Seen(Vec::new());
    let report = weight_streamer::pull(&options, &mut seen).unwrap();
    assert_same(&source_dir, &to);
    assert_eq!((report.bytes_fetched, report.bytes), (server.manifest().total_bytes(), server.bytes_sent()));
    assert_eq!(
        (&seen.0[..2], seen.0.last().unwrap().as_str()),
        (&["Connected".into(), "Started".into()][..], "Checking")
    );
    drop(server);
    options.dir = dir.path().join("too late");
    let error = weight_streamer::pull(&options, &mut weight_streamer::Quiet).unwrap_err();
    assert!(matches!(error, weight_streamer::Error::NoSource { .. }) && error.is_retryable(), "{error}");
}
