// Hash table from hashes to 32-bit ids of elements that live elsewhere.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace cpp_store {

// Open addressing with linear probing. A slot keeps 32 bits of the hash beside the id, so that
// probing and growing touch no element. Split into shards that grow on their own and by a quarter:
// no insertion waits for millions of others to move, and little memory lies idle.
class IdTable {
  public:
    static constexpr std::uint32_t none = 0xffff'ffff;

    // The id for which `equal(id)` holds among those of that hash; none if there is none.
    template <typename Equal>
    [[nodiscard]] std::uint32_t find(std::uint64_t hash, Equal&& equal) const {
        const Shard& shard = shards_[shard_of(hash)];
        const std::size_t size = shard.slots.size();
        if (size == 0) return none;
        const std::uint32_t tag = tag_of(hash);
        for (std::size_t at = home(tag, size);; at = next(at, size)) {
            const Slot& slot = shard.slots[at];
            if (slot.id == none) return none;
            if (slot.tag == tag && equal(slot.id)) return slot.id;
        }
    }

    // Fetches what find() will look at first.
    void prefetch(std::uint64_t hash) const noexcept {
        const Shard& shard = shards_[shard_of(hash)];
        if (!shard.slots.empty()) {
            __builtin_prefetch(&shard.slots[home(tag_of(hash), shard.slots.size())]);
        }
    }

    // The first id that find() would ask about; none if there is none. Cheap once prefetched.
    [[nodiscard]] std::uint32_t candidate(std::uint64_t hash) const noexcept {
        return find(hash, [](std::uint32_t) { return true; });
    }

    // The id must not be there.
    void insert(std::uint64_t hash, std::uint32_t id) {
        Shard& shard = shards_[shard_of(hash)];
        if ((shard.used + 1) * 8 > shard.slots.size() * 7) grow(shard);
        place(shard.slots, Slot{tag_of(hash), id});
        ++shard.used;
    }

    // The id must be there.
    void erase(std::uint64_t hash, std::uint32_t id) noexcept {
        Shard& shard = shards_[shard_of(hash)];
        const std::size_t size = shard.slots.size();
        std::size_t hole = home(tag_of(hash), size);
        while (shard.slots[hole].id != id) hole = next(hole, size);
        // Close the gap: whatever would not be found past it moves into it.
        for (std::size_t at = next(hole, size); shard.slots[at].id != none; at = next(at, size)) {
            const std::size_t wanted = home(shard.slots[at].tag, size);
            const std::size_t distance = at >= wanted ? at - wanted : at + size - wanted;
            const std::size_t gap = at >= hole ? at - hole : at + size - hole;
            if (distance >= gap) {
                shard.slots[hole] = shard.slots[at];
                hole = at;
            }
        }
        shard.slots[hole] = Slot{};
        --shard.used;
        if (shard.used == 0) {
            shard.slots = {};
        }
    }

    [[nodiscard]] std::size_t bytes() const noexcept {
        std::size_t total = sizeof *this;
        for (const Shard& shard : shards_) total += shard.slots.capacity() * sizeof(Slot);
        return total;
    }

  private:
    struct Slot {
        std::uint32_t tag = 0;
        std::uint32_t id = none;
    };
    struct Shard {
        std::vector<Slot> slots;
        std::size_t used = 0;
    };
    static constexpr std::size_t shard_bits = 8;

    static std::size_t shard_of(std::uint64_t hash) noexcept { return hash >> (64 - shard_bits); }
    static std::uint32_t tag_of(std::uint64_t hash) noexcept {
        return static_cast<std::uint32_t>(hash);
    }
    static std::size_t home(std::uint32_t tag, std::size_t size) noexcept {
        return static_cast<std::size_t>((std::uint64_t{tag} * size) >> 32);
    }
    static std::size_t next(std::size_t at, std::size_t size) noexcept {
        return at + 1 == size ? 0 : at + 1;
    }

    static void place(std::vector<Slot>& slots, const Slot& slot) noexcept {
        std::size_t at = home(slot.tag, slots.size());
        while (slots[at].id != none) at = next(at, slots.size());
        slots[at] = slot;
    }

    static void grow(Shard& shard) {
        std::vector<Slot> larger(shard.slots.size() + shard.slots.size() / 4 + 8);
        for (const Slot& slot : shard.slots) {
            if (slot.id != none) place(larger, slot);
        }
        shard.slots.swap(larger);
    }

    std::array<Shard, std::size_t{1} << shard_bits> shards_;
};

}  // namespace cpp_store
