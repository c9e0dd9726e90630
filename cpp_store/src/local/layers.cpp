#include "local/layers.hpp"

namespace cpp_store::local {

void encode(wire::Writer& out, const Layer& layer) {
    wire::encode(out, layer.description);
    if (!layer.description.here) return;
    out.u64(layer.pin);
    for (const Layer::Place& place : layer.places) {
        out.u32(place.region);
        out.u64(place.offset);
    }
}

Layer decode_layer(wire::Reader& in) {
    Layer layer;
    layer.description = wire::decode_layer(in);
    if (!layer.description.here) return layer;
    layer.pin = in.u64();
    layer.places.resize(layer.description.specs.size());  // no more than were in the message
    for (Layer::Place& place : layer.places) {
        place.region = in.u32();
        place.offset = in.u64();
    }
    return layer;
}

}  // namespace cpp_store::local
