//! Agents.

use std::ffi::{CString, c_char};

use transfer_core::Agent;

use crate::boundary::{Call, call, value};
use crate::config::hr_config_t;
use crate::error::{c_text, hr_error_t};
use crate::peer::hr_peer_t;
use crate::status::hr_status_t;

/// One endpoint in one process: it owns registered memory, meets peers, and moves bytes to and from theirs. It runs
/// threads of its own, so create it after fork(2), never before.
#[derive(Debug)]
pub struct hr_agent_t {
    pub(crate) agent: Agent,
    name: CString,
    address: Option<CString>,
}

/// Creates an agent: listens, and starts its threads. Takes well under a millisecond.
/// End it with hr_agent_destroy().
/// Errors: HR_INVALID_CONFIG; HR_OS where the address is taken or a resource is short.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hr_agent_create(
    config: *const hr_config_t,
    agent: *mut *mut hr_agent_t,
    error: *mut *mut hr_error_t,
) -> hr_status_t {
    let body = |c: &Call| {
        let out = c.out(agent, "agent")?.none();
        let agent = Agent::new(c.versioned(config, "config")?.to_config(c)?)?;
        let address = agent.address().map(|address| c_text(address.to_string()));
        out.give(hr_agent_t { name: c_text(agent.name()), address, agent });
        Ok(())
    };
    // SAFETY: C1.
    unsafe { call(error, body) }
}

/// Says goodbye to the peers, ends every transfer with HR_AGENT_CLOSED, joins the agent's threads and frees the handle.
/// Other handles of the agent stay valid, in any order, until they are freed: their calls fail with HR_AGENT_CLOSED or
/// HR_PEER_LOST, and allocated regions keep their memory. Blocks for the slices in flight. Not from a callback. NULL is
/// fine.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hr_agent_destroy(agent: *mut hr_agent_t) {
    // SAFETY: C1.
    unsafe { value((), |c| c.free(agent)) }
}

/// Its name. Belongs to the agent. NULL for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hr_agent_name(agent: *const hr_agent_t) -> *const c_char {
    // SAFETY: C1.
    unsafe { value(std::ptr::null(), |c| Ok(c.handle(agent, "agent")?.name.as_ptr())) }
}

/// Where peers reach it, for hr_agent_connect(): "tcp://HOST:PORT", or "unix:@NAME" within this host. Belongs to the
/// agent. NULL where it does not listen, and for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hr_agent_address(agent: *const hr_agent_t) -> *const c_char {
    let none = std::ptr::null();
    // SAFETY: C1.
    unsafe {
        value(none, |c| Ok(c.handle(agent, "agent")?.address.as_ref().map_or(none, |text| text.as_ptr())))
    }
}

/// Which life of it: 16 random bytes, drawn when it was created.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hr_agent_incarnation(
    agent: *const hr_agent_t,
    incarnation: *mut u8,
    error: *mut *mut hr_error_t,
) -> hr_status_t {
    let body = |c: &Call| {
        let bytes = c.handle(agent, "agent")?.agent.incarnation().to_bytes();
        c.fill(incarnation, &bytes, "incarnation")
    };
    // SAFETY: C1.
    unsafe { call(error, body) }
}

/// Everything that a peer needs to know, as a versioned blob for the application to carry to the peer's
/// hr_agent_add_peer(). Regions registered later are told over the agents' own connection.
/// Free the blob with hr_bytes_free().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hr_agent_metadata(
    agent: *const hr_agent_t,
    blob: *mut *mut u8,
    len: *mut usize,
    error: *mut *mut hr_error_t,
) -> hr_status_t {
    let body = |c: &Call| {
        let (blob, len) = (c.out(blob, "blob")?.none(), c.out(len, "len")?);
        len.put(0);
        let bytes = c.handle(agent, "agent")?.agent.metadata();
        len.put(bytes.len());
        blob.give_bytes(bytes);
        Ok(())
    };
    // SAFETY: C1.
    unsafe { call(error, body) }
}

/// Connects to the agent at `address` ("tcp://HOST:PORT" or "unix:@NAME"), or gives the peer where it is connected
/// already. When it returns, both sides know each other. Blocks, up to connect_timeout_ns, and up to peer_timeout_ns
/// for a peer that freezes. Free the peer with hr_peer_free().
/// Errors: HR_INVALID_ADDRESS, HR_UNREACHABLE, HR_VERSION_MISMATCH, HR_PROTOCOL, HR_AUTH_REQUIRED, HR_AUTH_FAILED,
/// HR_PEER_LOST where it goes in the middle, HR_OS.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hr_agent_connect(
    agent: *mut hr_agent_t,
    address: *const c_char,
    peer: *mut *mut hr_peer_t,
    error: *mut *mut hr_error_t,
) -> hr_status_t {
    let body = |c: &Call| {
        let peer = c.out(peer, "peer")?.none();
        let (agent, address) = (&c.handle(agent, "agent")?.agent, c.text(address, "address")?);
        peer.give(agent.connect(&address.parse()?)?.into());
        Ok(())
    };
    // SAFETY: C1.
    unsafe { call(error, body) }
}

/// Connects to the agent that a blob of hr_agent_metadata() speaks of. Blocks like hr_agent_connect().
/// Free the peer with hr_peer_free().
/// Errors: as hr_agent_connect(); HR_PROTOCOL for a damaged blob; HR_UNREACHABLE where another agent is found at its
/// addresses, because the one that made the blob is gone.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hr_agent_add_peer(
    agent: *mut hr_agent_t,
    blob: *const u8,
    len: usize,
    peer: *mut *mut hr_peer_t,
    error: *mut *mut hr_error_t,
) -> hr_status_t {
    let body = |c: &Call| {
        let peer = c.out(peer, "peer")?.none();
        let (agent, blob) = (&c.handle(agent, "agent")?.agent, c.slice(blob, len, "blob")?);
        peer.give(agent.add_peer(blob)?.into());
        Ok(())
    };
    // SAFETY: C1.
    unsafe { call(error, body) }
}

/// The peers that are connected: writes up to `capacity` new handles, each to be freed with hr_peer_free(), and to
/// `count` how many peers there are. `peers` may be NULL where `capacity` is 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hr_agent_peers(
    agent: *const hr_agent_t,
    peers: *mut *mut hr_peer_t,
    capacity: usize,
    count: *mut usize,
    error: *mut *mut hr_error_t,
) -> hr_status_t {
    let body = |c: &Call| {
        let (places, count) = (c.outs(peers, capacity, "peers")?, c.out(count, "count")?);
        count.put(0);
        let peers = c.handle(agent, "agent")?.agent.peers();
        count.put(peers.len());
        places.give_all(peers.into_iter().map(hr_peer_t::from));
        Ok(())
    };
    // SAFETY: C1.
    unsafe { call(error, body) }
}
