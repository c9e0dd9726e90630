// A connection to one server, from its hello to its end: frames, and the calls that they belong to.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "core/forks.hpp"
#include "local/layers.hpp"
#include "local/socket.hpp"
#include "local/staging.hpp"
#include "net/assembler.hpp"
#include "net/endpoint.hpp"
#include "net/wire.hpp"
#include "security/greeting.hpp"

namespace cpp_store::client {

using Clock = std::chrono::steady_clock;

inline constexpr std::chrono::milliseconds connect_patience{5'000};
inline constexpr std::chrono::milliseconds probe_interval{1'000};  // of a server that is silent
inline constexpr std::chrono::milliseconds signal_interval{100};

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
    friend class Link;
    int fd_;
    std::atomic<bool> asleep_ = false;
};

// Memory of the caller that the server reads from (put) or writes to (fetch) during the call.
struct Exposure {
    std::span<const std::byte> memory;
    bool writable = false;
};

class Link;

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
    friend class Link;
    friend class HostLink;
    friend class NetLink;
    friend class Connection;
    explicit PendingCall(std::shared_ptr<Link> link);

    // The memory whose bytes move next, at most so many; empty at the end.
    [[nodiscard]] std::span<const std::byte> take_memory(std::uint64_t most);
    [[nodiscard]] std::uint64_t exposed_bytes() const;
    void check_sums() const;

    std::shared_ptr<Link> link_;
    std::uint64_t id_ = 0;
    std::shared_ptr<Waiter> waiter_;
    Clock::time_point deadline_;
    std::vector<net::MemoryRegion> regions_;
    // The memory whose bytes are summed, or travel in messages (next from `offset_` of one of them,
    // after `moved_` bytes in all), or go through staging.
    std::vector<Exposure> exposures_;
    std::size_t exposure_ = 0;
    std::size_t offset_ = 0;
    std::uint64_t moved_ = 0;
    std::uint64_t credit_ = 0;  // that is: that may be sent; or that the server may send
    // Set under the link's lock: where its tensors are to be put in, by the thread that waits.
    std::shared_ptr<local::Staging> stage_;
    std::atomic<bool> may_fill_ = false;
    bool may_pin_ = false;              // its answer
    mutable bool was_decoded_ = false;  // so the pins have owners
    // Written under the link's lock before done_ is set.
    std::uint16_t code_ = 0;
    std::vector<std::byte> body_;
    std::atomic<bool> done_ = false;
};
using PendingCallPtr = std::unique_ptr<PendingCall>;

struct LinkOptions {
    std::string address;
    std::vector<std::string> servers;  // the whole list, for the server to compare
    std::optional<security::Secret> key;
    std::chrono::milliseconds timeout{30'000};
    std::function<void()> check_signals;  // as Cluster::Options
    bool same_host = true;                // through shared memory, where the server is on this host
    bool encrypt = false;                 // what goes over a network
};

// Makes the body of a request when its exposed memory is registered: one Remote an exposure.
using Encode = std::function<void(wire::Writer&, std::span<const wire::Remote>)>;

// Thread-safe. There is no thread of its own: whoever waits for a call drives the link, looks for a
// while and then sleeps until bytes come. How messages travel is up to its kinds (host_link.hpp,
// net_link.hpp). A link that is broken stays so.
class Link : public std::enable_shared_from_this<Link> {
  public:
    virtual ~Link() = default;
    Link(const Link&) = delete;
    Link& operator=(const Link&) = delete;

    // Begins it. Throws Errc::connection, Errc::permission and what the server refuses us for.
    void join(Clock::time_point deadline);
    [[nodiscard]] PendingCallPtr start(wire::Operation operation, const Encode& encode,
                                       std::span<const Exposure> exposures);
    static void wait(std::span<const PendingCallPtr> calls);
    void tell(wire::Operation operation, const Encode& encode);
    void leave() noexcept;  // tells the server that this client is no more

    [[nodiscard]] bool is_broken() const noexcept { return is_broken_; }
    [[nodiscard]] const Birthplace& birthplace() const noexcept { return birthplace_; }
    [[nodiscard]] virtual std::string transport() const = 0;
    [[nodiscard]] virtual bool is_on_host() const noexcept { return false; }

  protected:
    explicit Link(const LinkOptions& options) : options_(options) {}

