// What is written anew: tensors of packets, and of segments of which much is dead.
#include <algorithm>
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
        if (!pack(serial)) wasteful_.erase(serial);
    } catch (const std::exception&) {
        wasteful_.erase(serial);  // until something more of it dies
        throw;
    }
}

// Moves layers from a segment, or from packets (0), to a new segment. False if none is left there.
bool Journal::pack(std::uint64_t from) {
    // Whoever puts waits for it meanwhile.
    const std::uint64_t most_bytes = from == 0 ? options_.some_packets : most_moved;
    std::vector<LayerRecord> layers = catalogue_->layers_in(from, most_bytes);
    std::uint64_t bytes = 0;
    for (const LayerRecord& layer : layers) bytes += layer.nbytes();
    const bool is_all = bytes < most_bytes;
    if (layers.empty()) {
        if (from == 0) packet_bytes_ = 0;
        return false;
    }

    std::vector<std::vector<std::byte>> content;
    std::vector<std::pair<std::string, LayerRecord>> moved;
    std::vector<SegmentTensor> tensors;
    std::vector<std::byte> packet;
    File file = from == 0 ? File() : open_segment(from);
    std::uint64_t model = 0;
    LayerTablePtr table;
    std::string id;
    for (LayerRecord& layer : layers) {
        if (layer.owner != model) {
            model = layer.owner;
            table = catalogue_->table_of(model);
            id = catalogue_->owner_of(model);
            if (from == 0) packet = catalogue_->packet(model);
        }
        if (!table) throw Error(Errc::storage, "the catalogue is damaged: a layer of no model");
        for (std::size_t t = 0; t < layer.tensors.size(); ++t) {
            TensorRecord& tensor = layer.tensors[t];
            std::vector<std::byte>& data = content.emplace_back();
            if (from != 0) {
                data = file.read(tensor.offset, tensor.spec.nbytes());
            } else if (const auto found = tensor.in_packet(packet)) {
                data.assign(found->begin(), found->end());
            }
            const std::string name = tensor_name(id, *table, layer, t);
            if (checksum_of(data.data(), data.size()) != tensor.checksum) {
                throw Error(Errc::storage, "tensor " + name + " in " +
                                               (from ? path_of(from).string() : "the catalogue") +
                                               " is damaged: its checksum is another");
            }
            tensors.push_back({name, data.data(), &tensor});
        }
    }
    const std::uint64_t serial = next_serial();
    write_file(serial, std::move(tensors));
    Uses changed;
    changed[serial] = {.data_bytes = bytes, .live_bytes = bytes, .layers = layers.size()};
    if (from != 0) {
        Use& use = changed.emplace(from, uses_[from]).first->second;
        use.live_bytes -= bytes;
        use.layers -= layers.size();
    }
    for (LayerRecord& layer : layers) layer.segment = serial;
    std::vector<std::uint64_t> emptied;
    try {
        catalogue_->begin();
        catalogue_->add_segment({serial, bytes});
        for (const LayerRecord& layer : layers) {
            catalogue_->move_layer(layer);
            if (from == 0) catalogue_->drop_packet(layer.owner);
        }
        drop_empty(changed, emptied);
        catalogue_->commit();
    } catch (...) {
        catalogue_->rollback();
        doomed_.push_back(serial);
        throw;
    }
    // Readers learn of the new place before the old one goes.
    if (moved_) {
        for (LayerRecord& layer : layers) {
            std::string owner = catalogue_->owner_of(layer.owner);
            moved.emplace_back(std::move(owner), std::move(layer));
        }
        moved_(moved);
    }
    take_over(changed, emptied);
    if (from == 0) packet_bytes_ = is_all ? 0 : packet_bytes_ - std::min(bytes, packet_bytes_ - 1);
    return !is_all;
}

}  // namespace cpp_store::durable
