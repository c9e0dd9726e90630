#include "replication/placement.hpp"

#include <algorithm>
#include <utility>

namespace cpp_store::replication {
namespace {

constexpr char separator = '@';

LayerKey hash(const std::string& server, std::string_view model) {
    return layer_key(server + '\n' + std::string(model));
}

}  // namespace

std::string owner_name(std::string_view model, const Checksum& content) {
    return std::string(model) + separator + hex(LayerKey{content.high, content.low});
}

std::string_view id_of(std::string_view owner) noexcept {
    constexpr std::size_t digits = 32;
    const std::size_t at = owner.rfind(separator);
    if (at == std::string_view::npos) return owner;
    const std::string_view end = owner.substr(at + 1);
    const bool is_digest =
        end.size() == digits && end.find_first_not_of("0123456789abcdef") == std::string_view::npos;
    const bool is_number =
        !end.empty() && end.find_first_not_of("0123456789") == std::string_view::npos;
    return is_digest || is_number ? owner.substr(0, at) : owner;
}

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

std::vector<std::size_t> Placement::of_owner(std::string_view owner) const {
    // Of a single replica, owners are called by their ids.
    return of(replicas_ == 1 ? owner : id_of(owner));
}

}  // namespace cpp_store::replication
