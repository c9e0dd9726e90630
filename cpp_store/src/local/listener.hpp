// The server's side for clients of its own host.
#pragma once

#include <list>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "cpp_store/server.hpp"
#include "local/layers.hpp"
#include "local/socket.hpp"
#include "net/wire.hpp"
#include "replication/replica.hpp"
#include "security/greeting.hpp"
#include "server/call.hpp"

namespace cpp_store::local {

// What sessions need of the server that they belong to; called by their threads.
class Host {
  public:
    virtual ~Host() = default;
    [[nodiscard]] virtual Store& store() = 0;
    [[nodiscard]] virtual replication::Replica* replica() = 0;
    // What those who say hello have to know.
    [[nodiscard]] virtual const security::Reception::Policy& policy() const = 0;
    // Why a client of these servers may not connect; empty if it may.
    [[nodiscard]] virtual std::string refuse(std::vector<std::string> servers,
                                             server::Session& client) = 0;
    [[nodiscard]] virtual const ServerLimits& limits() const = 0;
    // A warning; at most one a second is written, so that nobody can fill the log.
    virtual void complain(std::string_view line) noexcept = 0;
    virtual void log(LogLevel level, std::string_view line) noexcept = 0;
    virtual void request_shutdown() = 0;
};

// A client of this host, whatever connections it has: what it has views of is pinned, and what it
// leased is leased, until it says otherwise or its first connection ends. The kernel ends that with
// its process; no call goes over it, so none that is given up takes anything else along.
class Client {
  public:
    Client(std::uint64_t id, std::shared_ptr<server::Session> session);

    const std::uint64_t id;
    const std::shared_ptr<server::Session> session;  // who it is to calls, and its leases

    [[nodiscard]] bool may_request();  // as its rate has it
    // Throws Errc::invalid_argument if it has too many already, and Errc::connection once it is
    // gone.
    [[nodiscard]] std::uint64_t pin(const StoredLayerPtr& layer);
    void unpin(std::span<const std::uint64_t> pins) noexcept;
    [[nodiscard]] bool has_pins();
    void end() noexcept;  // no more pins

  private:
    std::mutex mutex_;  // guards the rest, and the session's rate
    bool is_gone_ = false;
    std::unordered_map<std::uint64_t, StoredLayerPtr> pins_;
    std::uint64_t last_pin_ = 0;
};

// Those of a server.
class Clients {
  public:
    Clients();

    const Instance instance;
    [[nodiscard]] std::shared_ptr<Client> enter(const std::string& name, double rate);
    // By the number that it was given. Throws Errc::connection if it is gone.
    [[nodiscard]] std::shared_ptr<Client> find(std::span<const std::byte> number);

  private:
    std::mutex mutex_;  // guards the rest
    std::unordered_map<std::uint64_t, std::weak_ptr<Client>> clients_;
};

class Session;

// Listens at the socket of a name and serves each connection on a thread of its own, which sleeps
// in the kernel while its client is silent. Handing calls to other threads would cost more than
// most calls do, and this way no client waits for another one's bytes.
class Listener {
  public:
    // Throws Errc::invalid_argument if the name is taken.
    Listener(Host& host, const std::string& name);
    ~Listener();  // ends all sessions
    Listener(const Listener&) = delete;
    Listener& operator=(const Listener&) = delete;

  private:
    struct Thread {
        std::shared_ptr<Session> session;
        std::thread thread;
    };
    void run();
    void serve(Descriptor connection);
    static void join_finished(std::list<Thread>& sessions);

    Host& host_;
    Clients clients_;
    Descriptor socket_;
    std::list<Thread> sessions_;  // of the listening thread, and of the destructor after its end
    std::thread thread_;
};

}  // namespace cpp_store::local
