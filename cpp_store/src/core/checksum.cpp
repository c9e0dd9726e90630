#include "core/checksum.hpp"

#include <new>

#include "core/checksum_kernel.hpp"

namespace cpp_store {

namespace {

const ChecksumKernel& kernel() noexcept {
    static constexpr ChecksumKernel portable{&kernel_checksum, &kernel_copy, &kernel_add,
                                             &kernel_sum};
    static const ChecksumKernel* const best = avx2_kernel() ? avx2_kernel() : &portable;
    return *best;
}

}  // namespace

Checksum checksum_of(const std::byte* data, std::uint64_t size) noexcept {
    const XXH128_hash_t hash = kernel().checksum(data, size);
    return {hash.high64, hash.low64};
}

Checksum copy_and_checksum(std::byte* target, const std::byte* source,
                           std::uint64_t size) noexcept {
    const XXH128_hash_t hash = kernel().copy(target, source, size);
    return {hash.high64, hash.low64};
}

namespace {

XXH3_state_t* state_of(std::byte* memory) noexcept {
    return std::launder(reinterpret_cast<XXH3_state_t*>(memory));
}

}  // namespace

CopySum::CopySum(std::byte* target, std::uint64_t size) noexcept
    : target_(target), stream_(size >= streaming_size) {
    static_assert(sizeof(XXH3_state_t) <= sizeof state_ && alignof(XXH3_state_t) <= 64);
    XXH3_128bits_reset(::new (state_) XXH3_state_t);
}

void CopySum::add(const std::byte* source, std::uint64_t size) noexcept {
    kernel().add(state_of(state_), target_, source, size, stream_);
    target_ += size;
}

void CopySum::add_in_place(std::uint64_t size) noexcept {
    kernel().sum(state_of(state_), target_, size);
    target_ += size;
}

Checksum CopySum::value() noexcept {
    const XXH128_hash_t hash = XXH3_128bits_digest(state_of(state_));
    return {hash.high64, hash.low64};
}

}  // namespace cpp_store
