// One server as its clients see it: connected when it is needed, and again after it was gone.
#pragma once

#include <memory>
#include <mutex>
#include <span>
#include <string>

#include "client/link.hpp"
#include "net/address.hpp"

namespace cpp_store::client {

// Thread-safe.
class Connection {
  public:
    using Options = LinkOptions;
    using Encode = client::Encode;

    // Throws Errc::invalid_argument for a malformed address; does not connect yet.
    explicit Connection(Options options);
    ~Connection();
    Connection(const Connection&) = delete;
    Connection& operator=(const Connection&) = delete;

    [[nodiscard]] const std::string& address() const noexcept { return options_.address; }

    // Throws Errc::connection (nobody listens, no answer), Errc::permission (the key) or what the
    // server refuses us for.
    void connect() { (void)link(); }
    // "shm", or libfabric's provider; connects first if need be.
    [[nodiscard]] std::string transport() { return link()->transport(); }

    // Connects first if need be. Throws like connect().
    [[nodiscard]] PendingCallPtr start(wire::Operation operation, const Encode& encode,
                                       std::span<const Exposure> exposures = {}) {
        return link()->start(operation, encode, exposures);
    }
    // Until all are done (of any connections of one Cluster, all started by this thread). Does not
    // throw for them; what check_signals throws ends the wait.
    static void wait(std::span<const PendingCallPtr> calls) { Link::wait(calls); }
    // start(), wait() and nothing exposed.
    [[nodiscard]] PendingCallPtr call(wire::Operation operation, const Encode& encode);
    // Starts a call and does not wait: for what may be lost.
    void tell(wire::Operation operation, const Encode& encode) { link()->tell(operation, encode); }

  private:
    [[nodiscard]] LinkPtr link();  // connects

    const Options options_;
    const net::Address parsed_;

    std::mutex mutex_;  // held while one thread connects; guards the link
    LinkPtr link_;
};

}  // namespace cpp_store::client
