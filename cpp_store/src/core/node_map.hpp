// Scratch map from 32-bit ids to 32-bit values, made to be cleared and filled again.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace cpp_store {

// Clearing costs what was put in, not the capacity.
class NodeMap {
  public:
    static constexpr std::uint32_t none = 0xffff'ffff;

    // The value of an id, which is `none` before it is assigned. Valid until the next call.
    [[nodiscard]] std::uint32_t& operator[](std::uint32_t id) {
        if ((used_.size() + 1) * 2 > slots_.size()) grow();
        std::size_t at = home(id);
        while (slots_[at].id != id) {
            if (slots_[at].id == none) {
                used_.push_back(static_cast<std::uint32_t>(at));
                slots_[at].id = id;
                break;
            }
            at = (at + 1) & (slots_.size() - 1);
        }
        return slots_[at].value;
    }

    [[nodiscard]] std::uint32_t find(std::uint32_t id) const noexcept {
        if (slots_.empty()) return none;
        for (std::size_t at = home(id); slots_[at].id != none;
             at = (at + 1) & (slots_.size() - 1)) {
            if (slots_[at].id == id) return slots_[at].value;
        }
        return none;
    }

    // Makes room for so many ids.
    void reserve(std::size_t ids) {
        while ((ids + 1) * 2 > slots_.size()) grow();
    }

    void clear() noexcept {
        for (const std::uint32_t at : used_) slots_[at] = Slot{};
        used_.clear();
    }

  private:
    struct Slot {
        std::uint32_t id = none;
        std::uint32_t value = none;
    };

    [[nodiscard]] std::size_t home(std::uint32_t id) const noexcept {
        return (id * 0x9e37'79b9U) >> 7 & (slots_.size() - 1);
    }

    void grow() {
        std::vector<Slot> old(slots_.empty() ? 256 : slots_.size() * 2);
        old.swap(slots_);
        std::vector<std::uint32_t> before;
        before.swap(used_);
        used_.reserve(slots_.size() / 2 + 1);
        for (const std::uint32_t from : before) {
            std::size_t at = home(old[from].id);
            while (slots_[at].id != none) at = (at + 1) & (slots_.size() - 1);
            slots_[at] = old[from];
            used_.push_back(static_cast<std::uint32_t>(at));
        }
    }

    std::vector<Slot> slots_;  // a power of two, at most half full
    std::vector<std::uint32_t> used_;
};

}  // namespace cpp_store
