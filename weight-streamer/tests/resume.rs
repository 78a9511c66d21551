//! `kill -9` at any moment costs no verified chunk, and no half model is ever taken for a whole one.
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
use std::path::Path;
use std::time::Duration;
use support::{CHUNK, Source, assert_same, finish, journaled, model, partial, pull, start_pull, wait_until};
use tempfile::TempDir;

/// Starts a pull and kills it when its journal claims at least so many chunks; returns how many it claims then.
fn kill_at(source: &Source, to: &Path, chunks: u64) -> u64 {
    let mut child = start_pull(&[&source.address], to, &[]);
    wait_until("chunks in the journal", || journaled(to) >= chunks);
    assert!(child.try_wait().unwrap().is_none(), "the pull was over before it could be killed");
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!to.exists(), "a part of a model stands at the destination");
    journaled(to)
}

#[test]
fn a_killed_receiver_goes_on_where_it_was() {
    let dir = TempDir::new().unwrap();
    let (source_dir, to) = (dir.path().join("model"), dir.path().join("copy"));
    model(&source_dir, 80 * CHUNK);
    let source = Source::start(&source_dir, &["--limit-mb-per-s", "4"]);
    let mut claimed = 0;
    for more in [0, 1, 20, 15] {
        // The journal is there before the first chunk: killed with nothing verified, too.
        let now = kill_at(&source, &to, claimed + more);
        assert!(now >= claimed + more, "a resume lost chunks: {claimed} before, {now} after");
        claimed = now;
    }
    let outcome = pull(&[&source.address], &to, &[]);
    assert_eq!(outcome.assert_ok().number("chunks_resumed"), claimed);
    assert_eq!(outcome.number("chunks_fetched"), outcome.number("chunks") - claimed);
    assert_eq!(outcome.number("chunks_refetched"), 0);
    assert_same(&source_dir, &to);
    assert!(!partial(&to).exists());
}

#[test]
fn killed_at_any_moment_the_model_is_absent_or_complete() {
    let dir = TempDir::new().unwrap();
    let (source_dir, to) = (dir.path().join("model"), dir.path().join("copy"));
    model(&source_dir, 100 * CHUNK);
    let source = Source::start(&source_dir, &[]);
    let (mut complete, mut kept) = (0, 0);
    for round in 0..24 {
        let mut child = start_pull(&[&source.address], &to, &["--quiet"]);
        // Not a wait for anything: the moment of the kill is what the test varies.
        std::thread::sleep(Duration::from_millis(round * 3));
        child.kill().unwrap();
        child.wait().unwrap();
        if to.exists() {
            assert_same(&source_dir, &to);
            fs::remove_dir_all(&to).unwrap();
            complete += 1;
        } else {
            kept += u32::from(journaled(&to) > 0);
        }
    }
    println!("{complete} complete, {kept} with verified chunks kept, of 24");
    pull(&[&source.address], &to, &[]).assert_ok();
    assert_same(&source_dir, &to);
    assert!(!partial(&to).exists());
}

#[test]
fn what_is_claimed_but_not_there_is_fetched_again() {
    let dir = TempDir::new().unwrap();
    let (source_dir, to) = (dir.path().join("model"), dir.path().join("copy"));
    model(&source_dir, 40 * CHUNK);
    let source = Source::start(&source_dir, &["--limit-mb-per-s", "2"]);
    let claimed = kill_at(&source, &to, 10);
    // The second chunk of the first file is lost on the disk, and the journal's last record is torn.
    let file = partial(&to).join("files/model-00001-of-00002.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    bytes[CHUNK + 1] ^= 1;
    fs::write(&file, bytes).unwrap();
    let journal = partial(&to).join("journal");
    let mut records = fs::read(&journal).unwrap();
    records.truncate(records.len() - 3);
    fs::write(&journal, records).unwrap();
    let outcome = pull(&[&source.address], &to, &[]);
    let resumed = outcome.assert_ok().number("chunks_resumed");
    assert!(resumed + 2 >= claimed && resumed < claimed, "{resumed} of {claimed} resumed");
    assert_same(&source_dir, &to);
}

#[test]
fn a_source_killed_in_mid_pull_is_named_and_another_goes_on() {
    let dir = TempDir::new().unwrap();
    let (source_dir, to) = (dir.path().join("model"), dir.path().join("copy"));
    model(&source_dir, 60 * CHUNK);
    let mut source = Source::start(&source_dir, &["--limit-mb-per-s", "2"]);
    let child = start_pull(&[&source.address], &to, &[]);
    wait_until("chunks in the journal", || journaled(&to) >= 5);
    source.kill();
    let outcome = finish(child);
    assert!(outcome.error().contains(&source.address), "{outcome:?}");
    assert!(outcome.error().contains("pull again to resume"), "{outcome:?}");
    assert_eq!((outcome.code, &outcome.json["retryable"]), (Some(75), &true.into()));
    assert!(!to.exists());
    let kept = journaled(&to);
    assert!(kept >= 5);

    let other = Source::start(&source_dir, &[]);
    let outcome = pull(&[&other.address], &to, &[]);
    assert_eq!(outcome.assert_ok().number("chunks_resumed"), kept);
    assert_same(&source_dir, &to);
}

#[test]
fn with_a_second_source_a_killed_one_is_not_missed() {
    let dir = TempDir::new().unwrap();
    let (source_dir, to) = (dir.path().join("model"), dir.path().join("copy"));
    model(&source_dir, 60 * CHUNK);
    let mut first = Source::start(&source_dir, &["--limit-mb-per-s", "2"]);
    let second = Source::start(&source_dir, &["--limit-mb-per-s", "2"]);
    let child = start_pull(&[&first.address, &second.address], &to, &[]);
    wait_until("chunks in the journal", || journaled(&to) >= 10);
    first.kill();
    let outcome = finish(child);
    outcome.assert_ok();
    assert_same(&source_dir, &to);
    let lost = outcome.json["sources"][0]["lost"].as_str().unwrap();
    assert!(lost.starts_with("lost"), "{lost}");
    assert!(outcome.json["sources"][1]["lost"].is_null());
    assert!(outcome.stderr.contains(&first.address), "{}", outcome.stderr);
}

#[test]
fn two_pulls_into_one_directory_do_not_mix() {
    let dir = TempDir::new().unwrap();
    let (source_dir, to) = (dir.path().join("model"), dir.path().join("copy"));
    model(&source_dir, 40 * CHUNK);
    let source = Source::start(&source_dir, &["--limit-mb-per-s", "2"]);
    let child = start_pull(&[&source.address], &to, &[]);
    wait_until("chunks in the journal", || journaled(&to) >= 1);
    let second = pull(&[&source.address], &to, &[]);
    assert!(second.error().contains("another process is pulling"), "{second:?}");
    finish(child).assert_ok();
    assert_same(&source_dir, &to);
}

#[test]
fn the_parts_of_another_model_are_not_used() {
    let dir = TempDir::new().unwrap();
    let (one, two, to) = (dir.path().join("one"), dir.path().join("two"), dir.path().join("copy"));
    model(&one, 40 * CHUNK);
    model(&two, 40 * CHUNK);
    support::put(&two, "model-00001-of-00002.safetensors", &support::tensors(9, 20 * CHUNK));
    let source = Source::start(&one, &["--limit-mb-per-s", "2"]);
    kill_at(&source, &to, 5);
    let source = Source::start(&two, &[]);
    let outcome = pull(&[&source.address], &to, &[]);
    assert_eq!(outcome.assert_ok().number("chunks_resumed"), 0);
    assert_same(&two, &to);
}
