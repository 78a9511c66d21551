//! Every status that an application can meet, with what it says and whether to try again.

use std::os::unix::fs::PermissionsExt;
use std::ptr::{null, null_mut};
use std::time::Duration;

use transfer_core::{Error, Failure, RegionId, SliceError};

use super::*;
use crate::error::c_text;
use hr_status_t::*;

fn assert_told(told: &Told, status: hr_status_t, says: &str, retryable: bool) {
    assert_eq!(told.status, status, "{}", told.message);
    assert!(told.message.contains(says), "{:?} does not say {says:?}", told.message);
    assert_eq!(told.retryable, retryable, "{}", told.message);
}

fn config_fails(change: impl FnOnce(&mut hr_config_t), says: &str) {
    let mut config = config(c"a");
    change(&mut config);
    let told = refused(|agent, error| as_c!(hr_agent_create(&raw const config, agent, error)));
    assert_told(&told, HR_INVALID_CONFIG, says, false);
}

#[test]
fn a_configuration_that_does_not_hold_is_told_by_field() {
    config_fails(|c| c.name = c"".as_ptr(), "name has 0 bytes");
    config_fails(|c| c.tcp_listen = c"nonsense".as_ptr(), "tcp_listen is \"nonsense\"; write IP:PORT");
    config_fails(|c| c.tcp_listen = c"0.0.0.0:0".as_ptr(), "tcp_listen is 0.0.0.0:0");
    config_fails(|c| c.paths = 8 | 1, "paths has unknown bits 0x8");
    config_fails(|c| c.flags = 1 << 31, "flags has unknown bits 0x80000000");
    config_fails(|c| c.flags = HR_CONFIG_ENCRYPT_DATA, "encrypt_data");
    config_fails(|c| c.tcp_streams = 0, "tcp_streams is 0");
    config_fails(|c| c.copy_threads = 1000, "copy_threads is 1000");
    config_fails(|c| c.tcp_threads = 65, "tcp_threads is 65");
    config_fails(|c| c.tcp_threads = -2, "tcp_threads is");
    config_fails(|c| c.slice_bytes_max = 1, "slice_bytes_max is 1");
    config_fails(|c| c.slices_in_flight_max = 0, "slices_in_flight_max is 0");
    config_fails(|c| c.events_max = 0, "events_max is 0");
    config_fails(|c| c.unsent_bytes_max = 1, "unsent_bytes_max is 1");
    config_fails(|c| c.peer_timeout_ns = 1, "peer_timeout is 0");
    config_fails(|c| c.connect_timeout_ns = 1, "connect_timeout is 0");
    config_fails(|c| c.busy_poll_ns = WAIT_NS, "busy_poll is 20000");
    config_fails(|c| c.blocks_max = 0, "blocks_max is 0");
    config_fails(|c| c.blocks_max = u64::MAX, "blocks_max is 18446744073709551615");
}

#[test]
fn a_key_comes_from_memory_or_from_a_file_that_only_its_owner_reads() {
    let dir = tempfile::tempdir().unwrap();
    let (kept, open) = (dir.path().join("kept"), dir.path().join("open"));
    for (path, mode) in [(&kept, 0o600), (&open, 0o644)] {
        std::fs::write(path, "07".repeat(HR_KEY_SIZE)).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }
    let (kept, open) = (c_text(kept.to_str().unwrap()), c_text(open.to_str().unwrap()));
    let (same, other) = ([7_u8; HR_KEY_SIZE], [8_u8; HR_KEY_SIZE]);
    config_fails(|c| c.key_file = open.as_ptr(), "is open to others (mode 644)");
    config_fails(|c| c.key_file = c"/nowhere/key".as_ptr(), "cannot be read from /nowhere/key");
    config_fails(|c| (c.key, c.key_file) = (same.as_ptr(), kept.as_ptr()), "key_file is set beside key");

    let with = |change: &dyn Fn(&mut hr_config_t)| {
        let mut config = config(c"a");
        change(&mut config);
        made(|agent, error| as_c!(hr_agent_create(&raw const config, agent, error)))
    };
    let there = with(&|c| c.key_file = kept.as_ptr());
    let here =
        [with(&|c| c.key = same.as_ptr()), with(&|c| c.key = other.as_ptr()), with(&|c| c.key = null())];
    let address = as_c!(hr_agent_address(there));
    let peer = made(|peer, error| as_c!(hr_agent_connect(here[0], address, peer, error)));
    for (agent, status) in [(here[1], HR_AUTH_FAILED), (here[2], HR_AUTH_REQUIRED)] {
        let told = refused(|peer, error| as_c!(hr_agent_connect(agent, address, peer, error)));
        assert_eq!(told.status, status, "{}", told.message);
    }
    as_c!(hr_peer_free(peer));
    here.into_iter().chain([there]).for_each(|agent| as_c!(hr_agent_destroy(agent)));
}

