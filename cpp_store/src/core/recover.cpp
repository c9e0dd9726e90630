// What a store finds in its data directory when it starts.
#include <algorithm>
#include <map>

#include "core/store_impl.hpp"

namespace cpp_store {

struct Store::Impl::Recovered {
    std::unordered_map<std::uint64_t, std::shared_ptr<Owner>> owners;  // by serial of the model
    // Layers of one owner that were there twice: the one that goes, and the one that stays.
    std::map<durable::LayerPlace, durable::LayerPlace> same;
};

void Store::Impl::open_data_dir() {
    durable::Journal::Options settings;
    settings.directory = options.data_dir;
    settings.sync = options.durability == Durability::sync;
    settings.lag = std::max(options.lag, std::chrono::milliseconds(1));
    settings.most_waiting = std::min(settings.most_waiting, options.memory.limit / 4);
    settings.warn = options.warn;
    journal = std::make_unique<durable::Journal>(std::move(settings));

    Recovered recovered;
    std::vector<durable::ModelRecord> visible;
    journal->load([&](durable::ModelRecord record) {
        if (!record.layers.empty()) restore_layers(record, recovered);
        if (!record.retired) visible.push_back(std::move(record));
    });
    for (durable::ModelRecord& record : visible) restore(std::move(record), recovered);
    for (durable::HolderRecord& reference : journal->holders()) {
        durable::LayerPlace place{reference.owner, reference.position};
        for (auto same = recovered.same.find(place); same != recovered.same.end();
             same = recovered.same.find(place)) {
            place = same->second;
        }
        const auto found = recovered.owners.find(place.model);
        if (found == recovered.owners.end()) continue;
        const std::shared_ptr<Owner>& owner = found->second;
        const auto entry =
            std::find_if(owner->entries.begin(), owner->entries.end(),
                         [&](const auto& each) { return each.kept->place() == place; });
        if (entry == owner->entries.end()) continue;
        Holder& held = holders[reference.holder];
        held.acquired = options.clock();
        const auto at = static_cast<std::size_t>(entry - owner->entries.begin());
        if (held.references.insert({owner, at}).second) refer(*owner, at);
    }
    for (const auto& [name, owner] : owners) {
        owner->referred = static_cast<std::size_t>(
            std::count_if(owner->entries.begin(), owner->entries.end(),
                          [](const Owner::Entry& entry) { return entry.referrers > 0; }));
    }
    notes = journal->notes();
    journal->start([this](auto layers) { moved(layers); });
}

// The layers that a model brought, or that were adopted: entries of their owner.
void Store::Impl::restore_layers(durable::ModelRecord& record, Recovered& recovered) {
    std::shared_ptr<Owner>& owner = owners[record.owner];
    const bool is_new = !owner;
    if (is_new) {
        owner = std::make_shared<Owner>();
        owner->model = record.owner;
    }
    recovered.owners.emplace(record.serial, owner);
    std::vector<std::pair<LayerKey, std::unique_ptr<Kept>>> layers;
    layers.reserve(record.layers.size());
    for (durable::LayerRecord& layer : record.layers) {
        if (!layer.key && layer.position >= record.table->size()) {
            throw Error(Errc::storage,
                        "model '" + record.id + "' has no layer " + std::to_string(layer.position));
        }
        auto kept = std::make_unique<Kept>();
        const LayerKey key = layer.key ? *layer.key : record.table->key(layer.position);
        kept->record = std::move(layer);
        kept->on_disk = true;
        kept->serial = ++last_serial;
        kept->resident = resident.end();
        layers.emplace_back(key, std::move(kept));
    }
    record.layers.clear();
    std::sort(layers.begin(), layers.end(),
              [](const auto& a, const auto& b) { return a.first < b.first; });
    owner->entries.reserve(layers.size());
    owner->keys.reserve(layers.size());
    for (auto& [key, kept] : layers) {
        const std::size_t before = is_new ? owner->entries.size() : owner->find_entry(key);
        if (before != owner->entries.size()) {
            // It was adopted before the model came, or after: a crash kept one from replacing the
            // other. A visible model has its layers itself.
            std::unique_ptr<Kept>& there = owner->entries[before].kept;
            if (!record.retired) std::swap(kept, there);
            recovered.same.emplace(kept->place(), there->place());
            journal->replace_layer(kept->place(), there->place());
            continue;
        }
        ++counts.layers;
        counts.tensors += kept->record.tensors.size();
        counts.bytes_stored += kept->record.nbytes();
        if (is_new) {
            owner->keys.push_back(key);
            owner->entries.push_back({nullptr, 0, std::move(kept)});
        } else {
            owner->entries[owner->add(key)].kept = std::move(kept);
        }
    }
}

void Store::Impl::restore(durable::ModelRecord record, const Recovered& recovered) {
    const auto damaged = [&](const std::string& what) {
        throw Error(Errc::storage, "data directory " + options.data_dir.string() +
                                       " is damaged: model '" + record.id + "' " + what +
                                       "; cpp-store check --repair drops what cannot be read");
    };
    auto model = std::make_shared<Model>();
    model->id = std::move(record.id);
    model->owner = std::move(record.owner);
    model->ns = std::move(record.ns);
    model->table = std::move(record.table);
    model->score = record.score;
    model->parent = std::move(record.parent);
    model->graph = std::move(record.graph);
    model->metadata = std::move(record.metadata);
    model->created_ns = record.created_ns;
    model->description = record.description;
    model->content = record.content;
    model->serial = record.serial;
    model->sequence = ++last_sequence;

    const auto add = [&](std::uint32_t position, const std::shared_ptr<Owner>& owner,
                         std::size_t entry) {
        if (entry == owner->entries.size()) damaged("refers to a layer that is not there");
        model->slots.push_back({.layer = position,
                                .owner = owner,
                                .entry = entry,
                                .stored = nullptr,
                                .foreign_owner = {}});
        refer(*owner, entry);
    };
    if (const auto own = recovered.owners.find(record.serial); own != recovered.owners.end()) {
        for (std::size_t i = 0; i < own->second->entries.size(); ++i) {
            const Kept& kept = *own->second->entries[i].kept;
            if (kept.record.owner != record.serial) continue;
            add(kept.record.position, own->second, i);
            model->bytes_own += kept.record.nbytes();
        }
    }
    for (durable::InheritedRecord& inherited : record.inherited) {
        if (inherited.position >= model->table->size()) damaged("inherits a layer that it lacks");
        if (inherited.owner == 0) {
            model->slots.push_back({.layer = inherited.position,
                                    .owner = nullptr,
                                    .entry = 0,
                                    .stored = nullptr,
                                    .foreign_owner = std::move(inherited.foreign_owner)});
            model->bytes_inherited += inherited.nbytes;
            continue;
        }
        const auto owner = recovered.owners.find(inherited.owner);
        if (owner == recovered.owners.end()) damaged("inherits from a model that is not there");
        // Layers of one owner and of equal key are equal.
        const LayerKey key = model->table->key(inherited.position);
        const std::size_t entry = owner->second->find_entry(key);
        add(inherited.position, owner->second, entry);
        model->bytes_inherited += owner->second->entries[entry].nbytes();
    }
    std::sort(model->slots.begin(), model->slots.end(),
              [](const Slot& a, const Slot& b) { return a.layer < b.layer; });
    try {
        index.add(model->id, model->ns, *model->table, model->score, model->created_ns);
    } catch (const Error& error) {
        damaged(std::string("cannot be found again: ") + error.what());
    }
    counts.bytes_referenced += model->bytes_own + model->bytes_inherited;
    models.emplace(model->id, std::move(model));
}

}  // namespace cpp_store
