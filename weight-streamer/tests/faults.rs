//! Lying sources, changing files, full disks: a clear error that names who and what, and never a wrong byte.
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
use std::process::Command;
use support::liar::{Liar, Lie};
use support::{
    CHUNK, Source, assert_same, command, finish, journaled, model, partial, pull, pull_command, put,
    start_pull, wait_until,
};
use tempfile::TempDir;

fn with_liar(lie: Lie, check: impl FnOnce(&Path, &Liar, &Path)) {
    let dir = TempDir::new().unwrap();
    let source_dir = dir.path().join("model");
    model(&source_dir, 20 * CHUNK);
    let liar = Liar::start(&source_dir, lie);
    check(&source_dir, &liar, &dir.path().join("copy"));
}

#[test]
fn a_flipped_bit_is_refetched_from_the_same_source() {
    with_liar(Lie::Flip { chunk: 7, times: 1 }, |source_dir, liar, to| {
        let outcome = pull(&[&liar.address], to, &[]);
        assert_eq!(outcome.assert_ok().number("chunks_refetched"), 1);
        assert_eq!(outcome.json["sources"][0]["corrupt"], 1);
        assert!(
            outcome.stderr.contains("corrupt: chunk 7 of model-00001-of-00002.safetensors from"),
            "{}",
            outcome.stderr
        );
        assert!(outcome.stderr.contains(&liar.address), "{}", outcome.stderr);
        assert_same(source_dir, to);
    });
}

#[test]
fn a_source_that_stays_wrong_is_left_and_named() {
    with_liar(Lie::Flip { chunk: 7, times: u32::MAX }, |_, liar, to| {
        let outcome = pull(&[&liar.address], to, &[]);
        let error = outcome.error();
        let corrupt = "chunk 7 of model-00001-of-00002.safetensors is corrupt (3 tries)";
        assert!(error.contains(corrupt) && error.contains(&liar.address), "{error}");
        assert_eq!((outcome.code, &outcome.json["retryable"]), (Some(1), &false.into()));
        assert!(!to.exists());
    });
}

#[test]
fn a_good_source_makes_up_for_a_lying_one() {
    with_liar(Lie::Flip { chunk: 7, times: u32::MAX }, |source_dir, liar, to| {
        let good = Source::start(source_dir, &[]);
        let outcome = pull(&[&liar.address, &good.address], to, &[]);
        outcome.assert_ok();
        assert_same(source_dir, to);
        assert_eq!(outcome.json["sources"][1]["corrupt"], 0);
    });
}

#[test]
fn lies_about_the_manifest_are_named() {
    for (lie, words) in [
        (Lie::Root, "as it claims"),
        (Lie::CutManifest, "its manifest cannot be used"),
        (Lie::LongManifest, "cannot read its manifest"),
        (Lie::Version, "version 99 of the weight protocol"),
    ] {
        with_liar(lie, |source_dir, liar, to| {
            let outcome = pull(&[&liar.address], to, &[]);
            let error = outcome.error().to_owned();
            assert!(error.contains(words) && error.contains(&liar.address), "{lie:?}: {error}");
            assert!(!to.exists() && !partial(to).exists());
            if lie != Lie::CutManifest && lie != Lie::Root {
                let good = Source::start(source_dir, &[]);
                pull(&[&liar.address, &good.address], to, &[]).assert_ok();
                assert_same(source_dir, to);
            }
        });
    }
}

#[test]
fn a_silent_source_is_left_after_the_stall_timeout() {
    with_liar(Lie::Silence, |_, liar, to| {
        let outcome = pull(&[&liar.address], to, &["--stall-timeout", "1"]);
        assert!(outcome.error().contains("sent nothing for 1 s"), "{outcome:?}");
        assert_eq!(outcome.code, Some(75));
    });
}

#[test]
fn a_babbling_source_is_left() {
    with_liar(Lie::Babble, |_, liar, to| {
        let outcome = pull(&[&liar.address], to, &[]);
        assert!(outcome.error().contains("impossible message kind"), "{outcome:?}");
        assert!(outcome.error().contains(&liar.address), "{outcome:?}");
    });
}

#[test]
fn sources_of_two_models_are_both_named_and_expect_chooses() {
    let dir = TempDir::new().unwrap();
    let (one, two, to) = (dir.path().join("one"), dir.path().join("two"), dir.path().join("copy"));
    model(&one, 4 * CHUNK);
    model(&two, 6 * CHUNK);
    let sources = [Source::start(&one, &[]), Source::start(&two, &[])];
    let addresses = [sources[0].address.as_str(), sources[1].address.as_str()];
    let outcome = pull(&addresses, &to, &[]);
    let error = outcome.error();
    for word in [addresses[0], addresses[1], &sources[0].root, &sources[1].root] {
        assert!(error.contains(word), "{word} is not named: {error}");
    }
    let outcome = pull(&addresses, &to, &["--expect", &sources[1].root]);
    outcome.assert_ok();
    assert_same(&two, &to);
    let nobody = pull(&addresses[..1], &dir.path().join("other"), &["--expect", &sources[1].root]);
    assert!(nobody.error().contains("not the expected"), "{nobody:?}");
}

