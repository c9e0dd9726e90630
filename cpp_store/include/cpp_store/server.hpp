// A store behind an address: what other processes and hosts talk to.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "cpp_store/store.hpp"

namespace cpp_store {

enum class LogLevel : std::uint8_t { error = 0, warning = 1, info = 2, debug = 3 };

// What clients may take of a server. Whoever wants more is told so (Errc::busy), or waits.
struct ServerLimits {
    std::size_t clients = 16'384;         // connections; through this host's socket, as many more
    std::size_t clients_of_host = 4'096;  // by the address that they come from
    // Of one client; its other calls wait meanwhile. A single call may be larger.
    std::uint64_t bytes_in_flight = std::uint64_t{1} << 30;
    double requests_per_second = 200'000;  // of one client; 0: any number
};

// Serves a store until it is stopped: one thread moves bytes, `threads` others do what requests
// ask for. While nothing happens, all of them sleep. Clients can reach nothing but the store's
// calls: the server reads from and writes to the memory that they offer, never the other way.
class Server {
  public:
    struct Options {
        std::string address = "ofi+tcp://127.0.0.1:0";  // port 0: a free one
        unsigned threads = 2;
        // Clients must know it. Empty: anybody who reaches the address may connect, other users of
        // this host too, so it must be one of this host only, unless `insecure`. Programs take
        // security::default_server_key() where they were given none.
        std::string key;
        bool insecure = false;
        bool encrypt = false;  // all that goes over a network, whether clients ask for it or not
        ServerLimits limits{};
        // Of a client that has begun a message or waits for its bytes to move, until it is dropped.
        // One that asks for nothing is looked for every three times as long.
        std::chrono::milliseconds silence{20'000};
        LogLevel log_level = LogLevel::info;
        // Called by the server's threads, one line without its end at a time; null: stderr.
        std::function<void(LogLevel, std::string_view)> log;
    };

    // Is reachable when the constructor returns. Throws Errc::invalid_argument (malformed address,
    // unknown provider, port taken, no threads, no key where one is needed) or Errc::connection (no
    // libfabric).
    Server(std::shared_ptr<Store> store, Options options);
    ~Server();  // stops
    Server(const Server&) = delete;
    Server& operator=(const Server&) = delete;

    // The whole address, with the port that was bound.
    [[nodiscard]] const std::string& address() const noexcept;
    [[nodiscard]] const std::shared_ptr<Store>& store() const noexcept;

    // Readable once a client has asked for a shutdown (or stop() was called): then stop() or
    // destroy.
    [[nodiscard]] int shutdown_fd() const noexcept;

    // Ends all calls; their clients see a server that is gone. Idempotent.
    void stop();

  private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace cpp_store
