/* Copy kernels for memory that another process, a NIC or a GPU may touch at the same time.
 *
 * They live in C, behind a call that Rust cannot see through, because such memory is outside Rust's memory model: no
 * reference to it may ever exist there. Bytes that somebody else changes during a copy arrive as old or new bytes,
 * never as undefined behaviour.
 *
 * hr_copy           memmove of the C library. Ranges may overlap.
 * hr_copy_ranges    many ranges, through the caches: best while source and target fit them.
 * hr_stream_ranges  many ranges, past the caches: a large target does not evict the working set, and its lines are not
 *                   read before they are written. Ends with a fence, because such stores are weakly ordered and a
 *                   notification must not overtake them. Where a source overlaps a target, their common bytes are left
 *                   in any mixture.
 *
 * A processor follows a run of addresses by itself, but only to the end of the page, and pages of a list lie anywhere.
 * So both kernels fetch what comes next, across ranges, while they copy what is there.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/uio.h>

#define LINE 64
/* What the streaming loop moves at a time. */
#define BLOCK 256
/* How far ahead of it the source is fetched: longer than memory takes to answer, and a small part of any L1 cache. */
#define AHEAD 4096
/* A range shorter than this is not worth the partial lines at its ends. */
#define STREAM_MIN 1024
/* How much of the next range is fetched while one is copied through the caches. */
#define HEAD 512

void hr_copy(void *dst, const void *src, size_t len) { memmove(dst, src, len); }

void hr_copy_ranges(const struct iovec *dst, const struct iovec *src, size_t count) {
    for (size_t i = 0; i < count; i++) {
        if (i + 1 < count) {
            size_t len = src[i + 1].iov_len < HEAD ? src[i + 1].iov_len : HEAD;
            for (size_t at = 0; at < len; at += LINE) {
                __builtin_prefetch((const uint8_t *)src[i + 1].iov_base + at, 0);
                __builtin_prefetch((const uint8_t *)dst[i + 1].iov_base + at, 1);
            }
        }
        memmove(dst[i].iov_base, src[i].iov_base, src[i].iov_len);
    }
}

/* A place in the sources that runs ahead of the copy. */
struct ahead {
    const struct iovec *src;
    size_t count;  /* ranges from `src` on */
    size_t at;     /* within the first of them */
    ptrdiff_t lead; /* bytes between the copy and this place */
};

/* Fetches on, until the place is AHEAD in front of the copy or at the end. */
static inline __attribute__((always_inline)) void fetch(struct ahead *ahead) {
    while (ahead->lead < AHEAD && ahead->count > 0) {
        const uint8_t *base = (const uint8_t *)ahead->src->iov_base + ahead->at;
        for (size_t line = 0; line < BLOCK; line += LINE) __builtin_prefetch(base + line, 0, 0);
        size_t left = ahead->src->iov_len - ahead->at;
        size_t step = left < BLOCK ? left : BLOCK;
        ahead->lead += (ptrdiff_t)step;
        ahead->at += step;
        if (step == left) {
            ahead->src++;
            ahead->count--;
            ahead->at = 0;
        }
    }
}

/* A streaming kernel for one kind of processor, around `block`, which copies BLOCK bytes to an aligned target. */
#define STREAM_KERNEL(name, target, block)                                                                 \
    target static void name(const struct iovec *dst, const struct iovec *src, size_t count) {              \
        struct ahead ahead = {src, count, 0, 0};                                                           \
        for (size_t i = 0; i < count; i++) {                                                               \
            uint8_t *to = dst[i].iov_base;                                                                 \
            const uint8_t *from = src[i].iov_base;                                                         \
            size_t len = src[i].iov_len, at = 0;                                                           \
            fetch(&ahead);                                                                                 \
            if (len >= STREAM_MIN) {                                                                       \
                at = (size_t)(-(uintptr_t)to & (LINE - 1));                                                \
                memmove(to, from, at);                                                                     \
                ahead.lead -= (ptrdiff_t)at;                                                               \
                for (; at + BLOCK <= len; at += BLOCK) {                                                   \
                    fetch(&ahead);                                                                         \
                    block(to + at, from + at);                                                             \
                    ahead.lead -= BLOCK;                                                                   \
                }                                                                                          \
            }                                                                                              \
            memmove(to + at, from + at, len - at);                                                         \
            ahead.lead -= (ptrdiff_t)(len - at);                                                           \
        }                                                                                                  \
    }

#if defined(__x86_64__)
#include <immintrin.h>

