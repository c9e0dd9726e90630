// What a client does to change a model that several servers keep, and in which order it asks them.
#pragma once

#include <cstddef>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "cpp_store/client.hpp"
#include "replication/network.hpp"
#include "replication/placement.hpp"

namespace cpp_store::replication {

// All of a model's servers, those that are down last.
[[nodiscard]] std::vector<std::size_t> order_of_reading(const Network& network,
                                                        const Placement& placement,
                                                        std::string_view model);

// Puts a model at all of its servers that can be reached. References are taken first, at every
// reachable server of each owner; then the servers are asked one after the other, in the order that
// all clients have, so that the first of them says which of two puts of an id there is. It is done
// when each that could be reached has it, and one at least could. Where one cannot have it (it is
// full) none keeps it. Throws what the servers say, and Errc::connection if none can be reached.
//
// Returns the bytes that the model added at one of its servers.
Task<std::uint64_t> put(Network& network, const Placement& placement, PutRequest request,
                        std::span<const std::span<const std::byte>> tensors);

// Retires a model at all of its servers that can be reached; those that cannot hear of it from the
// others. Throws Errc::not_found if none has it, Errc::connection if none can be reached.
Task<void> retire(Network& network, const Placement& placement, std::string model);

// Finds a model at one of its servers. Throws Errc::not_found if those that answer do not have it,
// Errc::connection if none answers.
struct Found {
    std::size_t server = 0;
    ModelInfo info;
};
Task<Found> find(Network& network, const Placement& placement, std::string model);

// What must be the same at all servers so that they know equal content when they see it: layers in
// the order of the table, and none named that has no tensors. `tensors` are permuted alike.
void put_in_order(PutRequest& request, std::vector<std::span<const std::byte>>& tensors);

// One answer a server to a question of best matches.
struct Answered {
    std::size_t server = 0;
    std::vector<LeasedMatch> matches;
};
struct Lease {
    std::size_t server = 0;
    std::uint64_t lease = 0;
};
struct Merged {
    LeasedMatch match;
    std::size_t server = 0;     // of match.lease
    std::vector<Lease> others;  // on the same model, at its other servers
};
// The best of all, best first: the heavier prefix, then the higher score (NaN lowest), then the
// newer. A model that several servers answered is one match with several leases. `spare` gets the
// leases of those that are more than `count`.
[[nodiscard]] std::vector<Merged> merge(std::vector<Answered> answers, Weight weight,
                                        std::size_t count, std::vector<Lease>& spare);

}  // namespace cpp_store::replication
