//! The header means to a C compiler what the library means: layouts, values, functions.
#![allow(
    unreachable_pub,
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test"
)]

mod support;

use std::fmt::Write;
use std::mem::offset_of;

use headrace::*;
use support::{STRICT, csrc, run, there_is};

/// C expressions, and what they are to Rust.
type Facts = Vec<(String, i64)>;

fn fact(facts: &mut Facts, expression: String, value: usize) {
    facts.push((expression, i64::try_from(value).unwrap()));
}

fn field_size<T, F>(_field: impl Fn(&T) -> &F) -> usize {
    size_of::<F>()
}

/// Bytes of a struct that are no field's.
#[derive(Debug, PartialEq)]
struct Padding(usize);

/// Size and offset of each field. One that is left out does not compile.
macro_rules! fields {
    ($facts:ident, $type:ident { $($field:ident),* $(,)? }) => {{
        let _complete = |value: $type| { let $type { $($field: _),* } = value; };
        fact(&mut $facts, concat!("sizeof(", stringify!($type), ")").into(), size_of::<$type>());
        let mut bytes = 0;
        $(
            let (of, size) = (concat!(stringify!($type), ", ", stringify!($field)), field_size(|value: &$type| &value.$field));
            fact(&mut $facts, format!("offsetof({of})"), offset_of!($type, $field));
            fact(&mut $facts, concat!("sizeof(((", stringify!($type), " *)0)->", stringify!($field), ")").into(), size);
            bytes += size;
        )*
        Padding(size_of::<$type>() - bytes)
    }};
}

/// The value of each enumerator. One that is left out does not compile.
macro_rules! values {
    ($facts:ident, $type:ident { $($name:ident)* }) => {
        let _complete = |value: $type| match value { $($type::$name => (),)* };
        fact(&mut $facts, concat!("sizeof(", stringify!($type), ")").into(), size_of::<$type>());
        $($facts.push((stringify!($name).to_owned(), i64::from($type::$name as i32)));)*
    };
}

fn structs() -> Facts {
    let mut facts = Facts::new();
    let padding = fields!(
        facts,
        hr_config_t {
            size,
            name,
            tcp_listen,
            app_metadata,
            app_metadata_len,
            key,
            paths,
            flags,
            tcp_streams,
            tcp_buffer_bytes,
            slices_in_flight_max,
            copy_threads,
            events_max,
            inline_bytes_max,
            slice_bytes_max,
            unsent_bytes_max,
            transfer_timeout_ns,
            connect_timeout_ns,
            peer_timeout_ns,
            busy_poll_ns,
            blocks_max,
            key_file,
            tcp_threads,
        }
    );
    assert_eq!(
        padding,
        Padding(0),
        "an older program leaves garbage in padding, where a newer library has a field"
    );
    let padding = fields!(
        facts,
        hr_xfer_options_t {
            size,
            local_indices,
            local_count,
            remote_indices,
            remote_count,
            notif,
            notif_len,
            timeout_ns,
            bump_counter,
            bump_by,
        }
    );
    assert_eq!(padding, Padding(0), "as above");
    let padding = fields!(facts, hr_region_options_t { size, access, flags, block_bytes, numa_node });
    assert_eq!(padding, Padding(0), "as above");
    fields!(facts, hr_desc_t { region, offset, len, stride, generation, pages, count, kind });
    fields!(facts, hr_done_t { bytes, elapsed_ns, path });
    fields!(facts, hr_failure_t { desc, attempts, offset, rail });
    fields!(facts, hr_event_t { kind, peer, data, data_len, reason });
    fields!(facts, hr_region_info_t { id, len, block_bytes, kind, access, label });
    facts
}

