//! The directory in etcd, against real servers and their faults. `ci/etcd` runs this and sees to the server: its path is
//! in `HEADRACE_TEST_ETCD`.
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    missing_docs,
    reason = "a test"
)]

#[path = "../directories/mod.rs"]
mod directories;
mod server;
mod tls;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use directories::{
    LONG, Operation, Place, WAIT, blob, eventually, life, next, not_found, operations, superseded,
};
use proptest::test_runner::{Config, TestRunner};
use serde_json::json;
use server::Etcd;
use transfer_core::directory::{
    CorruptCause, Directory, DirectoryError, EtcdConfig, EtcdDirectory, Listing, Watch,
};

impl Place for Etcd {
    fn client(&self) -> Arc<dyn Directory> {
        Arc::new(self.directory())
    }

    /// Long enough that a renewal on a busy machine is not missed.
    fn short(&self) -> Duration {
        Duration::from_secs(2)
    }
}

macro_rules! suite {
    ($($check:ident)*) => {
        $(#[test]
        fn $check() {
            directories::$check(&Etcd::new());
        })*
    };
}

suite!(comes_and_goes the_latest_life_wins a_name_that_was_taken_stays_taken time_to_live any_name resumes_from_a_listing one_of_many_wins agents_meet);

#[test]
fn any_sequence() {
    let etcd = Etcd::new();
    let config = Config { cases: 5, failure_persistence: None, max_shrink_iters: 10, ..Config::default() };
    let run = |operations: Vec<Operation>| {
        directories::like_the_model(&etcd, &operations);
        Ok(())
    };
    TestRunner::new(config).run(&operations(8), run).unwrap();
}

/// The next change, whatever outage is told meanwhile.
fn next_after_outage(watch: &mut Watch) -> String {
    loop {
        match watch.next(WAIT) {
            Ok(Some(event)) => {
                break format!("{:?}", event.change).split(['(', ' ']).next().unwrap().to_owned();
            }
            Ok(None) => panic!("no change in time"),
            Err(error) => assert!(error.is_retryable(), "{error}"),
        }
    }
}

/// A server that is killed and comes back with its data: the watch misses nothing and repeats nothing, and what was
/// registered is registered.
#[test]
fn a_server_restarts_in_mid_watch() {
    let mut etcd = Etcd::new();
    let directory = etcd.directory();
    let held = directory.publish(&blob("held", 1, 0), Duration::from_secs(5)).unwrap();
    let left = etcd.directory().publish(&blob("left", 1, 0), LONG).unwrap();
    let mut watch = directory.watch("", &directory.list("").unwrap()).unwrap();
    assert_eq!(watch.next(Duration::from_millis(50)).unwrap(), None);
    for _ in 0..2 {
        etcd.kill();
        let told = watch.next(WAIT).unwrap_err();
        assert!(matches!(told, DirectoryError::Unreachable { .. }) && told.is_retryable(), "{told}");
        assert!(directory.lookup("held").unwrap_err().is_retryable());
        assert!(directory.publish(&blob("x", 1, 0), LONG).unwrap_err().is_retryable());
        etcd.restart();
        assert_eq!(directory.lookup("held").unwrap().incarnation, life(1));
        left.update(&blob("left", 1, 1)).unwrap();
        assert_eq!(next_after_outage(&mut watch), "Changed");
        left.update(&blob("left", 1, 2)).unwrap();
        assert_eq!(next_after_outage(&mut watch), "Changed");
    }
    eventually("renewed again", || held.check().is_ok());
    drop(left);
    assert_eq!(next_after_outage(&mut watch), "Removed");
    assert_eq!(watch.next(Duration::from_millis(50)).unwrap(), None);
}

