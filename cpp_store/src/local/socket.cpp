#include "local/socket.hpp"

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <system_error>

namespace cpp_store::local {
namespace {

[[noreturn]] void gone(int error) {
    throw Error(Errc::connection, error == 0 ? "the other end has closed the connection"
                                             : std::generic_category().message(error));
}

union Control {  // room for one descriptor
    cmsghdr header;
    std::array<char, CMSG_SPACE(sizeof(int))> bytes;
};

}  // namespace

Descriptor::~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
}

Socket::Socket(Descriptor fd) : fd_(std::move(fd)), buffer_(wire::frame_header_size + max_part) {}

std::optional<Socket> Socket::connect(const std::string& name, std::chrono::milliseconds patience) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    // The zero before the name says that it is an abstract one.
    std::copy_n(name.data(), std::min(name.size(), sizeof address.sun_path - 1),
                address.sun_path + 1);
    Descriptor fd(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    if (!fd) throw Error(Errc::connection, "no socket: too many files open");
    Socket socket(std::move(fd));
    socket.set_patience(patience, patience);
    const auto length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
    if (::connect(socket.fd(), reinterpret_cast<const sockaddr*>(&address), length) != 0) {
        if (errno == ECONNREFUSED || errno == ENOENT) return std::nullopt;
        gone(errno);
    }
    return socket;
}

uid_t Socket::peer_user() const {
    ucred credentials{};
    socklen_t length = sizeof credentials;
    if (getsockopt(fd(), SOL_SOCKET, SO_PEERCRED, &credentials, &length) != 0) gone(errno);
    return credentials.uid;
}

void Socket::set_patience(std::chrono::milliseconds receive, std::chrono::milliseconds send) {
    const auto set = [this](int option, std::chrono::milliseconds patience) {
        const auto ms = patience.count();
        const timeval limit{.tv_sec = ms / 1000, .tv_usec = ms % 1000 * 1000};
        setsockopt(fd(), SOL_SOCKET, option, &limit, sizeof limit);
    };
    set(SO_RCVTIMEO, receive);
    set(SO_SNDTIMEO, send);
}

bool Socket::send(const wire::Frame& frame, std::span<const std::byte> part, int passed) {
    return send_packet(frame, part, passed, 0);
}

bool Socket::try_send(const wire::Frame& frame, std::span<const std::byte> part) {
    return send_packet(frame, part, -1, MSG_DONTWAIT);
}

bool Socket::send_body(wire::Frame frame, std::span<const std::byte> body) {
    frame.total = static_cast<std::uint32_t>(body.size());
    do {
        const std::size_t size = std::min(max_part, body.size() - frame.offset);
        if (!send(frame, body.subspan(frame.offset, size))) return false;
        frame.offset += static_cast<std::uint32_t>(size);
    } while (frame.offset < body.size());
    return true;
}

bool Socket::send_packet(const wire::Frame& frame, std::span<const std::byte> part, int passed,
                         int flags) {
    auto header = wire::encode(frame);
    std::array<iovec, 2> parts{iovec{header.data(), header.size()},
                               iovec{const_cast<std::byte*>(part.data()), part.size()}};
    msghdr message{};
    message.msg_iov = parts.data();
    message.msg_iovlen = parts.size();
    Control control{};
    if (passed >= 0) {
        message.msg_control = control.bytes.data();
        message.msg_controllen = control.bytes.size();
        cmsghdr* const head = CMSG_FIRSTHDR(&message);
        head->cmsg_level = SOL_SOCKET;
        head->cmsg_type = SCM_RIGHTS;
        head->cmsg_len = CMSG_LEN(sizeof passed);
        std::memcpy(CMSG_DATA(head), &passed, sizeof passed);
    }
    while (::sendmsg(fd(), &message, MSG_NOSIGNAL | flags) < 0) {
        if (errno == EAGAIN || errno == EWOULDBLOCK) return false;
        if (errno != EINTR) gone(errno);
    }
    return true;
}

std::optional<Message> Socket::receive(std::chrono::microseconds look) {
    iovec part{buffer_.data(), buffer_.size()};
    Control control{};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control.bytes.data();
    message.msg_controllen = control.bytes.size();
    using Clock = std::chrono::steady_clock;
    ssize_t length = 0;
    int flags = 0;
    if (look.count() > 0) {
        if (!spin_) spin_.emplace(look);
        spin_->start(Clock::now());
        flags = MSG_DONTWAIT;
    }
    while ((length = ::recvmsg(fd(), &message, MSG_CMSG_CLOEXEC | flags)) < 0) {
        if (flags != 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
            if (spin_->goes_on(Clock::now())) continue;
            spin_->missed();
            flags = 0;
            continue;
        }
        if (errno == EAGAIN || errno == EWOULDBLOCK) return std::nullopt;
        if (errno != EINTR) gone(errno);
    }
    if (flags != 0) spin_->found();
    Message received;
    for (cmsghdr* head = CMSG_FIRSTHDR(&message); head; head = CMSG_NXTHDR(&message, head)) {
        if (head->cmsg_level != SOL_SOCKET || head->cmsg_type != SCM_RIGHTS) continue;
        int fd = -1;
        std::memcpy(&fd, CMSG_DATA(head), sizeof fd);
        received.passed = Descriptor(fd);
    }
    if (length == 0) gone(0);
    if ((message.msg_flags & MSG_TRUNC) != 0) {
        throw Error(Errc::protocol, "malformed message: a frame larger than any may be");
    }
    received.frame = wire::decode_frame(std::span(buffer_).first(static_cast<std::size_t>(length)),
                                        received.part);
    return received;
}

bool Socket::is_over() const noexcept {
    char byte = 0;
    const ssize_t found = ::recv(fd(), &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    return found == 0 || (found < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR);
}

void Socket::shut_down(int how) noexcept {
    ::shutdown(fd(), how);
}

}  // namespace cpp_store::local
