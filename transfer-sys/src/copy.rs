//! Copies between raw ranges, by the kernels in `csrc/copy.c`.
#![allow(unsafe_code, reason = "calls into csrc")]

use std::ffi::c_int;

use crate::RawRange;

#[link(name = "headrace_csrc", kind = "static")]
unsafe extern "C" {
    fn hr_copy(dst: *mut u8, src: *const u8, len: usize);
    fn hr_copy_ranges(dst: *const RawRange, src: *const RawRange, count: usize);
    fn hr_stream_ranges(dst: *const RawRange, src: *const RawRange, count: usize, kernel: c_int);
    safe fn hr_stream_best() -> c_int;
    #[cfg(test)]
    safe fn hr_stream_kernels() -> c_int;
}

/// How stores reach memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stores {
    /// Through the caches: best for small copies, and for bytes that are read again soon.
    Cached,
    /// Past the caches, fenced at the end: best for copies that do not fit the last-level cache ([`cache_bytes`]).
    Streaming,
}

/// Copies `src` to `dst`, which have the same length, through the caches. They may overlap.
///
/// Cost: no allocation, no syscall, no lock.
///
/// # Panics
/// When the lengths differ.
///
/// # Safety
/// Both ranges must stay mapped (`dst` writable) until the call returns. Others may read or write the bytes
/// meanwhile; then each byte that arrives is one that was there at some moment.
pub unsafe fn copy(dst: RawRange, src: RawRange) {
    assert_eq!(dst.len(), src.len(), "a copy has as many bytes on both sides");
    // SAFETY: the caller's contract is exactly that of the kernel.
    unsafe { hr_copy(dst.addr(), src.addr(), src.len()) }
}

/// Copies each range of `src` to that of `dst`, in order; there are as many, and each pair has the same length. What
/// comes next is fetched while one range is copied, so scattered ranges cost little more than neighbours.
///
/// Cost: no allocation, no syscall, no lock.
///
/// # Panics
/// When numbers or lengths differ.
///
/// # Safety
/// As [`copy()`], for all ranges. Where a source overlaps a target, [`Stores::Streaming`] leaves their common bytes in
/// any mixture.
pub unsafe fn copy_ranges(dst: &[RawRange], src: &[RawRange], stores: Stores) {
    check_pairs(dst, src);
    match stores {
        // SAFETY: a RawRange is laid out as an iovec; the rest is the caller's contract.
        Stores::Cached => unsafe { hr_copy_ranges(dst.as_ptr(), src.as_ptr(), src.len()) },
        // SAFETY: as above, and this processor has its best kernel.
        Stores::Streaming => unsafe {
            hr_stream_ranges(dst.as_ptr(), src.as_ptr(), src.len(), hr_stream_best());
        },
    }
}

fn check_pairs(dst: &[RawRange], src: &[RawRange]) {
    let pairs = dst.iter().zip(src);
    let alike = dst.len() == src.len() && pairs.fold(true, |alike, (d, s)| alike & (d.len() == s.len()));
    assert!(alike, "a copy has as many bytes on both sides");
}

/// Bytes of this machine's largest cache, as far as the kernel knows it: what source and target of a copy share, and
/// all else that runs here. [`CACHE_BYTES_UNKNOWN`] where it does not say.
///
/// Cost: some files of sysfs.
#[must_use]
pub fn cache_bytes() -> usize {
    // sysconf(3) counts the caches of all sockets together on some processors, sysfs each by itself.
    let of_index = |index: u32| {
        let path = format!("/sys/devices/system/cpu/cpu0/cache/index{index}/size");
        parse_kib(std::fs::read_to_string(path).ok()?.trim())
    };
    (0..CACHES_MAX).map_while(of_index).max().unwrap_or(CACHE_BYTES_UNKNOWN)
}

/// What [`cache_bytes`] says where the kernel does not: less than most servers have, so that large copies leave some
/// of it to others.
pub const CACHE_BYTES_UNKNOWN: usize = 16 << 20;
/// The most caches of a core that are looked for; there are four or five.
const CACHES_MAX: u32 = 16;

/// A size as sysfs writes it: `32768K`.
fn parse_kib(text: &str) -> Option<usize> {
    text.strip_suffix('K')?.parse::<usize>().ok()?.checked_mul(1024)
}

/// Which kernel [`Stores::Streaming`] takes on this processor, by the name of its instructions; for people.
#[must_use]
pub fn streaming_kernel() -> &'static str {
    // In the order of `hr_stream_best`.
    let kernels: &[&str] = match std::env::consts::ARCH {
        "x86_64" => &["avx512f", "avx2", "sse2"],
        "aarch64" => &["neon"],
        _ => &[],
    };
    usize::try_from(hr_stream_best()).ok().and_then(|best| kernels.get(best)).copied().unwrap_or("memcpy")
}