#[test]
fn the_init_function_writes_the_defaults_of_the_engine() {
    let (ours, engine) = (config(c"a"), transfer_core::Config::new("a"));
    let listen: std::net::SocketAddr = text(ours.tcp_listen).parse().unwrap();
    assert_eq!(Some(listen), engine.tcp_listen);
    assert_eq!((ours.paths, ours.flags, ours.app_metadata_len), (ALL, 0, 0));
    assert_eq!(u64::from(ours.tcp_streams), engine.tcp_streams as u64);
    assert_eq!((ours.tcp_buffer_bytes, engine.tcp_buffer_bytes), (0, None));
    assert_eq!((ours.copy_threads, engine.copy_threads), (0, None));
    assert_eq!((ours.tcp_threads, engine.tcp_threads), (-1, None));
    assert_eq!(ours.slices_in_flight_max, engine.slices_in_flight_max);
    assert_eq!(ours.events_max, engine.events_max as u64);
    assert_eq!(
        (ours.inline_bytes_max, ours.slice_bytes_max),
        (engine.inline_bytes_max, engine.slice_bytes_max)
    );
    assert_eq!(ours.unsent_bytes_max, engine.unsent_bytes_max as u64);
    assert_eq!((ours.blocks_max, ours.key_file), (engine.blocks_max as u64, null()));
    let timeouts =
        [ours.transfer_timeout_ns, ours.connect_timeout_ns, ours.peer_timeout_ns, ours.busy_poll_ns]
            .map(Duration::from_nanos);
    assert_eq!(
        timeouts,
        [engine.transfer_timeout, engine.connect_timeout, engine.peer_timeout, engine.busy_poll]
    );
}

fn connect_fails(agent: *mut hr_agent_t, address: &CStr) -> Told {
    refused(|peer, error| as_c!(hr_agent_connect(agent, address.as_ptr(), peer, error)))
}

#[test]
fn nobody_there_and_no_address_are_different_things() {
    let agent = agent(c"a", ALL);
    assert_told(&connect_fails(agent, c"nonsense"), HR_INVALID_ADDRESS, "\"nonsense\" is no address", false);
    assert_told(&connect_fails(agent, c"unix:@nobody-is-there"), HR_UNREACHABLE, "nobody-is-there", true);
    as_c!(hr_agent_destroy(agent));
}

#[test]
fn a_blob_is_refused_where_it_is_damaged_of_another_version_or_stale() {
    let (here, there) = (agent(c"here", ALL), agent(c"there", ALL));
    let (mut blob, mut len) = (null_mut(), 0);
    ok(|error| as_c!(hr_agent_metadata(there, &raw mut blob, &raw mut len, error)));
    let good = as_c!(std::slice::from_raw_parts(blob, len)).to_vec();
    as_c!(hr_bytes_free(blob, len));
    let add = |blob: &[u8]| {
        refused(|peer, error| as_c!(hr_agent_add_peer(here, blob.as_ptr(), blob.len(), peer, error)))
    };

    let mut other = good.clone();
    (other[4], other[6]) = (0xee, 0xee); // highest and lowest version
    assert_told(&add(&other), HR_VERSION_MISMATCH, "speaks version", false);
    assert_told(&add(b"something else altogether"), HR_PROTOCOL, "the metadata blob", false);
    assert_told(&add(&[]), HR_PROTOCOL, "the metadata blob", false);
    let peer = made(|peer, error| as_c!(hr_agent_add_peer(here, good.as_ptr(), good.len(), peer, error)));
    as_c!(hr_peer_free(peer));
    // Once its agent is gone, the blob is of no use any more.
    as_c!(hr_agent_destroy(there));
    as_c!(hr_event_free(event(here, hr_event_kind_t::HR_EVENT_PEER_LOST)));
    assert_told(&add(&good), HR_UNREACHABLE, "", true);
    as_c!(hr_agent_destroy(here));
}

