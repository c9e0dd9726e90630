// What a data directory knows of models, as it lies in the catalogue (docs/formats.md).
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "cpp_store/layer_table.hpp"
#include "cpp_store/types.hpp"

namespace cpp_store::durable {

struct TensorRecord {
    TensorSpec spec;
    Checksum checksum;
    std::uint64_t offset = 0;  // in the segment file, or in the layer's bytes in the catalogue

    // Its bytes, of the layer's in the catalogue; none if these end before them.
    [[nodiscard]] std::optional<std::span<const std::byte>> within(
        std::span<const std::byte> layer) const {
        const std::uint64_t size = spec.nbytes();
        if (offset > layer.size() || size > layer.size() - offset) return std::nullopt;
        return layer.subspan(offset, size);
    }
};

// A stored layer: serial of the model that has it, position in its table.
struct LayerPlace {
    std::uint64_t model = 0;
    std::uint32_t position = 0;
    auto operator<=>(const LayerPlace&) const = default;
};

// The tensors of one layer that a model brought, and where they are.
struct LayerRecord {
    std::uint32_t position = 0;  // in the table of the model that owns it
    std::uint64_t segment = 0;   // 0: the catalogue itself has its bytes
    std::uint64_t owner = 0;     // serial of that model
    std::vector<TensorRecord> tensors;
    // Of a layer that was adopted: its model's table is not here. Others have it from the table.
    std::optional<LayerKey> key = std::nullopt;

    [[nodiscard]] LayerPlace place() const noexcept { return {owner, position}; }
    [[nodiscard]] std::uint64_t nbytes() const {
        std::uint64_t sum = 0;
        for (const TensorRecord& tensor : tensors) sum += tensor.spec.nbytes();
        return sum;
    }
};

struct InheritedRecord {
    std::uint32_t position = 0;        // in the table of the model that inherits
    std::uint64_t owner = 0;           // serial of the model that has it; 0: on another server
    std::uint32_t owner_position = 0;  // in that model's table
    std::string foreign_owner;
    std::uint64_t nbytes = 0;
};

// Layers that were adopted from another server have a record of their own: a retired model's,
// without a table, whose owner's name says who put them.
struct ModelRecord {
    std::uint64_t serial = 0;  // ascending by time; never used twice
    std::string id;
    std::string owner;  // what its layers are found by
    std::string ns;
    LayerTablePtr table;
    double score = 0;
    std::string parent;
    std::string graph;
    std::string metadata;
    std::uint64_t created_ns = 0;
    Checksum description;  // see core/store_impl.hpp
    Checksum content;
    bool retired = false;
    std::vector<LayerRecord> layers;  // its own that somebody still refers to
    std::vector<InheritedRecord> inherited;
    std::string holder;  // of all its layers, from the beginning; empty: none

    // Of its own layers.
    [[nodiscard]] std::uint64_t nbytes() const {
        std::uint64_t sum = 0;
        for (const LayerRecord& layer : layers) sum += layer.nbytes();
        return sum;
    }
};

// A model on another server that refers to a layer here.
struct HolderRecord {
    std::string holder;
    std::uint64_t owner = 0;
    std::uint32_t position = 0;
};

struct SegmentRecord {
    std::uint64_t serial = 0;
    std::uint64_t data_bytes = 0;  // of all tensors that were written into it
};

}  // namespace cpp_store::durable
