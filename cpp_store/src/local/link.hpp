// The client's side: one server of this host, its memory as far as it is mapped here, and calls.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "core/forks.hpp"
#include "local/layers.hpp"
#include "local/socket.hpp"
#include "local/staging.hpp"
#include "net/address.hpp"
#include "net/assembler.hpp"
#include "net/wire.hpp"
#include "security/greeting.hpp"

namespace cpp_store::local {

using Clock = std::chrono::steady_clock;

// A layer whose tensors lie in memory that the server shares with us.
struct SharedLayer {
    wire::Layer description;          // its data, if it is here, is that memory
    std::shared_ptr<const void> pin;  // while it is held, the data stays as it is
};

class Link;

// One connection, which one call at a time has to itself.
struct Channel {
    explicit Channel(Socket connected) : socket(std::move(connected)) {}

    Socket socket;
    std::atomic<bool> busy = true;
    std::atomic<bool> broken = false;

    // Of the call that has it.
    std::uint64_t last_call = 0;
    net::Assembler responses;
    std::unique_ptr<Staging> staging;
};

// A call under way. The thread that started it waits for it, and destroys it.
class Call {
  public:
    Call(std::shared_ptr<Link> link, std::shared_ptr<Channel> channel,
         std::vector<std::span<const std::byte>> tensors, Clock::time_point deadline);
    Call(const Call&) = delete;
    Call& operator=(const Call&) = delete;
    ~Call();  // the server learns that nobody waits any more, if it is not done

    // Until the answer is here: its code, and its body. Throws Errc::connection and Errc::deadline.
    std::uint16_t wait(std::vector<std::byte>& body);

    // Of the answer to read or fetch, in order.
    [[nodiscard]] SharedLayer decode_layer(wire::Reader& in);

  private:
    void feed();
    void look_around();

    std::shared_ptr<Link> link_;
    std::shared_ptr<Channel> channel_;
    std::vector<std::span<const std::byte>> tensors_;
    Clock::time_point deadline_;
    Clock::time_point last_heard_ = Clock::now();
    bool done_ = false;
};

// Thread-safe. Every call has a connection of its own, which is kept for the next one. The first
// connection has no calls: what is pinned here is pinned as long as it is open, which is as long as
// there is this link, whatever becomes of a call.
class Link : public std::enable_shared_from_this<Link> {
  public:
    struct Options {
        net::Address address;
        security::Request::Options request;
        std::chrono::milliseconds patience{5'000};  // with a server that says nothing
        std::function<void()> check_signals;        // as Cluster::Options
    };

    // Null if the address's server is not on this host. Throws Errc::connection if it is, but says
    // nothing, and what it refuses us for.
    [[nodiscard]] static std::shared_ptr<Link> open(Options options);

    // A request, on its way; `tensors` are those that do not travel inside its body, and must stay
    // until the call is done. Throws Errc::connection.
    [[nodiscard]] std::unique_ptr<Call> start(wire::Operation operation,
                                              std::span<const std::byte> body,
                                              std::vector<std::span<const std::byte>> tensors,
                                              Clock::time_point deadline);

    // False once the server was gone, or in a fork: open another one.
    [[nodiscard]] bool is_usable() const noexcept {
        return !broken_ && !birthplace_.is_elsewhere();
    }

  private:
    friend class Call;
    struct Mapping;
    struct Pin;

    explicit Link(Options options) : options_(std::move(options)) {}

    [[nodiscard]] std::optional<Socket> connect();  // none if nobody listens
    [[nodiscard]] std::vector<std::byte> ask(Socket& socket, wire::Operation operation,
                                             std::uint64_t call, std::span<const std::byte> body);
    [[nodiscard]] std::shared_ptr<Channel> acquire();
    [[nodiscard]] bool is_alive();  // whether the server answers a new client
    void learn_region(Message message);
    void unpin(std::uint64_t pin, std::uint64_t bytes) noexcept;
    void tell_unpinned(Socket& socket);  // with the mutex of what is unpinned held

    const Options options_;
    const Birthplace birthplace_;
    std::string name_;  // of the socket
    Instance instance_;
    std::vector<std::byte> number_;  // that the server gave us
    std::atomic<bool> broken_ = false;

    std::mutex unpinned_mutex_;            // guards these
    std::optional<Socket> first_;          // to which nothing is sent but what is unpinned
    std::vector<std::uint64_t> unpinned_;  // that the server does not know of yet
    std::uint64_t unpinned_bytes_ = 0;

    std::mutex mutex_;  // guards the rest
    std::vector<std::shared_ptr<Channel>> channels_;
    std::unordered_map<std::uint32_t, std::shared_ptr<Mapping>> regions_;
};

}  // namespace cpp_store::local
