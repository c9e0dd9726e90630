#include "replication/placement.hpp"

#include <algorithm>
#include <utility>

#include "cpp_store/types.hpp"

namespace cpp_store::replication {
namespace {

LayerKey hash(const std::string& server, std::string_view model) {
    return layer_key(server + '\n' + std::string(model));
}

}  // namespace

Placement::Placement(std::vector<std::string> servers, std::size_t replicas)
    : servers_(std::move(servers)), replicas_(replicas) {}

std::size_t Placement::home(std::string_view model) const noexcept {
    if (servers_.size() == 1) return 0;
    std::size_t best = 0;
    LayerKey highest{};
    for (std::size_t i = 0; i < servers_.size(); ++i) {
        const LayerKey found = hash(servers_[i], model);
        if (i == 0 || found > highest) {
            best = i;
            highest = found;
        }
    }
    return best;
}

std::vector<std::size_t> Placement::of(std::string_view model) const {
    if (replicas_ == 1) return {home(model)};
    std::vector<std::pair<LayerKey, std::size_t>> hashes;
    hashes.reserve(servers_.size());
    for (std::size_t i = 0; i < servers_.size(); ++i)
        hashes.emplace_back(hash(servers_[i], model), i);
    std::ranges::sort(hashes, std::greater{});
    std::vector<std::size_t> keepers;
    keepers.reserve(replicas_);
    for (std::size_t i = 0; i < replicas_; ++i) keepers.push_back(hashes[i].second);
    return keepers;
}

bool Placement::keeps(std::size_t server, std::string_view model) const {
    const std::vector<std::size_t> keepers = of(model);
    return std::ranges::find(keepers, server) != keepers.end();
}

}  // namespace cpp_store::replication
