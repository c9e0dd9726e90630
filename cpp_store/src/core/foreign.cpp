// References from models on other servers.
#include "core/store_impl.hpp"

namespace cpp_store {

void Store::acquire(std::string_view owner, std::span<const LayerKey> keys,
                    std::string_view holder) {
    if (holder.empty()) throw Error(Errc::invalid_argument, "a holder needs a name");
    if (keys.empty()) return;
    std::unique_lock lock(impl_->mutex);
    std::vector<Holder::Reference> found;  // all of them before anything changes
    found.reserve(keys.size());
    for (const LayerKey& key : keys) {
        auto [references, entry] = impl_->find_layer(owner, key);
        found.push_back({std::move(references), entry});
    }
    std::vector<durable::HolderRecord> fresh;  // for the data directory
    Holder& held = impl_->holders[std::string(holder)];
    held.acquired = impl_->options.clock();
    for (Holder::Reference& reference : found) {
        Owner& referred = *reference.owner;
        const std::size_t entry = reference.entry;
        if (!held.references.insert(std::move(reference)).second) continue;
        impl_->refer(referred, entry);
        if (referred.entries[entry].kept) {
            fresh.push_back({std::string(holder), referred.serial,
                             referred.entries[entry].kept->record.position});
        }
    }
    if (fresh.empty()) return;
    // In their order: all of them are on disk when the last one is.
    durable::Wait wait(*impl_->journal);
    for (std::size_t i = 0; i < fresh.size(); ++i) {
        const bool is_last = i + 1 == fresh.size();
        impl_->journal->acquire(std::move(fresh[i]), is_last ? wait.done() : nullptr);
    }
    lock.unlock();
    wait.get();
}

void Store::Impl::log_release(const std::string& holder, const Holder::Reference& reference) {
    const Kept* const kept = reference.owner->entries[reference.entry].kept.get();
    if (kept) journal->release({holder, reference.owner->serial, kept->record.position});
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
