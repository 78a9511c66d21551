//! What is wrong with arguments is told, for every argument of every function, and never crashes.

use std::collections::BTreeSet;
use std::ffi::c_char;
use std::ptr::{null, null_mut, without_provenance, without_provenance_mut};

use super::*;
use hr_status_t::{HR_INVALID_ARGUMENT, HR_OK, HR_PANIC};

/// What a function gave for arguments that cannot be used.
#[derive(Debug, PartialEq)]
enum Gave {
    Status(hr_status_t),
    /// What its comment says for NULL.
    Nothing,
    /// Something.
    Other,
}

fn nothing_if(is_nothing: bool) -> Gave {
    if is_nothing { Gave::Nothing } else { Gave::Other }
}

/// Each function that takes pointers, with all of its pointers at an address; with all results wanted at one.
type Calls = Vec<(&'static str, Box<dyn Fn(usize) -> Gave>)>;

/// Adds calls whose pointers all have one address. What returns no status is followed by what says that it is nothing.
macro_rules! calls {
    ($calls:ident: $($name:ident($($argument:expr),*) $(=> $nothing:expr)?;)*) => {
        $($calls.push((stringify!($name), Box::new(|at| {
            #[allow(unused_variables, reason = "some have no use for it")]
            let p = Pointer(at);
            calls!(@told as_c!($name($(argument(&p, $argument)),*)), $($nothing)?)
        })));)*
    };
    (@told $call:expr,) => { Gave::Status($call) };
    (@told $call:expr, $nothing:expr) => { nothing_if(($nothing)($call)) };
}

#[derive(Clone, Copy)]
struct Pointer(usize);

/// An argument: a pointer at the address in question, or a plain value.
trait Argument<T> {
    fn at(self, pointer: &Pointer) -> T;
}

struct P;

impl<T> Argument<*const T> for P {
    fn at(self, pointer: &Pointer) -> *const T {
        without_provenance(pointer.0)
    }
}

impl<T> Argument<*mut T> for P {
    fn at(self, pointer: &Pointer) -> *mut T {
        without_provenance_mut(pointer.0)
    }
}

struct V<T>(T);

impl<T> Argument<T> for V<T> {
    fn at(self, _pointer: &Pointer) -> T {
        self.0
    }
}

fn argument<T>(pointer: &Pointer, argument: impl Argument<T>) -> T {
    argument.at(pointer)
}

/// Where an error object would go: nowhere.
const E: V<*mut *mut hr_error_t> = V(null_mut());

fn of_agents() -> Calls {
    let mut calls = Calls::new();
    calls! { calls:
        hr_config_init(P, V(size_of::<hr_config_t>()));
        hr_agent_create(P, P, E);
        hr_agent_destroy(P) => |()| true;
        hr_agent_name(P) => |name: *const c_char| name.is_null();
        hr_agent_address(P) => |address: *const c_char| address.is_null();
        hr_agent_incarnation(P, P, E);
        hr_agent_metadata(P, P, P, E);
        hr_agent_connect(P, P, P, E);
        hr_agent_add_peer(P, P, V(8), P, E);
        hr_agent_peers(P, P, V(1), P, E);
        hr_agent_alloc(P, V(8), P, P, P, E);
        hr_agent_register(P, P, V(8), P, P, P, E);
        hr_region_options_init(P, V(size_of::<hr_region_options_t>()));
        hr_agent_prepare(P, P, V(1), P, E);
        hr_agent_poll_event(P, P, E);
        hr_agent_wait_event(P, V(0), P, E);
        hr_agent_event_fd(P, P, E);
        hr_agent_counter(P, P, E);
        hr_counter_id(P) => |id| id == 0;
        hr_counter_get(P) => |value| value == 0;
        hr_counter_wait(P, V(0), V(0), P, E);
        hr_counter_free(P) => |()| true;
        hr_directory_memory(P, E);
        hr_directory_folder(P, P, E);
        hr_directory_free(P) => |()| true;
        hr_agent_publish(P, P, V(0), P, E);
        hr_agent_connect_by_name(P, P, P, P, E);
        hr_registration_check(P, E);
        hr_registration_update(P, P, E);
        hr_registration_free(P) => |()| true;
        hr_event_free(P) => |()| true;
        hr_error_status(P) => |status| status == HR_OK;
        hr_error_message(P) => |message| text(message) == "no error";
        hr_error_retryable(P) => |retryable: bool| !retryable;
        hr_error_os_code(P) => |code| code == 0;
        hr_error_failure(P, P) => |told: bool| !told;
        hr_error_free(P) => |()| true;
        hr_region_id(P) => |id| id == 0;
        hr_region_len(P) => |len| len == 0;
        hr_region_label(P) => |label: *const c_char| label.is_null();
        hr_region_data(P) => |data: *mut std::ffi::c_void| data.is_null();
        hr_region_write(P, V(0), P, V(1), E);
        hr_region_read(P, V(0), P, V(1), E);
        hr_region_generation(P) => |generation| generation == 0;
        hr_region_revoke(P, V(0), V(0), P, E);
        hr_region_close(P, E);
        hr_region_free(P) => |()| true;
    }
    calls
}

fn of_peers() -> Calls {
    let mut calls = Calls::new();
    calls! { calls:
        hr_peer_prepare(P, P, V(1), P, E);
        hr_list_count(P) => |count| count == 0;
        hr_list_bytes(P) => |bytes| bytes == 0;
        hr_list_free(P) => |()| true;
        hr_remote_list_count(P) => |count| count == 0;
        hr_remote_list_bytes(P) => |bytes| bytes == 0;
        hr_remote_list_path(P) => |path| path == hr_path_t::HR_PATH_OTHER;
        hr_remote_list_free(P) => |()| true;
        hr_peer_clone(P) => |peer: *mut hr_peer_t| peer.is_null();
        hr_peer_free(P) => |()| true;
        hr_peer_name(P) => |name: *const c_char| name.is_null();
        hr_peer_incarnation(P, P, E);
        hr_peer_app_metadata(P, P) => |bytes: *const u8| bytes.is_null();
        hr_peer_is_up(P) => |up: bool| !up;
        hr_peer_region(P, P, P, E);
        hr_peer_regions(P, P, V(1), P, E);
        hr_peer_sync(P, E);
        hr_peer_notify(P, P, V(1), E);
        hr_peer_disconnect(P, E);
        hr_peer_explain(P, P, P, P, E);
        hr_xfer_options_init(P, V(size_of::<hr_xfer_options_t>()));
        hr_peer_read(P, P, P, P, P, E);
        hr_peer_write(P, P, P, P, P, E);
        hr_xfer_poll(P, P, E);
        hr_xfer_wait(P, V(0), P, E);
        hr_xfer_on_done(P, V(None), P, E);
        hr_xfer_cancel(P, E);
        hr_xfer_path(P) => |path| path == hr_path_t::HR_PATH_OTHER;
        hr_xfer_free(P) => |()| true;
    }
    calls
}

/// With NULL for everything. Those that free bytes and text cannot see what is misaligned, so they stand apart.
fn all() -> Calls {
    let mut calls = of_agents();
    calls.extend(of_peers());
    calls! { calls:
        hr_string_free(V(null_mut())) => |()| true;
        hr_bytes_free(V(null_mut()), V(8)) => |()| true;
    }
    calls
}

#[test]
fn every_function_takes_null_and_misaligned_pointers() {
    for (name, call) in all() {
        for at in [0, 1] {
            let gave = call(at);
            assert!(
                matches!(gave, Gave::Nothing | Gave::Status(HR_INVALID_ARGUMENT)),
                "{name} at {at}: {gave:?}"
            );
        }
    }
}

#[test]
fn a_panic_gets_out_of_no_function() {
    for (name, call) in all() {
        PANICS.set(true);
        let gave = call(0);
        assert!(!PANICS.take(), "{name} has no net");
        assert!(matches!(gave, Gave::Nothing | Gave::Status(HR_PANIC)), "{name}: {gave:?}");
    }
}

#[test]
fn no_function_of_the_header_is_left_out() {
    let header = include_str!("../../../../csrc/headrace.h");
    let (_, code) = header.split_once("extern \"C\" {").unwrap();
    let code = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    let before = code.filter_map(|line| line.split_once('(').map(|(before, _)| before));
    let names =
        before.filter_map(|before| before.rsplit([' ', '*']).next()).filter(|name| name.starts_with("hr_"));
    let mut declared: BTreeSet<_> = names.collect();
    // These take no pointer that they look at, and do nothing that could go wrong.
    for name in ["hr_version", "hr_status_name", "hr_desc_contiguous", "hr_desc_strided", "hr_desc_paged"] {
        assert!(declared.remove(name), "{name}");
    }
    let tried: BTreeSet<_> = all().into_iter().map(|(name, _)| name).collect();
    assert_eq!(tried, declared);
}

#[test]
fn a_panic_tells_its_message() {
    PANICS.set(true);
    let told = failed(|error| as_c!(hr_peer_sync(null_mut(), error)));
    assert_eq!(told.status, HR_PANIC);
    assert!(told.message.ends_with("a bug of it: as asked"), "{}", told.message);
    assert!(!told.retryable);
}

#[test]
fn a_misaligned_place_for_the_error_is_left_alone() {
    let mut place = [garbage::<hr_error_t>(); 2];
    let misaligned = (&raw mut place).cast::<u8>().wrapping_add(1).cast();
    assert_eq!(as_c!(hr_peer_sync(null_mut(), misaligned)), HR_INVALID_ARGUMENT);
    assert_eq!(place, [garbage(); 2]);
}

/// Calls a function with good arguments but one, which is named.
fn names(what: &str, told: &Told) {
    assert_eq!(told.status, HR_INVALID_ARGUMENT, "{what}: {}", told.message);
    assert_eq!(told.message, format!("{what} is NULL"));
}

#[test]
fn each_null_is_named() {
    let pair = Pair::new(ALL, 4);
    let (agent, peer, local, remote) = (pair.here, pair.peer, pair.local, pair.remote);
    let label = c"kv".as_ptr();
    let mut word = 0_usize;
    as_c! {
        let good = config(c"a");
        names("agent", &failed(|error| hr_agent_create(&raw const good, null_mut(), error)));
        names(
            "config.name",
            &refused(|agent, error| {
                let mut config = config(c"a");
                config.name = null();
                hr_agent_create(&raw const config, agent, error)
            }),
        );
        names("label", &refused(|region, error| hr_agent_alloc(agent, 8, null(), null(), region, error)));
        names("region", &failed(|error| hr_agent_alloc(agent, 8, label, null(), null_mut(), error)));
        names(
            "addr",
            &refused(|region, error| hr_agent_register(agent, null_mut(), 8, label, null(), region, error)),
        );
        names("address", &refused(|peer, error| hr_agent_connect(agent, null(), peer, error)));
        names("blob", &refused(|peer, error| hr_agent_add_peer(agent, null(), 8, peer, error)));
        names("blob", &failed(|error| hr_agent_metadata(agent, null_mut(), &raw mut word, error)));
        names("len", &refused(|blob, error| hr_agent_metadata(agent, blob, null_mut(), error)));
        names("incarnation", &failed(|error| hr_agent_incarnation(agent, null_mut(), error)));
        names("count", &failed(|error| hr_agent_peers(agent, null_mut(), 0, null_mut(), error)));
        names("peers", &failed(|error| hr_agent_peers(agent, null_mut(), 1, &raw mut word, error)));
        names("event", &failed(|error| hr_agent_poll_event(agent, null_mut(), error)));
        names("fd", &failed(|error| hr_agent_event_fd(agent, null_mut(), error)));
        names("counter", &failed(|error| hr_agent_counter(agent, null_mut(), error)));
        names("descs", &refused(|list, error| hr_agent_prepare(agent, null(), 1, list, error)));
        names(
            "desc.pages",
            &refused(|list, error| {
                let desc = hr_desc_paged(0, 0, PAGE, PAGE, null(), 2);
                hr_agent_prepare(agent, &raw const desc, 1, list, error)
            }),
        );
        names("infos", &failed(|error| hr_peer_regions(peer, null_mut(), 1, &raw mut word, error)));
        names("info", &failed(|error| hr_peer_region(peer, label, null_mut(), error)));
        names("data", &failed(|error| hr_peer_notify(peer, null(), 1, error)));
        names("data", &failed(|error| hr_region_write(pair.ours, 0, null(), 1, error)));
        names("data", &failed(|error| hr_region_read(pair.ours, 0, null_mut(), 1, error)));
        names("text", &failed(|error| hr_peer_explain(peer, local, remote, null_mut(), error)));
        names("local", &refused(|text, error| hr_peer_explain(peer, null(), remote, text, error)));
        names("remote", &refused(|xfer, error| hr_peer_read(peer, local, null(), null(), xfer, error)));
        names("xfer", &failed(|error| hr_peer_write(peer, local, remote, null(), null_mut(), error)));
        names(
            "options.notif",
            &refused(|xfer, error| {
                let mut options = options();
                options.notif_len = 1;
                hr_peer_write(peer, local, remote, &raw const options, xfer, error)
            }),
        );
    }
}

#[test]
fn arrays_of_impossible_length_are_refused() {
    let pair = Pair::new(ALL, 1);
    let byte = 0_u8;
    let mut word = 0_usize;
    let told = [
        failed(|error| as_c!(hr_peer_notify(pair.peer, &raw const byte, usize::MAX, error))),
        failed(|error| {
            as_c!(hr_region_write(pair.ours, 0, (&raw const byte).cast(), usize::MAX / 2 + 1, error))
        }),
        failed(|error| {
            as_c!(hr_peer_regions(
                pair.peer,
                without_provenance_mut(64),
                usize::MAX / 8,
                &raw mut word,
                error
            ))
        }),
    ];
    for told in told {
        assert_eq!(told.status, HR_INVALID_ARGUMENT);
        assert!(told.message.contains("more elements than memory can hold"), "{}", told.message);
    }
    let end = without_provenance_mut(usize::MAX - 7);
    let told = refused(|region, error| {
        as_c!(hr_agent_register(pair.here, end, 16, c"beyond".as_ptr(), null(), region, error))
    });
    assert_eq!(told.message, "len reaches beyond the address space");
}

#[test]
fn text_has_to_be_utf8() {
    let agent = agent(c"a", ALL);
    let told =
        refused(|region, error| as_c!(hr_agent_alloc(agent, 8, c"\xff".as_ptr(), null(), region, error)));
    assert_eq!((told.status, told.message.as_str()), (HR_INVALID_ARGUMENT, "label is not UTF-8"));
    as_c!(hr_agent_destroy(agent));
}

/// A configuration as a program was compiled with it whose header knows more, or less, than this library.
#[repr(C)]
struct OtherAge {
    config: hr_config_t,
    further: u64,
}

fn create(config: *const hr_config_t) -> Result<(), Told> {
    let mut agent = null_mut();
    let mut error = null_mut();
    if as_c!(hr_agent_create(config, &raw mut agent, &raw mut error)) == HR_OK {
        as_c!(hr_agent_destroy(agent));
        return Ok(());
    }
    as_c!(hr_error_free(error));
    Err(refused(|agent, error| as_c!(hr_agent_create(config, agent, error))))
}

#[test]
fn programs_and_libraries_of_different_ages_understand_each_other() {
    // A newer program: what it added is zero after the init function, and has to stay so.
    let mut newer = OtherAge { config: config(c"a"), further: 7 };
    let status = as_c!(hr_config_init((&raw mut newer).cast(), size_of::<OtherAge>()));
    assert_eq!((status, newer.further, newer.config.size), (HR_OK, 0, size_of::<OtherAge>()));
    newer.config.name = c"a".as_ptr();
    assert!(create((&raw const newer).cast()).is_ok());
    newer.further = 1 << 56;
    let told = create((&raw const newer).cast()).err().unwrap();
    assert_eq!(told.message, "config has a field that this library is too old for");

    // An older program: nothing behind what it knows is read or written.
    let known = std::mem::offset_of!(hr_config_t, paths);
    let mut older = config(c"a");
    (older.paths, older.peer_timeout_ns) = (1 << 31, 0);
    let status = as_c!(hr_config_init(&raw mut older, known));
    assert_eq!((status, older.paths, older.peer_timeout_ns), (HR_OK, 1 << 31, 0));
    older.name = c"a".as_ptr();
    assert!(create(&raw const older).is_ok(), "the rest has its defaults");
}

#[test]
fn a_size_that_is_none_is_told() {
    for size in [0, 7, 12, 4097, usize::MAX] {
        let mut config = config(c"a");
        config.size = size;
        let told = create(&raw const config).err().unwrap();
        assert_eq!(told.status, HR_INVALID_ARGUMENT);
        assert!(
            told.message.contains(&format!("a size field of {size}; set it to sizeof")),
            "{}",
            told.message
        );
        assert_eq!(as_c!(hr_config_init(&raw mut config, size)), HR_INVALID_ARGUMENT);
    }
}
