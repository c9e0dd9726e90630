// Clients that have said hello and have not joined yet: whoever reaches the port. They get little
// memory and little time, and do not get to try many keys.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "security/greeting.hpp"
#include "server/call.hpp"
#include "server/rate.hpp"

namespace cpp_store::server {

// Where a client says it is: of an IP address, without the port. Whoever lies does not get the
// answer, and without it cannot join.
[[nodiscard]] std::string origin_of(std::span<const std::byte> address);

// Belongs to the progress thread.
class Lobby {
  public:
    using Clock = std::chrono::steady_clock;

    struct Guest {
        std::shared_ptr<Session> session;
        security::Reception reception;
        std::uint64_t call;  // of the hello, and of the join that is to come
        std::string origin;
        Clock::time_point since;
    };

    // Guests have so long to join, 5 seconds at most.
    explicit Lobby(std::chrono::milliseconds patience)
        : patience_(std::min<std::chrono::milliseconds>(patience, std::chrono::seconds(5))) {}

    [[nodiscard]] std::chrono::milliseconds patience() const noexcept { return patience_; }
    // Whether a hello is heard at all. Of a flood most are not, so that it takes little work.
    [[nodiscard]] bool hears(Clock::time_point now) { return hellos_.take(now); }
    // Makes room for one more: of too many, in all or of one origin, the one goes that came first,
    // if it has had a second to join, which is a hundred times what it takes. Throws Errc::busy if
    // it has not, or too many wrong keys came from there.
    [[nodiscard]] std::optional<Guest> admit(const std::string& origin, Clock::time_point now);
    void enter(Guest guest);
    [[nodiscard]] std::size_t size() const noexcept { return guests_.size(); }
    [[nodiscard]] bool contains(std::uint64_t session) const { return guests_.contains(session); }
    // Whether the guest came that way.
    [[nodiscard]] bool is_at(std::uint64_t session, const local::LinePtr& line) const {
        return guests_.at(session).session->at.line == line;
    }
    [[nodiscard]] Guest leave(std::uint64_t session);
    void note_wrong_key(const std::string& origin, Clock::time_point now);
    // Those whose time is over.
    [[nodiscard]] std::vector<Guest> expire(Clock::time_point now);

  private:
    static constexpr std::size_t most = 1024;
    static constexpr std::size_t most_of_an_origin = 256;
    static constexpr double hellos_a_second = 1000;
    static constexpr double hellos_at_once = 4096;
    static constexpr std::chrono::seconds least_stay{1};
    static constexpr double wrong_keys_a_second = 1;
    static constexpr double wrong_keys_at_once = 8;

    const std::chrono::milliseconds patience_;
    std::unordered_map<std::uint64_t, Guest> guests_;      // by session
    std::unordered_map<std::string, std::size_t> counts_;  // of guests, by origin
    std::unordered_map<std::string, Rate> wrong_keys_;     // by origin
    Rate hellos_{hellos_a_second, hellos_at_once};
};

}  // namespace cpp_store::server