#[test]
fn nobody_there_is_an_error_soon() {
    let dir = TempDir::new().unwrap();
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let address = format!("tcp://127.0.0.1:{port}");
    let outcome = pull(&[&address], &dir.path().join("copy"), &[]);
    assert!(outcome.error().contains(&address) && outcome.error().contains("cannot connect"), "{outcome:?}");
    assert_eq!(outcome.code, Some(75));
}

#[test]
fn a_file_that_changes_under_the_server_is_refused() {
    for same_times in [false, true] {
        let dir = TempDir::new().unwrap();
        let (source_dir, to) = (dir.path().join("model"), dir.path().join("copy"));
        model(&source_dir, 20 * CHUNK);
        let source = Source::start(&source_dir, &[]);
        let path = source_dir.join("model-00002-of-00002.safetensors");
        let times = fs::metadata(&path).unwrap().modified().unwrap();
        let mut bytes = fs::read(&path).unwrap();
        bytes[3 * CHUNK] ^= 1;
        fs::write(&path, bytes).unwrap();
        if same_times {
            fs::File::options().write(true).open(&path).unwrap().set_modified(times).unwrap();
        }
        let outcome = pull(&[&source.address], &to, &[]);
        let error = outcome.error();
        assert!(error.contains("changed after its manifest was made"), "{error}");
        assert!(
            error.contains("model-00002-of-00002.safetensors") && error.contains(&source.address),
            "{error}"
        );
        assert!(!to.exists());
    }
}

#[test]
fn what_cannot_be_served_is_named() {
    let dir = TempDir::new().unwrap();
    let serve = |dir: &Path| command().arg("serve").arg(dir).output().unwrap();
    let stderr = |dir: &Path| String::from_utf8(serve(dir).stderr).unwrap();
    let (empty, bad, link) = (dir.path().join("empty"), dir.path().join("bad"), dir.path().join("link"));
    fs::create_dir(&empty).unwrap();
    assert!(stderr(&empty).contains("no file in it"), "{}", stderr(&empty));
    put(&bad, "model.safetensors", b"\x10\0\0\0\0\0\0\0{\"a\":1}");
    assert!(stderr(&bad).contains("not a valid safetensors file"), "{}", stderr(&bad));
    put(&link, "file", b"x");
    std::os::unix::fs::symlink("/tmp", link.join("away")).unwrap();
    assert!(stderr(&link).contains("away: neither a file nor a folder"), "{}", stderr(&link));
    assert!(
        stderr(&dir.path().join("absent")).contains("cannot list"),
        "{}",
        stderr(&dir.path().join("absent"))
    );
}

#[test]
fn a_directory_of_another_model_is_kept_unless_forced() {
    let dir = TempDir::new().unwrap();
    let (source_dir, to) = (dir.path().join("model"), dir.path().join("copy"));
    model(&source_dir, 4 * CHUNK);
    put(&to, "config.json", b"another model");
    let source = Source::start(&source_dir, &[]);
    let outcome = pull(&[&source.address], &to, &[]);
    assert!(outcome.error().contains("config.json") && outcome.error().contains("--force"), "{outcome:?}");
    assert_eq!(fs::read(to.join("config.json")).unwrap(), b"another model");
    pull(&[&source.address], &to, &["--force"]).assert_ok();
    assert_same(&source_dir, &to);
    // Damage is found, not trusted.
    put(&to, "config.json", br#"{"architectures":["LlamaForCausalLN"]}"#);
    let verified = command().arg("verify").arg(&to).output().unwrap();
    assert!(String::from_utf8(verified.stderr).unwrap().contains("config.json has other bytes"));
    assert!(pull(&[&source.address], &to, &[]).error().contains("config.json has other bytes"));
    // An empty directory is as good as none.
    let empty = dir.path().join("empty");
    fs::create_dir(&empty).unwrap();
    pull(&[&source.address], &empty, &[]).assert_ok();
    assert_same(&source_dir, &empty);
}

#[test]
fn a_link_in_the_partial_directory_is_not_followed() {
    let dir = TempDir::new().unwrap();
    let (source_dir, to, outside) =
        (dir.path().join("model"), dir.path().join("copy"), dir.path().join("outside"));
    put(&source_dir, "sub/file", &support::noise(1, 40 * CHUNK));
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("file"), b"not ours").unwrap();
    let source = Source::start(&source_dir, &["--limit-mb-per-s", "2"]);
    let mut child = start_pull(&[&source.address], &to, &[]);
    wait_until("a chunk in the journal", || journaled(&to) >= 1);
    child.kill().unwrap();
    child.wait().unwrap();
    let sub = partial(&to).join("files/sub");
    for target in ["sub", "file"] {
        if target == "sub" {
            fs::remove_dir_all(&sub).unwrap();
            std::os::unix::fs::symlink(&outside, &sub).unwrap();
        } else {
            fs::remove_file(&sub).unwrap();
            fs::create_dir(&sub).unwrap();
            std::os::unix::fs::symlink(outside.join("file"), sub.join("file")).unwrap();
        }
        let outcome = pull(&[&source.address], &to, &[]);
        assert!(outcome.error().contains("files/sub"), "{outcome:?}");
        assert_eq!(fs::read(outside.join("file")).unwrap(), b"not ours");
    }
}