/// Copies `src` out into `out`, of the same length.
///
/// # Panics
/// When the lengths differ.
///
/// # Safety
/// As [`copy()`], for `src`.
pub unsafe fn copy_out(out: &mut [u8], src: RawRange) {
    let dst = RawRange::new(out.as_mut_ptr(), out.len());
    // SAFETY: `out` is exclusively borrowed for the call; `src` is the caller's contract.
    unsafe { copy(dst, src) }
}

/// Copies `data` into `dst`, of the same length.
///
/// # Panics
/// When the lengths differ.
///
/// # Safety
/// As [`copy()`], for `dst`.
pub unsafe fn copy_in(dst: RawRange, data: &[u8]) {
    let src = RawRange::new(data.as_ptr().cast_mut(), data.len());
    // SAFETY: `data` is borrowed for the call and only read; `dst` is the caller's contract.
    unsafe { copy(dst, src) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_that_is_told_is_one_that_this_processor_has() {
        let told = streaming_kernel();
        let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap();
        let has = |flag: &str| flags.split_whitespace().any(|word| word == flag);
        assert!(!told.starts_with("avx") || has(told), "{told}");
        assert_eq!(told == "memcpy", !cfg!(any(target_arch = "x86_64", target_arch = "aarch64")));
    }

    /// Cached, and each streaming kernel that this processor has.
    fn kernels() -> Vec<Option<c_int>> {
        std::iter::once(None).chain((hr_stream_best()..hr_stream_kernels()).map(Some)).collect()
    }

    /// `lens` ranges out of one buffer into another, with gaps, each target off a line by `shift`; compared byte by
    /// byte, gaps included.
    fn check(lens: &[usize], shift: usize, kernel: Option<c_int>) {
        let total: usize = lens.iter().map(|len| len + 64 + shift).sum();
        let source: Vec<u8> = (0..total).map(|i| u8::try_from(i * 7 % 251).unwrap()).collect();
        let (mut target, mut wanted) = (vec![0xEE_u8; total], vec![0xEE_u8; total]);
        let (from, to) = (source.as_ptr().cast_mut(), target.as_mut_ptr());
        let (mut src, mut dst, mut at) = (Vec::new(), Vec::new(), 0);
        for &len in lens {
            wanted[at + shift..at + shift + len].copy_from_slice(&source[at..at + len]);
            src.push(RawRange::new(from, total).sub(at, len).unwrap());
            dst.push(RawRange::new(to, total).sub(at + shift, len).unwrap());
            at += len + 64 + shift;
        }
        match kernel {
            // SAFETY: both vectors live through the call and do not overlap.
            None => unsafe { copy_ranges(&dst, &src, Stores::Cached) },
            // SAFETY: as above, and this processor has the kernel.
            Some(kernel) => unsafe { hr_stream_ranges(dst.as_ptr(), src.as_ptr(), src.len(), kernel) },
        }
        assert!(target == wanted, "{kernel:?}, {lens:?}, shift {shift}");
    }

    #[test]
    fn every_kernel_copies_every_byte_and_no_other() {
        for kernel in kernels() {
            for shift in [0, 1, 7, 31, 63] {
                for len in [0, 1, 63, 64, 255, 257, 1023, 1024, 1025, 1087, 1279, 4095, 4096, 4097, 70_001] {
                    check(&[len], shift, kernel);
                }
                check(&[], shift, kernel);
                check(&[4096, 0, 1, 8192, 1024, 100, 1023, 0, 5000, 3], shift, kernel);
                check(&[1; 5000], shift, kernel);
                check(&[2048; 50], shift, kernel);
            }
        }
    }

    #[test]
    #[should_panic(expected = "as many bytes on both sides")]
    fn pairs_of_different_lengths_are_refused() {
        let mut bytes = [0_u8; 16];
        let range = RawRange::new(bytes.as_mut_ptr(), 16);
        let (long, short) = (range.sub(0, 8).unwrap(), range.sub(8, 4).unwrap());
        // SAFETY: the array lives through the call.
        unsafe { copy_ranges(&[long], &[short], Stores::Cached) };
    }

    #[test]
    fn cache_sizes_are_read_as_sysfs_writes_them() {
        assert_eq!(parse_kib("32768K"), Some(32 << 20));
        assert_eq!((parse_kib(""), parse_kib("12"), parse_kib("xK")), (None, None, None));
        assert!(cache_bytes() >= 32 << 10);
    }
}
