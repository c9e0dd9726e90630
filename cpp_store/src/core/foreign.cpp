// References from models on other servers.
#include <algorithm>

#include "core/store_impl.hpp"

namespace cpp_store {

void Store::acquire(std::string_view owner, std::span<const LayerKey> keys,
                    std::string_view holder) {
    if (holder.empty()) throw Error(Errc::invalid_argument, "a holder needs a name");
    if (keys.empty()) return;
    std::unique_lock lock(impl_->mutex);
    std::set<Holder::Reference> found;  // all of them before anything changes
    for (const LayerKey& key : keys) {
        auto [references, entry] = impl_->find_layer(owner, key);
        found.insert({std::move(references), entry});
    }
    // For the data directory, references that are known already, too: perhaps they are not on disk.
    std::vector<durable::HolderRecord> records;
    for (const Holder::Reference& reference : found) {
        const Kept* const kept = reference.owner->entries[reference.entry].kept.get();
        if (!kept) continue;
        records.push_back({std::string(holder), kept->record.owner, kept->record.position});
    }
    Holder& held = impl_->holders[std::string(holder)];
    held.acquired = impl_->options.clock();
    while (!found.empty()) {
        const auto [reference, is_new, known_before] =
            held.references.insert(found.extract(found.begin()));
        if (is_new) impl_->refer(*reference->owner, reference->entry);
    }
    if (records.empty()) return;
    // For each: the log may take some and fail to take others.
    std::vector<durable::Wait> waits;
    for (durable::HolderRecord& record : records) {
        waits.emplace_back(*impl_->journal);
        impl_->journal->acquire(std::move(record), waits.back().done());
    }
    lock.unlock();
    for (const durable::Wait& wait : waits) wait.get();
    // A model elsewhere is about to count on it, and its server may live longer than this one.
    if (!impl_->journal->is_sync()) impl_->journal->flush();
}

void Store::Impl::log_release(const std::string& holder,
                              const durable::LayerPlace& layer) noexcept {
    try {
        journal->release({holder, layer.model, layer.position});
    } catch (const std::bad_alloc&) {
        // What is not said here is found out when the directory is opened again.
    }
}

void Store::Impl::log_release(const std::string& holder,
                              const Holder::Reference& reference) noexcept {
    const Kept* const kept = reference.owner->entries[reference.entry].kept.get();
    if (kept) log_release(holder, kept->place());
}

void Store::release(std::string_view owner, std::span<const LayerKey> keys,
                    std::string_view holder) {
    Garbage garbage;
    const std::lock_guard lock(impl_->mutex);
    const auto held = impl_->holders.find(holder);
    if (held == impl_->holders.end()) return;
    for (const LayerKey& key : keys) {
        const auto found = impl_->owners.find(owner);
        if (found == impl_->owners.end()) break;
        Holder::Reference reference{found->second, found->second->find(key)};
        if (held->second.references.erase(reference) > 0) {
            impl_->log_release(held->first, reference);
            impl_->drop(*reference.owner, reference.entry, garbage);
        }
    }
    if (held->second.references.empty()) impl_->holders.erase(held);
}

std::vector<std::string> Store::holders(std::chrono::milliseconds age) const {
    std::vector<std::string> names;
    const std::lock_guard lock(impl_->mutex);
    const auto latest = impl_->options.clock() - age;
    for (const auto& [name, holder] : impl_->holders) {
        if (holder.acquired <= latest) names.push_back(name);
    }
    return names;
}

bool Store::is_held(std::string_view owner, std::span<const LayerKey> keys,
                    std::string_view holder) const {
    const std::lock_guard lock(impl_->mutex);
    const auto held = impl_->holders.find(holder);
    const auto owned = impl_->owners.find(owner);
    if (held == impl_->holders.end() || owned == impl_->owners.end()) return false;
    return std::all_of(keys.begin(), keys.end(), [&](const LayerKey& key) {
        return held->second.references.contains({owned->second, owned->second->find(key)});
    });
}

std::vector<HeldLayers> Store::held_after(std::string_view after, std::size_t most) const {
    std::vector<HeldLayers> held;
    std::size_t layers = 0;
    const std::lock_guard lock(impl_->mutex);
    auto holder = impl_->holders.upper_bound(after);
    for (; holder != impl_->holders.end() && layers < most; ++holder) {
        // Ordered by owner.
        for (const Holder::Reference& reference : holder->second.references) {
            if (held.empty() || held.back().holder != holder->first ||
                held.back().owner != reference.owner->model) {
                held.push_back(
                    {holder->first, reference.owner->model, {}, holder->second.acquired});
            }
            held.back().keys.push_back(reference.owner->key_of(reference.entry));
            ++layers;
        }
    }
    return held;
}

void Store::release_holder(std::string_view holder) {
    Garbage garbage;
    const std::lock_guard lock(impl_->mutex);
    const auto held = impl_->holders.find(holder);
    if (held == impl_->holders.end()) return;
    for (const Holder::Reference& reference : held->second.references) {
        impl_->log_release(held->first, reference);
        impl_->drop(*reference.owner, reference.entry, garbage);
    }
    impl_->holders.erase(held);
}

}  // namespace cpp_store
