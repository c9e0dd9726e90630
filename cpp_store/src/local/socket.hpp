// Frames, and now and then a descriptor, between processes of one host.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "net/wire.hpp"

namespace cpp_store::local {

// A descriptor that is closed in the end.
class Descriptor {
  public:
    Descriptor() = default;
    explicit Descriptor(int fd) noexcept : fd_(fd) {}
    Descriptor(Descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
    Descriptor& operator=(Descriptor&& other) noexcept {
        std::swap(fd_, other.fd_);
        return *this;
    }
    ~Descriptor();
    [[nodiscard]] int get() const noexcept { return fd_; }
    explicit operator bool() const noexcept { return fd_ >= 0; }

  private:
    int fd_ = -1;
};

// One message as it came. `part` views the buffer that it was received into.
struct Message {
    wire::Frame frame;
    std::span<const std::byte> part;
    Descriptor passed;
};

// A connected SOCK_SEQPACKET socket; every packet is a frame. Measured, it is the best that there
// is for calls: the kernel runs the one who wakes up where the other one goes to sleep, in 8 us
// there and back whether the processors are idle or busy. A ring in shared memory with a futex
// takes 42 us then, since it must wake an idle processor; spinning takes 0.1 us, but milliseconds
// when there are more threads than processors.
class Socket {
  public:
    static constexpr std::size_t max_part = std::size_t{64} << 10;  // of a body in one frame

    explicit Socket(Descriptor fd);
    // To the socket of that (abstract) name; empty if nobody listens there.
    [[nodiscard]] static std::optional<Socket> connect(const std::string& name,
                                                       std::chrono::milliseconds patience);

    [[nodiscard]] int fd() const noexcept { return fd_.get(); }
    // Of the process at the other end, when it connected or listened.
    [[nodiscard]] uid_t peer_user() const;

    // How long receive() and send() wait; 0: for ever.
    void set_patience(std::chrono::milliseconds receive, std::chrono::milliseconds send);

    // All of these throw Errc::connection if the other end is gone.
    // False if the other end takes nothing for as long as the patience is.
    bool send(const wire::Frame& frame, std::span<const std::byte> part, int passed = -1);
    bool try_send(const wire::Frame& frame, std::span<const std::byte> part);  // does not wait
    // In as many frames as it takes.
    bool send_body(wire::Frame frame, std::span<const std::byte> body);
    // Nothing if nothing comes for as long as the patience is. Throws Errc::protocol for what is no
    // frame.
    [[nodiscard]] std::optional<Message> receive();
    // Whether the other end has closed it.
    [[nodiscard]] bool is_over() const noexcept;

    // As shutdown(2): SHUT_RDWR ends the waiting of other threads, and all that comes after.
    void shut_down(int how) noexcept;

  private:
    bool send_packet(const wire::Frame& frame, std::span<const std::byte> part, int passed,
                     int flags);

    Descriptor fd_;
    std::vector<std::byte> buffer_;
};

}  // namespace cpp_store::local
