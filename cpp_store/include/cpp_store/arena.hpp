// Memory for tensors: few large regions, touched before use, returned piece by piece.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

namespace cpp_store {

// A run of bytes in the arena. Whoever holds one gives it back with Arena::release; any 64-byte
// aligned part of an allocation may be given back on its own.
struct Extent {
    std::byte* data = nullptr;
    std::uint64_t size = 0;  // as allocated: a multiple of Arena::alignment
    int region = -1;         // which memory file it lies in, and where: for clients that map it
    std::uint64_t offset = 0;
};

// Thread-safe. Regions are memory files (memfd), so that other processes of the host can map them
// read-only; a background thread touches their pages ahead of demand, since the first touch of a
// page costs five to forty times a warm copy.
class Arena {
  public:
    static constexpr std::uint64_t alignment = 64;

    struct Options {
        std::uint64_t limit = std::uint64_t{4} << 30;          // bytes that may be in use at once
        std::uint64_t region_size = std::uint64_t{256} << 20;  // larger requests get their own
        std::uint64_t ahead = std::uint64_t{128}
                              << 20;  // free bytes that are kept touched; 0: none
        // How long touched memory beyond `ahead` must have been free before the kernel gets it
        // back.
        std::chrono::milliseconds linger{5'000};
    };
    struct Stats {
        std::uint64_t limit = 0;
        std::uint64_t used = 0;        // allocated, padding included
        std::uint64_t high_water = 0;  // largest `used` so far
        std::uint64_t mapped = 0;      // bytes of all regions
        std::uint64_t touched = 0;     // bytes of them that are resident
    };

    explicit Arena(const Options& options);
    ~Arena();
    Arena(const Arena&) = delete;
    Arena& operator=(const Arena&) = delete;

    // Contiguous bytes, 64-byte aligned. Throws Errc::out_of_memory ("need …, limit …, used …") and
    // changes nothing. Zero bytes are fine and use nothing. A fork of the process can only read:
    // Errc::invalid_argument.
    [[nodiscard]] Extent allocate(std::uint64_t bytes);
    void release(const Extent& extent) noexcept;

    // The memory file of a region, to be handed to another process; valid while anything is
    // allocated in the region. Throws Errc::invalid_argument for a region that is gone. No two
    // regions ever have the same number.
    [[nodiscard]] int region_fd(int region) const;
    [[nodiscard]] bool has_region(int region) const;
    [[nodiscard]] Stats stats() const;

  private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace cpp_store
