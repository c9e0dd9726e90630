// The one implementation of both loops, compiled once for every processor (checksum.cpp) and once
// for those with AVX2 (checksum_avx2.cpp), where xxhash is nearly twice as fast.
//
// Nothing of the standard library here: its inline functions, compiled for AVX2, could be the copy
// that the linker keeps for the whole program.
#pragma once

#define XXH_INLINE_ALL
#include <stddef.h>
#include <string.h>
#include <xxhash.h>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace cpp_store {

struct ChecksumKernel {
    XXH128_hash_t (*checksum)(const void* data, size_t size);
    XXH128_hash_t (*copy)(void* target, const void* source, size_t size);
    // A piece of a tensor whose bytes come one piece after the other, by way of a buffer.
    void (*add)(XXH3_state_t* state, void* target, const void* source, size_t size, bool stream);
    void (*sum)(XXH3_state_t* state, const void* data, size_t size);
};

// Null where the compiler or the processor has no AVX2.
[[nodiscard]] const ChecksumKernel* avx2_kernel() noexcept;

namespace {

// Small enough for the first-level cache, so that the copy finds what the sum has just read.
constexpr size_t chunk = 4096;
// From this size on, the copy goes past the caches: the target is not read before it is written,
// and the tensor would push everything else out of them.
constexpr size_t streaming_size = size_t{256} << 10;

inline XXH128_hash_t kernel_checksum(const void* data, size_t size) {
    return XXH3_128bits(data, size);
}

#if defined(__SSE2__)
// Copies a chunk past the caches, and into the buffer, where it is summed.
inline void stream_chunk(char* target, char* buffer, const char* source) {
    // Such a store waits until the processor knows where its page is. Looked up two pages ahead,
    // the copy is half as fast again: memory files have pages of 4 KiB.
    _mm_prefetch(target + 2 * chunk, _MM_HINT_T0);
#if defined(__AVX2__)
    for (size_t i = 0; i < chunk; i += 32) {
        const __m256i part = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source + i));
        _mm256_store_si256(reinterpret_cast<__m256i*>(buffer + i), part);
        _mm256_stream_si256(reinterpret_cast<__m256i*>(target + i), part);
    }
#else
    for (size_t i = 0; i < chunk; i += 16) {
        const __m128i part = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + i));
        _mm_store_si128(reinterpret_cast<__m128i*>(buffer + i), part);
        _mm_stream_si128(reinterpret_cast<__m128i*>(target + i), part);
    }
#endif
}
#endif

// The source may be memory that another process writes to: it is read once, so that the sum is of
// what is stored, whatever happens there meanwhile.
inline void kernel_add(XXH3_state_t* state, void* target, const void* source, size_t size,
                       [[maybe_unused]] bool stream) {
    alignas(64) char buffer[chunk];
    char* to = static_cast<char*>(target);
    const char* from = static_cast<const char*>(source);
#if defined(__SSE2__)
    if (stream) {
        for (; size >= chunk; size -= chunk, to += chunk, from += chunk) {
            stream_chunk(to, buffer, from);
            XXH3_128bits_update(state, buffer, chunk);
        }
        _mm_sfence();  // whoever learns of the tensor sees its bytes
    }
#endif
    while (size > 0) {
        const size_t part = size < chunk ? size : chunk;
        memcpy(buffer, from, part);
        XXH3_128bits_update(state, buffer, part);
        memcpy(to, buffer, part);
        to += part;
        from += part;
        size -= part;
    }
}

inline XXH128_hash_t kernel_copy(void* target, const void* source, size_t size) {
    if (size >= streaming_size) {
        XXH3_state_t state;
        XXH3_128bits_reset(&state);
        kernel_add(&state, target, source, size, true);
        return XXH3_128bits_digest(&state);
    }
    if (size > 0) memcpy(target, source, size);
    return XXH3_128bits(target, size);
}

inline void kernel_sum(XXH3_state_t* state, const void* data, size_t size) {
    XXH3_128bits_update(state, data, size);
}

}  // namespace

}  // namespace cpp_store
