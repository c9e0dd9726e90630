// What a client does to change a model that several servers keep, and in which order it asks them.
#pragma once

#include <chrono>
#include <cstddef>
#include <optional>
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

// Puts a model at all of its servers that take part. References are taken first, at every
// reachable server of each owner. Where one server cannot have it (it is full) none keeps it.
// Throws what the servers say, and Errc::connection or deadline if none can be reached, or if they
// do not agree for a while who takes part; then it may be there or not.
//
// Returns the bytes that the model added at one of its servers.
Task<std::uint64_t> put(Network& network, const Placement& placement, PutRequest request,
                        std::span<const std::span<const std::byte>> tensors);

// Retires a model at all of its servers that take part; the others hear of it from them. Throws
// Errc::not_found if there is none, or if another call retires it; else as put.
Task<void> retire(Network& network, const Placement& placement, std::string model);

// How often a call is tried again while its servers find out who takes part, and with whom.
class Patience {
  public:
    explicit Patience(Network& network) : network_(network) {}
    // That a server did not answer this call.
    void note_silent(std::size_t server) { silent_.push_back(server); }
    // How long to wait until the next try, in which those servers are to be asked again that were
    // left alone before; null if it has been long enough.
    [[nodiscard]] std::optional<std::chrono::milliseconds> next(
        std::span<const std::size_t> servers);

  private:
    Network& network_;
    std::vector<std::size_t> silent_;
    unsigned tries_ = 0;
    std::chrono::milliseconds waited_{0};
};

// Whom to ask about a model: its servers, the last one first, as that one knows nothing that could
// still be lost. The others answer only where it takes no part.
class Reading {
  public:
    Reading(Network& network, const Placement& placement, std::string_view model);

    // Null when all have been asked that were worth it.
    [[nodiscard]] std::optional<std::size_t> next();
    // That the last one failed, with Errc::connection or deadline.
    void failed(const Error& error);
    // What they said, when all failed.
    [[nodiscard]] const Error& silent() const { return *silent_; }
    // How long to wait until all can be asked again; null if that is of no use.
    [[nodiscard]] std::optional<std::chrono::milliseconds> again();

  private:
    void begin();

    Network& network_;
    Patience patience_;
    std::vector<std::size_t> servers_;
    std::vector<std::size_t> left_;
    std::size_t asked_ = 0;
    std::optional<Error> silent_;
};

// Finds a model at one of its servers. Throws Errc::not_found if there is none, Errc::connection or
// deadline if nobody says so.
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
