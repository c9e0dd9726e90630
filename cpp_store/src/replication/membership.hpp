// Which servers take part in what is decided.
//
// A change of a model goes through its servers in the order that Placement gives them, as along a
// chain (van Renesse and Schneider, *Chain Replication*, OSDI 2004): the first decides, the others
// do as it did, and the change is done when the last one has it. Questions go to the last one,
// which knows of nothing that could still be lost. So all clients see one order of what happened to
// a model, whichever of its servers stop and return.
//
// For that the servers, not the clients, say who takes part. A server *joins* another one in the
// same moment in which it hears the last of the other's changes; until it has joined all that it
// can reach it decides and answers nothing. It is left out again when it cannot be reached, and
// then has to join anew, as it has after a restart: its incarnation is another one.
//
// This holds as long as servers stop, hang or restart. Where the network parts two servers that
// both go on, each leaves the other out, and for each id the later of what was put stays.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <span>
#include <vector>

namespace cpp_store::replication {

// A number that no other life of a server had; 0 is none.
using Incarnation = std::uint64_t;

// Of each server of a model, in their order: as which incarnation it took a change, or takes part.
using Chain = std::vector<Incarnation>;

// Thread-safe.
class Membership {
  public:
    Membership(std::size_t servers, std::size_t self, Incarnation own);

    // As which incarnation a server takes part here; 0 if it does not.
    [[nodiscard]] Incarnation of(std::size_t server) const noexcept { return joined_[server]; }
    [[nodiscard]] Chain of(std::span<const std::size_t> servers) const;

    // While somebody holds this, no server joins.
    [[nodiscard]] std::shared_lock<std::shared_mutex> hold() const;
    // While somebody holds this, nothing is decided.
    [[nodiscard]] std::unique_lock<std::shared_mutex> close() const;

    void join(std::size_t server, Incarnation incarnation) noexcept {
        joined_[server] = incarnation;
    }
    // Unless it has joined as another incarnation meanwhile.
    void leave(std::size_t server, Incarnation incarnation) noexcept {
        joined_[server].compare_exchange_strong(incarnation, 0);
    }

  private:
    const std::unique_ptr<std::atomic<Incarnation>[]> joined_;
    // Taken before the other one, so that a server that joins is not kept waiting for ever by
    // those that come after it.
    mutable std::mutex gate_;
    mutable std::shared_mutex deciding_;
};

}  // namespace cpp_store::replication
