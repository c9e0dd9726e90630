// A server among others that keep replicas: its part, and the threads that follow the others and
// notice when this process was stopped.
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
#include "replication/follower.hpp"
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
    static constexpr std::chrono::milliseconds interval{150};
    static constexpr std::chrono::milliseconds shortest_interval{5};
    static constexpr std::chrono::milliseconds timeout{3'000};

    void run();
    void beat();
    [[nodiscard]] std::vector<std::shared_ptr<client::Connection>> connect(const Options& options);

    std::atomic<bool> stopping_ = false;
    replication::Replica replica_;
    client::Servers peers_;
    replication::Follower follower_;
    const std::function<void(const std::string&)> warn_;
    std::mutex mutex_;
    std::condition_variable stopped_;
    bool look_ = false;  // soon
    std::thread thread_;
    std::thread pulse_;
};

}  // namespace cpp_store::server