__attribute__((target("avx512f"))) static inline void block_avx512(uint8_t *dst, const uint8_t *src) {
    __m512i a = _mm512_loadu_si512((const void *)src);
    __m512i b = _mm512_loadu_si512((const void *)(src + 64));
    __m512i c = _mm512_loadu_si512((const void *)(src + 128));
    __m512i d = _mm512_loadu_si512((const void *)(src + 192));
    _mm512_stream_si512((void *)dst, a);
    _mm512_stream_si512((void *)(dst + 64), b);
    _mm512_stream_si512((void *)(dst + 128), c);
    _mm512_stream_si512((void *)(dst + 192), d);
}

__attribute__((target("avx2"))) static inline void block_avx2(uint8_t *dst, const uint8_t *src) {
    for (int at = 0; at < BLOCK; at += 64) {
        __m256i a = _mm256_loadu_si256((const __m256i *)(src + at));
        __m256i b = _mm256_loadu_si256((const __m256i *)(src + at + 32));
        _mm256_stream_si256((__m256i *)(dst + at), a);
        _mm256_stream_si256((__m256i *)(dst + at + 32), b);
    }
}

static inline void block_sse2(uint8_t *dst, const uint8_t *src) {
    for (int at = 0; at < BLOCK; at += 64) {
        __m128i a = _mm_loadu_si128((const __m128i *)(src + at));
        __m128i b = _mm_loadu_si128((const __m128i *)(src + at + 16));
        __m128i c = _mm_loadu_si128((const __m128i *)(src + at + 32));
        __m128i d = _mm_loadu_si128((const __m128i *)(src + at + 48));
        _mm_stream_si128((__m128i *)(dst + at), a);
        _mm_stream_si128((__m128i *)(dst + at + 16), b);
        _mm_stream_si128((__m128i *)(dst + at + 32), c);
        _mm_stream_si128((__m128i *)(dst + at + 48), d);
    }
}

STREAM_KERNEL(stream_avx512, __attribute__((target("avx512f"))), block_avx512)
STREAM_KERNEL(stream_avx2, __attribute__((target("avx2"))), block_avx2)
STREAM_KERNEL(stream_sse2, , block_sse2)

/* Kernels, the best first; a processor has those from some number on. */
int hr_stream_kernels(void) { return 3; }

int hr_stream_best(void) {
    if (__builtin_cpu_supports("avx512f")) return 0;
    return __builtin_cpu_supports("avx2") ? 1 : 2;
}

void hr_stream_ranges(const struct iovec *dst, const struct iovec *src, size_t count, int kernel) {
    switch (kernel) {
    case 0: stream_avx512(dst, src, count); break;
    case 1: stream_avx2(dst, src, count); break;
    default: stream_sse2(dst, src, count); break;
    }
    _mm_sfence(); /* Intel SDM vol. 1, 10.4.6.2 */
}

#elif defined(__aarch64__)

/* Load and store pairs with a hint that the bytes are not used again soon (Arm ARM, C3.2.4). */
static inline void half_block(uint8_t *dst, const uint8_t *src) {
    __asm__ volatile("ldnp q0, q1, [%1]\n\t"
                     "ldnp q2, q3, [%1, #32]\n\t"
                     "ldnp q4, q5, [%1, #64]\n\t"
                     "ldnp q6, q7, [%1, #96]\n\t"
                     "stnp q0, q1, [%0]\n\t"
                     "stnp q2, q3, [%0, #32]\n\t"
                     "stnp q4, q5, [%0, #64]\n\t"
                     "stnp q6, q7, [%0, #96]"
                     :
                     : "r"(dst), "r"(src)
                     : "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "memory");
}

static inline void block_neon(uint8_t *dst, const uint8_t *src) {
    half_block(dst, src);
    half_block(dst + BLOCK / 2, src + BLOCK / 2);
}

STREAM_KERNEL(stream_neon, , block_neon)

int hr_stream_kernels(void) { return 1; }

int hr_stream_best(void) { return 0; }

void hr_stream_ranges(const struct iovec *dst, const struct iovec *src, size_t count, int kernel) {
    (void)kernel;
    stream_neon(dst, src, count);
    __atomic_thread_fence(__ATOMIC_SEQ_CST); /* dmb ish */
}

#else

int hr_stream_kernels(void) { return 1; }

int hr_stream_best(void) { return 0; }

void hr_stream_ranges(const struct iovec *dst, const struct iovec *src, size_t count, int kernel) {
    (void)kernel;
    hr_copy_ranges(dst, src, count);
}

#endif
