// The memory through which a client's tensors reach the server: a file that only these two share.
//
// It is small, so that it stays in the processors' caches: the client copies into it on one
// processor while the server copies out of it and takes the checksum on another, and both together
// cost hardly more than one copy of memory. (Reading the client's memory with process_vm_readv
// measured half as fast.) The server makes it and seals its size, so that no access can fail; it
// trusts nothing that it reads there. The client sleeps on it; the server does not: it goes away,
// and has the client's next message bring it back.
#pragma once

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

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

    // Both sides, before the tensors of a put go through, one after the other, in slot after slot;
    // what is left of the last slot stays empty.
    void begin(std::vector<std::uint64_t> sizes);

    // The client's side: puts all of them in. `move(tensor, offset, memory)` copies a part of a
    // tensor to memory; `still_there()` is called while the server lets wait, and may throw;
    // `wake()` is called where it sleeps until told.
    template <typename Move, typename StillThere, typename Wake>
    void fill(const Move& move, const StillThere& still_there, const Wake& wake) {
        while (!is_through()) {
            head().filler.store(current_processor(), std::memory_order_relaxed);
            if (!head().taken.has_reached(chunks_ + 1 - slots)) {
                // Until half of them are free: one wake-up for all those.
                while (!head().taken.wait(chunks_ + 1 - slots / 2, look_around)) still_there();
            }
            move_chunk(move);
            if (head().filled.increment()) wake();
        }
    }
    // The server's side: takes what is there or comes in a moment; whether that was the last of it.
    // `move` copies a part from memory.
    template <typename Move>
    [[nodiscard]] bool take(const Move& move) {
        Apart apart;
        while (!is_through() && head().filled.look(chunks_ + 1)) {
            apart.from(head().filler.load(std::memory_order_relaxed));
            move_chunk(move);
            head().taken.increment_and_wake();
        }
        return is_through();
    }
    // The server wants to be told when there is more; false if there is by now.
    [[nodiscard]] bool sleep() noexcept;

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
        // Whether who sleeps has to be told; of this it is told once.
        [[nodiscard]] bool increment() noexcept;
        void increment_and_wake() noexcept;
        [[nodiscard]] bool look(std::uint32_t count) const noexcept;  // for a moment
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

    [[nodiscard]] bool is_through() const noexcept { return tensor_ == sizes_.size(); }

    template <typename Move>
    void move_chunk(const Move& move) {
        std::byte* const slot = base_ + head_size + chunks_ % slots * slot_size;
        for (std::uint64_t used = 0; used < slot_size && !is_through();) {
            const std::uint64_t part = std::min(sizes_[tensor_] - offset_, slot_size - used);
            move(tensor_, offset_, std::span(slot + used, part));
            offset_ += part;
            used = round_up(used + part);
            if (offset_ < sizes_[tensor_]) continue;
            ++tensor_;
            offset_ = 0;
        }
        ++chunks_;
    }
    [[nodiscard]] static constexpr std::uint64_t round_up(std::uint64_t bytes) noexcept {
        return (bytes + alignment - 1) / alignment * alignment;
    }

    Descriptor file_;
    std::byte* base_ = nullptr;
    std::uint32_t chunks_ = 0;  // that this side is done with
    // Of the put: what goes through, how far it has come, and at which chunk it ends.
    std::vector<std::uint64_t> sizes_;
    std::size_t tensor_ = 0;
    std::uint64_t offset_ = 0;
    std::uint32_t end_ = 0;
};

}  // namespace cpp_store::local
