// What the journal's thread writes in one transaction.
#include "durable/batch.hpp"

#include <algorithm>
#include <utility>

#include "cpp_store/error.hpp"
#include "durable/segment.hpp"

namespace cpp_store::durable {
namespace {

constexpr std::uint64_t MiB = std::uint64_t{1} << 20;
// From here on two more syncs cost less than to write the bytes twice.
constexpr std::uint64_t packet_limit = MiB / 4;
constexpr std::uint64_t write_ahead_limit = MiB;
constexpr std::uint64_t least_waste = MiB;  // for which a segment is written anew

// The tensors of a model's layers that are in memory, to be written.
void add_tensors(std::vector<SegmentTensor>& out, ModelRecord& model,
                 std::span<const StoredLayerPtr> stored) {
    for (std::size_t i = 0; i < model.layers.size(); ++i) {
        LayerRecord& layer = model.layers[i];
        for (std::size_t t = 0; t < layer.tensors.size(); ++t) {
            out.push_back({tensor_name(model.owner, *model.table, layer, t),
                           stored[i]->tensors[t].extent.data, &layer.tensors[t]});
        }
    }
}

}  // namespace

std::string tensor_name(std::string_view owner, const LayerTable& table, const LayerRecord& layer,
                        std::size_t tensor) {
    std::string name(owner);
    name += '/';
    if (layer.key) {
        name += hex(*layer.key);
    } else if (layer.position < table.size()) {
        name += table.name(layer.position);
    } else {
        throw Error(Errc::storage, "the catalogue is damaged: a layer of no model");
    }
    name += '/';
    name += std::to_string(tensor);
    return name;
}

bool Journal::is_large(std::uint64_t bytes) const noexcept {
    return options_.sync && bytes >= write_ahead_limit;
}

void Journal::write_ahead(ModelRecord& model, std::span<const StoredLayerPtr> layers) {
    const std::uint64_t serial = next_serial();
    std::vector<SegmentTensor> tensors;
    add_tensors(tensors, model, layers);
    write_file(serial, std::move(tensors));
    for (LayerRecord& layer : model.layers) layer.segment = serial;
}

// One transaction. Throws if nothing of it happened (or, after a failed sync, perhaps all of it).
void Journal::write(std::vector<Change>& batch) {
    Uses changed;  // what the segments at hand will be like
    std::vector<std::uint64_t> emptied;
    const std::uint64_t made = write_tensors(batch, changed);
    for (const Change& change : batch) {
        const std::uint64_t segment = change.written_ahead();
        if (segment != 0) changed[segment].data_bytes = change.record->nbytes();
    }
    std::uint64_t last_entry = 0;
    for (const Change& change : batch) last_entry = std::max(last_entry, change.entry);
    try {
        catalogue_->begin();
        for (const auto& [serial, use] : changed) {
            catalogue_->add_segment({serial, use.data_bytes});
        }
        for (const Change& change : batch) apply(change, changed);
        drop_empty(changed, emptied);
        if (last_entry > applied_) catalogue_->set_applied(last_entry);
        catalogue_->commit();
    } catch (...) {
        catalogue_->rollback();
        if (made != 0) doomed_.push_back(made);
        for (Change& change : batch) {
            change.packet.clear();
            if (!change.record || change.bytes == 0) continue;
            for (LayerRecord& layer : change.record->layers) layer.segment = 0;
        }
        throw;
    }
    applied_ = std::max(applied_, last_entry);
    for (const Change& change : batch) packet_bytes_ += change.packet.size();
    take_over(changed, emptied);
}

// The bytes of a batch: all in one segment, whose number is returned, or where they are few, in
// packets: 0.
std::uint64_t Journal::write_tensors(std::vector<Change>& batch, Uses& uses) {
    std::uint64_t bytes = 0;
    for (const Change& change : batch) bytes += change.bytes;
    if (bytes < packet_limit) {
        for (Change& change : batch) {
            if (change.bytes == 0) continue;
            change.packet.reserve(change.bytes);
            for (std::size_t i = 0; i < change.layers.size(); ++i) {
                LayerRecord& layer = change.record->layers[i];
                for (std::size_t t = 0; t < layer.tensors.size(); ++t) {
                    TensorRecord& tensor = layer.tensors[t];
                    tensor.offset = change.packet.size();
                    const std::byte* const data = change.layers[i]->tensors[t].extent.data;
                    change.packet.insert(change.packet.end(), data, data + tensor.spec.nbytes());
                }
            }
        }
        return 0;
    }
    const std::uint64_t serial = next_serial();
    std::vector<SegmentTensor> tensors;
    for (Change& change : batch) {
        if (change.bytes > 0) add_tensors(tensors, *change.record, change.layers);
    }
    write_file(serial, std::move(tensors));
    for (Change& change : batch) {
        if (change.bytes == 0) continue;
        for (LayerRecord& layer : change.record->layers) layer.segment = serial;
    }
    uses[serial].data_bytes = bytes;
    return serial;
}

void Journal::write_file(std::uint64_t serial, std::vector<SegmentTensor> tensors) const {
    try {
        write_segment(path_of(serial), std::move(tensors));
        sync_directory(segments_path_);
    } catch (...) {
        remove_file(path_of(serial));  // no transaction speaks of it
        throw;
    }
}

Catalogue::Dropped apply(Catalogue& catalogue, const Change& change,
                         std::uint64_t most_retirements) {
    switch (change.kind) {
        case Change::Kind::put:
            catalogue.put(*change.record);
            if (!change.packet.empty()) catalogue.put_packet(change.record->serial, change.packet);
            break;
        case Change::Kind::retire:
            catalogue.retire(change.layer.model);
            if (change.note) catalogue.note(*change.note, most_retirements);
            break;
        case Change::Kind::note:
            catalogue.note(*change.note, most_retirements);
            break;
        case Change::Kind::acquire:
            catalogue.acquire({change.holder, change.layer.model, change.layer.position});
            break;
        case Change::Kind::release:
            catalogue.release({change.holder, change.layer.model, change.layer.position});
            break;
        case Change::Kind::drop_layer:
            return catalogue.drop_layer(change.layer.model, change.layer.position);
        case Change::Kind::replace_layer:
            return catalogue.replace_layer(change.layer, change.by);
        case Change::Kind::nothing:
            break;
    }
    return {};
}

void Journal::apply(const Change& change, Uses& changed) {
    const auto [segment, bytes] = durable::apply(*catalogue_, change, options_.most_retirements);
    if (change.kind == Change::Kind::put) {
        for (const LayerRecord& layer : change.record->layers) {
            if (layer.segment == 0) continue;
            Use& use = changed[layer.segment];
            use.live_bytes += layer.nbytes();
            ++use.layers;
        }
    }
    if (segment == 0) return;
    const auto known = uses_.find(segment);
    if (known != uses_.end()) changed.emplace(segment, known->second);
    if (const auto use = changed.find(segment); use != changed.end()) {
        use->second.live_bytes -= bytes;
        --use->second.layers;
    }
}

void Journal::drop_empty(Uses& uses, std::vector<std::uint64_t>& emptied) {
    for (const auto& [serial, use] : uses) {
        if (use.layers == 0) emptied.push_back(serial);
    }
    for (const std::uint64_t serial : emptied) {
        catalogue_->remove_segment(serial);
        uses.erase(serial);
    }
}

// After a commit.
void Journal::take_over(const Uses& changed, const std::vector<std::uint64_t>& emptied) {
    for (const auto& [serial, use] : changed) {
        uses_[serial] = use;
        const std::uint64_t waste = use.data_bytes - use.live_bytes;
        if (waste >= least_waste && waste > use.data_bytes / 2) wasteful_.insert(serial);
    }
    for (const std::uint64_t serial : emptied) {
        uses_.erase(serial);
        wasteful_.erase(serial);
        remove_file(path_of(serial));
    }
    for (const std::uint64_t serial : doomed_) remove_file(path_of(serial));
    doomed_.clear();
}

}  // namespace cpp_store::durable
