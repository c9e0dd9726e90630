// The server's side of the socket of its host, beside net::Endpoint.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "local/pins.hpp"
#include "local/socket.hpp"

namespace cpp_store::local {

// A client's connection. It is the client's only one, so it lasts as long as the client does.
struct Line {
    using Clock = std::chrono::steady_clock;

    explicit Line(Socket connected) : socket(std::move(connected)), process(socket.peer().pid) {}

    Socket socket;
    const pid_t process;
    Pins pins;                  // any thread
    std::uint64_t session = 0;  // of the client; 0 before its hello
    std::set<int> regions;      // of the arena, that the client has
    bool is_closed = false;     // it is heard no more, but of what it unpins
    bool is_over = false;
    Clock::time_point since = Clock::now();
    Clock::time_point blocked{};  // since when it takes nothing; epoch: it does
};
using LinePtr = std::shared_ptr<Line>;

// Whether a process has ended.
[[nodiscard]] bool has_ended(pid_t process) noexcept;

// Of one thread, which drives it.
class Endpoint {
  public:
    // What progress() reports. Called from progress() only; may call the endpoint.
    class Listener {
      public:
        virtual ~Listener() = default;
        // It is the listener's to write to until it returns.
        virtual void received(const LinePtr& line, std::span<std::byte> message) = 0;
        // The line has gone, or is closed for what the client said.
        virtual void ended(const LinePtr& line, const Error& why) = 0;
        virtual void complain(std::string_view line) noexcept = 0;
    };

    // Listens at an abstract name, for clients of this user. Throws Errc::invalid_argument if the
    // name is taken.
    Endpoint(const std::string& name, Listener& listener, std::size_t most_lines);
    ~Endpoint();  // ends all lines without pins; a thread waits for the others
    Endpoint(const Endpoint&) = delete;
    Endpoint& operator=(const Endpoint&) = delete;

    std::size_t progress();
    [[nodiscard]] int wait_fd() const noexcept { return waiting_.get(); }

    // What a client does not take now is kept until it does; what it says is not heard meanwhile. A
    // client that is gone is reported by progress().
    void send(Line& line, std::span<const std::byte> head, std::span<const std::byte> part,
              int passed = -1);
    // Its client sees an end. What it has views of stays pinned until it has let go of that, too.
    void close(Line& line) noexcept;

    // There were too many files open; progress() accepts clients again after a pause.
    static constexpr std::chrono::milliseconds pause{100};
    [[nodiscard]] bool is_paused() const noexcept {
        return paused_.time_since_epoch().count() != 0;
    }

    [[nodiscard]] const std::unordered_map<int, LinePtr>& lines() const noexcept { return lines_; }

  private:
    void accept();
    void watch_socket(bool accepts) noexcept;
    void receive(const LinePtr& line);
    void hear(const LinePtr& line, std::span<std::byte> message);
    void end(const LinePtr& line) noexcept;
    void watch(Line& line) noexcept;
    static void await_unpins(std::vector<LinePtr> lines) noexcept;

    Listener& listener_;
    const std::size_t most_lines_;
    Descriptor waiting_;  // an epoll
    Descriptor socket_;
    std::vector<std::byte> buffer_;
    std::unordered_map<int, LinePtr> lines_;          // by descriptor
    std::chrono::steady_clock::time_point paused_{};  // epoch: it accepts clients
};

}  // namespace cpp_store::local
