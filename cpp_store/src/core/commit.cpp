// The second half of a put: in memory, or on disk too.
#include <algorithm>
#include <future>

#include "core/pending_put.hpp"

namespace cpp_store {

// Whether the model is there already, with the same content. Expects the mutex to be held.
bool PendingPut::Impl::is_there() const {
    const auto same = store->models.find(model->id);
    if (same == store->models.end()) {
        store->check_is_free(model->id, model->owner);
        return false;
    }
    if (same->second->content == model->content) return true;
    throw Error(Errc::already_exists, "there is a model '" + model->id + "' with other content");
}

// Layers of a model that has an owner's name of its own may have been there before it came.
void PendingPut::Impl::join(const std::shared_ptr<Owner>& known) noexcept {
    Owner& there = *known;
    for (const auto& [position, layer] : own) {
        const std::size_t at = store->find_or_add(there, layer);
        store->refer(there, at);
        Owner::Entry& entry = there.entries[at];
        std::unique_ptr<Kept>& kept = owner->entries[owner->find(layer->key)].kept;
        if (!kept) continue;
        if (entry.kept) {
            store->journal->replace_layer(entry.kept->place(), kept->place());
            if (entry.kept->resident != store->resident.end()) {
                store->resident.erase(entry.kept->resident);
            }
            replaced.add(std::exchange(entry.layer, layer));
            if (entry.kept->loading) store->loaded.notify_all();
        }
        kept->serial = entry.layer->serial;
        entry.kept = std::move(kept);
    }
    for (Slot& slot : slots) {
        if (slot.owner != owner) continue;
        slot.entry = known->find(owner->entries[slot.entry].layer->key);
        slot.owner = known;
        if (!store->journal) slot.stored = known->entries[slot.entry].layer;
    }
}

// Makes the model visible, unless `log` throws. Expects the mutex to be held.
template <typename Log>
void PendingPut::Impl::publish(Log log) {
    const auto there = store->owners.find(model->owner);
    const bool is_new = there == store->owners.end();
    const std::shared_ptr<Owner> known = is_new ? nullptr : there->second;
    if (known) known->make_room(own.size());
    store->models.emplace(model->id, model);
    bool is_indexed = false;
    try {
        if (is_new && !owner->entries.empty()) store->owners.emplace(model->owner, owner);
        store->index.add(model->id, model->ns, *model->table, model->score, model->created_ns);
        is_indexed = true;
        log();
    } catch (...) {
        if (is_indexed) store->index.remove(model->id);
        store->models.erase(model->id);
        if (is_new) store->owners.erase(model->owner);
        throw;
    }
    StoreStats& counts = store->counts;
    if (is_new) {
        counts.layers += owner->entries.size();
        counts.tensors += targets.size();
        counts.bytes_stored += model->bytes_own;
    } else {
        join(known);
    }
    const std::size_t layers_inherited = model->slots.size();
    model->slots = std::move(slots);
    model->sequence = ++store->last_sequence;
    referring = false;  // the model's from now on

    ++counts.puts;
    counts.bytes_put += model->bytes_own;
    counts.bytes_referenced += model->bytes_own + model->bytes_inherited;
    counts.layers_inherited += layers_inherited;
    counts.bytes_inherited += model->bytes_inherited;
}

// What is done where nobody waits for a disk.
std::uint64_t PendingPut::Impl::commit_in_memory() {
    const std::lock_guard lock(store->mutex);
    if (is_there()) return store->models.find(model->id)->second->bytes_own;
    publish([] {});
    return model->bytes_own;
}

// As the data directory will have it, but for where the tensors are.
std::shared_ptr<durable::ModelRecord> PendingPut::Impl::record() {
    auto made = std::make_shared<durable::ModelRecord>();
    model->serial = made->serial = store->journal->next_serial();
    made->id = model->id;
    made->owner = model->owner;
    made->ns = model->ns;
    made->table = model->table;
    made->score = model->score;
    made->parent = model->parent;
    made->graph = model->graph;
    made->metadata = model->metadata;
    made->created_ns = model->created_ns;
    made->description = model->description;
    made->content = model->content;
    for (const auto& [position, layer] : own) {
        durable::LayerRecord& kept = owner->entries[owner->find(layer->key)].kept->record;
        kept.owner = made->serial;
        made->layers.push_back(kept);
    }
    // Of inherited layers, whose place nobody changes while we refer to them; but their owners'
    // lists of layers may grow.
    const std::lock_guard lock(store->mutex);
    for (const Slot& slot : model->slots) {
        durable::InheritedRecord inherited;
        inherited.position = slot.layer;
        const Kept* const kept = slot.owner ? slot.owner->entries[slot.entry].kept.get() : nullptr;
        if (kept) {
            inherited.owner = kept->record.owner;
            inherited.owner_position = kept->record.position;
        } else {  // on another server
            inherited.foreign_owner = slot.foreign_owner;
            inherited.nbytes = model->table->nbytes(slot.layer);
        }
        made->inherited.push_back(std::move(inherited));
    }
    return made;
}

std::vector<StoredLayerPtr> PendingPut::Impl::stored() const {
    std::vector<StoredLayerPtr> layers;
    layers.reserve(own.size());
    for (const auto& [position, layer] : own) layers.push_back(layer);
    return layers;
}

std::uint64_t PendingPut::Impl::commit_lazily() {
    store->journal->admit(model->bytes_own);
    const std::shared_ptr<durable::ModelRecord> made = record();
    std::vector<StoredLayerPtr> layers = stored();
    auto done = [&impl = *store, made](const std::exception_ptr&) {
        const std::lock_guard lock(impl.mutex);
        impl.place(*made);
    };
    const std::lock_guard lock(store->mutex);
    if (is_there()) return store->models.find(model->id)->second->bytes_own;
    publish([&] { store->journal->put(made, std::move(layers), std::move(done)); });
    return model->bytes_own;
}

// The model becomes visible once it is on disk, so nobody sees what a crash takes away again.
void PendingPut::Impl::commit_durably(std::unique_ptr<Impl> put, Store::Committed done) {
    Store::Impl& store = *put->store;
    store.journal->admit(put->model->bytes_own);
    {
        std::unique_lock lock(store.mutex);
        const std::string& id = put->model->id;
        store.committed.wait(lock, [&] { return !store.committing.contains(id); });
        if (put->is_there()) {
            const std::uint64_t bytes = store.models.find(id)->second->bytes_own;
            lock.unlock();
            put.reset();
            done(nullptr, bytes);
            return;
        }
        store.index.check(put->model->ns, *put->model->table);
        store.committing.insert(id);
    }
    const std::shared_ptr<Impl> shared = std::move(put);
    const auto leave = [&store](const Impl& over) noexcept {  // with the mutex held
        store.committing.erase(over.model->id);
        store.committed.notify_all();
    };
    try {
        const std::shared_ptr<durable::ModelRecord> made = shared->record();
        if (store.journal->is_large(shared->model->bytes_own)) {
            store.journal->write_ahead(*made, shared->stored());
        }
        store.journal->put(made, shared->stored(),
                           [shared, made, leave, done](std::exception_ptr error) {
                               {
                                   const std::lock_guard lock(shared->store->mutex);
                                   try {
                                       if (!error) shared->publish([] {});
                                   } catch (const std::exception&) {
                                       error = std::current_exception();
                                       shared->take_back();
                                   }
                                   if (!error) shared->store->place(*made);
                                   leave(*shared);
                               }
                               done(error, shared->model->bytes_own);
                           });
    } catch (...) {
        const std::lock_guard lock(store.mutex);
        leave(*shared);
        throw;
    }
}

// Of a model that is on disk already, but cannot be had in memory.
void PendingPut::Impl::take_back() noexcept {
    try {
        store->journal->retire(model->serial, std::nullopt, {});
    } catch (const std::exception&) {
        // No memory for that either: it will be there after a restart, as if the answer to its put
        // had been lost.
        return;
    }
    for (const auto& [position, layer] : own) store->journal->drop_layer({model->serial, position});
}

std::uint64_t Store::commit(PendingPut put) {
    put.impl_->complete();
    if (!impl_->journal) return put.impl_->commit_in_memory();
    if (!impl_->journal->is_sync()) return put.impl_->commit_lazily();
    // Shared, since the journal may still be in it when the wait is over.
    const auto result = std::make_shared<std::promise<std::uint64_t>>();
    PendingPut::Impl::commit_durably(
        std::move(put.impl_), [result](const std::exception_ptr& error, std::uint64_t bytes) {
            if (error) {
                result->set_exception(error);
            } else {
                result->set_value(bytes);
            }
        });
    return result->get_future().get();
}

void Store::commit(PendingPut put, Committed done) {
    std::uint64_t bytes = 0;
    try {
        put.impl_->complete();
        if (impl_->journal && impl_->journal->is_sync()) {
            PendingPut::Impl::commit_durably(std::move(put.impl_), done);
            return;
        }
        bytes = impl_->journal ? put.impl_->commit_lazily() : put.impl_->commit_in_memory();
    } catch (const std::exception&) {
        done(std::current_exception(), 0);
        return;
    }
    done(nullptr, bytes);
}

}  // namespace cpp_store
