// A server among others that keep replicas: its part, and the thread that compares it with theirs.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "client/servers.hpp"
#include "replication/passes.hpp"
#include "security/key.hpp"

namespace cpp_store::server {

class Replication {
  public:
    struct Options {
        std::vector<std::string> servers;  // sorted, as clients have them
        std::size_t replicas = 2;
        std::size_t self = 0;
        std::optional<security::Secret> key;
        bool encrypt = false;
        std::function<void(const std::string&)> warn;
    };
    Replication(Store& store, Options options);
    ~Replication();  // stops
    Replication(const Replication&) = delete;
    Replication& operator=(const Replication&) = delete;

    [[nodiscard]] replication::Replica& replica() noexcept { return replica_; }
    // Ends the thread; the replica stays, for calls under way.
    void stop();

  private:
    using Clock = std::chrono::steady_clock;
    // Between two passes against a peer that go through, about; and at least. A failed one is tried
    // again after `first_rest`, then twice as long, up to the interval.
    static constexpr std::chrono::milliseconds interval{15'000};
    // Between two passes of which one failed: what is missing there has one replica meanwhile.
    static constexpr std::chrono::milliseconds first_rest{100};
    static constexpr std::chrono::milliseconds last_rest{1'000};
    static constexpr std::chrono::milliseconds timeout{3'000};

    struct Peer {
        Clock::time_point next;
        std::chrono::milliseconds rest{0};  // of one that failed; 0: it did not
    };

    void run();
    void pass(std::size_t server);
    void scrub();
    [[nodiscard]] std::vector<std::shared_ptr<client::Connection>> connect(const Options& options);

    std::atomic<bool> stopping_ = false;
    replication::Replica replica_;
    client::Servers peers_;
    replication::Passes passes_;
    const std::function<void(const std::string&)> warn_;
    std::mutex mutex_;  // guards these two; taken with no other lock
    std::condition_variable woken_;
    std::vector<Peer> schedule_;  // of each server, and last of the scrub
    std::thread thread_;
};

}  // namespace cpp_store::server