/// A server that lost everything: those who live register again, and the watch tells what is so.
#[test]
fn a_server_loses_its_data() {
    let mut etcd = Etcd::new();
    let directory = etcd.directory();
    let held = directory.publish(&blob("held", 1, 0), Duration::from_secs(3)).unwrap();
    let gone = directory.publish(&blob("gone", 1, 0), Duration::from_secs(3)).unwrap();
    for number in 0..50 {
        gone.update(&blob("gone", 1, number)).unwrap();
    }
    let mut seen = directory.list("").unwrap();
    let mut watch = directory.watch("", &seen).unwrap();
    gone.abandon().unwrap();
    etcd.kill();
    std::fs::remove_dir_all(etcd.data.path().join("data")).unwrap();
    etcd.restart();
    eventually("those who live are back, and nobody else", || {
        match watch.next(Duration::from_millis(100)) {
            Ok(Some(event)) => seen.apply(event),
            Ok(None) => {}
            Err(error) => assert!(error.is_retryable(), "{error}"),
        }
        let there = directory.list("").unwrap_or_default();
        there.entries.len() == 1 && there.entries == seen.entries && held.check().is_ok()
    });
    assert_eq!(seen.entries[0].name, "held");
}

/// A watch that resumes from a revision that etcd has compacted away is told the difference.
#[test]
fn history_is_compacted() {
    let etcd = Etcd::new();
    let directory = etcd.directory();
    let [gone, changed] = ["gone", "changed"].map(|name| directory.publish(&blob(name, 1, 0), LONG).unwrap());
    let listing = directory.list("").unwrap();
    drop(gone);
    for detail in 1..5 {
        changed.update(&blob("changed", 1, detail)).unwrap();
    }
    let revision = directory.list("").unwrap().revision.number().to_string();
    etcd.ask("kv/compaction", json!({ "revision": revision, "physical": true }));
    let mut watch = directory.watch("", &listing).unwrap();
    assert_eq!([next(&mut watch), next(&mut watch)], ["removed gone 1", "changed changed 1"]);
    changed.update(&blob("changed", 1, 9)).unwrap();
    assert_eq!(next(&mut watch), "changed changed 1");
}

/// Whatever somebody puts under the prefix is told, and hides nobody.
#[test]
fn garbage_in_keys_is_told() {
    let etcd = Etcd::new();
    let directory = etcd.directory();
    let _good = directory.publish(&blob("good", 1, 0), LONG).unwrap();
    let mine = directory.publish(&blob("mine", 1, 0), etcd.short()).unwrap();
    let mut watch = directory.watch("", &directory.list("").unwrap()).unwrap();
    etcd.put(b"headrace/agents/noise", b"noise");
    etcd.put(b"headrace/agents/empty", b"");
    etcd.put(b"headrace/agents/\xFF\xFE", b"noise");
    etcd.put(b"headrace/agents/large", &vec![b'x'; 1 << 20]);
    etcd.put(b"headrace/agentsnoise", b"outside");
    let told: Vec<_> = (0..4).map(|_| next(&mut watch)).collect();
    assert!(told.iter().all(|told| told.starts_with("corrupt ")), "{told:?}");
    let listing = directory.list("").unwrap();
    assert_eq!((listing.entries.len(), listing.corrupt.len()), (2, 4));
    match directory.lookup("noise") {
        Err(DirectoryError::Corrupt(corrupt)) => {
            assert_eq!(
                (corrupt.key.as_str(), corrupt.cause),
                ("headrace/agents/noise", CorruptCause::NotAnEntry)
            );
        }
        other => panic!("{other:?}"),
    }
    // Its owner mends a place by publishing there, and a living registration does so by itself.
    let _mended = directory.publish(&blob("noise", 2, 0), LONG).unwrap();
    assert_eq!(next(&mut watch), "added noise 2");
    etcd.put(b"headrace/agents/mine", b"noise");
    assert_eq!([next(&mut watch), next(&mut watch)], ["removed mine 1", "corrupt mine"]);
    assert_eq!(next(&mut watch), "added mine 1");
    mine.check().unwrap();
}

