// A change of a store with a data directory, on its way there.
#pragma once

#include <chrono>
#include <cstdint>
#include <exception>
#include <functional>
#include <list>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cpp_store/store.hpp"
#include "durable/records.hpp"

namespace cpp_store::durable {

struct Change {
    enum class Kind : std::uint8_t {
        put = 0,
        retire = 1,
        note = 2,
        acquire = 3,
        release = 4,
        drop_layer = 5,
        replace_layer = 6,
    };
    Kind kind = Kind::put;
    LayerPlace layer = {};  // or the model alone
    LayerPlace by = {};
    std::string holder = {};
    std::optional<Note> note = std::nullopt;
    std::shared_ptr<ModelRecord> record = nullptr;  // of a put
    std::vector<StoredLayerPtr> layers = {};        // whose tensors are not on disk yet
    std::uint64_t bytes = 0;                        // of them
    // See Journal::Done. Null: nobody waits, and it is tried until it is on disk.
    std::function<void(std::exception_ptr)> done = nullptr;
    std::chrono::steady_clock::time_point since{};

    // The segment that a put's tensors were written to ahead of it; 0: there is none.
    [[nodiscard]] std::uint64_t written_ahead() const {
        if (!record || bytes > 0 || record->layers.empty()) return 0;
        return record->layers.front().segment;
    }
};

using Batch = std::list<Change>;  // several can be put together without taking memory

}  // namespace cpp_store::durable
