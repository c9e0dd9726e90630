#include "local/layers.hpp"

namespace cpp_store::local {

void encode(wire::Writer& out, const Layer& layer) {
    wire::encode(out, layer.description);
    if (!layer.description.here) return;
    out.u32(layer.pin);
    for (const Layer::Place& place : layer.places) {
        out.u32(place.region);
        out.u64(place.offset);
    }
}

Layer decode_layer(wire::Reader& in) {
    Layer layer;
    layer.description = wire::decode_layer(in);
    if (!layer.description.here) return layer;
    layer.pin = in.u32();
    layer.places.resize(layer.description.specs.size());  // no more than were in the message
    for (Layer::Place& place : layer.places) {
        place.region = in.u32();
        place.offset = in.u64();
    }
    return layer;
}

void encode(wire::Writer& out, const Unpin& unpin) {
    out.u64(unpin.call);
    out.u32(unpin.pin);
}

Unpin decode_unpin(wire::Reader& in) {
    Unpin unpin;
    unpin.call = in.u64();
    unpin.pin = in.u32();
    return unpin;
}

}  // namespace cpp_store::local
