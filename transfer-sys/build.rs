//! Compiles the copy kernels in `csrc/`.

fn main() {
    let csrc = std::path::Path::new("../csrc");
    let copy = csrc.join("copy.c");
    println!("cargo::rerun-if-changed={}", copy.display());
    // Kernels choose their instructions at run time, so nothing here may assume the build machine's CPU.
    cc::Build::new().file(copy).opt_level(3).warnings(true).extra_warnings(true).compile("headrace_csrc");
}
