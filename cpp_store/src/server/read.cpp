#include <algorithm>

#include "server/call.hpp"

namespace cpp_store::server {

namespace {

std::uint64_t total_bytes(const std::vector<StoredLayerPtr>& layers) {
    std::uint64_t total = 0;
    for (const StoredLayerPtr& layer : layers) {
        if (!layer) continue;
        for (const auto& tensor : layer->tensors) total += tensor.spec.nbytes();
    }
    return total;
}

}  // namespace

local::Layer Call::pin(wire::Layer description, const StoredLayerPtr& stored) {
    local::Layer layer;
    layer.description = std::move(description);
    if (!stored) return layer;
    for (const StoredLayer::Tensor& tensor : stored->tensors) {
        local::Layer::Place& place = layer.places.emplace_back();
        if (tensor.extent.size == 0) continue;
        regions_.insert(tensor.extent.region);
        place = {static_cast<std::uint32_t>(tensor.extent.region), tensor.extent.offset};
    }
    session_->at.line->pins.pin(id_, stored);
    layer.pin = pins_++;
    return layer;
}

void reply_with_layers(Call& call, Described found) {
    const bool is_shared = call.session()->shares_memory();
    const bool with_data = !is_shared && total_bytes(found.stored) <= wire::described_with_data;
    if (is_shared || with_data) call.store().count_read(found.stored);
    wire::Writer out;
    out.count(found.layers.size());
    for (std::size_t i = 0; i < found.layers.size(); ++i) {
        wire::Layer& layer = found.layers[i];
        const StoredLayerPtr& stored = found.stored[i];
        layer.here = stored != nullptr;
        if (stored) {
            layer.serial = stored->serial;
            for (const auto& tensor : stored->tensors) {
                layer.specs.push_back(tensor.spec);
                if (with_data) layer.data.emplace_back(tensor.extent.data, tensor.spec.nbytes());
            }
        }
        if (is_shared) {
            local::encode(out, call.pin(std::move(layer), stored));
        } else {
            wire::encode(out, layer);
        }
    }
    call.reply(std::move(out));
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

// Says where a model's layers are and what tensors they have. Over a network small ones come along,
// and the client fetches the others into buffers of its own, from whichever server has them.
void read(Call& call) {
    reply_with_layers(call, describe_model(call));
}

}  // namespace cpp_store::server
