// An array of elements that never move, each with a 32-bit id that is reused once it is freed.
#pragma once

#include <sys/mman.h>

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <type_traits>

#include "cpp_store/error.hpp"

namespace cpp_store {

// Chunks double in size, so that an id is found by arithmetic, without a table of chunks that
// grows. Pages of the last chunk that were never used take no memory.
template <typename T>
class Slab {
    static_assert(std::is_trivially_destructible_v<T> && sizeof(T) >= sizeof(std::uint32_t));

  public:
    // Ids are below this, so that a bit is left for those who tag them.
    static constexpr std::uint32_t limit = 0x7fff'ffff;

    [[nodiscard]] T& operator[](std::uint32_t id) noexcept {
        return *std::launder(reinterpret_cast<T*>(locate(id)));
    }
    [[nodiscard]] const T& operator[](std::uint32_t id) const noexcept {
        return *std::launder(reinterpret_cast<const T*>(locate(id)));
    }
    void prefetch(std::uint32_t id) const noexcept { __builtin_prefetch(locate(id)); }

    // A default-made element.
    [[nodiscard]] std::uint32_t allocate() {
        std::uint32_t id = free_;
        if (id != none) {
            std::memcpy(&free_, locate(id), sizeof free_);
        } else {
            if (end_ == limit) {
                throw Error(Errc::out_of_memory, "an index holds 2^31 layers or models at most");
            }
            Chunk& chunk = chunks_[chunk_of(end_)];
            if (!chunk) chunk = make_chunk(first << chunk_of(end_));
            id = end_++;
        }
        ++used_;
        ::new (locate(id)) T{};
        return id;
    }

    void free(std::uint32_t id) noexcept {
        std::memcpy(locate(id), &free_, sizeof free_);
        free_ = id;
        --used_;
    }

    [[nodiscard]] std::size_t size() const noexcept { return used_; }
    [[nodiscard]] std::size_t bytes() const noexcept { return end_ * sizeof(T); }

  private:
    struct alignas(T) Storage {
        std::byte bytes[sizeof(T)];
    };
    struct Free {
        std::size_t alignment = alignof(Storage);
        void operator()(Storage* memory) const noexcept {
            ::operator delete (memory, std::align_val_t{alignment});
        }
    };
    using Chunk = std::unique_ptr<Storage[], Free>;
    static constexpr std::uint32_t none = 0xffff'ffff;
    static constexpr std::size_t first = 1024;  // elements of the first chunk

    static std::size_t chunk_of(std::uint32_t id) noexcept {
        return static_cast<std::size_t>(std::bit_width(id / first + 1)) - 1;
    }
    std::byte* locate(std::uint32_t id) const noexcept {
        const std::size_t chunk = chunk_of(id);
        return chunks_[chunk][id - ((first << chunk) - first)].bytes;
    }

    // Large chunks lie on huge pages where the system has some to give: elements are reached in
    // random order, and an address that is not in the TLB costs as much as the element itself.
    static Chunk make_chunk(std::size_t elements) {
        constexpr std::size_t huge_page = std::size_t{2} << 20;
        const std::size_t bytes = elements * sizeof(Storage);
        const std::size_t alignment = bytes < 2 * huge_page ? alignof(Storage) : huge_page;
        Chunk chunk(static_cast<Storage*>(::operator new (bytes, std::align_val_t{alignment})),
                    Free{alignment});
        if (alignment == huge_page) ::madvise(chunk.get(), bytes, MADV_HUGEPAGE);
        return chunk;
    }

    std::array<Chunk, 22> chunks_;
    std::uint32_t end_ = 0;      // ids below it were used at some time
    std::uint32_t free_ = none;  // first of the freed ones; each holds the id of the next
    std::size_t used_ = 0;
};

}  // namespace cpp_store