#[test]
fn lists_are_checked_when_they_are_prepared() {
    let pair = Pair::new(ALL, 4);
    let ours = as_c!(hr_region_id(pair.ours));
    let local = |desc: hr_desc_t| {
        refused(|list, error| as_c!(hr_agent_prepare(pair.here, &raw const desc, 1, list, error)))
    };
    let remote = |desc: hr_desc_t| {
        refused(|list, error| as_c!(hr_peer_prepare(pair.peer, &raw const desc, 1, list, error)))
    };
    assert_told(&local(hr_desc_contiguous(ours, 1, 4 * PAGE)), HR_BAD_LIST, "local list", false);
    assert_told(&local(hr_desc_contiguous(ours, u64::MAX, 2)), HR_BAD_LIST, "local list", false);
    assert_told(&local(hr_desc_contiguous(12345, 0, 1)), HR_BAD_LIST, "there is no region", false);
    let pages = [0, 4];
    let beyond = hr_desc_paged(info(pair.peer, c"kv").id, 0, PAGE, PAGE, pages.as_ptr(), 2);
    assert_told(&remote(beyond), HR_BAD_LIST, "remote list", false);
    let many = hr_desc_strided(ours, 0, 1, 0, u32::MAX);
    assert_told(&local(many), HR_BAD_LIST, "over the limit", false);
    for (kind, count, says) in [(0, 1, "desc.kind"), (99, 1, "desc.kind"), (1, 2, "desc.count")] {
        let mut desc = hr_desc_contiguous(ours, 0, 1);
        (desc.kind, desc.count) = (kind, count);
        assert_told(&local(desc), HR_INVALID_ARGUMENT, says, false);
    }
}

fn write_fails(pair: &Pair, change: impl FnOnce(&mut hr_xfer_options_t)) -> Told {
    let mut options = options();
    change(&mut options);
    let (peer, local, remote) = (pair.peer, pair.local, pair.remote);
    refused(|xfer, error| as_c!(hr_peer_write(peer, local, remote, &raw const options, xfer, error)))
}

#[test]
fn selections_and_notifications_are_checked_when_they_are_posted() {
    let pair = Pair::new(ALL, 4);
    let (few, wrong) = ([0_u32, 1], [4_u32]);
    let select = |local: &[u32], remote: &[u32]| {
        write_fails(&pair, |options| {
            (options.local_indices, options.local_count) = (local.as_ptr(), local.len());
            (options.remote_indices, options.remote_count) = (remote.as_ptr(), remote.len());
        })
    };
    assert_told(&select(&wrong, &[0]), HR_BAD_LIST, "local list: selected span 4", false);
    assert_told(&select(&[0], &wrong), HR_BAD_LIST, "remote list: selected span 4", false);
    assert_told(&select(&few, &[0]), HR_LENGTH_MISMATCH, "must be equal", false);
    let one_side = write_fails(&pair, |o| (o.local_indices, o.local_count) = (few.as_ptr(), 2));
    assert_told(&one_side, HR_INVALID_ARGUMENT, "on one side only", false);
    let long = vec![0; 70_000];
    let notif = write_fails(&pair, |o| (o.notif, o.notif_len) = (long.as_ptr(), long.len()));
    assert_told(&notif, HR_NOT_NOTIFIED, "over the limit", false);
    let notif = failed(|error| as_c!(hr_peer_notify(pair.peer, long.as_ptr(), long.len(), error)));
    assert_told(&notif, HR_NOT_NOTIFIED, "over the limit", false);
}

