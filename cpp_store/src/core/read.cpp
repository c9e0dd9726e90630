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

std::vector<LayerLocation> Store::read(std::string_view model,
                                       std::span<const std::uint32_t> positions) {
    const ModelPtr found = impl_->find(model);
    std::vector<LayerLocation> out;
    std::vector<StoredLayerPtr> stored;
    const auto add = [&](const Slot& slot) {
        out.push_back(slot.location(slot.layer));
        if (slot.stored) stored.push_back(slot.stored);
    };
    if (positions.empty()) {
        out.reserve(found->slots.size());
        for (const Slot& slot : found->slots) add(slot);
    }
    for (const std::uint32_t position : positions) {
        if (position >= found->table->size()) {
            throw Error(Errc::invalid_argument,
                        "model '" + found->id + "' has " + std::to_string(found->table->size()) +
                            " layers; there is none at position " + std::to_string(position));
        }
        if (const Slot* const slot = found->slot(position)) add(*slot);
    }
    impl_->count_read(stored);
    return out;
}

std::vector<StoredLayerPtr> Store::fetch(std::string_view owner, std::span<const LayerKey> keys) {
    std::vector<StoredLayerPtr> out = find_layers(owner, keys);
    impl_->count_read(out);
    return out;
}

std::vector<StoredLayerPtr> Store::find_layers(std::string_view owner,
                                               std::span<const LayerKey> keys) const {
    std::vector<StoredLayerPtr> out;
    out.reserve(keys.size());
    const std::lock_guard lock(impl_->mutex);
    for (const LayerKey& key : keys) {
        const auto [found, entry] = impl_->find_layer(owner, key);
        out.push_back(found->entries[entry].layer);
    }
    return out;
}

}  // namespace cpp_store
