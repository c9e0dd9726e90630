#include <utility>

#include "client/cluster.hpp"
#include "client/put.hpp"
#include "replication/calls.hpp"

namespace cpp_store {
namespace client {

PendingCallPtr start_put(Connection& server, PutRequest request,
                         std::span<const std::span<const std::byte>> tensors) {
    wire::Put put;
    std::vector<Exposure> exposures;
    std::vector<std::size_t> exposed;  // which tensors
    wire::InlineBudget budget;
    for (const Own& own : request.own) {
        for (const TensorSpec& spec : own.tensors) {
            const std::size_t i = put.tensors.size();
            if (i == tensors.size() || tensors[i].size() != spec.nbytes()) {
                throw Error(
                    Errc::invalid_argument,
                    "tensor " + std::to_string(i) + " has " + std::to_string(spec.nbytes()) +
                        " bytes, its buffer " +
                        (i == tensors.size() ? "is missing" : std::to_string(tensors[i].size())));
            }
            wire::Payload& payload = put.tensors.emplace_back();
            payload.spec = spec;
            payload.nbytes = tensors[i].size();
            payload.data = tensors[i];
            if (!budget.take(payload.nbytes)) {
                exposures.push_back({tensors[i], false});
                exposed.push_back(i);
            }
        }
    }
    put.request = std::move(request);
    return server.start(
        wire::Operation::put,
        [&](wire::Writer& out, std::span<const wire::Remote> remotes) {
            for (std::size_t i = 0; i < remotes.size(); ++i) {
                put.tensors[exposed[i]].remote = remotes[i];
            }
            wire::encode(out, put);
        },
        exposures);
}

}  // namespace client

std::uint64_t Cluster::put(PutRequest request,
                           std::span<const std::span<const std::byte>> tensors) {
    return replication::run(
        replication::put(*impl_->servers, impl_->placement, std::move(request),
                         std::vector<std::span<const std::byte>>(tensors.begin(), tensors.end())));
}

}  // namespace cpp_store
