// The server's side for clients of its own host.
#pragma once

#include <list>
#include <memory>
#include <string>
#include <thread>

#include "cpp_store/server.hpp"
#include "local/layers.hpp"
#include "local/socket.hpp"
#include "net/wire.hpp"
#include "replication/replica.hpp"
#include "security/greeting.hpp"

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
    [[nodiscard]] virtual std::string refuse(std::vector<std::string> servers) = 0;
    [[nodiscard]] virtual const ServerLimits& limits() const = 0;
    // A warning; at most one a second is written, so that nobody can fill the log.
    virtual void complain(std::string_view line) noexcept = 0;
    virtual void log(LogLevel level, std::string_view line) noexcept = 0;
    virtual void request_shutdown() = 0;
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
    Instance instance_;
    Descriptor socket_;
    std::list<Thread> sessions_;  // of the listening thread, and of the destructor after its end
    std::thread thread_;
};

}  // namespace cpp_store::local
