#include "replication/ledger.hpp"

#include <algorithm>

namespace cpp_store::replication {

const Ledger::Entry* Ledger::find(std::string_view model) const {
    const auto found = entries_.find(model);
    return found == entries_.end() ? nullptr : &found->second;
}

Ledger::Entry& Ledger::change(std::string_view model) {
    const auto entry = entries_.try_emplace(std::string(model)).first;
    log_.erase(entry->second.change);
    tombstones_.erase(entry->second.change);
    entry->second.change = ++last_change_;
    log_.emplace(last_change_, &entry->first);
    return entry->second;
}

void Ledger::published(std::string_view model, Version version, References references) {
    Entry& entry = change(model);
    if (entry.version == 0 || entry.retired) entry.first = version;
    entry.version = version;
    entry.retired = false;
    entry.by = 0;
    entry.references = std::move(references);
}

void Ledger::retired(std::string_view model, Version version, Retirement by) {
    const Entry* const known = find(model);
    if (known && known->retired && known->version == version && known->by != 0) by = known->by;
    Entry& entry = change(model);
    entry.version = version;
    entry.retired = true;
    entry.by = by;
    entry.references.clear();
    tombstones_.emplace(entry.change, log_.at(entry.change));
    if (tombstones_.size() <= most_tombstones_) return;
    const auto oldest = tombstones_.begin();
    const auto forgotten = entries_.find(*oldest->second);
    forgotten_ = std::max(forgotten_, forgotten->second.version);
    log_.erase(oldest->first);
    tombstones_.erase(oldest);
    entries_.erase(forgotten);
}

std::vector<std::string> Ledger::visible_until(Version version) const {
    std::vector<std::string> models;
    for (const auto& [model, entry] : entries_) {
        if (!entry.retired && entry.version <= version) models.push_back(model);
    }
    return models;
}

}  // namespace cpp_store::replication
