// What a store finds in its data directory when it starts.
#include <algorithm>

#include "core/store_impl.hpp"

namespace cpp_store {

void Store::Impl::open_data_dir() {
    durable::Journal::Options settings;
    settings.directory = options.data_dir;
    settings.sync = options.durability == Durability::sync;
    settings.lag = std::max(options.lag, std::chrono::milliseconds(1));
    settings.most_waiting = std::min(settings.most_waiting, options.memory.limit / 4);
    settings.most_packets = std::min(settings.most_packets, options.memory.limit / 8);
    settings.warn = options.warn;
    journal = std::make_unique<durable::Journal>(std::move(settings));

    std::unordered_map<std::uint64_t, std::shared_ptr<Owner>> owners_by_serial;
    journal->load([&](durable::ModelRecord record) {
        if (!record.layers.empty()) {
            auto owner = std::make_shared<Owner>();
            owner->model = record.owner;
            owner->serial = record.serial;
            std::vector<std::pair<LayerKey, std::unique_ptr<Kept>>> layers;
            layers.reserve(record.layers.size());
            for (durable::LayerRecord& layer : record.layers) {
                if (layer.position >= record.table->size()) {
                    throw Error(Errc::storage, "model '" + record.id + "' has no layer " +
                                                   std::to_string(layer.position));
                }
                auto kept = std::make_unique<Kept>();
                const LayerKey key = record.table->key(layer.position);
                kept->record = std::move(layer);
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
                ++counts.layers;
                counts.tensors += kept->record.tensors.size();
                counts.bytes_stored += kept->record.nbytes();
                owner->keys.push_back(key);
                owner->entries.push_back({nullptr, 0, std::move(kept)});
            }
            owners_by_serial.emplace(record.serial, owner);
            owners.emplace(record.owner, std::move(owner));
        }
        if (!record.retired) restore(std::move(record), owners_by_serial);
    });
    for (durable::HolderRecord& reference : journal->holders()) {
        const auto owner = owners_by_serial.find(reference.owner);
        if (owner == owners_by_serial.end()) continue;
        Holder& held = holders[reference.holder];
        held.acquired = options.clock();
        const auto& entries = owner->second->entries;
        const auto entry = std::find_if(entries.begin(), entries.end(), [&](const auto& each) {
            return each.kept->record.position == reference.position;
        });
        if (entry == entries.end()) continue;
        const auto at = static_cast<std::size_t>(entry - entries.begin());
        if (held.references.insert({owner->second, at}).second) refer(*owner->second, at);
    }
    for (const auto& [serial, owner] : owners_by_serial) {
        owner->referred = static_cast<std::size_t>(
            std::count_if(owner->entries.begin(), owner->entries.end(),
                          [](const Owner::Entry& entry) { return entry.referrers > 0; }));
    }
    journal->start([this](auto layers) { moved(layers); });
}

void Store::Impl::restore(
    durable::ModelRecord record,
    const std::unordered_map<std::uint64_t, std::shared_ptr<Owner>>& owners_by_serial) {
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
    if (const auto own = owners_by_serial.find(record.serial); own != owners_by_serial.end()) {
        for (std::size_t i = 0; i < own->second->entries.size(); ++i) {
            const Kept& kept = *own->second->entries[i].kept;
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
        const auto owner = owners_by_serial.find(inherited.owner);
        if (owner == owners_by_serial.end()) damaged("inherits from a model that is not there");
        // Its entries are ascending by key, and layers of equal key are equal.
        const LayerKey key = model->table->key(inherited.position);
        const auto& keys = owner->second->keys;
        const auto at = std::lower_bound(keys.begin(), keys.end(), key);
        const bool is_there = at != keys.end() && *at == key;
        const auto entry = is_there ? static_cast<std::size_t>(at - keys.begin()) : keys.size();
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
