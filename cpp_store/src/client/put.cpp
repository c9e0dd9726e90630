#include <map>
#include <utility>

#include "client/cluster.hpp"
#include "client/put.hpp"
#include "replication/calls.hpp"

namespace cpp_store {
namespace client {

PendingCallPtr start_put(Connection& server, PutRequest request,
                         std::span<const std::span<const std::byte>> tensors,
                         std::vector<std::uint64_t> through) {
    wire::Put put;
    put.through = std::move(through);
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

namespace {

using client::Connection;
using client::PendingCallPtr;

// Layers of one owner on another server than the child's.
using Foreign = std::map<std::string, std::vector<LayerKey>>;

Foreign mark_foreign(PutRequest& request, const Cluster& cluster) {
    Foreign foreign;
    const std::size_t home = cluster.home(request.model);
    for (Inherited& inherited : request.inherited) {
        inherited.foreign = cluster.home(inherited.owner) != home;
        if (!inherited.foreign) continue;
        if (inherited.layer >= request.table->size()) {
            throw Error(Errc::invalid_argument,
                        "inherited layer " + std::to_string(inherited.layer) + " of a model of " +
                            std::to_string(request.table->size()));
        }
        foreign[inherited.owner].push_back(request.table->key(inherited.layer));
    }
    return foreign;
}

// Owners answer with the bytes of their layers, in the order in which they were asked for.
void note_bytes(PutRequest& request, const Foreign& foreign,
                const std::vector<PendingCallPtr>& answers) {
    std::map<std::pair<std::string, LayerKey>, std::uint64_t> bytes;
    auto answer = answers.begin();
    for (const auto& [owner, keys] : foreign) {
        wire::Reader in = (*answer++)->response();
        if (in.count(8) != keys.size()) throw Error(Errc::protocol, "acquire lost layers");
        for (const LayerKey& key : keys) bytes[{owner, key}] = in.u64();
    }
    for (Inherited& inherited : request.inherited) {
        if (!inherited.foreign) continue;
        inherited.bytes = bytes.at({inherited.owner, request.table->key(inherited.layer)});
    }
}

}  // namespace

std::uint64_t Cluster::put(PutRequest request,
                           std::span<const std::span<const std::byte>> tensors) {
    if (impl_->replicated()) {
        std::vector<std::span<const std::byte>> ordered(tensors.begin(), tensors.end());
        replication::put_in_order(request, ordered);
        return replication::run(
            replication::put(*impl_->servers, impl_->placement, std::move(request), ordered));
    }
    if (request.created_ns == 0) {
        request.created_ns =
            static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(
                                           std::chrono::system_clock::now().time_since_epoch())
                                           .count());
    }
    const std::string child = request.model;
    const std::size_t server = home(child);
    const Foreign foreign = mark_foreign(request, *this);
    const auto ask_owners = [&](wire::Operation operation) {
        std::vector<PendingCallPtr> calls;
        for (const auto& layers : foreign) {
            calls.push_back(impl_->connections[home(layers.first)]->start(
                operation, [&](wire::Writer& out, std::span<const wire::Remote>) {
                    wire::encode(out, wire::References{layers.first, layers.second, child});
                }));
        }
        Connection::wait(calls);
        return calls;
    };
    try {
        note_bytes(request, foreign, ask_owners(wire::Operation::acquire));
        PendingCallPtr call =
            client::start_put(*impl_->connections[server], std::move(request), tensors, {});
        Connection::wait({&call, 1});
        wire::Reader in = call->response();
        return in.u64();
    } catch (const Error&) {
        // Another model of this id may hold the same references; only if there is none they are
        // ours to give back. If this fails too, the scrub does it.
        try {
            if (!foreign.empty() && !is_alive(child)) (void)ask_owners(wire::Operation::release);
        } catch (const Error&) {
        }
        throw;
    }
}

}  // namespace cpp_store
