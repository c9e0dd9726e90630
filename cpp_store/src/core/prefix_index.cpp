#include "cpp_store/prefix_index.hpp"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <shared_mutex>

#include "core/id_table.hpp"
#include "core/layer_dag.hpp"
#include "core/prefix_search.hpp"
#include "core/shared_lock.hpp"
#include "cpp_store/error.hpp"

namespace cpp_store {

namespace {

std::uint64_t hash_of(std::string_view name) noexcept {
    return XXH3_64bits(name.data(), name.size());
}

}  // namespace

// One graph holds the layers of all namespaces; a namespace's salt in every key keeps them apart.
struct PrefixIndex::Impl {
    // Held by whoever changes the index, from its first look at it on.
    std::mutex writers;
    // Guards everything below: exclusive only while something changes, shared while it is read.
    // A writer that only reads needs neither.
    mutable WriterFirstMutex content;

    LayerDag dag;
    IdTable models;  // by name
    struct Space {
        std::string ns;
        std::uint64_t models = 0;
    };
    std::vector<Space> spaces;  // by LayerDag::Model::space; those without models are used again
    std::map<std::string, std::uint32_t, std::less<>> space_by_ns;
    std::uint64_t last_sequence = 0;
    LayerDag::Plan plan;  // scratch of add()

    [[nodiscard]] ModelId find(std::string_view model) const noexcept {
        return models.find(hash_of(model), [&](ModelId id) { return dag.name(id) == model; });
    }

    [[nodiscard]] std::uint32_t space_of(std::string_view ns) {
        const auto found = space_by_ns.find(ns);
        if (found != space_by_ns.end()) return found->second;
        const auto unused = std::find_if(spaces.begin(), spaces.end(),
                                         [](const Space& space) { return space.models == 0; });
        const auto space = static_cast<std::uint32_t>(unused - spaces.begin());
        if (unused == spaces.end()) spaces.emplace_back();
        spaces[space].ns = ns;
        space_by_ns.emplace(ns, space);
        return space;
    }

    void leave_space(std::uint32_t space) noexcept {
        if (spaces[space].models != 0) return;
        space_by_ns.erase(spaces[space].ns);
    }
};

PrefixIndex::PrefixIndex() : impl_(std::make_unique<Impl>()) {}
PrefixIndex::~PrefixIndex() = default;

void PrefixIndex::add(std::string_view model, std::string_view ns, const LayerTable& table,
                      double score, std::uint64_t sequence) {
    const std::lock_guard writing(impl_->writers);
    if (impl_->find(model) != no_id) {
        throw Error(Errc::already_exists, "model '" + std::string(model) + "' is registered");
    }
    impl_->dag.plan(table, layer_key(ns), impl_->plan);
    if (sequence == 0) sequence = impl_->last_sequence + 1;

    const std::unique_lock lock(impl_->content);
    const std::uint32_t space = impl_->space_of(ns);
    ModelId id = no_id;
    try {
        id = impl_->dag.add(model, impl_->plan, score, sequence, space);
        impl_->models.insert(hash_of(model), id);
    } catch (...) {
        if (id != no_id) impl_->dag.remove(id);
        impl_->leave_space(space);
        throw;
    }
    ++impl_->spaces[space].models;
    impl_->last_sequence = std::max(impl_->last_sequence, sequence);
}

void PrefixIndex::check(std::string_view ns, const LayerTable& table) {
    const std::lock_guard writing(impl_->writers);
    impl_->dag.plan(table, layer_key(ns), impl_->plan);
}

bool PrefixIndex::remove(std::string_view model) noexcept {
    const std::lock_guard writing(impl_->writers);
    const ModelId id = impl_->find(model);
    if (id == no_id) return false;
    const std::uint32_t space = impl_->dag.model(id).space;

    const std::unique_lock lock(impl_->content);
    impl_->dag.remove(id);
    impl_->models.erase(hash_of(model), id);
    --impl_->spaces[space].models;
    impl_->leave_space(space);
    return true;
}

bool PrefixIndex::contains(std::string_view model) const {
    const std::shared_lock lock(impl_->content);
    return impl_->find(model) != no_id;
}

std::vector<Match> PrefixIndex::best_matches(const LayerTable& table, const Query& query) const {
    thread_local PrefixSearch search;
    const LayerKey salt = layer_key(query.ns);
    const std::shared_lock lock(impl_->content);
    return search.run(impl_->dag, table, salt, query);
}

PrefixIndex::Stats PrefixIndex::stats() const {
    const std::shared_lock lock(impl_->content);
    Stats stats;
    stats.models = impl_->dag.models();
    stats.layers = impl_->dag.layers();
    stats.bytes = impl_->dag.bytes() + impl_->models.bytes();
    stats.namespaces = impl_->space_by_ns.size();
    return stats;
}

}  // namespace cpp_store
