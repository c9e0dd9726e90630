// What identifies a layer: digests, occurrences among twins, stable names. docs/formats.md has the
// bytes.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <string_view>
#include <vector>

#include "cpp_store/layer_table.hpp"

namespace cpp_store {

// 128 bits; as bytes big-endian, high half first.
struct Digest {
    std::uint64_t high = 0;
    std::uint64_t low = 0;
    auto operator<=>(const Digest&) const = default;
};

[[nodiscard]] inline std::array<char, 16> to_bytes(const Digest& digest) noexcept {
    std::array<std::uint64_t, 2> halves{digest.high, digest.low};
    if constexpr (std::endian::native == std::endian::little) {
        for (std::uint64_t& half : halves) half = __builtin_bswap64(half);
    }
    return std::bit_cast<std::array<char, 16>>(halves);
}

[[nodiscard]] Digest xxh3_128(std::string_view bytes, std::uint64_t seed = 0) noexcept;

// A layer graph in flat arrays. Views point into the caller's memory.
struct GraphView {
    struct Edge {  // one output tensor of one call of a layer
        std::uint32_t layer = 0;
        std::uint32_t call = 0;
        std::uint32_t tensor = 0;
        bool operator==(const Edge&) const = default;
    };
    struct Call {
        std::uint32_t edges_end = 0;  // its inputs are edges[previous call's end, end)
        std::string_view arguments;   // canonical JSON; empty: called on its inputs alone
    };
    struct Layer {
        Digest spec;                  // of class, configuration and weights
        std::string_view label;       // what its stable name starts with
        std::uint64_t nbytes = 0;     // of its weights
        std::uint32_t calls_end = 0;  // its calls are calls[previous layer's end, end)
    };
    std::vector<Layer> layers;
    std::vector<Call> calls;
    std::vector<Edge> edges;
    std::vector<Edge> inputs;  // of the model, in its order
    std::vector<Edge> outputs;
};

struct NamedLayers {
    std::vector<Digest> digests;
    std::vector<std::uint32_t> occurrences;
    LayerTablePtr table;
};

// Digest: equal for layers whose ancestor graphs are isomorphic (class, configuration, weights,
// arguments, order of inputs; calls of a shared layer in any order). A function of the layer and
// its ancestors alone. The n-th model input of one spec counts as another layer than the first.
//
// Occurrence: twins are layers of one spec called on the same tensors. They are counted from 0 in
// an order that does not depend on how the graph is written down: by the first layer that tells
// them apart, those of small depth before deeper ones.
//
// Stable name: label, "_", 32 hex digits of the digest; then "_k" with k = the occurrence if that
// is not 0. A layer that stands on another twin than its digest alone would make one think gets a
// number of 19 or 20 digits for k instead. So layers of equal names stand on layers of equal names:
// the common names of two graphs are a common sub-graph, closed under ancestors.
//
// Time is linear in layers and edges where no two layers have equal ancestors; else each layer with
// several inputs that stands on twins costs the size of its ancestor graph.
//
// Throws Errc::invalid_argument for an edge to a layer or call that is not there, or that does not
// come before the layer itself.
[[nodiscard]] NamedLayers name_layers(const GraphView& graph);

}  // namespace cpp_store
