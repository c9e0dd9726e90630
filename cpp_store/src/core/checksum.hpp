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

// The same for a tensor of `size` bytes that come in pieces, all of them but the last of multiples
// of 64 bytes. The source may change while it is read: what is summed is what is stored.
class CopySum {
  public:
    CopySum(std::byte* target, std::uint64_t size) noexcept;
    CopySum(const CopySum&) = delete;
    CopySum& operator=(const CopySum&) = delete;
    ~CopySum() = default;

    void add(const std::byte* source, std::uint64_t size) noexcept;
    // A piece that is in the target already.
    void add_in_place(std::uint64_t size) noexcept;
    [[nodiscard]] Checksum value() noexcept;

  private:
    std::byte* target_;
    bool stream_;
    alignas(64) std::byte state_[576];  // of xxhash, whose header stays out of ours
};

}  // namespace cpp_store
