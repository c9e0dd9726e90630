#include "replication/membership.hpp"

namespace cpp_store::replication {

Membership::Membership(std::size_t servers, std::size_t self, Incarnation own)
    : joined_(std::make_unique<std::atomic<Incarnation>[]>(servers)) {
    joined_[self] = own;
}

Chain Membership::of(std::span<const std::size_t> servers) const {
    Chain chain;
    chain.reserve(servers.size());
    for (const std::size_t server : servers) chain.push_back(joined_[server]);
    return chain;
}

std::shared_lock<std::shared_mutex> Membership::hold() const {
    const std::scoped_lock gate(gate_);
    return std::shared_lock(deciding_);
}

std::unique_lock<std::shared_mutex> Membership::close() const {
    const std::scoped_lock gate(gate_);
    return std::unique_lock(deciding_);
}

}  // namespace cpp_store::replication
