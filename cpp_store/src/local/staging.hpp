// The memory through which a client's tensors reach the server: a file that only these two share.
//
// It is small, so that it stays in the processors' caches: the client copies into it on one
// processor while the server copies out of it and takes the checksum on another, and both together
// cost hardly more than one copy of memory. (Reading the client's memory with process_vm_readv
// measured half as fast.) The server makes it and seals its size, so that no access can fail; it
// trusts nothing that it reads there.
#pragma once

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>

#include "local/socket.hpp"

namespace cpp_store::local {

class Staging {
  public:
    static constexpr std::uint64_t slot_size = std::uint64_t{256} << 10;
    static constexpr std::uint32_t slots = 8;
    // Every tensor begins at a multiple of this in the stream of bytes that goes through.
    static constexpr std::uint64_t alignment = 64;

    Staging();  // the server's; throws Errc::out_of_memory
    // The client's, from the server's descriptor. Throws Errc::protocol if it is none.
    explicit Staging(Descriptor file);
    Staging(const Staging&) = delete;
    Staging& operator=(const Staging&) = delete;
    ~Staging();

    [[nodiscard]] int fd() const noexcept { return file_.get(); }

    // Both move tensors of the given sizes, one after the other, through slot after slot; what is
    // left of the last slot stays empty. `move(tensor, offset, memory)` copies a part of a tensor
    // to or from memory; `still_there()` is called while the other side lets wait, and may throw.
    template <typename Move, typename StillThere>
    void fill(std::span<const std::uint64_t> sizes, const Move& move,
              const StillThere& still_there) {
        go_through(
            sizes, move,
            [&] {
                head().filler.store(current_processor(), std::memory_order_relaxed);
                if (head().taken.has_reached(chunks_ + 1 - slots)) return;
                // Until half of them are free: one wake-up for all those.
                while (!head().taken.wait(chunks_ + 1 - slots / 2, look_around)) still_there();
            },
            head().filled);
    }
    template <typename Move, typename StillThere>
    void take(std::span<const std::uint64_t> sizes, const Move& move,
              const StillThere& still_there) {
        Apart apart;
        go_through(
            sizes, move,
            [&] {
                while (!head().filled.wait(chunks_ + 1, look_around)) still_there();
                apart.from(head().filler.load(std::memory_order_relaxed));
            },
            head().taken);
    }

  private:
    static constexpr std::chrono::milliseconds look_around{100};

    // Of chunks since the memory was made, modulo 2^32.
    struct Counter {
        alignas(64) std::atomic<std::uint32_t> value;
        std::atomic<std::uint32_t> sleepers;
        std::atomic<std::uint32_t> wanted;  // what they sleep for

        [[nodiscard]] bool has_reached(std::uint32_t count) const noexcept {
            return static_cast<std::int32_t>(value.load() - count) >= 0;
        }
        void increment() noexcept;
        bool wait(std::uint32_t count, std::chrono::milliseconds limit) noexcept;
    };
    struct Head {
        Counter filled;
        Counter taken;
        alignas(64) std::atomic<int> filler;  // the processor of who fills it
    };
    // Keeps the calling thread off the other side's processor, until it is destroyed. The kernel
    // wakes a thread where it was woken from; there the two would take turns, at half the speed.
    class Apart {
      public:
        Apart() = default;
        Apart(const Apart&) = delete;
        Apart& operator=(const Apart&) = delete;
        ~Apart();
        void from(int processor) noexcept;

      private:
        bool moved_ = false;
        cpu_set_t allowed_{};
    };
    [[nodiscard]] static int current_processor() noexcept { return ::sched_getcpu(); }
    static constexpr std::size_t head_size = 4096;
    static constexpr std::size_t size = head_size + slots * slot_size;
    static_assert(sizeof(Head) <= head_size && std::atomic<std::uint32_t>::is_always_lock_free);

    void map();
    [[nodiscard]] Head& head() const noexcept { return *reinterpret_cast<Head*>(base_); }

    template <typename Move, typename Begin>
    void go_through(std::span<const std::uint64_t> sizes, const Move& move, const Begin& begin,
                    Counter& done) {
        std::uint64_t used = 0;  // of the slot
        const auto end = [&] {
            done.increment();
            ++chunks_;
            used = 0;
        };
        for (std::size_t tensor = 0; tensor < sizes.size(); ++tensor) {
            for (std::uint64_t offset = 0; offset < sizes[tensor];) {
                if (used == 0) begin();
                std::byte* const slot = base_ + head_size + chunks_ % slots * slot_size;
                const std::uint64_t part = std::min(sizes[tensor] - offset, slot_size - used);
                move(tensor, offset, std::span(slot + used, part));
                offset += part;
                used = (used + part + alignment - 1) / alignment * alignment;
                if (used == slot_size) end();
            }
        }
        if (used > 0) end();
    }

    Descriptor file_;
    std::byte* base_ = nullptr;
    std::uint32_t chunks_ = 0;  // that this side is done with
};

}  // namespace cpp_store::local
