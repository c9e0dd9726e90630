// The store's calls to servers elsewhere: one, or several that share the models between them.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "cpp_store/store.hpp"

namespace cpp_store {

// A match and the server that holds its lease.
struct RemoteMatch {
    LeasedMatch leased;  // `layers` have owners, but nothing stored
    std::size_t server = 0;
};

// A layer by owner, and what the caller calls it.
struct OwnedLayer {
    std::string layer;
    std::string owner;
    LayerKey key;
};

// A client of all servers of a list. A model lives at the server that rendezvous hashing gives its
// id; best matches are asked of all. Thread-safe; calls of different threads run at the same time.
//
// With several replicas a model lives at as many servers, the first of its order of hashes, and
// calls go on while one of them answers; a put is done when all that can be reached have it.
//
// Every call ends within its deadline. It throws Errc::connection, naming the server's address, if
// the server is gone or says nothing for some seconds; the next call tries to connect again. It
// throws Errc::deadline if the server is alive but does not get it done in time.
class Cluster {
  public:
    struct Options {
        std::vector<std::string> servers;           // in any order; the same for all clients
        std::chrono::milliseconds timeout{30'000};  // of one call, without the time for its bytes
        std::string key;  // of the servers, if they want one; servers without are refused then
        // Called some ten times a second by threads that wait, or null. What it throws ends the
        // call: a put may then have been done, or not.
        std::function<void()> check_signals{};
        bool same_host = true;     // servers on this host through shared memory, not libfabric
        bool encrypt = false;      // all that goes over a network; takes a key
        std::size_t replicas = 1;  // servers that keep each model; the same for all clients
    };

    // Connects to all servers. Throws Errc::invalid_argument (malformed or repeated addresses, a
    // server that has models of clients with another list), Errc::permission (the key is not the
    // server's) or Errc::connection.
    explicit Cluster(Options options);
    ~Cluster();
    Cluster(const Cluster&) = delete;
    Cluster& operator=(const Cluster&) = delete;

    [[nodiscard]] const std::vector<std::string>& servers() const noexcept;
    [[nodiscard]] std::size_t replicas() const noexcept;
    // Addresses of those that did not answer a moment ago.
    [[nodiscard]] std::vector<std::string> absent() const;
    // Position in servers() of the one that a model of this id belongs to.
    [[nodiscard]] std::size_t home(std::string_view model) const noexcept;

    void ping(std::size_t server);
    // How each server is reached: "shm" on this host, else libfabric's provider.
    [[nodiscard]] std::vector<std::string> transports();

    // `tensors` are the bytes of request.own, in order, and must not change meanwhile. References
    // to inherited layers of other servers are taken first (`foreign` is set here), the model is
    // published last. created_ns 0 means now. Returns the bytes that were added.
    std::uint64_t put(PutRequest request, std::span<const std::span<const std::byte>> tensors);

    // Gives the memory for the tensors of a layer: for each exactly as many bytes as it has, which
    // stay until the call returns.
    using Buffers = std::function<std::vector<std::span<std::byte>>(
        std::string_view layer, std::span<const TensorSpec> specs)>;
    // Takes tensors where they are: in memory of a server on this host, which is mapped to be read
    // and stays as it is while `pin` is held, though the model is retired and the server ends.
    using Views = std::function<void(std::string_view layer, std::span<const TensorSpec> specs,
                                     std::span<const std::span<const std::byte>> tensors,
                                     std::shared_ptr<const void> pin)>;
    // Reads layers of a model by name (none named: all) into the caller's memory. Calls `buffers`
    // once a layer that has tensors, in the order of the model's table, before any byte is written;
    // `views` instead, if there is one and the layer is on this host. Returns the bytes.
    std::uint64_t read(std::string_view model, std::span<const std::string> layers,
                       const Buffers& buffers, const Views& views = nullptr);
    // The same for layers by owner, in the order given.
    std::uint64_t fetch(std::span<const OwnedLayer> layers, const Buffers& buffers,
                        const Views& views = nullptr);

    // `lease` as Store::best_matches takes it. The best of all servers, best first; leases of those
    // that are not returned are ended.
    [[nodiscard]] std::vector<RemoteMatch> best_matches(const LayerTable& table, const Query& query,
                                                        std::chrono::milliseconds lease);
    void end_lease(const RemoteMatch& match);

    [[nodiscard]] ModelInfo lookup(std::string_view model);
    [[nodiscard]] bool contains(std::string_view model);
    // As Store::is_alive, at the model's server.
    [[nodiscard]] bool is_alive(std::string_view model);
    // Oldest first at each server, server by server; all namespaces: nullptr.
    [[nodiscard]] std::vector<std::string> list(const std::string* ns = nullptr);
    void retire(std::string_view model);

    // Releases references whose holder died between acquiring and publishing, at least `age` ago.
    // Returns the number of holders.
    std::size_t scrub(std::chrono::milliseconds age = std::chrono::minutes(5));
    [[nodiscard]] std::vector<std::string> verify();
    [[nodiscard]] std::vector<StoreStats> stats();  // one a server
    void shutdown();                                // all servers

    struct Impl;  // of src/client

  private:
    std::unique_ptr<Impl> impl_;
};

}  // namespace cpp_store
