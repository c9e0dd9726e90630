// One server as its clients see it: calls, and what becomes of them when it dies.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "client/knock.hpp"
#include "core/forks.hpp"
#include "local/link.hpp"
#include "net/assembler.hpp"
#include "net/endpoint.hpp"
#include "net/wire.hpp"
#include "security/greeting.hpp"

namespace cpp_store::client {

using Clock = std::chrono::steady_clock;

inline constexpr std::chrono::milliseconds connect_patience{5'000};

class Connection;

// What a thread sleeps on while its calls are under way; another thread that finds an answer for it
// wakes it.
class Waiter {
  public:
    [[nodiscard]] static const std::shared_ptr<Waiter>& of_this_thread();
    Waiter();
    ~Waiter();
    Waiter(const Waiter&) = delete;
    Waiter& operator=(const Waiter&) = delete;

    void wake() noexcept;  // from any thread

  private:
    friend class Connection;
    int fd_;
    std::atomic<bool> asleep_ = false;
};

// Memory of the caller that the server reads from (put) or writes to (fetch) during the call.
struct Exposure {
    std::span<const std::byte> memory;
    bool writable = false;
};

// A call under way. The thread that started it waits for it, and destroys it.
class PendingCall {
  public:
    PendingCall(const PendingCall&) = delete;
    PendingCall& operator=(const PendingCall&) = delete;
    ~PendingCall();  // gives up, if it is not done: the server can touch no memory any more

    // After Connection::wait(): the response, or the error that the server or the connection had.
    [[nodiscard]] wire::Reader response() const;
    // Of the response to read or fetch, in order: a layer, with its tensors if they came along or
    // lie in memory that the server shares with us.
    [[nodiscard]] local::SharedLayer decode_layer(wire::Reader& in) const;

  private:
    friend class Connection;
    explicit PendingCall(std::shared_ptr<Connection> connection)
        : connection_(std::move(connection)) {}

    void wait_for_local();
    // The memory whose bytes move next, at most so many; empty at the end.
    [[nodiscard]] std::span<const std::byte> take_memory(std::uint64_t most);
    [[nodiscard]] std::uint64_t exposed_bytes() const;
    void check_sums() const;

    std::shared_ptr<Connection> connection_;
    std::unique_ptr<local::Call> local_;  // of a server on this host
    bool answered_ = false;               // it is
    std::uint64_t id_ = 0;
    std::shared_ptr<Waiter> waiter_;
    Clock::time_point deadline_;
    std::vector<net::MemoryRegion> regions_;
    // Of a connection that seals: the memory whose bytes are summed or, if it encrypts, travel in
    // messages: next from `offset_` of one of them, after `moved_` bytes in all.
    std::vector<Exposure> exposures_;
    bool encrypts_ = false;
    std::size_t exposure_ = 0;
    std::size_t offset_ = 0;
    std::uint64_t moved_ = 0;
    std::uint64_t credit_ = 0;  // that is: that may be sent; or that the server may send
    // Written under the connection's lock before done_ is set.
    std::uint16_t code_ = 0;
    std::vector<std::byte> body_;
    std::atomic<bool> done_ = false;
};
using PendingCallPtr = std::unique_ptr<PendingCall>;

// Thread-safe. There is no thread of its own: whoever waits for a call drives the endpoint, looks
// for a while and then sleeps until bytes come.
class Connection : public std::enable_shared_from_this<Connection>,
                   private net::Endpoint::Listener {
  public:
    struct Options {
        std::string address;
        std::vector<std::string> servers;  // the whole list, for the server to compare
        std::optional<security::Secret> key;
        std::chrono::milliseconds timeout{30'000};
        std::function<void()> check_signals;  // as Cluster::Options
        bool same_host = true;  // through shared memory, where the server is on this host
        bool encrypt = false;   // what goes over a network
    };
    // Throws Errc::invalid_argument for a malformed address; does not connect yet.
    explicit Connection(Options options);
    ~Connection() override;

    [[nodiscard]] const std::string& address() const noexcept { return options_.address; }

    // Throws Errc::connection (nobody listens, no answer), Errc::permission (the key) or what the
    // server refuses us for.
    void connect();
    // "shm", or libfabric's provider; connects first if need be.
    [[nodiscard]] std::string transport();

    // Makes the body of a request when its exposed memory is registered: one Remote an exposure.
    using Encode = std::function<void(wire::Writer&, std::span<const wire::Remote>)>;
    // Connects first if need be. Throws like connect().
    [[nodiscard]] PendingCallPtr start(wire::Operation operation, const Encode& encode,
                                       std::span<const Exposure> exposures = {});

    // Until all are done (of any connections of one Cluster, all started by this thread). Does not
    // throw for them; what check_signals throws ends the wait.
    static void wait(std::span<const PendingCallPtr> calls);

    // start(), wait() and nothing exposed.
    [[nodiscard]] PendingCallPtr call(wire::Operation operation, const Encode& encode);
    // Starts a call and does not wait: for what may be lost.
    void tell(wire::Operation operation, const Encode& encode);

  private:
    friend class PendingCall;

    void received(std::span<std::byte> message) override;
    void send_failed(net::Peer peer, int error) override;

    void connect_locked();
    [[nodiscard]] security::Request::Options request(security::Way way) const;
    // How long a call may take, and the most that it may say.
    [[nodiscard]] std::chrono::milliseconds time_for(std::span<const Exposure> exposures) const;
    static void check_size(wire::Operation operation, std::span<const std::byte> body);

    // The way to a server on this host, if there is one (local.cpp).
    [[nodiscard]] std::shared_ptr<local::Link> open_local() const;
    [[nodiscard]] std::shared_ptr<local::Link> local_link();  // connects; null: the endpoint
    [[nodiscard]] PendingCallPtr start_local(std::shared_ptr<local::Link> link,
                                             wire::Operation operation, const Encode& encode,
                                             std::span<const Exposure> exposures);
    void say_hello(Clock::time_point deadline);
    // Sends what begins a connection, and waits for its answer. Throws what it says, and
    // Errc::connection.
    [[nodiscard]] std::vector<std::byte> ask(wire::Operation operation,
                                             std::span<const std::byte> body,
                                             Clock::time_point deadline);
    [[nodiscard]] bool is_refusal(std::span<const std::byte> message) const;
    void send_locked(wire::Operation operation, std::uint64_t call,
                     std::span<const std::byte> body);
    // What a request says of memory that it exposes, where messages are sealed.
    void add_sums(wire::Writer& body, std::span<const Exposure> exposures) const;
    // The next bytes of a call in messages: what the server lets us send, and what it sends.
    void send_bulk(PendingCall& call, std::span<const std::byte> credit);
    void take_bulk(PendingCall& call, std::span<const std::byte> bytes);
    void send_frame(const wire::Frame& frame, std::span<const std::byte> part);
    [[nodiscard]] std::size_t room() const;  // in a message, for a part of a body
    void finish(PendingCall& call, std::uint16_t code, std::vector<std::byte> body);
    void fail(PendingCall& call, Errc code, const std::string& why);
    // Everything under way fails, and the server's rights to memory of ours end.
    void disconnect(const std::string& why);
    void abandon(PendingCall& call);

    // What a waiting thread does, on each of its connections.
    std::size_t drive();
    void check(PendingCall& call, Clock::time_point now);
    // Whether another life of the server answers at its address, as far as is known by now.
    [[nodiscard]] bool was_restarted();
    // As Endpoint::may_sleep(), and the descriptor to sleep on.
    [[nodiscard]] std::chrono::microseconds before_sleep(PendingCall& call, int& fd);

    const Options options_;
    const net::Address parsed_;
    const Birthplace birthplace_;

    std::mutex mutex_;                         // guards everything below
    std::shared_ptr<local::Link> local_;       // instead of an endpoint
    std::unique_ptr<net::Endpoint> endpoint_;  // null: not connected
    std::uint64_t session_ = 0;
    std::uint64_t incarnation_ = 0;           // of the server
    bool joining_ = false;                    // the server may refuse us, in clear
    std::unique_ptr<security::Seals> seals_;  // null: nothing is sealed
    bool encrypts_ = false;                   // nothing travels by RMA
    std::string broken_;  // why the endpoint, still there, is of no use any more
    std::uint64_t last_call_ = 0;
    std::unordered_map<std::uint64_t, PendingCall*> calls_;
    net::Assembler responses_;
    Clock::time_point last_heard_;
    Clock::time_point last_probe_;
    Clock::time_point silent_since_;  // when the first unanswered probe was sent; epoch: none
    std::unique_ptr<Knock> knock_;    // while it is silent
};

}  // namespace cpp_store::client
