// Segments of which much is dead are written anew.
#include <map>
#include <utility>

#include "core/checksum.hpp"
#include "cpp_store/error.hpp"
#include "durable/batch.hpp"
#include "durable/segment.hpp"

namespace cpp_store::durable {
namespace {

constexpr std::uint64_t most_moved = std::uint64_t{64} << 20;  // at a time: it is held in memory

}  // namespace

// Writes one segment anew of which more than half is dead.
void Journal::tidy() {
    if (wasteful_.empty()) return;
    const std::uint64_t serial = *wasteful_.begin();
    try {
        if (!move_layers(serial)) wasteful_.erase(serial);
    } catch (const std::exception&) {
        wasteful_.erase(serial);  // until something more of it dies
        throw;
    }
}

// Moves layers from a segment to a new one. False if none is left there.
bool Journal::move_layers(std::uint64_t from) {
    const std::vector<LayerRecord> layers = catalogue_->layers_in(from, most_moved);
    if (layers.empty()) return false;
    const std::uint64_t serial = next_serial();
    const File file = open_segment(from);
    std::map<std::uint64_t, ModelRecord> models;  // of which there are layers among them
    std::uint64_t bytes = 0;
    for (const LayerRecord& layer : layers) {
        bytes += layer.nbytes();
        if (models.contains(layer.owner)) continue;
        auto model = catalogue_->model(layer.owner);
        if (!model) throw Error(Errc::storage, "the catalogue is damaged: a layer of no model");
        models.emplace(layer.owner, std::move(*model));
    }

    std::vector<std::vector<std::byte>> content;
    std::vector<SegmentTensor> tensors;
    std::vector<std::pair<std::string, LayerRecord*>> moved;
    for (const LayerRecord& each : layers) {
        ModelRecord& model = models.at(each.owner);
        for (LayerRecord& layer : model.layers) {
            if (layer.position != each.position) continue;
            layer.segment = serial;
            moved.emplace_back(model.owner, &layer);
            for (std::size_t t = 0; t < layer.tensors.size(); ++t) {
                TensorRecord& tensor = layer.tensors[t];
                std::vector<std::byte>& data = content.emplace_back();
                data = file.read(tensor.offset, tensor.spec.nbytes());
                const std::string name = tensor_name(model.owner, *model.table, layer, t);
                if (checksum_of(data.data(), data.size()) != tensor.checksum) {
                    throw Error(Errc::storage, "tensor " + name + " in " + path_of(from).string() +
                                                   " is damaged: its checksum is another");
                }
                tensors.push_back({name, data.data(), &tensor});
            }
        }
    }
    std::vector<const ModelRecord*> owners;
    for (const auto& [owner, model] : models) owners.push_back(&model);
    write_file(serial, std::move(tensors), owners);

    Uses changed;
    changed[serial] = {.data_bytes = bytes, .live_bytes = bytes, .layers = layers.size()};
    Use& use = changed.emplace(from, uses_[from]).first->second;
    use.live_bytes -= bytes;
    use.layers -= layers.size();
    std::vector<std::uint64_t> emptied;
    try {
        catalogue_->begin();
        catalogue_->add_segment({serial, bytes});
        for (const auto& [owner, layer] : moved) catalogue_->move_layer(*layer);
        drop_empty(changed, emptied);
        catalogue_->commit();
    } catch (...) {
        undo(serial);
        throw;
    }
    // Readers learn of the new place before the old one goes.
    std::vector<std::pair<std::string, LayerRecord>> told;
    for (auto& [owner, layer] : moved) told.emplace_back(std::move(owner), std::move(*layer));
    if (moved_) moved_(told);
    take_over(changed, emptied);
    return emptied.empty();
}

}  // namespace cpp_store::durable
