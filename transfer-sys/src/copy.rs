//! Copies between raw ranges, by the kernels in `csrc/copy.c`.
#![allow(unsafe_code, reason = "calls into csrc")]

use crate::RawRange;

#[link(name = "headrace_csrc", kind = "static")]
unsafe extern "C" {
    fn hr_copy(dst: *mut u8, src: *const u8, len: usize);
    fn hr_copy_stream(dst: *mut u8, src: *const u8, len: usize);
}

/// How stores reach memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stores {
    /// Through the caches: best for small copies, and for bytes that are read again soon.
    Cached,
    /// Past the caches, fenced at the end: best for copies larger than the last-level cache.
    Streaming,
}

/// Copies `src` to `dst`, which have the same length.
///
/// Cost: no allocation, no syscall, no lock.
///
/// # Panics
/// When the lengths differ.
///
/// # Safety
/// Both ranges must stay mapped (`dst` writable) until the call returns. Others may read or write the bytes
/// meanwhile; then each byte that arrives is one that was there at some moment. Where the ranges overlap,
/// [`Stores::Streaming`] leaves their common bytes in any mixture.
pub unsafe fn copy(dst: RawRange, src: RawRange, stores: Stores) {
    assert_eq!(dst.len(), src.len(), "a copy has as many bytes on both sides");
    match stores {
        // SAFETY: the caller's contract is exactly that of the kernel.
        Stores::Cached => unsafe { hr_copy(dst.addr(), src.addr(), src.len()) },
        // SAFETY: as above.
        Stores::Streaming => unsafe { hr_copy_stream(dst.addr(), src.addr(), src.len()) },
    }
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
    unsafe { copy(dst, src, Stores::Cached) }
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
    unsafe { copy(dst, src, Stores::Cached) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kernels_copy_every_byte_and_no_other() {
        for stores in [Stores::Cached, Stores::Streaming] {
            for len in [0, 1, 63, 64, 65, 127, 255, 256, 257, 4095, 4096, 70_001] {
                for shift in [0, 1, 7, 31, 63] {
                    let source: Vec<u8> = (0..len).map(|i| u8::try_from(i * 7 % 251).unwrap()).collect();
                    let mut target = vec![0xEE_u8; len + shift + 64];
                    let dst = RawRange::new(target.as_mut_ptr(), target.len()).sub(shift, len).unwrap();
                    let src = RawRange::new(source.as_ptr().cast_mut(), len);
                    // SAFETY: both vectors live through the call and do not overlap.
                    unsafe { copy(dst, src, stores) };
                    assert_eq!(
                        &target[shift..shift + len],
                        &source[..],
                        "{stores:?} len {len} shift {shift}"
                    );
                    assert!(target[..shift].iter().chain(&target[shift + len..]).all(|&b| b == 0xEE));
                }
            }
        }
    }
}
