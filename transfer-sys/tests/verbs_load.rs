//! Opening the library: there, not there, not all there.
#![allow(
    missing_docs,
    unreachable_pub,
    unsafe_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test"
)]

mod verbs;

use transfer_sys::verbs::{Access, Library, LoadError, MemoryRegion};
use verbs::{Bed, End};

#[test]
fn a_library_that_is_not_there_is_named_with_what_to_install() {
    let error = Library::open_at("/nowhere/libibverbs.so.1").unwrap_err();
    assert!(matches!(&error, LoadError::NotFound { library, .. } if library.ends_with("libibverbs.so.1")));
    let text = error.to_string();
    assert!(text.contains("/nowhere/libibverbs.so.1") && text.contains("install libibverbs1"), "{text}");
    assert!(Library::open_at("with\0zero").is_err());
}

#[test]
fn a_library_of_another_kind_lacks_symbols() {
    let error = Library::open_at("libc.so.6").unwrap_err();
    let text = error.to_string();
    assert!(matches!(
        error,
        LoadError::NoSymbol { symbol: "ibv_get_device_list", version: "IBVERBS_1.1", .. }
    ));
    assert!(text.contains("ibv_get_device_list") && text.contains("libc.so.6"), "{text}");
}

#[test]
fn every_symbol_that_is_needed_is_missed() {
    let Some(bed) = Bed::fake() else { return };
    for symbol in ["ibv_open_device", "ibv_create_qp", "ibv_destroy_srq"] {
        let library = bed.world().library_without(symbol).unwrap();
        match Library::open_at(&library).unwrap_err() {
            LoadError::NoSymbol { symbol: missing, .. } => assert_eq!(missing, symbol),
            other => panic!("{other}"),
        }
    }
}

#[test]
fn without_relaxed_ordering_memory_is_registered_as_it_can_be() {
    let Some(bed) = Bed::fake() else { return };
    let library = Library::open_at(bed.world().library_without("ibv_reg_mr_iova2").unwrap()).unwrap();
    assert!(!library.has_relaxed_ordering() && library.has_dmabuf());
    let context = verbs::open(&library, "fake0");
    let end = End::new(&context, |_| {});
    // SAFETY: V3. The memory is dropped after the regions.
    let region = unsafe { MemoryRegion::register(&end.pd, end.bytes.range(), Access::RELAXED) }.unwrap();
    assert!(!region.is_relaxed());
    // SAFETY: V3. As above.
    let based = unsafe { MemoryRegion::register_at(&end.pd, end.bytes.range(), 0, Access::LOCAL_READ) };
    let error = based.unwrap_err();
    assert!(error.errno == libc::EOPNOTSUPP && error.to_string().contains("rdma-core 27"), "{error}");
}

#[test]
fn without_dmabuf_the_error_says_who_brought_it() {
    let Some(bed) = Bed::fake() else { return };
    let library = Library::open_at(bed.world().library_without("ibv_reg_dmabuf_mr").unwrap()).unwrap();
    assert!(!library.has_dmabuf());
    let context = verbs::open(&library, "fake0");
    let end = End::new(&context, |_| {});
    let file = tempfile::tempfile().unwrap();
    let fd = std::os::fd::AsFd::as_fd(&file);
    let error = MemoryRegion::register_dmabuf(&end.pd, fd, 0, 1, 0, Access::LOCAL_READ).unwrap_err();
    assert!(error.errno == libc::EOPNOTSUPP && error.to_string().contains("rdma-core 34"), "{error}");
}

#[test]
fn without_a_table_of_addresses_they_are_asked_for_one_by_one() {
    let Some(bed) = Bed::fake() else { return };
    let library = Library::open_at(bed.world().library_without("_ibv_query_gid_table").unwrap()).unwrap();
    let context = verbs::open(&library, "fake0");
    let gids = context.gids(verbs::PORT).unwrap();
    assert_eq!(gids.len(), 4);
    assert!(gids.iter().any(|entry| entry.gid.ipv4().is_some()));
}
