// What the operations of a Cluster share; one file an operation beside this one.
#pragma once

#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "client/connection.hpp"
#include "client/gather.hpp"
#include "client/servers.hpp"
#include "cpp_store/client.hpp"
#include "replication/calls.hpp"
#include "replication/placement.hpp"

namespace cpp_store {

struct Cluster::Impl {
    Options options;
    std::vector<std::shared_ptr<client::Connection>> connections;  // as options.servers
    replication::Placement placement;
    std::unique_ptr<client::Servers> servers;
    // The leases of a match at the other servers that answered it, by the one that users know.
    std::mutex leases_mutex;
    std::map<std::pair<std::size_t, std::uint64_t>, std::vector<replication::Lease>> other_leases;

    void connect();
    [[nodiscard]] bool replicated() const noexcept { return placement.replicas() > 1; }
    // The server to ask first for layers of an owner.
    [[nodiscard]] std::size_t home_of_owner(const std::string& owner) const;
    // Where else to ask.
    [[nodiscard]] client::Elsewhere elsewhere() const;

    // Asks the servers of a model until one answers; returns what `ask` returned of it, and tells
    // those that lack the model.
    template <typename Ask>
    [[nodiscard]] auto at_one_that_answers(std::string_view model, const Ask& ask) const {
        replication::Reading reading(*servers, placement, model);
        while (const auto server = reading.next()) {
            const auto begun = servers->begin(*server);
            try {
                auto found = ask(*server);
                servers->answered(*server);
                if (!reading.without().empty()) {
                    replication::run(replication::tell_to_repair(*servers, std::string(model),
                                                                 reading.without()));
                }
                return found;
            } catch (const Error& error) {
                servers->failed(*server, begun, error);
                reading.failed(error);
            }
        }
        throw replication::run(replication::outcome_of(*servers, std::string(model), reading));
    }

    // The same request to all servers at once; their answers in order of servers, null where there
    // is none. Throws if no server answers, and what a server says to be wrong.
    template <typename Encode>
    [[nodiscard]] std::vector<client::PendingCallPtr> call_those_there(wire::Operation operation,
                                                                       const Encode& encode) const {
        std::vector<client::PendingCallPtr> calls(connections.size());
        std::vector<client::PendingCallPtr> started;
        std::vector<std::size_t> asked;
        std::vector<client::Clock::time_point> begun(connections.size());
        std::optional<Error> silent;
        const auto note = [&](std::size_t server, const Error& error) {
            servers->failed(server, begun[server], error);
            if (error.code() != Errc::connection && error.code() != Errc::deadline) throw error;
            if (!silent || error.code() == Errc::deadline) silent = error;
        };
        const bool all_down = are_all_down();
        for (std::size_t i = 0; i < connections.size(); ++i) {
            if (!all_down && servers->is_down(i)) continue;
            begun[i] = servers->begin(i);
            try {
                started.push_back(connections[i]->start(
                    operation,
                    [&](wire::Writer& out, std::span<const wire::Remote>) { encode(out); }));
                asked.push_back(i);
            } catch (const Error& error) {
                note(i, error);
            }
        }
        client::Connection::wait(started);
        bool any = false;
        for (std::size_t j = 0; j < started.size(); ++j) {
            try {
                (void)started[j]->response();
                servers->answered(asked[j]);
                calls[asked[j]] = std::move(started[j]);
                any = true;
            } catch (const Error& error) {
                note(asked[j], error);
            }
        }
        if (!any) throw *silent;
        return calls;
    }
    [[nodiscard]] bool are_all_down() const;
    // Ends a lease, without waiting; one at a server that is away ends by itself.
    void forget_lease(const replication::Lease& lease) const;

    // One request to one server, answered; `encode` as Connection::Encode without exposures.
    template <typename Encode>
    [[nodiscard]] client::PendingCallPtr call(std::size_t server, wire::Operation operation,
                                              const Encode& encode) const {
        return connections[server]->call(
            operation, [&](wire::Writer& out, std::span<const wire::Remote>) { encode(out); });
    }
    // The same request to all servers at once; their answers in order of servers, null for one that
    // is away where there are other replicas.
    template <typename Encode>
    [[nodiscard]] std::vector<client::PendingCallPtr> call_all(wire::Operation operation,
                                                               const Encode& encode) const {
        if (replicated()) return call_those_there(operation, encode);
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
