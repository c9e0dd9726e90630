#include <limits>

#include "client/cluster.hpp"

namespace cpp_store {

std::vector<RemoteMatch> Cluster::best_matches(const LayerTable& table, const Query& query,
                                               std::chrono::milliseconds lease) {
    const auto lease_ms = lease.count() < 0 ? std::numeric_limits<std::uint64_t>::max()
                                            : static_cast<std::uint64_t>(lease.count());
    // What a server that is gone would have answered is lost, or another replica's to say.
    const auto calls = impl_->call_those_there(
        wire::Operation::best_matches,
        [&](wire::Writer& out) { wire::encode(out, table, query, lease_ms); });
    std::vector<replication::Answered> answers;
    for (std::size_t server = 0; server < calls.size(); ++server) {
        if (!calls[server]) continue;
        wire::Reader in = calls[server]->response();
        replication::Answered& answered = answers.emplace_back();
        answered.server = server;
        for (std::uint32_t left = in.count(1); left > 0; --left) {
            answered.matches.push_back(wire::decode_match(in));
        }
    }
    std::vector<replication::Lease> spare;
    std::vector<replication::Merged> merged =
        replication::merge(std::move(answers), query.weight, query.count, spare);
    for (const replication::Lease& unused : spare) impl_->forget_lease(unused);
    std::vector<RemoteMatch> matches;
    for (replication::Merged& match : merged) {
        if (!match.others.empty()) {
            const std::scoped_lock lock(impl_->leases_mutex);
            impl_->other_leases[{match.server, match.match.lease}] = std::move(match.others);
        }
        matches.push_back({std::move(match.match), match.server});
    }
    return matches;
}

}  // namespace cpp_store
