// A change of a store with a data directory, on its way there.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cpp_store/store.hpp"
#include "durable/bytes.hpp"
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
        nothing = 255,  // in no log: of one that was forgotten
    };
    Kind kind = Kind::put;
    LayerPlace layer = {};  // or the model alone
    LayerPlace by = {};
    std::string holder = {};
    std::optional<Note> note = std::nullopt;
    std::shared_ptr<ModelRecord> record = nullptr;  // of a put
    std::vector<StoredLayerPtr> layers = {};
    std::uint64_t bytes = 0;  // that are in no segment yet
    // Its tensors one after the other, where they go into the catalogue.
    std::vector<std::byte> packet = {};

    // Once: null if it is on disk, else why it is not, and then it is forgotten. Of a sync store.
    std::function<void(std::exception_ptr)> logged = nullptr;
    std::function<void()> placed = nullptr;  // once: record->layers say where they are
    std::chrono::steady_clock::time_point since{};
    std::uint64_t entry = 0;  // of the log; 0: it is in none

    // The segment that a put's tensors were written to ahead of it; 0: there is none.
    [[nodiscard]] std::uint64_t written_ahead() const {
        if (!record || bytes > 0 || record->layers.empty()) return 0;
        return record->layers.front().segment;
    }
};

// As it lies in the log (docs/formats.md), tensors included.
void encode(Writer& out, const Change& change);
// With the tensors as a packet. Throws Errc::storage for what is none.
[[nodiscard]] Change decode_change(Reader& in);

}  // namespace cpp_store::durable
