// What a server knows as it starts: its store's models, and what a data directory noted besides.
#include <algorithm>
#include <map>

#include "replication/replica.hpp"

namespace cpp_store::replication {

void Replica::recall() {
    const Notes notes = store_.take_notes();
    ledger_.forget_until(notes.forgotten);
    std::map<std::string_view, Version> put_again;
    for (const Note& note : notes.notes) {
        if (note.retired) {
            ledger_.retired(note.model, note.version, 0);
        } else {
            put_again.emplace(note.model, note.version);
        }
    }
    for (const std::string& model : store_.list()) {
        const ModelInfo info = store_.lookup(model);
        References references;
        for (const LayerLocation& layer : info.layers) {
            if (!layer.foreign) continue;
            references[layer.owner].emplace_back(info.table->name(layer.layer));
        }
        const Version version = info.created_ns;
        ledger_.published(model, version, references);
        const auto later = put_again.find(model);
        if (later != put_again.end() && later->second > version) {
            ledger_.published(model, later->second, std::move(references));
        }
    }
    for (const std::string& holder : store_.holders()) {
        if (auto heir = heir_of(holder)) held_[*std::move(heir)].since = clock_();
    }
}

}  // namespace cpp_store::replication
