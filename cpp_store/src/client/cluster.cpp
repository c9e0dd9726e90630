#include "client/cluster.hpp"

#include <algorithm>
#include <optional>

#include "security/key.hpp"

namespace cpp_store {

Cluster::Cluster(Options options) : impl_(std::make_unique<Impl>()) {
    if (options.servers.empty()) {
        throw Error(Errc::invalid_argument, "no servers; give at least one address");
    }
    std::vector<std::string> sorted = options.servers;
    std::sort(sorted.begin(), sorted.end());
    if (const auto twice = std::adjacent_find(sorted.begin(), sorted.end());
        twice != sorted.end()) {
        throw Error(Errc::invalid_argument, "server " + *twice + " is in the list twice");
    }
    std::optional<security::Secret> key;
    if (!options.key.empty()) key = security::secret_of(options.key);
    security::wipe(options.key);
    for (const std::string& address : options.servers) {
        impl_->connections.push_back(std::make_shared<client::Connection>(
            client::Connection::Options{.address = address,
                                        .servers = sorted,
                                        .key = key,
                                        .timeout = options.timeout,
                                        .check_signals = options.check_signals,
                                        .same_host = options.same_host,
                                        .encrypt = options.encrypt}));
    }
    for (const auto& connection : impl_->connections) connection->connect();
    impl_->options = std::move(options);
}

Cluster::~Cluster() = default;

const std::vector<std::string>& Cluster::servers() const noexcept {
    return impl_->options.servers;
}

// The server whose address and the id have the highest hash together: if a server is added to the
// list, only the models that it takes over move.
std::size_t Cluster::home(std::string_view model) const noexcept {
    const auto& servers = impl_->options.servers;
    if (servers.size() == 1) return 0;
    std::size_t best = 0;
    LayerKey highest{};
    for (std::size_t i = 0; i < servers.size(); ++i) {
        const LayerKey hash = layer_key(servers[i] + '\n' + std::string(model));
        if (i == 0 || hash > highest) {
            best = i;
            highest = hash;
        }
    }
    return best;
}

void Cluster::ping(std::size_t server) {
    (void)impl_->call(server, wire::Operation::ping, [](wire::Writer&) {})->response();
}

std::vector<std::string> Cluster::transports() {
    std::vector<std::string> names;
    for (const auto& connection : impl_->connections) names.push_back(connection->transport());
    return names;
}

ModelInfo Cluster::lookup(std::string_view model) {
    const auto call = impl_->call(home(model), wire::Operation::lookup,
                                  [&](wire::Writer& out) { out.id(model); });
    wire::Reader in = call->response();
    return wire::decode_info(in);
}

bool Cluster::contains(std::string_view model) {
    const auto call = impl_->call(home(model), wire::Operation::contains,
                                  [&](wire::Writer& out) { out.id(model); });
    return call->response().u8() != 0;
}

std::vector<std::string> Cluster::list(const std::string* ns) {
    const auto calls = impl_->call_all(wire::Operation::list, [&](wire::Writer& out) {
        out.u8(ns ? 1 : 0);
        out.id(ns ? *ns : "");
    });
    std::vector<std::string> models;
    for (const auto& call : calls) {
        wire::Reader in = call->response();
        std::ranges::move(in.strings(), std::back_inserter(models));
    }
    return models;
}

std::vector<std::string> Cluster::verify() {
    std::vector<std::string> changed;
    for (const auto& call : impl_->call_all(wire::Operation::verify, [](wire::Writer&) {})) {
        wire::Reader in = call->response();
        std::ranges::move(in.strings(), std::back_inserter(changed));
    }
    return changed;
}

std::vector<StoreStats> Cluster::stats() {
    std::vector<StoreStats> stats;
    for (const auto& call : impl_->call_all(wire::Operation::stats, [](wire::Writer&) {})) {
        wire::Reader in = call->response();
        stats.push_back(wire::decode_stats(in));
    }
    return stats;
}

void Cluster::shutdown() {
    for (const auto& call : impl_->call_all(wire::Operation::shutdown, [](wire::Writer&) {})) {
        (void)call->response();
    }
}

}  // namespace cpp_store
