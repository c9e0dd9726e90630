// What the parts of the journal share: journal.cpp (its life and its queue), batch.cpp (what is
// written in one transaction) and packing.cpp (what is written anew).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "durable/journal.hpp"

namespace cpp_store::durable {

struct Journal::Change {
    enum class Kind : std::uint8_t {
        put,
        retire,
        note,
        acquire,
        release,
        drop_layer,
        replace_layer
    };
    Kind kind = Kind::put;
    LayerPlace layer = {};  // or the model alone
    LayerPlace by = {};
    std::string holder = {};
    std::optional<Note> note = std::nullopt;
    std::shared_ptr<ModelRecord> record = nullptr;
    std::vector<StoredLayerPtr> layers = {};
    std::uint64_t bytes = 0;  // that are only in memory
    Done done = nullptr;
    bool waited_for = false;
    Clock::time_point since{};
    std::vector<std::byte> packet = {};
};

// What a layer's tensor is called in a segment. Throws Errc::storage if it is no layer of that
// table, and was not adopted either.
[[nodiscard]] std::string tensor_name(std::string_view owner, const LayerTable& table,
                                      const LayerRecord& layer, std::size_t tensor);

}  // namespace cpp_store::durable
