// Layers that come from another server, for models on other servers that refer to them.
#include <functional>
#include <future>
#include <set>

#include "core/pending_put.hpp"

namespace cpp_store {

PendingPut Store::prepare_adoption(std::string_view owner, std::vector<OwnerlessLayer> layers) {
    auto pending = std::make_unique<PendingPut::Impl>();
    pending->store = impl_;
    pending->model = std::make_shared<Model>();
    pending->model->owner = owner;
    std::vector<Own> own;
    for (OwnerlessLayer& layer : layers) {
        own.push_back({static_cast<std::uint32_t>(own.size()), std::move(layer.tensors)});
        pending->adopted.push_back(layer.key);
    }
    pending->reserve(own);
    return PendingPut(std::move(pending));
}

// As the data directory will have them, but for where the tensors are.
std::shared_ptr<durable::ModelRecord> PendingPut::Impl::record_for(std::string_view holder) const {
    static const LayerTablePtr none =
        std::make_shared<LayerTable>(std::vector<LayerTable::Layer>());
    auto made = std::make_shared<durable::ModelRecord>();
    made->serial = store->journal->next_serial();
    made->id = made->owner = model->owner;
    made->table = none;
    made->retired = true;
    made->holder = holder;
    for (const auto& [position, layer] : own) {
        durable::LayerRecord& record = made->layers.emplace_back(record_of(position, *layer));
        record.owner = made->serial;
        record.key = layer->key;
    }
    return made;
}

// What it takes memory to remember layers by.
struct PendingPut::Impl::Adoption {
    std::string holder;
    std::shared_ptr<Owner> owner = std::make_shared<Owner>();  // if there is none
    std::set<Holder::Reference> references;                    // to be filled in
    std::vector<std::unique_ptr<Kept>> kept;                   // with a data directory

    Adoption(const Impl& put, std::string_view holder_name, const durable::ModelRecord* record)
        : holder(holder_name) {
        owner->model = put.model->owner;
        for (std::size_t i = 0; i < put.own.size(); ++i) {
            references.insert({owner, i});
            if (!record) continue;
            auto& made = kept.emplace_back(std::make_unique<Kept>());
            made->record = record->layers[i];
            made->serial = put.own[i].second->serial;
            made->resident = put.store->resident.end();
        }
    }
};

// Takes the layers in, unless `log` throws. Expects the mutex to be held.
void PendingPut::Impl::join_adopted(Adoption& adoption, const std::function<void()>& log) {
    const auto [there, is_new] = store->owners.try_emplace(model->owner, adoption.owner);
    const std::shared_ptr<Owner> known = there->second;
    Holder* held = nullptr;
    try {
        known->make_room(own.size());
        held = &store->holders[adoption.holder];
        log();
    } catch (...) {
        if (is_new) store->owners.erase(model->owner);
        if (held && held->references.empty()) store->holders.erase(adoption.holder);
        throw;
    }
    // From here on nothing fails.
    held->acquired = store->options.clock();
    for (std::size_t i = 0; i < own.size(); ++i) {
        const std::size_t at = store->find_or_add(*known, own[i].second);
        Owner::Entry& entry = known->entries[at];
        if (store->journal && entry.kept) {  // it has come meanwhile
            store->journal->replace_layer(adoption.kept[i]->place(), entry.kept->place());
        } else if (store->journal) {
            entry.kept = std::move(adoption.kept[i]);
        }
        auto reference = adoption.references.extract(adoption.references.begin());
        reference.value() = {known, at};
        if (held->references.insert(std::move(reference)).inserted) store->refer(*known, at);
    }
}

// Of layers that are on disk already, but cannot be had in memory.
void PendingPut::Impl::give_up(const durable::ModelRecord& record) const noexcept {
    for (const durable::LayerRecord& layer : record.layers) {
        store->log_release(record.holder, layer.place());
        store->journal->drop_layer(layer.place());
    }
}

void Store::adopt(PendingPut put, std::string_view holder) {
    PendingPut::Impl& pending = *put.impl_;
    pending.sum_the_rest();
    durable::Journal* const journal = impl_->journal.get();
    if (!journal) {
        PendingPut::Impl::Adoption adoption(pending, holder, nullptr);
        const std::lock_guard lock(impl_->mutex);
        pending.join_adopted(adoption, [] {});
        return;
    }
    journal->admit(pending.model->bytes_own);
    const auto record = pending.record_for(holder);
    if (!journal->is_sync()) {
        auto placed = [&impl = *impl_, record](const std::exception_ptr&) {
            const std::lock_guard lock(impl.mutex);
            impl.place(*record);
        };
        PendingPut::Impl::Adoption adoption(pending, holder, record.get());
        auto layers = pending.stored();
        const std::lock_guard lock(impl_->mutex);
        pending.join_adopted(adoption,
                             [&] { journal->put(record, std::move(layers), std::move(placed)); });
        return;
    }
    // Nobody sees what a crash takes away again. Shared, since the journal may still be in it when
    // the wait is over.
    const auto result = std::make_shared<std::promise<void>>();
    const auto written = [this, result, &pending, record](std::exception_ptr error) {
        if (!error) {
            try {
                PendingPut::Impl::Adoption adoption(pending, record->holder, record.get());
                const std::lock_guard lock(impl_->mutex);
                pending.join_adopted(adoption, [] {});
                impl_->place(*record);
            } catch (const std::exception&) {
                error = std::current_exception();
                pending.give_up(*record);
            }
        }
        if (error) {
            result->set_exception(error);
        } else {
            result->set_value();
        }
    };
    journal->put(record, pending.stored(), written);
    result->get_future().get();
}

}  // namespace cpp_store