/// More than a page, and entries that are too large for this side, for etcd's request, and for its transport.
#[test]
fn limits() {
    let etcd = Etcd::new();
    let directory = etcd.directory();
    let publish = |number: usize| directory.publish(&blob(&format!("a{number:03}"), 1, 0), LONG).unwrap();
    let held: Vec<_> = (0..100).map(publish).collect();
    let names: Vec<_> = directory.list("a").unwrap().entries.into_iter().map(|entry| entry.name).collect();
    assert_eq!(names, (0..100).map(|number| format!("a{number:03}")).collect::<Vec<_>>());
    assert_eq!(directory.list("a09").unwrap().entries.len(), 10);
    held.into_iter().for_each(drop);

    let agent = transfer_core::Agent::new(transfer_core::Config::new("large")).unwrap();
    let regions: Vec<_> = (0..9000).map(|_| agent.adopt(vec![0], &"l".repeat(200)).unwrap()).collect();
    let large = agent.metadata();
    let refused = |max: usize| {
        let mut config = etcd.config();
        config.blob_bytes_max = max;
        match EtcdDirectory::new(config).unwrap().publish(&large, LONG) {
            Err(DirectoryError::TooLarge { limit, .. }) => limit,
            other => panic!("{other:?}"),
        }
    };
    assert!(refused(1 << 20).contains("blob_bytes_max"));
    assert!(refused(16 << 20).contains("too large") || refused(16 << 20).contains("larger than max"));
    assert!(not_found(directory.lookup("large")));
    drop(regions);
}

/// What listens there and is no etcd, or says nothing, or is not there.
#[test]
fn whatever_else_answers_is_told() {
    let answering = |answer: &'static str| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming().take(4) {
                let mut stream = stream.unwrap();
                let mut request = [0; 4096];
                let _read = stream.read(&mut request);
                // The client may be gone by then.
                let _sent = stream.write_all(answer.as_bytes());
            }
        });
        url
    };
    let lookup = |urls: &[&str], timeout: u64| {
        let mut config = EtcdConfig::new(urls.iter().copied());
        config.timeout = Duration::from_millis(timeout);
        EtcdDirectory::new(config).unwrap().lookup("a").unwrap_err()
    };
    let page = answering("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>");
    assert!(matches!(lookup(&[&page], 5000), DirectoryError::Protocol { .. }));
    let missing = answering("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
    assert!(matches!(lookup(&[&missing], 5000), DirectoryError::Protocol { .. }));
    let down = answering("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n");
    assert!(matches!(lookup(&[&down], 5000), DirectoryError::Unreachable { .. }));
    let cut = answering("HTTP/1.1 200 OK\r\nContent-Length: 600\r\n\r\n{");
    assert!(matches!(lookup(&[&cut], 5000), DirectoryError::Unreachable { .. }));
    let elsewhere =
        answering("HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n");
    assert!(matches!(lookup(&[&elsewhere], 5000), DirectoryError::Protocol { .. }));

    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent_url = format!("http://{}", silent.local_addr().unwrap());
    assert!(matches!(lookup(&[&silent_url], 100), DirectoryError::Timeout { .. }));
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let gone = format!("http://{gone}");
    let refused = lookup(&[&gone], 5000);
    assert!(
        matches!(&refused, DirectoryError::Unreachable { .. }) && refused.to_string().contains("refused"),
        "{refused}"
    );

    // With one that works among them, nothing of it shows.
    let etcd = Etcd::new();
    let mut config = EtcdConfig::new([gone, silent_url, page, etcd.url()]);
    config.timeout = Duration::from_secs(8);
    let directory = EtcdDirectory::new(config).unwrap();
    assert!(not_found(directory.lookup("a")));
    let held = directory.publish(&blob("a", 1, 0), LONG).unwrap();
    let mut watch = directory.watch("", &Listing::default()).unwrap();
    assert_eq!(next(&mut watch), "added a 1");
    held.close().unwrap();
    assert_eq!(next(&mut watch), "removed a 1");
}

