#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>

#include "client/cluster.hpp"

namespace cpp_store {
namespace {

// Heavier prefix first, then the higher score (NaN lowest), then the newer.
bool is_better(const Match& a, const Match& b, Weight weight) {
    const auto rank = [weight](const Match& match) {
        const bool scored = !std::isnan(match.score);
        return std::tuple(weight == Weight::layers ? match.layers : match.bytes, scored,
                          scored ? match.score : 0.0, match.sequence);
    };
    return rank(a) > rank(b);
}

}  // namespace

std::vector<RemoteMatch> Cluster::best_matches(const LayerTable& table, const Query& query,
                                               std::chrono::milliseconds lease) {
    const auto lease_ms = lease.count() < 0 ? std::numeric_limits<std::uint64_t>::max()
                                            : static_cast<std::uint64_t>(lease.count());
    const auto calls = impl_->call_all(wire::Operation::best_matches, [&](wire::Writer& out) {
        wire::encode(out, table, query, lease_ms);
    });
    std::vector<RemoteMatch> matches;
    for (std::size_t server = 0; server < calls.size(); ++server) {
        wire::Reader in = calls[server]->response();
        for (std::uint32_t left = in.count(1); left > 0; --left) {
            matches.push_back({wire::decode_match(in), server});
        }
    }
    std::ranges::stable_sort(matches, [&](const RemoteMatch& a, const RemoteMatch& b) {
        return is_better(a.leased.match, b.leased.match, query.weight);
    });
    for (std::size_t i = query.count; i < matches.size(); ++i) {
        if (matches[i].leased.lease == 0) continue;
        impl_->connections[matches[i].server]->tell(
            wire::Operation::end_lease, [&](wire::Writer& out, std::span<const wire::Remote>) {
                out.u64(matches[i].leased.lease);
            });
    }
    if (matches.size() > query.count) matches.resize(query.count);
    return matches;
}

}  // namespace cpp_store