    // All but the first with its lock held.
    [[nodiscard]] virtual std::mutex& mutex() noexcept = 0;
    [[nodiscard]] virtual security::Way way() const noexcept = 0;
    [[nodiscard]] virtual std::vector<std::byte> name() const = 0;  // for the server to answer to
    [[nodiscard]] virtual std::uint64_t next_call() { return ++last_call_; }
    virtual void send_message(std::span<const std::byte> head, std::span<const std::byte> part,
                              security::Seal* seal) = 0;
    [[nodiscard]] virtual std::size_t most_part() const = 0;  // of a body, in a message unsealed
    virtual std::size_t progress() = 0;                       // which calls received()
    // What to sleep on, and for how long at most.
    struct Nap {
        int fd = -1;
        short events = 0;
        std::chrono::microseconds limit{0};
    };
    [[nodiscard]] virtual Nap before_sleep() = 0;
    virtual void greeted(std::uint64_t /*call*/) {}    // a hello leaves
    virtual void joined(std::uint64_t /*session*/) {}  // messages of it are ours
    virtual void prepare(PendingCall& call, std::span<const Exposure> exposures,
                         std::vector<wire::Remote>& remotes) = 0;
    [[nodiscard]] virtual local::SharedLayer decode_layer(const PendingCall& call,
                                                          wire::Reader& in) = 0;
    // Why a server that does not answer is known to be gone; empty: it is not.
    [[nodiscard]] virtual std::string find_out(bool /*at_once*/) { return {}; }
    virtual void heard() {}
    // A frame of this kind of link only.
    virtual void hear_else(const wire::Frame& frame, std::span<const std::byte> part,
                           local::Descriptor passed);
    // Nobody may touch memory of calls any more; `moving`: some of it is exposed.
    virtual void close(bool moving) noexcept = 0;
    // Whether the server has to say that it leaves the memory of a call alone.
    [[nodiscard]] virtual bool must_confirm(const PendingCall& call) const noexcept = 0;

    // Of a message. What it finds wrong breaks the link at settle().
    void received(std::span<std::byte> message, local::Descriptor passed = {});
    void settle();
    void break_off(const std::string& why) noexcept {
        if (broken_.empty()) broken_ = why;
    }
    // Everything under way fails.
    void disconnect(const std::string& why);
    void send_frame(const wire::Frame& frame, std::span<const std::byte> part);
    [[nodiscard]] std::size_t room() const;  // in a message, for a part of a body
    [[nodiscard]] PendingCall* find(std::uint64_t call);

    const LinkOptions& options_;  // of the connection, which outlives its calls
    const Birthplace birthplace_;
    std::atomic<bool> is_broken_ = false;

    // Guarded by mutex().
    std::string broken_;  // why it is about to be
    std::uint64_t session_ = 0;
    std::uint64_t incarnation_ = 0;           // of the server
    bool joining_ = false;                    // the server may refuse us, in clear
    std::unique_ptr<security::Seals> seals_;  // null: nothing is sealed
    bool encrypts_ = false;                   // nothing travels by RMA
    std::uint64_t last_call_ = 0;
    std::unordered_map<std::uint64_t, PendingCall*> calls_;
    std::map<std::uint64_t, bool> given_up_;  // calls; whether the server has said that it knows
    net::Assembler responses_;

  private:
    friend class PendingCall;

    [[nodiscard]] security::Request::Options request() const;
    [[nodiscard]] std::chrono::milliseconds time_for(std::span<const Exposure> exposures) const;
    static void check_size(wire::Operation operation, std::span<const std::byte> body);
    // Sends what begins a connection, and waits for its answer.
    [[nodiscard]] std::vector<std::byte> ask(wire::Operation operation, std::uint64_t call,
                                             std::span<const std::byte> body,
                                             Clock::time_point deadline);
    [[nodiscard]] bool is_refusal(std::span<const std::byte> message) const;
    void send_body(wire::Operation operation, std::uint64_t call, std::span<const std::byte> body);
    void add_sums(wire::Writer& body, std::span<const Exposure> exposures) const;
    void send_bulk(PendingCall& call, std::span<const std::byte> credit);
    void take_bulk(PendingCall& call, std::span<const std::byte> bytes);
    void finish(PendingCall& call, std::uint16_t code, std::vector<std::byte> body);
    void fail(PendingCall& call, Errc code, const std::string& why);

    // What a waiting thread does, without the lock.
    std::size_t drive();
    void fill(PendingCall& call);
    void look_after(PendingCall& call);
    [[nodiscard]] Nap nap_of(PendingCall& call);
    void give_up(PendingCall& call) noexcept;
    void tell_given_up(const PendingCall& call) noexcept;  // of an answer that nobody took
    void check(Clock::time_point now);

    Clock::time_point last_heard_ = Clock::now();
    Clock::time_point last_probe_ = Clock::now();
    Clock::time_point silent_since_;  // when the first unanswered probe was sent; epoch: none
};
using LinkPtr = std::shared_ptr<Link>;

// As the operating system says it, without libfabric.
[[nodiscard]] std::string client_name();

}  // namespace cpp_store::client