#[test]
fn a_failure_says_where_in_the_transfer_it_was() {
    for (paths, rails) in [(ALL, -1..0), (TCP, 0..64)] {
        let pair = Pair::new(paths, 4);
        let id = info(pair.peer, c"kv").id;
        // The second descriptor names what is taken back: a region of one block of its own.
        let more = alloc(pair.there, PAGE_LEN, c"more");
        ok(|error| as_c!(hr_peer_sync(pair.peer, error)));
        let descs = [
            hr_desc_contiguous(id, 0, PAGE),
            hr_desc_strided(info(pair.peer, c"more").id, 512, 256, 1024, 3),
        ];
        let remote = made(|list, error| as_c!(hr_peer_prepare(pair.peer, descs.as_ptr(), 2, list, error)));
        let local = prepare(pair.here, hr_desc_contiguous(as_c!(hr_region_id(pair.ours)), 0, PAGE + 768));
        ok(|error| as_c!(hr_region_revoke(more, 0, PAGE, null_mut(), error)));
        let xfer = made(|xfer, error| as_c!(hr_peer_read(pair.peer, local, remote, null(), xfer, error)));
        let mut error = null_mut();
        let mut failure = hr_failure_t { desc: 9, attempts: 0, offset: 9, rail: 99 };
        as_c! {
            let status = hr_xfer_wait(xfer, WAIT_NS, null_mut(), &raw mut error);
            assert_eq!(status, HR_STALE, "{}", text(hr_error_message(error)));
            assert!(hr_error_failure(error, &raw mut failure));
            assert!(!hr_error_failure(error, null_mut()));
            hr_error_free(error);
            hr_xfer_free(xfer);
            hr_list_free(local);
            hr_remote_list_free(remote);
            hr_region_free(more);
        }
        assert_eq!((failure.desc, failure.offset, failure.attempts), (1, 512, 1), "{failure:?}");
        assert!(rails.contains(&failure.rail), "{failure:?}");
    }
}

#[test]
fn an_error_beside_a_transfer_has_no_place_in_one_and_one_of_the_kernel_has_its_errno() {
    let place = |error: Error| {
        let object = Box::into_raw(Box::new(hr_error_t::from(error)));
        let mut failure = hr_failure_t { desc: 9, attempts: 9, offset: 9, rail: 9 };
        let told = as_c!(hr_error_failure(object, &raw mut failure));
        let os_code = as_c!(hr_error_os_code(object));
        as_c!(hr_error_free(object));
        (told, failure.desc, os_code)
    };
    assert_eq!(place(Error::Cancelled), (false, 9, 0));
    let source = Failure::new(0, (3, 4096), SliceError::Os { errno: 14, span: 0 });
    assert_eq!(place(Error::TransferFailed { peer: "p".into(), source }), (true, 3, 14));
}

#[test]
fn lists_of_others_are_refused() {
    let (pair, other) = (Pair::new(ALL, 1), Pair::new(ALL, 1));
    let post = |local, remote| {
        refused(|xfer, error| as_c!(hr_peer_read(pair.peer, local, remote, null(), xfer, error)))
    };
    assert_told(&post(other.local, pair.remote), HR_WRONG_AGENT, "local", false);
    assert_told(&post(pair.local, other.remote), HR_WRONG_AGENT, "remote", false);
    let told =
        refused(|text, error| as_c!(hr_peer_explain(pair.peer, pair.local, other.remote, text, error)));
    assert_told(&told, HR_WRONG_AGENT, "remote", false);
}

#[test]
fn regions_have_bounds_labels_and_an_end() {
    let pair = Pair::new(ALL, 1);
    let mut byte = 0_u8;
    let told = failed(|error| as_c!(hr_region_read(pair.ours, PAGE, (&raw mut byte).cast(), 1, error)));
    assert_told(&told, HR_OUT_OF_BOUNDS, "outside region", false);
    let write =
        |offset| failed(|error| as_c!(hr_region_write(pair.ours, offset, c"x".as_ptr().cast(), 1, error)));
    assert_told(&write(u64::MAX), HR_OUT_OF_BOUNDS, "outside region", false);
    let long = format!("{}\0", "x".repeat(256));
    let long = CStr::from_bytes_with_nul(long.as_bytes()).unwrap();
    let told =
        refused(|region, error| as_c!(hr_agent_alloc(pair.here, 8, long.as_ptr(), null(), region, error)));
    assert_told(&told, HR_TOO_LARGE, "label", false);
    let told = refused(|region, error| {
        as_c!(hr_agent_alloc(pair.here, 1 << 60, c"x".as_ptr(), null(), region, error))
    });
    assert_told(&told, HR_OS, "", false);
    assert_ne!(told.os_code, 0);
    let mut found = info(pair.peer, c"kv");
    let told = failed(|error| as_c!(hr_peer_region(pair.peer, c"none".as_ptr(), &raw mut found, error)));
    assert_told(&told, HR_NOT_FOUND, "there has no region \"none\"", false);

    for _ in 0..2 {
        ok(|error| as_c!(hr_region_close(pair.ours, error)));
    }
    let told = write_fails(&pair, |_| ());
    assert_told(&told, HR_REGION_CLOSED, "is closed", false);
}

