// The store's life, its questions that move no tensors, and the helpers of store_impl.hpp.
#include "cpp_store/store.hpp"

#include <algorithm>
#include <cstdio>
#include <numeric>
#include <random>

#include "core/store_impl.hpp"

namespace cpp_store {

std::size_t Owner::find_entry(const LayerKey& key) const noexcept {
    const auto at = std::lower_bound(keys.begin(), keys.end(), key);
    if (at == keys.end() || *at != key) return entries.size();
    const auto key_at = static_cast<std::size_t>(at - keys.begin());
    return places.empty() ? key_at : places[key_at];
}

std::size_t Owner::find(const LayerKey& key) const noexcept {
    const std::size_t entry = find_entry(key);
    if (entry == entries.size()) return entry;
    const bool is_here = entries[entry].layer || entries[entry].referrers > 0;
    return is_here ? entry : entries.size();
}

const LayerKey& Owner::key_of(std::size_t entry) const noexcept {
    if (places.empty()) return keys[entry];
    const auto at = std::find(places.begin(), places.end(), entry);
    return keys[static_cast<std::size_t>(at - places.begin())];
}

void Owner::make_room(std::size_t layers) {
    const std::size_t all = entries.size() + layers;
    entries.reserve(all);
    keys.reserve(all);
    places.reserve(all);
}

std::size_t Owner::add(const LayerKey& key) {
    ++referred;
    if (const std::size_t before = find_entry(key); before != entries.size()) return before;
    if (places.empty()) {
        places.resize(keys.size());
        std::iota(places.begin(), places.end(), 0u);
    }
    const auto at = std::lower_bound(keys.begin(), keys.end(), key);
    const std::size_t entry = entries.size();
    places.insert(places.begin() + (at - keys.begin()), static_cast<std::uint32_t>(entry));
    keys.insert(at, key);
    entries.emplace_back();
    return entry;
}

const Slot* Model::slot(std::uint32_t layer) const noexcept {
    const auto at = std::lower_bound(
        slots.begin(), slots.end(), layer,
        [](const Slot& slot, std::uint32_t position) { return slot.layer < position; });
    return at != slots.end() && at->layer == layer ? &*at : nullptr;
}

std::uint64_t Owner::Entry::nbytes() const {
    return kept ? kept->record.nbytes() : bytes_of(*layer);
}

std::uint64_t bytes_of(const StoredLayer& layer) {
    std::uint64_t sum = 0;
    for (const StoredLayer::Tensor& tensor : layer.tensors) sum += tensor.spec.nbytes();
    return sum;
}

namespace {

Store::Options with_defaults(Store::Options options) {
    if (!options.warn) {
        options.warn = [](std::string_view line) {
            std::fprintf(stderr, "cpp_store: %.*s\n", static_cast<int>(line.size()), line.data());
        };
    }
    return options;
}

}  // namespace

// Leases start at a random number, so that one of a server that was restarted is no lease of its
// successor.
Store::Impl::Impl(const Options& given)
    : options(with_defaults(given)), arena(std::make_shared<Arena>(given.memory)) {
    std::random_device random;
    next_lease = (std::uint64_t{random()} << 24) + 1;
    if (!options.data_dir.empty()) {
        last_serial = std::uint64_t{random()} << 24;
        open_data_dir();
    }
}

ModelPtr Store::Impl::find(std::string_view model) const {
    const std::lock_guard lock(mutex);
    const auto found = models.find(model);
    if (found == models.end()) {
        throw Error(Errc::not_found, "there is no model '" + std::string(model) + "'");
    }
    return found->second;
}

std::pair<std::shared_ptr<Owner>, std::size_t> Store::Impl::find_layer(std::string_view owner,
                                                                       const LayerKey& key) const {
    const auto found = owners.find(owner);
    const std::size_t entry = found == owners.end() ? 0 : found->second->find(key);
    if (found == owners.end() || entry == found->second->entries.size()) {
        throw Error(Errc::not_found, "model '" + std::string(owner) +
                                         "' owns no tensors of layer key " + hex(key) + " here");
    }
    return {found->second, entry};
}

void Store::Impl::refer(Owner& owner, std::size_t entry) noexcept {
    ++owner.entries[entry].referrers;
}

void Store::Impl::drop(Owner& owner, std::size_t entry, Garbage& garbage) noexcept {
    Owner::Entry& dropped = owner.entries[entry];
    if (--dropped.referrers > 0) return;
    --counts.layers;
    counts.tensors -= dropped.tensors();
    counts.bytes_stored -= dropped.nbytes();
    if (dropped.kept) {
        if (dropped.kept->resident != resident.end()) resident.erase(dropped.kept->resident);
        journal->drop_layer(dropped.kept->place());
        if (dropped.kept->loading) loaded.notify_all();
        dropped.kept.reset();
    }
    garbage.add(std::move(dropped.layer));
    if (--owner.referred == 0) owners.erase(owner.model);
}

Store::Store(const Options& options) : impl_(std::make_shared<Impl>(options)) {}

Store::~Store() {
    // Its thread may have the last reference to a put, and with it to all of this.
    try {
        close();
    } catch (const std::exception& error) {
        impl_->options.warn(error.what());
    }
}

bool Store::has_data_dir() const noexcept {
    return impl_->journal != nullptr;
}

void Store::flush() {
    if (impl_->journal) impl_->journal->flush();
}

void Store::close() {
    if (impl_->journal) impl_->journal->close();
}

LayerTablePtr Store::table(std::string_view model) const {
    return impl_->find(model)->table;
}

bool Store::contains(std::string_view model) const {
    const std::lock_guard lock(impl_->mutex);
    return impl_->models.contains(model);
}

bool Store::is_alive(std::string_view model) const {
    const std::lock_guard lock(impl_->mutex);
    return impl_->models.contains(model) || impl_->retired.contains(model);
}

bool Store::is_retired_and_leased(std::string_view model) const {
    const std::lock_guard lock(impl_->mutex);
    return impl_->retired.contains(model);
}

std::string Store::owner_of(std::string_view model) const {
    const std::lock_guard lock(impl_->mutex);
    const auto found = impl_->models.find(model);
    return found == impl_->models.end() ? std::string() : found->second->owner;
}

ModelInfo Store::lookup(std::string_view model) const {
    const ModelPtr found = impl_->find(model);
    ModelInfo info{.model = found->id,
                   .owner = found->owner,
                   .ns = found->ns,
                   .table = found->table,
                   .layers = {},
                   .score = found->score,
                   .parent = found->parent,
                   .graph = found->graph,
                   .metadata = found->metadata,
                   .created_ns = found->created_ns,
                   .bytes_own = found->bytes_own,
                   .bytes_inherited = found->bytes_inherited};
    info.layers.reserve(found->slots.size());
    for (const Slot& slot : found->slots) info.layers.push_back(slot.location(slot.layer));
    return info;
}

std::vector<std::string> Store::list(const std::string* ns) const {
    std::vector<std::pair<std::uint64_t, std::string>> found;
    {
        const std::lock_guard lock(impl_->mutex);
        found.reserve(impl_->models.size());
        for (const auto& [id, model] : impl_->models) {
            if (!ns || model->ns == *ns) found.emplace_back(model->sequence, id);
        }
    }
    std::sort(found.begin(), found.end());
    std::vector<std::string> ids;
    ids.reserve(found.size());
    for (auto& [sequence, id] : found) ids.push_back(std::move(id));
    return ids;
}

std::vector<std::string> Store::verify() const {
    std::vector<Impl::Place> places;
    {
        const std::lock_guard lock(impl_->mutex);
        places.reserve(impl_->counts.layers);
        for (const auto& [id, owner] : impl_->owners) {
            for (std::size_t i = 0; i < owner->entries.size(); ++i) {
                if (owner->entries[i].referrers > 0) places.push_back({owner, i});
            }
        }
    }
    std::vector<std::string> changed;
    for (const Impl::Place& place : places) {
        if (impl_->is_intact(place)) continue;
        changed.push_back(place.owner->model + "/" + hex(place.owner->key_of(place.entry)));
    }
    std::sort(changed.begin(), changed.end());
    return changed;
}

StoreStats Store::stats() const {
    StoreStats stats;
    {
        const std::lock_guard lock(impl_->mutex);
        stats = impl_->counts;
        stats.models = impl_->models.size();
        stats.retired = impl_->retired.size();
        stats.leases = impl_->leases.size();
        stats.foreign_holders = impl_->holders.size();
    }
    stats.reads = impl_->reads.load(std::memory_order_relaxed);
    stats.bytes_read = impl_->bytes_read.load(std::memory_order_relaxed);
    stats.memory = impl_->arena->stats();
    stats.index = impl_->index.stats();
    std::transform(impl_->calls.begin(), impl_->calls.end(), stats.calls.begin(),
                   [](const Histogram& times) { return times.summary(); });
    return stats;
}

void Store::note_call(std::size_t operation, std::chrono::nanoseconds time) noexcept {
    if (operation < impl_->calls.size()) impl_->calls[operation].add(time);
}

const Arena& Store::arena() const noexcept {
    return *impl_->arena;
}

}  // namespace cpp_store
