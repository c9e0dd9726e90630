// Messages, and now and then a descriptor, between processes of one host.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstddef>
#include <deque>
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

// One message as it came. `bytes` views the buffer that it was received into.
struct Message {
    std::span<std::byte> bytes;
    Descriptor passed;
};

// A connected SOCK_SEQPACKET socket that never waits; every packet is a frame. One thread at a time
// uses it, but for what says otherwise.
class Socket {
  public:
    static constexpr std::size_t max_part = std::size_t{64} << 10;  // of a body in one frame
    static constexpr std::size_t max_message = wire::frame_header_size + max_part;

    explicit Socket(Descriptor fd);
    // To the socket of that (abstract) name; empty if nobody listens there.
    [[nodiscard]] static std::optional<Socket> connect(const std::string& name,
                                                       std::chrono::milliseconds patience);

    [[nodiscard]] int fd() const noexcept { return fd_.get(); }
    // Of the process at the other end, when it connected or listened.
    struct Peer {
        uid_t uid = 0;
        pid_t pid = 0;
    };
    [[nodiscard]] Peer peer() const;

    // Sends a message now, or keeps it for flush() if the other end takes no more. Throws
    // Errc::connection if that is gone.
    void send(std::span<const std::byte> head, std::span<const std::byte> part, int passed = -1);
    // Now or not at all, past what is kept. From any thread.
    [[nodiscard]] bool try_send(std::span<const std::byte> head, std::span<const std::byte> part,
                                int passed = -1);
    // Sends what is kept; false if some is left. Throws as send() does.
    bool flush();
    [[nodiscard]] bool has_kept() const noexcept { return !kept_.empty(); }

    // Nothing if there is none now. Throws Errc::connection if the other end is gone, and
    // Errc::protocol for what is larger than any message. The buffer is one of max_message.
    [[nodiscard]] std::optional<Message> receive(std::span<std::byte> buffer);

    void shut_down(int how) noexcept;  // as shutdown(2)

  private:
    struct Kept {
        std::vector<std::byte> bytes;
        Descriptor passed;
    };

    Descriptor fd_;
    std::deque<Kept> kept_;
};

}  // namespace cpp_store::local