/// A frozen server holds callers up for the timeout and no longer; dropping does not wait for it more than that either.
#[test]
fn a_frozen_server_times_out() {
    let etcd = Etcd::new();
    let mut config = etcd.config();
    config.timeout = Duration::from_millis(300);
    let directory = EtcdDirectory::new(config).unwrap();
    let held = directory.publish(&blob("a", 1, 0), LONG).unwrap();
    let mut watch = directory.watch("", &directory.list("").unwrap()).unwrap();
    etcd.signal("-STOP");
    assert!(matches!(directory.lookup("a"), Err(DirectoryError::Timeout { .. })));
    assert!(matches!(held.update(&blob("a", 1, 1)), Err(DirectoryError::Timeout { .. })));
    assert!(
        matches!(watch.next(WAIT), Err(DirectoryError::Timeout { .. })),
        "a silent stream is asked about"
    );
    assert!(matches!(held.close(), Err(DirectoryError::Timeout { .. })));
    drop(watch);
    etcd.signal("-CONT");
    eventually("it is back", || directory.list("").is_ok());
}

/// An old registration whose process was stopped for long finds its successor, and leaves it alone.
#[test]
fn a_lease_that_was_lost_is_taken_again_unless_somebody_came() {
    let etcd = Etcd::new();
    let directory = etcd.directory();
    let [alone, replaced] =
        ["alone", "replaced"].map(|name| directory.publish(&blob(name, 1, 0), etcd.short()).unwrap());
    let leases = etcd.ask("lease/leases", json!({}));
    let leases: Vec<_> =
        leases["leases"].as_array().unwrap().iter().map(|lease| lease["ID"].clone()).collect();
    assert_eq!(leases.len(), 2);
    for id in leases {
        etcd.ask("lease/revoke", json!({ "ID": id }));
    }
    let newer = etcd.directory().publish(&blob("replaced", 2, 0), LONG).unwrap();
    eventually("it is back", || directory.lookup("alone").is_ok_and(|entry| entry.incarnation == life(1)));
    eventually("it knows", || superseded(replaced.check(), 2));
    alone.check().unwrap();
    drop((alone, replaced));
    assert!(not_found(directory.lookup("alone")));
    assert_eq!(directory.lookup("replaced").unwrap().incarnation, life(2));
    newer.close().unwrap();
}

/// With authentication: nobody without a password, and a token that has expired is replaced.
#[test]
fn passwords_are_asked_for() {
    let etcd = Etcd::new();
    etcd.ask("auth/user/add", json!({ "name": "root", "password": "secret" }));
    etcd.ask("auth/role/add", json!({ "name": "root" }));
    etcd.ask("auth/user/grant", json!({ "user": "root", "role": "root" }));
    etcd.ask("auth/enable", json!({}));
    assert!(matches!(etcd.directory().lookup("a"), Err(DirectoryError::Denied { .. })));
    let with = |password: &str| {
        let mut config = etcd.config();
        config.user = Some(("root".to_owned(), password.to_owned()));
        EtcdDirectory::new(config).unwrap()
    };
    let error = with("wrong").lookup("a").unwrap_err();
    assert!(matches!(error, DirectoryError::Denied { .. }) && !error.is_retryable(), "{error}");
    let directory = with("secret");
    let held = directory.publish(&blob("a", 1, 0), LONG).unwrap();
    let mut watch = directory.watch("", &Listing::default()).unwrap();
    assert_eq!(next(&mut watch), "added a 1");

    // etcd forgets all tokens; a watch that begins with one of them is the first to notice.
    let listing = directory.list("").unwrap();
    let root = json!({ "name": "root", "password": "secret" });
    let forget = || {
        let token = etcd.ask("auth/authenticate", root.clone())["token"].as_str().unwrap().to_owned();
        etcd.try_ask_as(&token, "auth/disable", &json!({})).unwrap();
        etcd.ask("auth/enable", json!({}));
    };
    forget();
    let mut resumed = directory.watch("", &listing).unwrap();
    held.update(&blob("a", 1, 1)).unwrap();
    assert_eq!(next(&mut resumed), "changed a 1");
    forget();
    assert_eq!(directory.lookup("a").unwrap().blob, blob("a", 1, 1));
    held.close().unwrap();
}
