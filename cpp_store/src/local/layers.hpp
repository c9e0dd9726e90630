// How a server tells clients of its host where tensors lie, instead of sending them.
#pragma once

#include <cstdint>
#include <vector>

#include "net/wire.hpp"

namespace cpp_store::local {

// A layer of an answer to read or fetch. While it is pinned, its tensors stay where they are.
struct Layer {
    struct Place {
        std::uint32_t region = 0;
        std::uint64_t offset = 0;
    };
    wire::Layer description;    // no data
    std::uint64_t pin = 0;      // if it is here
    std::vector<Place> places;  // one a tensor; of no meaning for empty ones
};

void encode(wire::Writer& out, const Layer& layer);
[[nodiscard]] Layer decode_layer(wire::Reader& in);

// What the welcome gives besides: which server this is. After it comes a number for the client, by
// which its further connections say, as their address, whose they are.
struct Instance {
    std::uint64_t high = 0;
    std::uint64_t low = 0;
    auto operator<=>(const Instance&) const = default;
};

}  // namespace cpp_store::local
