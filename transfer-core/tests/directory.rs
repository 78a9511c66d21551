//! Directories in memory and in folders: what every directory must do, and the faults of file systems.
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    missing_docs,
    reason = "a test"
)]

mod directories;

use std::os::unix::fs::symlink;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use directories::{LONG, Operation, Place, blob, life, next, not_found, operations};
use proptest::test_runner::{Config, TestRunner};
use tempfile::TempDir;
use transfer_core::directory::{
    CorruptCause, Directory, DirectoryError, FileDirectory, Listing, MemoryDirectory,
};

struct Memory(MemoryDirectory);

impl Place for Memory {
    fn client(&self) -> Arc<dyn Directory> {
        Arc::new(self.0.clone())
    }

    fn short(&self) -> Duration {
        Duration::from_millis(100)
    }
}

struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn directory(&self) -> FileDirectory {
        FileDirectory::open(self.0.path()).unwrap().poll_interval(Duration::from_millis(10))
    }

    fn files(&self) -> Vec<String> {
        let files = std::fs::read_dir(self.0.path()).unwrap();
        files
            .map(|file| file.unwrap().file_name().into_string().unwrap())
            .filter(|file| file != ".lock")
            .collect()
    }
}

impl Place for Folder {
    fn client(&self) -> Arc<dyn Directory> {
        Arc::new(self.directory())
    }

    /// Long enough that a renewal on a busy machine is not missed.
    fn short(&self) -> Duration {
        Duration::from_secs(2)
    }
}

/// Runs each check of the suite against a fresh place.
macro_rules! suite {
    ($module:ident, $place:expr) => {
        mod $module {
            use super::*;

            suite!(@each $place, comes_and_goes the_latest_life_wins a_name_that_was_taken_stays_taken time_to_live any_name resumes_from_a_listing
                one_of_many_wins agents_meet);
        }
    };
    (@each $place:expr, $($check:ident)*) => {
        $(#[test]
        fn $check() {
            directories::$check(&$place);
        })*
    };
}

suite!(memory, Memory(MemoryDirectory::new()));
suite!(folder, Folder::new());

fn any_sequence<P: Place>(cases: u32, max: usize, place: impl Fn() -> P) {
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 20, ..Config::default() };
    let run = |operations: Vec<Operation>| {
        directories::like_the_model(&place(), &operations);
        Ok(())
    };
    TestRunner::new(config).run(&operations(max), run).unwrap();
}

#[test]
fn any_sequence_in_memory() {
    any_sequence(60, 16, || Memory(MemoryDirectory::new()));
}

#[test]
fn any_sequence_in_a_folder() {
    any_sequence(6, 8, Folder::new);
}

/// Whatever somebody puts into the folder is told, and hides nobody.
#[test]
fn garbage_in_a_folder_is_told() {
    let folder = Folder::new();
    let directory = folder.directory();
    let _good = directory.publish(&blob("good", 1, 0), LONG).unwrap();
    let mut watch = directory.watch("", &directory.list("").unwrap()).unwrap();
    let at = |file: &str| folder.0.path().join(file);
    let good = std::fs::read(at("good.agent")).unwrap();
    std::fs::write(at("noise.agent"), b"noise").unwrap();
    std::fs::write(at("other.agent"), &good).unwrap();
    std::fs::write(at("cut.agent"), &good[..good.len() - 1]).unwrap();
    std::fs::File::create(at("huge.agent")).unwrap().set_len(1 << 40).unwrap();
    std::fs::create_dir(at("folder.agent")).unwrap();
    symlink("/etc/passwd", at("link.agent")).unwrap();
    symlink(at("good.agent"), at("loop.agent")).unwrap();
    assert!(Command::new("mkfifo").arg(at("pipe.agent")).status().unwrap().success());
    std::fs::write(at("%61.agent"), &good).unwrap();
    std::fs::write(at("README"), b"not ours").unwrap();

    let listing = directory.list("").unwrap();
    assert_eq!(listing.entries.len(), 1);
    assert_eq!(listing.corrupt.len(), 9, "{:?}", listing.corrupt);
    let cause = |name: &str| match directory.lookup(name) {
        Err(DirectoryError::Corrupt(corrupt)) => {
            assert_eq!(corrupt.key, at(&format!("{name}.agent")).display().to_string());
            corrupt.cause
        }
        other => panic!("{name}: {other:?}"),
    };
    assert_eq!(cause("noise"), CorruptCause::NotAnEntry);
    assert_eq!(cause("other"), CorruptCause::OtherName("good".to_owned()));
    assert!(matches!(cause("cut"), CorruptCause::Metadata(_)));
    assert!(matches!(cause("huge"), CorruptCause::TooLarge { bytes, .. } if bytes == 1 << 40));
    for name in ["folder", "link", "loop", "pipe"] {
        assert!(matches!(cause(name), CorruptCause::Unreadable(_)), "{name}");
    }
    assert!(not_found(directory.lookup("README")));

    let mut told: Vec<_> = (0..9).map(|_| next(&mut watch)).collect();
    told.sort();
    assert!(told.iter().all(|told| told.starts_with("corrupt ")), "{told:?}");
    // A place is mended by whoever publishes there; an entry that is damaged in place is told as gone.
    let _mended = directory.publish(&blob("noise", 2, 0), LONG).unwrap();
    assert_eq!(next(&mut watch), "added noise 2");
    std::fs::write(at("noise.agent"), b"noise").unwrap();
    assert_eq!([next(&mut watch), next(&mut watch)], ["removed noise 2", "corrupt noise"]);
}

