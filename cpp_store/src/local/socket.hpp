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

#include "net/waiting.hpp"
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

// A connected SOCK_SEQPACKET socket; every packet is a frame. Both ends look for a moment before
// they sleep: a call then takes 6 us, with idle and with busy processors alike, while waking the
// other end takes 8 us where its processor is awake and 40 us where it is idle. The kernel's
// socket is hardly slower than a ring in shared memory with a futex, which has to wake as well.
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
    // Nothing if nothing comes for as long as the patience is. Looks for so long before it sleeps
    // (every time the same), where that has been of use lately. Throws Errc::protocol for what is
    // no frame.
    [[nodiscard]] std::optional<Message> receive(std::chrono::microseconds look = {});
    // Whether the other end has closed it.
    [[nodiscard]] bool is_over() const noexcept;

    // As shutdown(2): SHUT_RDWR ends the waiting of other threads, and all that comes after.
    void shut_down(int how) noexcept;

  private:
    bool send_packet(const wire::Frame& frame, std::span<const std::byte> part, int passed,
                     int flags);

    Descriptor fd_;
    std::vector<std::byte> buffer_;
    std::optional<net::Spin> spin_;  // made by the first receive() that looks
};

}  // namespace cpp_store::local
