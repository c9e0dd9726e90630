// Best matches and the leases that keep them readable.
#include <algorithm>
#include <optional>

#include "core/store_impl.hpp"

namespace cpp_store {

namespace {

// The layers of a match that have tensors, or false if the model has not all of them: it is another
// one than the index spoke of, put under the same id since.
bool locate(const Model& model, const LayerTable& table, const Match& match,
            std::vector<LayerLocation>& out) {
    for (const std::uint32_t position : match.positions) {
        const std::size_t layer = model.table->find(table.key(position));
        if (layer == model.table->size()) return false;
        if (const Slot* const slot = model.slot(static_cast<std::uint32_t>(layer))) {
            out.push_back(slot->location(position));
        }
    }
    return true;
}

// What a model shares with a table, if it is enough: as both are closed under what their layers
// require, so are the layers of equal keys.
std::optional<Match> shared_with(const Model& model, const LayerTable& table, const Query& query) {
    if (model.ns != query.ns) return std::nullopt;
    Match match;
    for (std::uint32_t position = 0; position < table.size(); ++position) {
        if (model.table->find(table.key(position)) == model.table->size()) continue;
        match.positions.push_back(position);
        match.bytes += table.nbytes(position);
    }
    match.layers = match.positions.size();
    if (match.layers < std::max(1U, query.min_layers)) return std::nullopt;
    match.model = model.id;
    match.score = model.score;
    match.sequence = model.sequence;
    return match;
}

}  // namespace

std::vector<LeasedMatch> Store::best_matches(const LayerTable& table, const Query& query,
                                             std::chrono::milliseconds lease) {
    if (lease.count() < 0) lease = impl_->options.lease;
    Garbage garbage;
    std::vector<LeasedMatch> out;
    if (!query.only.empty()) {
        const std::lock_guard lock(impl_->mutex);
        impl_->expire_leases(garbage);
        std::vector<Match> matches;
        if (const auto model = impl_->models.find(query.only); model != impl_->models.end()) {
            if (auto match = shared_with(*model->second, table, query)) {
                matches.push_back(std::move(*match));
            }
        }
        if (!impl_->add_leases(table, matches, lease, out)) {
            throw Error(Errc::internal, "a model lacks a layer that its table has");
        }
        return out;
    }
    // Ask without the lock, then take the leases if all matches are still there. Where retirements
    // keep coming in between, ask once under the lock.
    constexpr int optimistic_tries = 4;
    for (int tries = 0; tries < optimistic_tries; ++tries) {
        std::vector<Match> matches = impl_->index.best_matches(table, query);
        const std::lock_guard lock(impl_->mutex);
        impl_->expire_leases(garbage);
        if (impl_->add_leases(table, matches, lease, out)) return out;
    }
    const std::lock_guard lock(impl_->mutex);
    std::vector<Match> matches = impl_->index.best_matches(table, query);
    if (!impl_->add_leases(table, matches, lease, out)) {
        throw Error(Errc::internal, "the index knows a model that the store does not");
    }
    return out;
}

bool Store::Impl::add_leases(const LayerTable& table, std::vector<Match>& matches,
                             std::chrono::milliseconds lease, std::vector<LeasedMatch>& out) {
    out.clear();
    std::vector<ModelPtr> found;
    found.reserve(matches.size());
    for (Match& match : matches) {
        const auto model = models.find(match.model);
        LeasedMatch leased;
        if (model == models.end() || !locate(*model->second, table, match, leased.layers)) {
            return false;
        }
        leased.match = std::move(match);
        out.push_back(std::move(leased));
        found.push_back(model->second);
    }
    if (lease.count() > 0) {
        try {
            for (std::size_t i = 0; i < out.size(); ++i) out[i].lease = add_lease(found[i], lease);
        } catch (const std::bad_alloc&) {  // nobody would end those that were taken
            Garbage none;                  // of models that are visible
            for (const LeasedMatch& each : out) {
                if (each.lease != 0) remove_lease(leases.find(each.lease), none);
            }
            throw;
        }
    }
    ++counts.matches;
    return true;
}

std::uint64_t Store::Impl::add_lease(const ModelPtr& model, std::chrono::milliseconds duration) {
    const auto now = options.clock();
    // A lease for centuries must not overflow the clock.
    const auto longest = std::chrono::duration_cast<std::chrono::milliseconds>(
        std::chrono::steady_clock::time_point::max() - now);
    const auto expires = now + std::min(duration, longest);
    const std::uint64_t lease = next_lease++;
    const auto [end, is_new] = lease_ends.emplace(expires, lease);
    try {
        leases.emplace(lease, Lease{model, expires});
    } catch (const std::bad_alloc&) {
        lease_ends.erase(end);
        throw;
    }
    ++model->leases;
    return lease;
}

ForeignReferences Store::Impl::remove_lease(std::uint64_t lease, Garbage& garbage) {
    const auto found = leases.find(lease);
    if (found == leases.end()) return {};
    const Model& model = *found->second.model;
    const bool is_last = model.retired && model.leases == 1;
    ForeignReferences foreign = is_last ? model.foreign_references() : ForeignReferences();
    remove_lease(found, garbage);
    return foreign;
}

void Store::Impl::remove_lease(std::unordered_map<std::uint64_t, Lease>::iterator lease,
                               Garbage& garbage) noexcept {
    const ModelPtr model = std::move(lease->second.model);
    lease_ends.erase({lease->second.expires, lease->first});
    leases.erase(lease);
    if (--model->leases > 0 || !model->retired) return;
    retired.erase(model->id);
    drop_references(model, garbage);
}

std::size_t Store::Impl::expire_leases(Garbage& garbage) noexcept {
    std::size_t expired = 0;
    const auto now = options.clock();
    while (!lease_ends.empty() && lease_ends.begin()->first <= now) {
        remove_lease(leases.find(lease_ends.begin()->second), garbage);
        ++expired;
    }
    return expired;
}

ForeignReferences Store::end_lease(std::uint64_t lease) {
    Garbage garbage;
    const std::lock_guard lock(impl_->mutex);
    return impl_->remove_lease(lease, garbage);
}

void Store::drop_lease(std::uint64_t lease) noexcept {
    Garbage garbage;
    const std::lock_guard lock(impl_->mutex);
    const auto found = impl_->leases.find(lease);
    if (found != impl_->leases.end()) impl_->remove_lease(found, garbage);
}

std::size_t Store::expire_leases() {
    Garbage garbage;
    const std::lock_guard lock(impl_->mutex);
    return impl_->expire_leases(garbage);
}

}  // namespace cpp_store
