#include "client/cluster.hpp"

#include <algorithm>
#include <optional>
#include <set>

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
    if (options.replicas == 0 || options.replicas > options.servers.size()) {
        throw Error(Errc::invalid_argument, std::to_string(options.replicas) + " replicas on " +
                                                std::to_string(options.servers.size()) +
                                                " servers; each takes a server of its own");
    }
    std::vector<std::string> list = std::move(sorted);
    if (options.replicas > 1) list.push_back(client::replicas_word(options.replicas));
    std::optional<security::Secret> key;
    if (!options.key.empty()) key = security::secret_of(options.key);
    security::wipe(options.key);
    for (const std::string& address : options.servers) {
        impl_->connections.push_back(std::make_shared<client::Connection>(
            client::Connection::Options{.address = address,
                                        .servers = list,
                                        .key = key,
                                        .timeout = options.timeout,
                                        .check_signals = options.check_signals,
                                        .same_host = options.same_host,
                                        .encrypt = options.encrypt}));
    }
    impl_->placement = replication::Placement(options.servers, options.replicas);
    impl_->servers = std::make_unique<client::Servers>(impl_->connections, options.check_signals);
    impl_->options = std::move(options);
    impl_->connect();
}

// Of several replicas one is enough: those that are away are asked again later.
void Cluster::Impl::connect() {
    std::optional<Error> silent;
    std::size_t connected = 0;
    for (std::size_t i = 0; i < connections.size(); ++i) {
        const auto begun = servers->begin(i);
        try {
            connections[i]->connect();
            ++connected;
        } catch (const Error& error) {
            if (!replicated() || error.code() != Errc::connection) throw;
            servers->failed(i, begun, error);
            silent = error;
        }
    }
    if (connected == 0) throw *silent;
}

std::size_t Cluster::Impl::home_of_owner(const std::string& owner) const {
    if (!replicated()) return placement.home(owner);
    const std::vector<std::size_t> keepers = placement.of_owner(owner);
    const auto up =
        std::ranges::find_if(keepers, [&](auto each) { return !servers->is_down(each); });
    return up == keepers.end() ? keepers.front() : *up;
}

client::Elsewhere Cluster::Impl::elsewhere() const {
    if (!replicated()) return nullptr;
    return [this](client::Source& source, const Error& error) {
        servers->failed(source.server, client::Clock::now(), error);
        if (error.code() == Errc::invalid_argument || error.code() == Errc::protocol) return false;
        source.tried.push_back(source.server);
        for (const std::size_t server : placement.of_owner(source.owner)) {
            if (std::ranges::find(source.tried, server) != source.tried.end()) continue;
            source.server = server;
            return true;
        }
        return false;
    };
}

bool Cluster::Impl::are_all_down() const {
    for (std::size_t i = 0; i < connections.size(); ++i) {
        if (!servers->is_down(i)) return false;
    }
    return true;
}

std::size_t Cluster::replicas() const noexcept {
    return impl_->placement.replicas();
}

std::vector<std::string> Cluster::absent() const {
    std::vector<std::string> absent;
    for (std::size_t i = 0; i < servers().size(); ++i) {
        if (impl_->servers->is_absent(i)) absent.push_back(servers()[i]);
    }
    return absent;
}

Cluster::~Cluster() = default;

const std::vector<std::string>& Cluster::servers() const noexcept {
    return impl_->options.servers;
}

std::size_t Cluster::home(std::string_view model) const noexcept {
    return impl_->placement.home(model);
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
    return replication::run(
               replication::find(*impl_->servers, impl_->placement, std::string(model)))
        .info;
}

bool Cluster::contains(std::string_view model) {
    try {
        return impl_->at_one_that_answers(model, [&](std::size_t server) {
            const auto call = impl_->call(server, wire::Operation::contains,
                                          [&](wire::Writer& out) { out.id(model); });
            if (call->response().u8() != 0) return true;
            throw Error(Errc::not_found, "there is no model '" + std::string(model) + "'");
        });
    } catch (const Error& error) {
        if (error.code() != Errc::not_found) throw;
        return false;
    }
}

std::vector<std::string> Cluster::list(const std::string* ns) {
    const auto calls = impl_->call_all(wire::Operation::list, [&](wire::Writer& out) {
        out.u8(ns ? 1 : 0);
        out.id(ns ? *ns : "");
    });
    std::vector<std::string> models;
    std::set<std::string> seen;  // at another server
    for (const auto& call : calls) {
        if (!call) continue;
        wire::Reader in = call->response();
        for (std::string& model : in.strings()) {
            if (impl_->replicated() && !seen.insert(model).second) continue;
            models.push_back(std::move(model));
        }
    }
    return models;
}

std::vector<std::string> Cluster::verify() {
    std::vector<std::string> changed;
    for (const auto& call : impl_->call_all(wire::Operation::verify, [](wire::Writer&) {})) {
        if (!call) continue;
        wire::Reader in = call->response();
        std::ranges::move(in.strings(), std::back_inserter(changed));
    }
    return changed;
}

std::vector<StoreStats> Cluster::stats() {
    std::vector<StoreStats> stats;
    for (const auto& call : impl_->call_all(wire::Operation::stats, [](wire::Writer&) {})) {
        StoreStats& one = stats.emplace_back();  // nothing of one that is away
        if (!call) continue;
        wire::Reader in = call->response();
        one = wire::decode_stats(in);
    }
    return stats;
}

void Cluster::shutdown() {
    for (const auto& call : impl_->call_all(wire::Operation::shutdown, [](wire::Writer&) {})) {
        if (call) (void)call->response();
    }
}

}  // namespace cpp_store