#[test]
fn a_file_that_may_not_grow_is_an_error_that_keeps_nothing_useless() {
    let dir = TempDir::new().unwrap();
    let (source_dir, to) = (dir.path().join("model"), dir.path().join("copy"));
    model(&source_dir, 200 * CHUNK);
    let source = Source::start(&source_dir, &[]);
    // Files may grow to 2 MiB (4 MiB where the shell counts in KiB): room for the staging memory, not for the model.
    let inner = pull_command(&[&source.address], &to, &["--staging-mb", "1"]);
    let mut outer = Command::new("sh");
    outer
        .args(["-c", "trap '' XFSZ; ulimit -f 4096; exec \"$@\"", "sh"])
        .arg(inner.get_program())
        .args(inner.get_args());
    outer.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let outcome = finish(outer.spawn().unwrap());
    assert!(outcome.error().contains("no room to"), "{outcome:?}");
    assert_eq!(outcome.code, Some(75));
    assert!(!to.exists() && !partial(&to).exists());
    pull(&[&source.address], &to, &[]).assert_ok();
    assert_same(&source_dir, &to);
}

/// A file system of a few MiB, where the test may mount one.
struct SmallDisk<'a>(&'a Path);

impl<'a> SmallDisk<'a> {
    fn mount(dir: &'a Path, options: &str) -> Option<Self> {
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(dir).output();
        mount.is_ok_and(|output| output.status.success()).then_some(Self(dir))
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        drop(Command::new("umount").arg(self.0).status());
    }
}

#[test]
fn a_full_disk_is_named_and_does_not_stay_full() {
    let dir = TempDir::new().unwrap();
    let (source_dir, disk) = (dir.path().join("model"), dir.path().join("disk"));
    model(&source_dir, 100 * CHUNK);
    fs::create_dir(&disk).unwrap();
    let Some(_mounted) = SmallDisk::mount(&disk, "size=5m") else {
        println!("skipped: mounting a tmpfs is not allowed here");
        return;
    };
    let source = Source::start(&source_dir, &[]);
    let to = disk.join("copy");
    let outcome = pull(&[&source.address], &to, &[]);
    assert!(outcome.error().contains("no room to") && outcome.error().contains("model-0000"), "{outcome:?}");
    assert_eq!(outcome.code, Some(75));
    assert_eq!(fs::read_dir(&disk).unwrap().count(), 0, "something was left on the full disk");
    let bigger = Command::new("mount").args(["-o", "remount,size=32m"]).arg(&disk).status().unwrap();
    assert!(bigger.success());
    pull(&[&source.address], &to, &[]).assert_ok();
    assert_same(&source_dir, &to);
}

#[test]
fn an_unwritable_place_is_named() {
    let dir = TempDir::new().unwrap();
    let source_dir = dir.path().join("model");
    model(&source_dir, 2 * CHUNK);
    let source = Source::start(&source_dir, &[]);
    let outcome = pull(&[&source.address], Path::new("/proc/weights/copy"), &[]);
    assert!(outcome.error().contains("cannot create /proc/weights"), "{outcome:?}");
    let file = dir.path().join("file");
    fs::write(&file, b"").unwrap();
    let outcome = pull(&[&source.address], &file, &[]);
    assert!(outcome.error().contains("it is not a directory"), "{outcome:?}");
}

#[test]
fn a_receiver_that_dies_costs_the_others_nothing() {
    let dir = TempDir::new().unwrap();
    let source_dir = dir.path().join("model");
    model(&source_dir, 40 * CHUNK);
    let source = Source::start(&source_dir, &["--limit-mb-per-s", "4", "--workers", "2"]);
    let (dying, living) = (dir.path().join("dying"), dir.path().join("living"));
    let mut first = start_pull(&[&source.address], &dying, &[]);
    let second = start_pull(&[&source.address], &living, &[]);
    wait_until("chunks at both", || journaled(&dying) >= 3 && journaled(&living) >= 3);
    first.kill().unwrap();
    first.wait().unwrap();
    finish(second).assert_ok();
    assert_same(&source_dir, &living);
}

#[test]
fn a_receiver_that_stands_still_does_not_hold_up_the_others() {
    let dir = TempDir::new().unwrap();
    let source_dir = dir.path().join("model");
    model(&source_dir, 60 * CHUNK);
    let source = Source::start(&source_dir, &["--limit-mb-per-s", "4", "--workers", "2", "--paths", "tcp"]);
    let (still, living) = (dir.path().join("still"), dir.path().join("living"));
    let mut stopped = start_pull(&[&source.address], &still, &[]);
    wait_until("chunks at the first", || journaled(&still) >= 3);
    assert!(Command::new("kill").args(["-STOP", &stopped.id().to_string()]).status().unwrap().success());
    let outcome = pull(&[&source.address], &living, &[]);
    stopped.kill().unwrap();
    stopped.wait().unwrap();
    outcome.assert_ok();
    assert_same(&source_dir, &living);
}
