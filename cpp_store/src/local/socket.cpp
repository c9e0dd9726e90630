#include "local/socket.hpp"

#include <fcntl.h>
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

Socket::Socket(Descriptor fd) : fd_(std::move(fd)) {
    ::fcntl(fd_.get(), F_SETFL, ::fcntl(fd_.get(), F_GETFL) | O_NONBLOCK);
}

std::optional<Socket> Socket::connect(const std::string& name, std::chrono::milliseconds patience) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    // The zero before the name says that it is an abstract one.
    std::copy_n(name.data(), std::min(name.size(), sizeof address.sun_path - 1),
                address.sun_path + 1);
    Descriptor fd(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    if (!fd) throw Error(Errc::connection, "no socket: too many files open");
    const auto ms = patience.count();  // for which it waits while others stand in the queue
    const timeval limit{.tv_sec = ms / 1000, .tv_usec = ms % 1000 * 1000};
    setsockopt(fd.get(), SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    const auto length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
    if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), length) != 0) {
        if (errno == ECONNREFUSED || errno == ENOENT) return std::nullopt;
        gone(errno);
    }
    return Socket(std::move(fd));
}

Socket::Peer Socket::peer() const {
    ucred credentials{};
    socklen_t length = sizeof credentials;
    if (getsockopt(fd(), SOL_SOCKET, SO_PEERCRED, &credentials, &length) != 0) gone(errno);
    return {credentials.uid, credentials.pid};
}

void Socket::send(std::span<const std::byte> head, std::span<const std::byte> part, int passed) {
    if (kept_.empty() && try_send(head, part, passed)) return;
    Kept kept;
    kept.bytes.reserve(head.size() + part.size());
    kept.bytes.assign(head.begin(), head.end());
    kept.bytes.insert(kept.bytes.end(), part.begin(), part.end());
    if (passed >= 0) {
        kept.passed = Descriptor(::fcntl(passed, F_DUPFD_CLOEXEC, 0));
        if (!kept.passed) throw Error(Errc::connection, "too many files open");
    }
    kept_.push_back(std::move(kept));
}

bool Socket::flush() {
    while (!kept_.empty()) {
        const Kept& first = kept_.front();
        if (!try_send(first.bytes, {}, first.passed.get())) return false;
        kept_.pop_front();
    }
    return true;
}

bool Socket::try_send(std::span<const std::byte> head, std::span<const std::byte> part,
                      int passed) {
    std::array<iovec, 2> parts{iovec{const_cast<std::byte*>(head.data()), head.size()},
                               iovec{const_cast<std::byte*>(part.data()), part.size()}};
    msghdr message{};
    message.msg_iov = parts.data();
    message.msg_iovlen = parts.size();
    Control control{};
    if (passed >= 0) {
        message.msg_control = control.bytes.data();
        message.msg_controllen = control.bytes.size();
        cmsghdr* const first = CMSG_FIRSTHDR(&message);
        first->cmsg_level = SOL_SOCKET;
        first->cmsg_type = SCM_RIGHTS;
        first->cmsg_len = CMSG_LEN(sizeof passed);
        std::memcpy(CMSG_DATA(first), &passed, sizeof passed);
    }
    while (::sendmsg(fd(), &message, MSG_NOSIGNAL | MSG_DONTWAIT) < 0) {
        if (errno == EAGAIN || errno == EWOULDBLOCK) return false;
        if (errno != EINTR) gone(errno);
    }
    return true;
}

std::optional<Message> Socket::receive(std::span<std::byte> buffer) {
    iovec part{buffer.data(), buffer.size()};
    Control control{};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control.bytes.data();
    message.msg_controllen = control.bytes.size();
    ssize_t length = 0;
    while ((length = ::recvmsg(fd(), &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT)) < 0) {
        if (errno == EAGAIN || errno == EWOULDBLOCK) return std::nullopt;
        if (errno != EINTR) gone(errno);
    }
    Message received;
    for (cmsghdr* head = CMSG_FIRSTHDR(&message); head; head = CMSG_NXTHDR(&message, head)) {
        if (head->cmsg_level != SOL_SOCKET || head->cmsg_type != SCM_RIGHTS) continue;
        int passed = -1;
        std::memcpy(&passed, CMSG_DATA(head), sizeof passed);
        received.passed = Descriptor(passed);
    }
    if (length == 0) gone(0);
    if ((message.msg_flags & MSG_TRUNC) != 0) {
        throw Error(Errc::protocol, "malformed message: a frame larger than any may be");
    }
    received.bytes = buffer.first(static_cast<std::size_t>(length));
    return received;
}

void Socket::shut_down(int how) noexcept {
    ::shutdown(fd(), how);
}

}  // namespace cpp_store::local
