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
#include <emmintrin.h>
#endif

namespace cpp_store {

struct ChecksumKernel {
    XXH128_hash_t (*checksum)(const void* data, size_t size);
    XXH128_hash_t (*copy)(void* target, const void* source, size_t size);
    // A piece of a tensor whose bytes come one piece after the other, by way of a buffer.
    void (*add)(XXH3_state_t* state, void* target, const void* source, size_t size, bool stream);
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
inline void stream_chunk(char* target, const char* source) {
    for (size_t i = 0; i < chunk; i += 64) {
        for (size_t j = i; j < i + 64; j += 16) {
            const __m128i* const from = reinterpret_cast<const __m128i*>(source + j);
            _mm_stream_si128(reinterpret_cast<__m128i*>(target + j), _mm_loadu_si128(from));
        }
    }
}
#endif

inline XXH128_hash_t kernel_copy(void* target, const void* source, size_t size) {
    char* to = static_cast<char*>(target);
    const char* from = static_cast<const char*>(source);
#if defined(__SSE2__)
    if (size >= streaming_size) {
        XXH3_state_t state;
        XXH3_128bits_reset(&state);
        size_t left = size;
        for (; left >= chunk; left -= chunk, to += chunk, from += chunk) {
            XXH3_128bits_update(&state, from, chunk);
            stream_chunk(to, from);
        }
        XXH3_128bits_update(&state, from, left);
        memcpy(to, from, left);
        _mm_sfence();  // whoever learns of the tensor sees its bytes
        return XXH3_128bits_digest(&state);
    }
#endif
    if (size > 0) memcpy(to, from, size);
    return XXH3_128bits(to, size);
}

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
            memcpy(buffer, from, chunk);
            XXH3_128bits_update(state, buffer, chunk);
            stream_chunk(to, buffer);
        }
        _mm_sfence();
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

}  // namespace

}  // namespace cpp_store
