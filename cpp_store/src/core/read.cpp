#include "core/store_impl.hpp"

namespace cpp_store {

void Store::Impl::count_read(std::span<const StoredLayerPtr> layers) noexcept {
    std::uint64_t bytes = 0;
    for (const StoredLayerPtr& layer : layers) {
        if (!layer) continue;
        for (const StoredLayer::Tensor& tensor : layer->tensors) bytes += tensor.spec.nbytes();
    }
    reads.fetch_add(1, std::memory_order_relaxed);
    bytes_read.fetch_add(bytes, std::memory_order_relaxed);
}

void Store::count_read(std::span<const StoredLayerPtr> layers) noexcept {
    impl_->count_read(layers);
}

std::vector<LayerLocation> Store::Impl::layers_of(const Model& model,
                                                  std::span<const std::uint32_t> positions) {
    std::vector<LayerLocation> out;
    std::vector<Place> places;        // with a data directory: where the tensors are to be found
    std::vector<std::size_t> pinned;  // and which of `out` they belong to
    const auto add = [&](const Slot& slot) {
        if (journal && slot.owner) {
            pinned.push_back(out.size());
            places.push_back({slot.owner, slot.entry});
        }
        out.push_back(slot.location(slot.layer));
    };
    if (positions.empty()) {
        out.reserve(model.slots.size());
        for (const Slot& slot : model.slots) add(slot);
    }
    for (const std::uint32_t position : positions) {
        if (position >= model.table->size()) {
            throw Error(Errc::invalid_argument,
                        "model '" + model.id + "' has " + std::to_string(model.table->size()) +
                            " layers; there is none at position " + std::to_string(position));
        }
        if (const Slot* const slot = model.slot(position)) add(*slot);
    }
    if (!places.empty()) {
        std::vector<StoredLayerPtr> stored = pin(places);
        for (std::size_t i = 0; i < pinned.size(); ++i)
            out[pinned[i]].stored = std::move(stored[i]);
    }
    return out;
}

std::vector<LayerLocation> Store::read(std::string_view model,
                                       std::span<const std::uint32_t> positions) {
    std::vector<LayerLocation> out = find_layers(model, positions);
    std::uint64_t bytes = 0;
    for (const LayerLocation& location : out) {
        if (location.stored) bytes += bytes_of(*location.stored);
    }
    impl_->reads.fetch_add(1, std::memory_order_relaxed);
    impl_->bytes_read.fetch_add(bytes, std::memory_order_relaxed);
    return out;
}

std::vector<LayerLocation> Store::find_layers(std::string_view model,
                                              std::span<const std::uint32_t> positions) const {
    return impl_->layers_of(*impl_->find(model), positions);
}

std::vector<StoredLayerPtr> Store::fetch(std::string_view owner, std::span<const LayerKey> keys) {
    std::vector<StoredLayerPtr> out = find_layers(owner, keys);
    impl_->count_read(out);
    return out;
}

std::vector<StoredLayerPtr> Store::find_layers(std::string_view owner,
                                               std::span<const LayerKey> keys) const {
    std::vector<StoredLayerPtr> out;
    std::vector<Impl::Place> places;
    out.reserve(keys.size());
    {
        const std::lock_guard lock(impl_->mutex);
        for (const LayerKey& key : keys) {
            auto [found, entry] = impl_->find_layer(owner, key);
            if (impl_->journal) {
                places.push_back({std::move(found), entry});
            } else {
                out.push_back(found->entries[entry].layer);
            }
        }
    }
    return impl_->journal ? impl_->pin(places) : out;
}

std::vector<std::uint64_t> Store::layer_bytes(std::string_view owner,
                                              std::span<const LayerKey> keys) const {
    std::vector<std::uint64_t> out;
    out.reserve(keys.size());
    const std::lock_guard lock(impl_->mutex);
    for (const LayerKey& key : keys) {
        const auto [found, entry] = impl_->find_layer(owner, key);
        out.push_back(found->entries[entry].nbytes());
    }
    return out;
}

}  // namespace cpp_store
