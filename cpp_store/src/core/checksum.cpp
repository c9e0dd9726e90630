#include "core/checksum.hpp"

#include "core/checksum_kernel.hpp"

namespace cpp_store {

namespace {

const ChecksumKernel& kernel() noexcept {
    static constexpr ChecksumKernel portable{&kernel_checksum, &kernel_copy};
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

}  // namespace cpp_store
