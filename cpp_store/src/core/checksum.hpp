// XXH3-128 of tensor bytes, alone and together with the copy.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpp_store/types.hpp"

namespace cpp_store {

[[nodiscard]] Checksum checksum_of(const std::byte* data, std::uint64_t size) noexcept;

// Copies and sums in one pass over the source. `target` is 64-byte aligned.
[[nodiscard]] Checksum copy_and_checksum(std::byte* target, const std::byte* source,
                                         std::uint64_t size) noexcept;

}  // namespace cpp_store
