/* Copy kernels for memory that another process, a NIC or a GPU may touch at the same time.
 *
 * They live in C, behind a call that Rust cannot see through, because such memory is outside Rust's memory
 * model: no reference to it may ever exist there. Bytes that somebody else changes during a copy arrive as
 * old or new bytes, never as undefined behaviour.
 *
 * hr_copy         memmove of the C library: best while source and target fit the caches. Ranges may overlap.
 * hr_copy_stream  non-temporal stores: a large target does not evict the working set and its lines are not
 *                 read before they are written (Intel SDM vol. 1, 10.4.6.2). Ends with a store fence, because
 *                 non-temporal stores are weakly ordered and a notification must not overtake them. Where
 *                 ranges overlap, their common bytes are left in any mixture.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

void hr_copy(void *dst, const void *src, size_t len) { memmove(dst, src, len); }

#if defined(__x86_64__)
#include <immintrin.h>

/* Copies up to the first `align`-aligned target byte, so that the vector stores below are aligned. */
static size_t head(uint8_t *dst, const uint8_t *src, size_t len, size_t align) {
    size_t gap = (size_t)(-(uintptr_t)dst & (align - 1));
    if (gap > len) gap = len;
    memmove(dst, src, gap);
    return gap;
}

__attribute__((target("avx512f"))) static size_t body_avx512(uint8_t *dst, const uint8_t *src, size_t len) {
    size_t at = 0;
    for (; at + 256 <= len; at += 256) {
        __m512i a = _mm512_loadu_si512((const void *)(src + at));
        __m512i b = _mm512_loadu_si512((const void *)(src + at + 64));
        __m512i c = _mm512_loadu_si512((const void *)(src + at + 128));
        __m512i d = _mm512_loadu_si512((const void *)(src + at + 192));
        _mm512_stream_si512((void *)(dst + at), a);
        _mm512_stream_si512((void *)(dst + at + 64), b);
        _mm512_stream_si512((void *)(dst + at + 128), c);
        _mm512_stream_si512((void *)(dst + at + 192), d);
    }
    return at;
}

__attribute__((target("avx2"))) static size_t body_avx2(uint8_t *dst, const uint8_t *src, size_t len) {
    size_t at = 0;
    for (; at + 128 <= len; at += 128) {
        __m256i a = _mm256_loadu_si256((const __m256i *)(src + at));
        __m256i b = _mm256_loadu_si256((const __m256i *)(src + at + 32));
        __m256i c = _mm256_loadu_si256((const __m256i *)(src + at + 64));
        __m256i d = _mm256_loadu_si256((const __m256i *)(src + at + 96));
        _mm256_stream_si256((__m256i *)(dst + at), a);
        _mm256_stream_si256((__m256i *)(dst + at + 32), b);
        _mm256_stream_si256((__m256i *)(dst + at + 64), c);
        _mm256_stream_si256((__m256i *)(dst + at + 96), d);
    }
    return at;
}

static size_t body_sse2(uint8_t *dst, const uint8_t *src, size_t len) {
    size_t at = 0;
    for (; at + 64 <= len; at += 64) {
        __m128i a = _mm_loadu_si128((const __m128i *)(src + at));
        __m128i b = _mm_loadu_si128((const __m128i *)(src + at + 16));
        __m128i c = _mm_loadu_si128((const __m128i *)(src + at + 32));
        __m128i d = _mm_loadu_si128((const __m128i *)(src + at + 48));
        _mm_stream_si128((__m128i *)(dst + at), a);
        _mm_stream_si128((__m128i *)(dst + at + 16), b);
        _mm_stream_si128((__m128i *)(dst + at + 32), c);
        _mm_stream_si128((__m128i *)(dst + at + 48), d);
    }
    return at;
}

void hr_copy_stream(void *dst, const void *src, size_t len) {
    uint8_t *to = dst;
    const uint8_t *from = src;
    size_t at = head(to, from, len, 64);
    if (__builtin_cpu_supports("avx512f"))
        at += body_avx512(to + at, from + at, len - at);
    else if (__builtin_cpu_supports("avx2"))
        at += body_avx2(to + at, from + at, len - at);
    else
        at += body_sse2(to + at, from + at, len - at);
    memmove(to + at, from + at, len - at);
    _mm_sfence();
}

#else

void hr_copy_stream(void *dst, const void *src, size_t len) { memmove(dst, src, len); }

#endif
