//! Gives the shared library the name that programs ask for at run time. It carries the major version, so that a
//! program never meets a library with another ABI.

#![allow(clippy::disallowed_methods, reason = "cargo tells build scripts by environment variables")]

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let major = std::env::var("CARGO_PKG_VERSION_MAJOR").unwrap_or_default();
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libheadrace.so.{major}");
}