/// Nothing but entries, whose names were, and the lock is left in a folder, whatever dead processes left there.
#[test]
fn what_dead_processes_left_is_swept() {
    let folder = Folder::new();
    let directory = folder.directory();
    let ttl = Duration::from_secs(10);
    for name in ["dead", "late"] {
        directory.publish(&blob(name, 1, 0), ttl).unwrap().abandon().unwrap();
    }
    let age = |file: &str, by: Duration| {
        let file =
            std::fs::OpenOptions::new().create(true).append(true).open(folder.0.path().join(file)).unwrap();
        file.set_modified(SystemTime::now() - by).unwrap();
    };
    age("dead.agent", ttl * 3);
    age("late.agent", ttl + Duration::from_secs(1));
    age("dead.life", Duration::from_hours(31 * 24));
    age("late.life", Duration::from_hours(29 * 24));
    age(".new-1", Duration::from_secs(3600));
    age(".new-2", Duration::ZERO);
    assert_eq!(directory.list("").unwrap().entries, []);
    assert!(not_found(directory.lookup("dead")));
    let held = directory.publish(&blob("a", 1, 0), ttl).unwrap();
    let mut files = folder.files();
    files.sort();
    assert_eq!(files, [".new-2", "a.agent", "a.life", "late.agent", "late.life"]);
    held.close().unwrap();
    assert!(!folder.files().iter().any(|file| file == "a.life"), "nobody has to be kept from coming back");
}

/// An entry that somebody removed comes back: its agent is alive.
#[test]
fn a_removed_file_is_written_again() {
    let folder = Folder::new();
    let directory = folder.directory();
    let held = directory.publish(&blob("a", 1, 0), folder.short()).unwrap();
    std::fs::remove_file(folder.0.path().join("a.agent")).unwrap();
    assert!(not_found(directory.lookup("a")));
    directories::eventually("it is back", || {
        directory.lookup("a").is_ok_and(|entry| entry.incarnation == life(1))
    });
    held.check().unwrap();
    std::fs::remove_dir_all(folder.0.path()).unwrap();
    directories::eventually("it is told", || held.check().is_err_and(|error| error.is_retryable()));
    assert!(directory.list("").unwrap_err().is_retryable());
    let mut watch = directory.watch("", &Listing::default()).unwrap();
    assert!(watch.next(Duration::ZERO).unwrap_err().is_retryable());
    std::fs::create_dir(folder.0.path()).unwrap();
    assert_eq!(next(&mut watch), "added a 1");
}

/// A process that keeps the lock of the folder holds writers up for a bounded time, and readers not at all.
#[test]
fn a_lock_that_is_kept_times_out() {
    let folder = Folder::new();
    let directory = folder.directory();
    let _held = directory.publish(&blob("a", 1, 0), LONG).unwrap();
    let mut keeper = Command::new("flock")
        .arg("--no-fork")
        .arg(folder.0.path().join(".lock"))
        .args(["sh", "-c", "echo locked; exec sleep 600"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = [0; 7];
    std::io::Read::read_exact(keeper.stdout.as_mut().unwrap(), &mut line).unwrap();
    let error = directory.publish(&blob("b", 1, 0), LONG).unwrap_err();
    assert!(matches!(error, DirectoryError::Timeout { .. }) && error.is_retryable(), "{error}");
    assert_eq!(directory.lookup("a").unwrap().incarnation, life(1));
    keeper.kill().unwrap();
    keeper.wait().unwrap();
    directories::eventually("the lock is free", || directory.publish(&blob("b", 1, 0), LONG).is_ok());
}

const DISK: &str = "HEADRACE_TEST_FULL_DISK";

/// On a full disk nothing is published and nothing that stands is harmed. The disk is a small one that a second process
/// mounts for itself, where it may.
#[test]
fn a_full_disk_is_told() {
    let folder = Folder::new();
    let script = "mount -t tmpfs -o size=64k none \"$1\" || exit 77; shift; exec \"$@\"";
    let child = Command::new("unshare")
        .args(["--map-root-user", "--mount", "sh", "-c", script, "sh"])
        .arg(folder.0.path())
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "on_a_full_disk", "--nocapture"])
        .env(DISK, folder.0.path())
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&child.stderr);
    if !child.status.success() && (told.starts_with("unshare:") || child.status.code() == Some(77)) {
        println!("SKIPPED: this machine does not let a test mount a small disk: {told}");
        return;
    }
    assert!(child.status.success(), "{told}");
}

/// The second process of [`a_full_disk_is_told`]; nothing anywhere else.
#[test]
fn on_a_full_disk() {
    let Ok(path) = std::env::var(DISK) else { return };
    let directory = FileDirectory::open(&path).unwrap();
    let held = directory.publish(&blob("a", 1, 0), LONG).unwrap();
    let filler = std::path::Path::new(&path).join("filler");
    std::fs::write(&filler, vec![0; 1 << 20]).unwrap_err();
    let full = |result| matches!(result, Err(DirectoryError::Full { .. }));
    assert!(full(directory.publish(&blob("b", 1, 0), LONG).map(drop)));
    assert!(full(held.update(&blob("a", 1, 1))));
    let listing = directory.list("").unwrap();
    assert_eq!(listing.entries.iter().map(|entry| &entry.blob).collect::<Vec<_>>(), [&blob("a", 1, 0)]);
    assert_eq!(listing.corrupt, []);
    let files = std::fs::read_dir(&path).unwrap().count();
    assert_eq!(files, 4, "the lock, the entry, whose it is, and what fills the disk");
    std::fs::remove_file(&filler).unwrap();
    held.update(&blob("a", 1, 1)).unwrap();
}
