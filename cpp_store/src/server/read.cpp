#include <algorithm>

#include "server/call.hpp"

namespace cpp_store::server {

std::uint64_t total_bytes(const std::vector<StoredLayerPtr>& layers) {
    std::uint64_t total = 0;
    for (const StoredLayerPtr& layer : layers) {
        if (!layer) continue;
        for (const auto& tensor : layer->tensors) total += tensor.spec.nbytes();
    }
    return total;
}

void encode_layers(wire::Writer& out, std::vector<wire::Layer> layers,
                   const std::vector<StoredLayerPtr>& stored, bool with_data) {
    out.count(layers.size());
    for (std::size_t i = 0; i < layers.size(); ++i) {
        layers[i].here = stored[i] != nullptr;
        if (stored[i]) {
            layers[i].serial = stored[i]->serial;
            for (const auto& tensor : stored[i]->tensors) {
                layers[i].specs.push_back(tensor.spec);
                if (with_data)
                    layers[i].data.emplace_back(tensor.extent.data, tensor.spec.nbytes());
            }
        }
        wire::encode(out, layers[i]);
    }
}

Described describe_model(Call& call) {
    wire::Reader in = call.body();
    const wire::Read request = wire::decode_read(in);
    in.end();

    LayerTablePtr table;
    std::vector<LayerLocation> located;
    do {  // again if it was retired and put anew in between
        table = call.store().table(request.model);
        std::vector<std::uint32_t> positions;
        for (const std::string& name : request.layers) {
            const std::size_t position = table->find(layer_key(name));
            if (position == table->size()) {
                throw Error(Errc::invalid_argument,
                            "model '" + request.model + "' has no layer '" + name + "'");
            }
            positions.push_back(static_cast<std::uint32_t>(position));
        }
        std::ranges::sort(positions);
        positions.erase(std::unique(positions.begin(), positions.end()), positions.end());
        located = call.store().find_layers(request.model, positions);
    } while (call.store().table(request.model) != table);
    Described found;
    for (LayerLocation& location : located) {
        wire::Layer layer;
        layer.name = table->name(location.layer);
        layer.owner = std::move(location.owner);
        layer.key = table->key(location.layer);
        found.layers.push_back(std::move(layer));
        found.stored.push_back(std::move(location.stored));
    }
    return found;
}

// Says where a model's layers are and what tensors they have. Small ones come along; the client
// fetches the others into buffers of its own, from whichever server has them.
void read(Call& call) {
    Described found = describe_model(call);
    const bool with_data = total_bytes(found.stored) <= wire::described_with_data;
    if (with_data) call.store().count_read(found.stored);
    wire::Writer out;
    encode_layers(out, std::move(found.layers), found.stored, with_data);
    call.reply(std::move(out));
}

}  // namespace cpp_store::server
