// References between servers: who gives them back, and when.
#include <map>

#include "client/cluster.hpp"
#include "replication/passes.hpp"

namespace cpp_store {
namespace {

// What a lease was the last to keep on other servers. A server that cannot be reached keeps it: the
// scrub finds it there.
void give_back(Cluster& cluster,
               const std::vector<std::shared_ptr<client::Connection>>& connections,
               wire::Reader answer) {
    const ForeignReferences references = wire::decode_foreign(answer);
    for (const auto& layers : references.by_owner) {
        try {
            (void)connections[cluster.home(layers.first)]
                ->call(wire::Operation::release,
                       [&](wire::Writer& out, std::span<const wire::Remote>) {
                           wire::encode(out, wire::References{layers.first, layers.second,
                                                              references.holder});
                       })
                ->response();
        } catch (const Error& error) {
            if (error.code() != Errc::connection && error.code() != Errc::deadline) throw;
        }
    }
}

}  // namespace

void Cluster::retire(std::string_view model) {
    replication::run(replication::retire(*impl_->servers, impl_->placement, std::string(model)));
}

void Cluster::end_lease(const RemoteMatch& match) {
    if (match.leased.lease == 0) return;
    if (impl_->replicated()) {
        impl_->forget_lease({match.server, match.leased.lease});
        std::vector<replication::Lease> others;
        {
            const std::scoped_lock lock(impl_->leases_mutex);
            const auto found = impl_->other_leases.find({match.server, match.leased.lease});
            if (found == impl_->other_leases.end()) return;
            others = std::move(found->second);
            impl_->other_leases.erase(found);
        }
        for (const replication::Lease& other : others) impl_->forget_lease(other);
        return;
    }
    const auto call = impl_->call(match.server, wire::Operation::end_lease,
                                  [&](wire::Writer& out) { out.u64(match.leased.lease); });
    give_back(*this, impl_->connections, call->response());
}

// A server that cannot be reached ends the leases of this client by itself.
void Cluster::Impl::forget_lease(const replication::Lease& lease) const {
    try {
        connections[lease.server]->tell(
            wire::Operation::end_lease,
            [&](wire::Writer& out, std::span<const wire::Remote>) { out.u64(lease.lease); });
    } catch (const Error& error) {
        if (error.code() != Errc::connection && error.code() != Errc::deadline) throw;
    }
}

bool Cluster::is_alive(std::string_view model) {
    const std::vector<replication::Use> uses = replication::run(
        replication::uses_of(*impl_->servers, impl_->placement, {std::string(model)}));
    return uses.front() == replication::Use::possible;
}

// Servers of several replicas see to it by themselves.
std::size_t Cluster::scrub(std::chrono::milliseconds age) {
    if (impl_->replicated()) return 0;
    std::size_t released = 0;
    for (std::size_t server = 0; server < servers().size(); ++server) {
        const auto call = impl_->call(server, wire::Operation::holders, [&](wire::Writer& out) {
            out.u64(static_cast<std::uint64_t>(std::max<std::int64_t>(0, age.count())));
        });
        wire::Reader in = call->response();
        for (const std::string& holder : in.strings()) {
            if (is_alive(holder)) continue;
            (void)impl_
                ->call(server, wire::Operation::release_holder,
                       [&](wire::Writer& out) { out.id(holder); })
                ->response();
            ++released;
        }
    }
    return released;
}

}  // namespace cpp_store