fn enums() -> Facts {
    let mut facts = Facts::new();
    values!(facts, hr_status_t {
        HR_OK HR_PENDING
        HR_INVALID_ARGUMENT HR_INVALID_CONFIG HR_INVALID_ADDRESS HR_BAD_LIST HR_LENGTH_MISMATCH HR_OUT_OF_BOUNDS
        HR_REGION_CLOSED HR_WRONG_AGENT HR_TOO_LARGE HR_READ_ONLY
        HR_VERSION_MISMATCH HR_PROTOCOL HR_NO_PATH HR_NOT_FOUND HR_AUTH_REQUIRED HR_AUTH_FAILED HR_FALLBACK_REFUSED
        HR_UNREACHABLE HR_PEER_LOST HR_TRANSFER_FAILED HR_DEADLINE HR_TIMED_OUT HR_NOT_NOTIFIED HR_REGION_BUSY HR_DIRECTORY
        HR_CANCELLED HR_AGENT_CLOSED HR_STALE HR_SUPERSEDED
        HR_OS
        HR_PANIC HR_OTHER
    });
    values!(facts, hr_path_t { HR_PATH_OTHER HR_PATH_SHARED_MEMORY HR_PATH_PROCESS_MEMORY HR_PATH_TCP });
    values!(facts, hr_desc_kind_t { HR_DESC_CONTIGUOUS HR_DESC_STRIDED HR_DESC_PAGED });
    values!(facts, hr_event_kind_t { HR_EVENT_OTHER HR_EVENT_NOTIF HR_EVENT_PEER_UP HR_EVENT_PEER_LOST });
    values!(facts, hr_access_t { HR_ACCESS_OTHER HR_ACCESS_READ_ONLY HR_ACCESS_READ_WRITE });
    values!(facts, hr_region_kind_t { HR_REGION_OTHER HR_REGION_ALLOCATED HR_REGION_FOREIGN });
    for (name, value) in [
        ("HR_VERSION_MAJOR", HR_VERSION_MAJOR),
        ("HR_VERSION_MINOR", HR_VERSION_MINOR),
        ("HR_VERSION_PATCH", HR_VERSION_PATCH),
        ("HR_CONFIG_INSECURE_REMOTE_WITHOUT_KEY", HR_CONFIG_INSECURE_REMOTE_WITHOUT_KEY),
        ("HR_CONFIG_STRICT", HR_CONFIG_STRICT),
        ("HR_CONFIG_ENCRYPT_DATA", HR_CONFIG_ENCRYPT_DATA),
        ("HR_REGION_HUGE_PAGES", HR_REGION_HUGE_PAGES),
    ] {
        facts.push((name.into(), value.into()));
    }
    fact(&mut facts, "HR_LABEL_SIZE".into(), HR_LABEL_SIZE);
    fact(&mut facts, "HR_KEY_SIZE".into(), HR_KEY_SIZE);
    facts.push(("HR_FOREVER".into(), HR_FOREVER.cast_signed()));
    facts
}

/// A program that prints what the compiler makes of each expression.
fn program(facts: &Facts) -> String {
    // Twice, since that has to be harmless.
    let mut text =
        "#include <headrace.h>\n#include <headrace.h>\n#include <stdio.h>\n\nint main(void)\n{\n".to_owned();
    for (expression, _) in facts {
        writeln!(text, "    printf(\"%lld\\n\", (long long)({expression}));").unwrap();
    }
    text + "    return 0;\n}\n"
}

fn agrees(compiler: &str, language: &str, standard: &str) {
    let mut facts = structs();
    facts.extend(enums());
    let dir = tempfile::tempdir().unwrap();
    let (source, binary) = (dir.path().join("program"), dir.path().join("facts"));
    std::fs::write(&source, program(&facts)).unwrap();
    let (include, out) = (format!("-I{}", csrc().display()), format!("-o{}", binary.display()));
    let mut args = STRICT.to_vec();
    args.extend([standard, &include, "-x", language, source.to_str().unwrap(), &out]);
    run(compiler, args);
    let printed = run(&binary, [""; 0]);
    let printed: Vec<i64> = printed.lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(printed.len(), facts.len());
    for ((expression, ours), theirs) in facts.iter().zip(printed) {
        assert_eq!(theirs, *ours, "{expression} in {language}");
    }
}

#[test]
fn c_sees_the_same_layouts_and_values() {
    agrees("cc", "c", "-std=c99");
}

#[test]
fn cplusplus_sees_the_same_layouts_and_values() {
    if there_is("c++") {
        agrees("c++", "c++", "-std=c++11");
    }
}

#[test]
fn the_version_is_that_of_the_crate() {
    let version = format!("{HR_VERSION_MAJOR}.{HR_VERSION_MINOR}.{HR_VERSION_PATCH}");
    assert_eq!(version, env!("CARGO_PKG_VERSION"));
}
