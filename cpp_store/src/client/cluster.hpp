// What the operations of a Cluster share; one file an operation beside this one.
#pragma once

#include <memory>
#include <vector>

#include "client/connection.hpp"
#include "cpp_store/client.hpp"

namespace cpp_store {

struct Cluster::Impl {
    Options options;
    std::vector<std::shared_ptr<client::Connection>> connections;  // as options.servers

    // One request to one server, answered; `encode` as Connection::Encode without exposures.
    template <typename Encode>
    [[nodiscard]] client::PendingCallPtr call(std::size_t server, wire::Operation operation,
                                              const Encode& encode) const {
        return connections[server]->call(
            operation, [&](wire::Writer& out, std::span<const wire::Remote>) { encode(out); });
    }
    // The same request to all servers at once; their answers in order of servers.
    template <typename Encode>
    [[nodiscard]] std::vector<client::PendingCallPtr> call_all(wire::Operation operation,
                                                               const Encode& encode) const {
        std::vector<client::PendingCallPtr> calls;
        for (const auto& connection : connections) {
            calls.push_back(connection->start(
                operation, [&](wire::Writer& out, std::span<const wire::Remote>) { encode(out); }));
        }
        client::Connection::wait(calls);
        return calls;
    }
};

}  // namespace cpp_store
