// How a server learns what it missed.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "replication/replica.hpp"

namespace cpp_store::replication {

// Whether a reference may end: each of the heir's servers answers that it has no use for it. One
// that does not answer may have.
enum class Use : std::uint8_t {
    possible = 0,
    none = 1,
    ended = 2,  // and one of them knows that it was retired
};
// Of heirs, or models, by their owners' names.
Task<std::vector<Use>> uses_of(Network& network, const Placement& placement,
                               std::vector<std::string> names);

// One thread at a time.
class Passes {
  public:
    using Clock = std::chrono::steady_clock;

    // How old a reference is until it can end. A put may be on its way whose heir nobody knows yet;
    // if the heir was retired, only another put of the same content may be.
    struct Ages {
        Clock::duration unknown = std::chrono::minutes(10);
        Clock::duration retired = std::chrono::seconds(10);
    };

    // `network` reaches all servers, this one too. `warn` is told what cannot be done, a line each.
    Passes(Replica& replica, Network& network, std::function<void(const std::string&)> warn,
           Ages ages);

    // Compares what this server and a peer both keep, and takes over what is missing here. False
    // if something of it could not be done, for whatever reason: it is to be tried again, and what
    // was doubted stays so.
    Task<bool> with(std::size_t peer);

    // Ends references of heirs that are out of use, of some of those that are held here; of the
    // next ones the next time. True at the end of all.
    Task<bool> scrub(Clock::time_point now);

    static constexpr std::size_t scrubbed_at_once = 4096;  // layers

  private:
    Task<bool> list(std::size_t peer, Buckets buckets);
    Task<bool> follow(std::size_t peer, const Page& page);
    Task<bool> bury(const std::string& owner);
    Task<bool> pull(std::size_t peer, const std::string& owner);
    Task<bool> hold(std::size_t peer, const HeldLayers& held);

    Replica& replica_;
    Network& network_;
    const std::function<void(const std::string&)> warn_;
    const Ages ages_;
    std::string scrubbed_;  // up to this holder
};

}  // namespace cpp_store::replication
