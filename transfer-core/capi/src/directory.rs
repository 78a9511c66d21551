//! Directories, in which agents find each other by name.

use std::ffi::c_char;
use std::time::Duration;

use transfer_core::directory::{Directory, FileDirectory, MemoryDirectory, Registration};

use crate::agent::hr_agent_t;
use crate::boundary::{Call, call, value};
use crate::error::hr_error_t;
use crate::peer::hr_peer_t;
use crate::status::hr_status_t;

/// Maps names of agents to their metadata. What it says is a hint: whoever looks an agent up goes to it, and the agent
/// itself says who it is. So a stale or forged entry costs a failed connection.
#[derive(Debug)]
pub struct hr_directory_t {
    directory: Box<dyn Directory>,
}

/// An agent's place in a directory, renewed until it is freed. A name belongs to whoever published last.
#[derive(Debug)]
pub struct hr_registration_t {
    registration: Registration,
}

/// A directory within this process, for tests and for agents that share one; each call makes another one. No function
/// waits for it. Free it with hr_directory_free().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hr_directory_memory(
    directory: *mut *mut hr_directory_t,
    error: *mut *mut hr_error_t,
) -> hr_status_t {
    let body = |c: &Call| {
        let place = c.out(directory, "directory")?.none();
        place.give(hr_directory_t { directory: Box::new(MemoryDirectory::new()) });
        Ok(())
    };
    // SAFETY: C1.
    unsafe { call(error, body) }
}

/// The directory in a folder that its users share, on one host or by a network file system; the folder is made if it is
/// not there. It holds one file for each agent, and what killed processes leave blocks nobody. Whoever may write to the
/// folder may remove and replace entries. The clocks of hosts that share it must agree to well within `ttl_ns` of
/// hr_agent_publish(). Functions that use it block for up to five seconds, or as the file system does.
/// Free it with hr_directory_free().
/// Errors: HR_DIRECTORY or HR_OS where the folder cannot be made.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hr_directory_folder(
    path: *const c_char,
    directory: *mut *mut hr_directory_t,
    error: *mut *mut hr_error_t,
) -> hr_status_t {
    let body = |c: &Call| {
        let place = c.out(directory, "directory")?.none();
        let directory = FileDirectory::open(c.text(path, "path")?)?;
        place.give(hr_directory_t { directory: Box::new(directory) });
        Ok(())
    };
    // SAFETY: C1.
    unsafe { call(error, body) }
}

/// Frees a directory. Registrations in it stay. NULL is fine.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hr_directory_free(directory: *mut hr_directory_t) {
    // SAFETY: C1.
    unsafe { value((), |c| c.free(directory)) }
}

/// Registers the agent under its name, with what hr_agent_metadata() says now, and takes the name from whoever has it.
/// The entry is renewed until the registration is freed, and outlives the last renewal by `ttl_ns` nanoseconds, 100 ms
/// to 24 hours. Blocks as the directory does. Free it with hr_registration_free(), best before hr_agent_destroy(): it
/// does not end with the agent, and those who follow the entry would find nobody.
/// Errors: HR_INVALID_CONFIG for a ttl_ns out of range; HR_INVALID_ARGUMENT for a name that the directory cannot hold;
/// HR_SUPERSEDED where another agent took the name meanwhile; HR_DIRECTORY, HR_OS.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hr_agent_publish(
    agent: *const hr_agent_t,
    directory: *mut hr_directory_t,
    ttl_ns: u64,
    registration: *mut *mut hr_registration_t,
    error: *mut *mut hr_error_t,
) -> hr_status_t {
    let body = |c: &Call| {
        let place = c.out(registration, "registration")?.none();
        let blob = c.handle(agent, "agent")?.agent.metadata();
        let directory = &c.handle(directory, "directory")?.directory;
        place.give(hr_registration_t {
            registration: directory.publish(&blob, Duration::from_nanos(ttl_ns))?,
        });
        Ok(())
    };
    // SAFETY: C1.
    unsafe { call(error, body) }
}

/// Looks `name` up and connects to the agent, or gives the peer where it is connected already. Blocks as the directory
/// does, then as hr_agent_connect(). It tries once. Free the peer with hr_peer_free().
/// Errors: HR_NOT_FOUND where nobody of that name is registered; HR_DIRECTORY, HR_OS; as hr_agent_add_peer(), so
/// HR_UNREACHABLE where the entry is of an agent that is gone.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hr_agent_connect_by_name(
    agent: *mut hr_agent_t,
    directory: *const hr_directory_t,
    name: *const c_char,
    peer: *mut *mut hr_peer_t,
    error: *mut *mut hr_error_t,
) -> hr_status_t {
    let body = |c: &Call| {
        let place = c.out(peer, "peer")?.none();
        let agent = &c.handle(agent, "agent")?.agent;
        let (directory, name) = (&c.handle(directory, "directory")?.directory, c.text(name, "name")?);
        place.give(agent.connect_by_name(&**directory, name)?.into());
        Ok(())
    };
    // SAFETY: C1.
    unsafe { call(error, body) }
}

/// Whether the entry stands, as of the last renewal. Costs a lock, and waits for nothing.
/// Errors: HR_SUPERSEDED, which lasts: another agent, or another life of this one, has taken the name, and this
/// registration touches its entry no more. HR_DIRECTORY, HR_OS: tried again at the next renewal.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hr_registration_check(
    registration: *const hr_registration_t,
    error: *mut *mut hr_error_t,
) -> hr_status_t {
    // SAFETY: C1.
    unsafe { call(error, |c| Ok(c.handle(registration, "registration")?.registration.check()?)) }
}

/// Publishes what the agent says of itself now. Peers that are connected learn of new regions by themselves; this is for
/// those who come later and want to see them in the directory. Blocks as the directory does.
/// Errors: HR_WRONG_AGENT for another agent than the registered one; HR_SUPERSEDED, HR_DIRECTORY, HR_OS.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hr_registration_update(
    registration: *mut hr_registration_t,
    agent: *const hr_agent_t,
    error: *mut *mut hr_error_t,
) -> hr_status_t {
    let body = |c: &Call| {
        let blob = c.handle(agent, "agent")?.agent.metadata();
        Ok(c.handle(registration, "registration")?.registration.update(&blob)?)
    };
    // SAFETY: C1.
    unsafe { call(error, body) }
}

/// Removes the entry, if the name still belongs to it, and frees the registration. Blocks as the directory does; where
/// that fails, the entry ends with its time to live. NULL is fine.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hr_registration_free(registration: *mut hr_registration_t) {
    // SAFETY: C1.
    unsafe { value((), |c| c.free(registration)) }
}