#[test]
fn options_of_a_region_are_checked() {
    let agent = agent(c"a", ALL);
    let alloc = |access, flags, numa_node| {
        let mut options = filled(|options, size| as_c!(hr_region_options_init(options, size)));
        (options.access, options.flags, options.numa_node) = (access, flags, numa_node);
        let options = &raw const options;
        refused(|region, error| as_c!(hr_agent_alloc(agent, 8, c"x".as_ptr(), options, region, error)))
    };
    assert_told(&alloc(0, 0, -1), HR_INVALID_ARGUMENT, "options.access", false);
    assert_told(&alloc(9, 0, -1), HR_INVALID_ARGUMENT, "options.access", false);
    assert_told(&alloc(1, 2, -1), HR_INVALID_ARGUMENT, "options.flags", false);
    assert_told(&alloc(1, 0, -2), HR_INVALID_ARGUMENT, "options.numa_node", false);
    assert_told(&alloc(1, 0, 1 << 40), HR_INVALID_ARGUMENT, "options.numa_node", false);
    // What the memory of an application is, it is already.
    let (mut options, mut byte) =
        (filled(|options, size| as_c!(hr_region_options_init(options, size))), 0_u8);
    options.flags = HR_REGION_HUGE_PAGES;
    let (addr, options) = ((&raw mut byte).cast(), &raw const options);
    let told = refused(|region, error| {
        as_c!(hr_agent_register(agent, addr, 1, c"x".as_ptr(), options, region, error))
    });
    assert_told(&told, HR_INVALID_CONFIG, "huge_pages", false);
    as_c!(hr_agent_destroy(agent));
}

#[test]
fn sides_that_allow_no_common_path_are_told_why() {
    let (shm, tcp) = (agent(c"shm", ALL & !TCP), agent(c"tcp", TCP));
    let region = alloc(tcp, 64, c"kv");
    let address = as_c!(hr_agent_address(tcp));
    let peer = made(|peer, error| as_c!(hr_agent_connect(shm, address, peer, error)));
    let desc = hr_desc_contiguous(info(peer, c"kv").id, 0, 64);
    let told = refused(|list, error| as_c!(hr_peer_prepare(peer, &raw const desc, 1, list, error)));
    assert_told(&told, HR_NO_PATH, "not tcp: the configuration leaves it out", false);
    as_c! {
        hr_peer_free(peer);
        hr_region_free(region);
        hr_agent_destroy(shm);
        hr_agent_destroy(tcp);
    }
}

#[test]
fn a_strict_agent_is_told_what_keeps_it_from_the_best_path() {
    let mut config = config(c"strict");
    config.flags = HR_CONFIG_STRICT;
    let here = made(|agent, error| as_c!(hr_agent_create(&raw const config, agent, error)));
    let (there, mut memory) = (agent(c"there", ALL), vec![0_u8; PAGE_LEN]);
    let addr = memory.as_mut_ptr().cast();
    let region = made(|region, error| {
        as_c!(hr_agent_register(there, addr, PAGE_LEN, c"foreign".as_ptr(), null(), region, error))
    });
    let address = as_c!(hr_agent_address(there));
    let peer = made(|peer, error| as_c!(hr_agent_connect(here, address, peer, error)));
    let desc = hr_desc_contiguous(info(peer, c"foreign").id, 0, PAGE);
    let told = refused(|list, error| as_c!(hr_peer_prepare(peer, &raw const desc, 1, list, error)));
    assert_told(&told, HR_FALLBACK_REFUSED, "was registered, not allocated", false);
    as_c! {
        hr_peer_free(peer);
        hr_agent_destroy(here);
        ok(|error| hr_region_close(region, error));
        hr_region_free(region);
        hr_agent_destroy(there);
    }
}

