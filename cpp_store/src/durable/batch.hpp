// What the parts of the journal share: journal.cpp (its life and its queue), batch.cpp (what is
// written in one transaction) and packing.cpp (what is written anew).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "durable/journal.hpp"

namespace cpp_store::durable {

struct Journal::Change {
    enum class Kind : std::uint8_t { put, retire, acquire, release, drop_layer };
    Kind kind = Kind::put;
    std::uint64_t model = 0;
    std::uint32_t position = 0;
    std::string holder;
    std::shared_ptr<ModelRecord> record;
    std::vector<StoredLayerPtr> layers;
    std::uint64_t bytes = 0;  // that are only in memory
    Done done;
    bool waited_for = false;
    Clock::time_point since{};
    std::vector<std::byte> packet;
};

// What a tensor is called in a segment.
[[nodiscard]] std::string tensor_name(std::string_view owner, const LayerTable& table,
                                      std::uint32_t position, std::size_t tensor);

}  // namespace cpp_store::durable
