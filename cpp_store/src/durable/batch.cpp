// What the journal's thread writes in one transaction.
#include "durable/batch.hpp"

#include <algorithm>
#include <utility>

#include "cpp_store/error.hpp"
#include "durable/segment.hpp"

namespace cpp_store::durable {
namespace {

constexpr std::uint64_t MiB = std::uint64_t{1} << 20;
// Tensors of a smaller put are in the catalogue: two more syncs, and a file, cost more than to
// write the bytes twice.
constexpr std::uint64_t small_put = MiB / 16;
constexpr std::uint64_t large_put = MiB;    // of a sync store: by the thread of whoever puts
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

// Of the tensors of a small put, which are one after the other in the bytes of their layer.
void set_offsets(ModelRecord& model) {
    for (LayerRecord& layer : model.layers) {
        layer.segment = 0;
        std::uint64_t offset = 0;
        for (TensorRecord& tensor : layer.tensors) {
            tensor.offset = offset;
            offset += tensor.spec.nbytes();
        }
    }
}

void put_small(Catalogue& catalogue, const Change& put) {
    std::vector<std::byte> bytes;
    for (std::size_t i = 0; i < put.layers.size(); ++i) {
        bytes.clear();
        for (const StoredLayer::Tensor& tensor : put.layers[i]->tensors) {
            bytes.insert(bytes.end(), tensor.extent.data,
                         tensor.extent.data + tensor.spec.nbytes());
        }
        catalogue.put_small(put.record->layers[i].place(), bytes);
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
    return options_.sync && bytes >= large_put;
}

void Journal::write_ahead(ModelRecord& model, std::span<const StoredLayerPtr> layers) {
    const std::uint64_t serial = next_serial();
    std::vector<SegmentTensor> tensors;
    add_tensors(tensors, model, layers);
    for (LayerRecord& layer : model.layers) layer.segment = serial;
    const ModelRecord* const only = &model;
    try {
        write_file(serial, std::move(tensors), {&only, 1});
    } catch (const SyncError& error) {
        throw Error(Errc::storage, stop(error));
    }
}

// One transaction. Throws if nothing of it happened (or, with a SyncError, perhaps all of it).
void Journal::write(Batch& batch) {
    Uses changed;  // what the segments at hand will be like
    std::vector<std::uint64_t> emptied;
    const std::uint64_t made = write_segment_of(batch, changed);
    try {
        for (const Change& change : batch) {
            const std::uint64_t segment = change.written_ahead();
            if (segment != 0) changed[segment].data_bytes = change.record->nbytes();
        }
        catalogue_->begin();
        for (const auto& [serial, use] : changed) {
            catalogue_->add_segment({serial, use.data_bytes});
        }
        for (const Change& change : batch) apply(change, changed);
        drop_empty(changed, emptied);
        catalogue_->commit();
    } catch (...) {
        undo(made);
        throw;
    }
    take_over(changed, emptied);
}

// After a transaction failed that speaks of a segment (0: of none). Within a catch block.
void Journal::undo(std::uint64_t segment) noexcept {
    catalogue_->rollback();
    if (segment == 0) return;
    try {
        throw;
    } catch (const SyncError&) {
        // Perhaps the transaction is on disk all the same: the segment must be, too.
    } catch (...) {
        remove_file(path_of(segment));
    }
}

// The tensors of all puts of a batch that are not small, in one segment. Returns its number; 0:
// there are none.
std::uint64_t Journal::write_segment_of(Batch& batch, Uses& uses) {
    std::vector<SegmentTensor> tensors;
    std::vector<const ModelRecord*> models;
    std::uint64_t serial = 0;
    std::uint64_t bytes = 0;
    for (Change& change : batch) {
        if (change.bytes < small_put) continue;
        if (serial == 0) serial = next_serial();
        bytes += change.bytes;
        for (LayerRecord& layer : change.record->layers) layer.segment = serial;
        add_tensors(tensors, *change.record, change.layers);
        models.push_back(change.record.get());
    }
    if (serial == 0) return 0;
    uses[serial].data_bytes = bytes;
    write_file(serial, std::move(tensors), models);
    return serial;
}

void Journal::write_file(std::uint64_t serial, std::vector<SegmentTensor> tensors,
                         std::span<const ModelRecord* const> models) const {
    try {
        write_segment(path_of(serial), std::move(tensors), models);
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
            if (change.bytes > 0 && change.bytes < small_put) set_offsets(*change.record);
            catalogue.put(*change.record);
            if (change.bytes > 0 && change.bytes < small_put) put_small(catalogue, change);
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
}

}  // namespace cpp_store::durable
