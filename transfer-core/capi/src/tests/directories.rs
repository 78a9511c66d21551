//! Agents that find each other by name.

use std::ptr::null_mut;

use super::*;
use crate::error::c_text;
use hr_status_t::*;

const TTL_NS: u64 = 10_000_000_000;

fn memory() -> *mut hr_directory_t {
    made(|directory, error| as_c!(hr_directory_memory(directory, error)))
}

fn publish(agent: *mut hr_agent_t, directory: *mut hr_directory_t) -> *mut hr_registration_t {
    made(|registration, error| as_c!(hr_agent_publish(agent, directory, TTL_NS, registration, error)))
}

fn find(agent: *mut hr_agent_t, directory: *mut hr_directory_t, name: &CStr) -> *mut hr_peer_t {
    made(|peer, error| as_c!(hr_agent_connect_by_name(agent, directory, name.as_ptr(), peer, error)))
}

fn not_found(agent: *mut hr_agent_t, directory: *mut hr_directory_t, name: &CStr) -> Told {
    refused(|peer, error| as_c!(hr_agent_connect_by_name(agent, directory, name.as_ptr(), peer, error)))
}

fn incarnation_of(agent: *mut hr_agent_t) -> [u8; 16] {
    let mut bytes = [0; 16];
    ok(|error| as_c!(hr_agent_incarnation(agent, bytes.as_mut_ptr(), error)));
    bytes
}

/// Which life a peer is, which is freed.
fn is(peer: *mut hr_peer_t) -> [u8; 16] {
    let mut bytes = [0; 16];
    ok(|error| as_c!(hr_peer_incarnation(peer, bytes.as_mut_ptr(), error)));
    as_c!(hr_peer_free(peer));
    bytes
}

#[test]
fn who_is_published_is_found_until_he_leaves() {
    let folder = tempfile::tempdir().unwrap();
    let path = c_text(folder.path().join("agents").to_str().unwrap());
    let open = || made(|directory, error| as_c!(hr_directory_folder(path.as_ptr(), directory, error)));
    let shared = memory();
    // Two handles of one folder, as two processes have them.
    for (theirs, ours) in [(open(), open()), (shared, shared)] {
        let (here, there) = (agent(c"here", ALL), agent(c"there", ALL));
        let told = not_found(here, ours, c"there");
        assert_eq!(told.status, HR_NOT_FOUND, "{}", told.message);
        let registration = publish(there, theirs);
        assert_eq!(is(find(here, ours, c"there")), incarnation_of(there));
        ok(|error| as_c!(hr_registration_check(registration, error)));
        ok(|error| as_c!(hr_registration_update(registration, there, error)));
        let told = failed(|error| as_c!(hr_registration_update(registration, here, error)));
        assert_eq!(told.status, HR_WRONG_AGENT, "{}", told.message);
        as_c!(hr_registration_free(registration));
        assert_eq!(not_found(here, ours, c"there").status, HR_NOT_FOUND);
        as_c! {
            hr_agent_destroy(here);
            hr_agent_destroy(there);
            hr_directory_free(theirs);
            if ours != theirs {
                hr_directory_free(ours);
            }
        }
    }
}

#[test]
fn a_name_belongs_to_the_next_life() {
    let directory = memory();
    let (here, old, new) = (agent(c"here", ALL), agent(c"there", ALL), agent(c"there", ALL));
    let before = publish(old, directory);
    let after = publish(new, directory);
    let told = failed(|error| as_c!(hr_registration_check(before, error)));
    assert_eq!((told.status, told.retryable), (HR_SUPERSEDED, false), "{}", told.message);
    let told = failed(|error| as_c!(hr_registration_update(before, old, error)));
    assert_eq!(told.status, HR_SUPERSEDED, "{}", told.message);
    // Whatever the old one still does, the new one stands.
    as_c!(hr_registration_free(before));
    assert_eq!(is(find(here, directory, c"there")), incarnation_of(new));
    as_c!(hr_agent_destroy(new));
    let told = not_found(here, directory, c"there");
    assert_eq!((told.status, told.retryable), (HR_UNREACHABLE, true), "a hint: {}", told.message);
    as_c! {
        // In any order.
        hr_directory_free(directory);
        hr_registration_free(after);
        hr_agent_destroy(old);
        hr_agent_destroy(here);
    }
}

#[test]
fn what_a_directory_does_not_take_is_told() {
    let (directory, agent) = (memory(), agent(c"a", ALL));
    for ttl_ns in [0, 99_999_999, u64::MAX] {
        let told = refused(|registration, error| {
            as_c!(hr_agent_publish(agent, directory, ttl_ns, registration, error))
        });
        assert_eq!(told.status, HR_INVALID_CONFIG, "{}", told.message);
        assert!(told.message.contains("ttl"), "{}", told.message);
    }
    let long = c_text("x".repeat(256));
    for name in [c"", &long] {
        let told = not_found(agent, directory, name);
        assert_eq!(told.status, HR_INVALID_ARGUMENT, "{}", told.message);
    }
    assert_eq!(not_found(agent, directory, c"\xff").message, "name is not UTF-8");
    let folder =
        |path: &CStr| refused(|directory, error| as_c!(hr_directory_folder(path.as_ptr(), directory, error)));
    assert_eq!(folder(c"\xff").message, "path is not UTF-8");
    let told = folder(c"/proc/version/agents");
    assert!(matches!(told.status, HR_OS | HR_DIRECTORY), "{:?}: {}", told.status, told.message);
    as_c!(hr_registration_free(null_mut()));
    as_c!(hr_directory_free(directory));
    as_c!(hr_agent_destroy(agent));
}

#[test]
fn each_error_of_a_directory_has_a_status() {
    use transfer_core::directory::{Corrupt, DirectoryError};
    use transfer_core::{Error, OsError};
    let place = || "there".to_owned();
    for (error, status, os_code) in [
        (DirectoryError::Full { place: place(), cause: place() }, HR_DIRECTORY, 0),
        (DirectoryError::Unreachable { place: place(), cause: place() }, HR_DIRECTORY, 0),
        (DirectoryError::Corrupt(Corrupt::nameless("k")), HR_DIRECTORY, 0),
        (DirectoryError::Os(OsError::new("openat", "", 13)), HR_OS, 13),
    ] {
        let retryable = matches!(error, DirectoryError::Unreachable { .. });
        let object = Box::into_raw(Box::new(hr_error_t::from(Error::from(error))));
        as_c! {
            assert_eq!((hr_error_status(object), hr_error_os_code(object)), (status, os_code));
            assert_eq!(hr_error_retryable(object), retryable);
            hr_error_free(object);
        }
    }
}