#[test]
fn a_peer_that_left_is_told_everywhere() {
    let pair = Pair::new(ALL, 1);
    ok(|error| as_c!(hr_peer_disconnect(pair.peer, error)));
    let lost = event(pair.here, hr_event_kind_t::HR_EVENT_PEER_LOST);
    as_c! {
        assert_eq!(hr_error_status((*lost).reason), HR_PEER_LOST);
        assert!(hr_error_retryable((*lost).reason));
        assert_eq!(text(hr_peer_name((*lost).peer)), "there");
        assert!((*lost).data.is_null() && (*lost).data_len == 0);
        hr_event_free(lost);
        assert!(!hr_peer_is_up(pair.peer));
        assert_told(&failed(|error| hr_peer_sync(pair.peer, error)), HR_PEER_LOST, "lost there", true);
        assert_told(
            &failed(|error| hr_peer_notify(pair.peer, null(), 0, error)),
            HR_PEER_LOST,
            "lost there",
            true,
        );
        assert_told(&write_fails(&pair, |_| ()), HR_PEER_LOST, "lost there", true);
        let desc = hr_desc_contiguous(0, 0, 1);
        let told = refused(|list, error| hr_peer_prepare(pair.peer, &raw const desc, 1, list, error));
        assert_told(&told, HR_PEER_LOST, "lost there", true);
    }
}

/// A setting that the engine gets needs a field or a flag, or C cannot reach it.
#[test]
fn each_setting_of_the_engine_is_set_from_c() {
    let engine = include_str!("../../../src/config.rs");
    let (_, fields) = engine.split_once("pub struct Config {").unwrap();
    let (fields, _) = fields.split_once("\n}").unwrap();
    let names = fields.lines().filter_map(|line| line.strip_prefix("    pub ")?.split_once(':'));
    let names: Vec<_> = names.map(|(name, _)| name).filter(|&name| name != "name").collect();
    assert!(names.len() > 15 && names.contains(&"policy") && names.contains(&"encrypt_data"), "{names:?}");
    for name in names {
        assert!(include_str!("../config.rs").contains(&format!("config.{name} = ")), "{name}");
    }
}

/// An error that the engine learns to tell needs a status of its own, or C sees HR_OTHER.
#[test]
fn each_error_of_the_engine_has_a_status() {
    let engine = include_str!("../../../src/error.rs");
    let (_, variants) = engine.split_once("pub enum Error {").unwrap();
    let (variants, _) = variants.split_once("\n}").unwrap();
    // A variant stands four columns in and begins with a capital.
    let names = variants.lines().filter_map(|line| line.strip_prefix("    "));
    let names = names.filter(|line| line.starts_with(|first: char| first.is_ascii_uppercase()));
    let names: Vec<_> = names.map(|line| line.split([' ', '(', ',']).next().unwrap()).collect();
    assert!(names.len() > 15 && names.contains(&"PeerLost") && names.contains(&"Os"), "{names:?}");
    for name in names {
        assert!(
            include_str!("../status.rs").contains(&format!("Error::{name}")),
            "Error::{name} has no status"
        );
    }
}

#[test]
fn errors_that_take_long_to_provoke_keep_their_meaning() {
    let region = RegionId::new(0, 0);
    let waited = Duration::from_millis(5);
    let busy = Error::RegionBusy { region, peer: "p".into(), waited };
    for (error, status) in [(busy, HR_REGION_BUSY), (Error::WaitTimedOut(waited), HR_TIMED_OUT)] {
        let object = Box::into_raw(Box::new(hr_error_t::from(error)));
        assert_eq!(as_c!(hr_error_status(object)), status);
        assert!(as_c!(hr_error_retryable(object)));
        as_c!(hr_error_free(object));
    }
}

#[test]
fn statuses_have_names_and_sorts() {
    assert_eq!(text(hr_status_name(0)), "HR_OK");
    assert_eq!(text(hr_status_name(HR_DEADLINE as i32)), "HR_DEADLINE");
    for unknown in [2, -1, -99, i32::MIN] {
        assert_eq!(text(hr_status_name(unknown)), "unknown status");
    }
    for &status in hr_status_t::ALL {
        assert_eq!(text(hr_status_name(status as i32)), format!("{status:?}"));
        assert!(
            matches!(status, HR_OK | HR_PENDING) || (-699..=-101).contains(&(status as i32)),
            "{status:?}"
        );
    }
}
