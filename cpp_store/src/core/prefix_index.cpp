#include "cpp_store/prefix_index.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <mutex>
#include <shared_mutex>

#include "cpp_store/error.hpp"

namespace cpp_store {

namespace {

struct Model {
    std::string ns;
    LayerTable table;
    double score;
    std::uint64_t sequence;
};

double comparable(double score) {
    return std::isnan(score) ? -std::numeric_limits<double>::infinity() : score;
}

}  // namespace

// A scan of all models: right, and as slow as that sounds.
struct PrefixIndex::Impl {
    mutable std::shared_mutex mutex;
    std::map<std::string, Model, std::less<>> models;
    std::uint64_t last_sequence = 0;
};

PrefixIndex::PrefixIndex() : impl_(std::make_unique<Impl>()) {}
PrefixIndex::~PrefixIndex() = default;

void PrefixIndex::add(std::string_view model, std::string_view ns, const LayerTable& table,
                      double score, std::uint64_t sequence) {
    const std::unique_lock lock(impl_->mutex);
    if (impl_->models.contains(model)) {
        throw Error(Errc::already_exists, "model '" + std::string(model) + "' is registered");
    }
    if (sequence == 0) sequence = impl_->last_sequence + 1;
    impl_->models.emplace(std::string(model), Model{std::string(ns), table, score, sequence});
    impl_->last_sequence = std::max(impl_->last_sequence, sequence);
}

bool PrefixIndex::remove(std::string_view model) {
    const std::unique_lock lock(impl_->mutex);
    const auto found = impl_->models.find(model);
    if (found == impl_->models.end()) return false;
    impl_->models.erase(found);
    return true;
}

bool PrefixIndex::contains(std::string_view model) const {
    const std::shared_lock lock(impl_->mutex);
    return impl_->models.contains(model);
}

std::vector<Match> PrefixIndex::best_matches(const LayerTable& table, const Query& query) const {
    const std::shared_lock lock(impl_->mutex);
    std::vector<Match> matches;
    for (const auto& [id, model] : impl_->models) {
        if (model.ns != query.ns ||
            std::find(query.exclude.begin(), query.exclude.end(), id) != query.exclude.end()) {
            continue;
        }
        Match match{id, model.score, model.sequence, 0, 0, {}};
        for (std::uint32_t i = 0; i < table.size(); ++i) {
            if (model.table.find(table.key(i)) == model.table.size()) continue;
            match.positions.push_back(i);
            match.layers += 1;
            match.bytes += table.nbytes(i);
        }
        if (match.layers >= std::max(query.min_layers, 1U)) matches.push_back(std::move(match));
    }
    const auto better = [&](const Match& a, const Match& b) {
        const auto weight = [&](const Match& match) {
            return query.weight == Weight::layers ? match.layers : match.bytes;
        };
        if (weight(a) != weight(b)) return weight(a) > weight(b);
        if (comparable(a.score) != comparable(b.score)) {
            return comparable(a.score) > comparable(b.score);
        }
        return a.sequence > b.sequence;
    };
    std::sort(matches.begin(), matches.end(), better);
    if (matches.size() > query.count) matches.resize(query.count);
    return matches;
}

PrefixIndex::Stats PrefixIndex::stats() const {
    const std::shared_lock lock(impl_->mutex);
    Stats stats;
    stats.models = impl_->models.size();
    return stats;
}

}  // namespace cpp_store
