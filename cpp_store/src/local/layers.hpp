// How a server tells clients of its host where tensors lie, instead of sending them.
#pragma once

#include <cstdint>
#include <memory>
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
    std::uint32_t pin = 0;      // if it is here: its number among those that the call pinned
    std::vector<Place> places;  // one a tensor; of no meaning for empty ones
};

void encode(wire::Writer& out, const Layer& layer);
[[nodiscard]] Layer decode_layer(wire::Reader& in);

// A client has views no more of a layer that the answer to a call told it of.
struct Unpin {
    std::uint64_t call = 0;
    std::uint32_t pin = 0;
};

void encode(wire::Writer& out, const Unpin& unpin);
[[nodiscard]] Unpin decode_unpin(wire::Reader& in);
inline constexpr std::size_t unpin_size = 12;

// A layer as a client has it.
struct SharedLayer {
    wire::Layer description;          // its data, if it is here, may be the server's memory
    std::shared_ptr<const void> pin;  // then it stays as it is while this is held
};

}  // namespace cpp_store::local
