// How a server keeps up with its peers.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "replication/replica.hpp"

namespace cpp_store::replication {

// Asks all peers for their changes, a round at a time, and does what follows for its own server.
// One thread at a time.
class Follower {
  public:
    // `warn` is told what cannot be done, a line each.
    Follower(Replica& replica, Network& network, std::function<void(const std::string&)> warn);

    // One round. In the first after an absence it hears most of what the others know; in the next
    // it joins them, and is ready when each has said the rest or could not be reached.
    Task<void> round(Replica::Clock::time_point now);

    // How long a reference is kept of whose heir nobody has heard: a put may still be on its way.
    static constexpr std::chrono::minutes patience{10};

  private:
    struct Peer {
        std::size_t server = 0;
        Incarnation incarnation = 0;
        std::uint64_t since = 0;
        std::vector<Change> left;  // that could not be followed, to be tried again
        bool failed = false;       // one of them, not for want of an answer
        bool lost = false;         // one of them was the peer's, who gave no answer
        unsigned failures = 0;     // rounds in a row in which one did
        unsigned rest = 0;         // rounds until the next try
    };

    enum class Outcome : std::uint8_t {
        done,
        unreachable,  // whoever was asked: again at the next round
        failed,       // again, later and later
    };
    [[nodiscard]] Request ask_changes(const Peer& peer, bool joining) const;
    Task<bool> catch_up(Peer& peer, Answer answer, bool joining);
    Task<Answer> leave_out(const Peer& peer, Answer silent, Incarnation there, bool joining);
    Task<void> follow_all(Peer& peer, std::vector<Change> changes);
    Task<Outcome> follow(Peer& peer, const Change& change);
    Task<Outcome> pull(std::size_t peer, const Change& change);
    Task<Outcome> hold(const Change& change, const std::string& owner,
                       const std::vector<std::string>& names);
    Task<void> drop_forgotten(std::size_t peer, Version forgotten);
    Task<void> settle(Replica::Clock::time_point now);

    Replica& replica_;
    Network& network_;
    const std::function<void(const std::string&)> warn_;
    std::vector<Peer> peers_;
    std::optional<unsigned> heard_since_;  // Replica::suspicions() at the last round
    std::uint64_t had_ = 0;                // changes, when it came back: the others must know them
};

}  // namespace cpp_store::replication
