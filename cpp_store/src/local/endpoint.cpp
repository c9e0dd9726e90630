#include "local/endpoint.hpp"

#include <poll.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <thread>

#include "local/layers.hpp"

namespace cpp_store::local {
namespace {

constexpr int messages_a_round = 16;  // of one client, so that others are heard
constexpr int accepts_a_round = 16;

Descriptor listen_at(const std::string& name) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::copy_n(name.data(), std::min(name.size(), sizeof address.sun_path - 1),
                address.sun_path + 1);
    Descriptor fd(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    const auto length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
    if (!fd || ::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), length) != 0 ||
        ::listen(fd.get(), 1024) != 0) {
        throw Error(Errc::invalid_argument,
                    std::string("no socket for clients of this host: ") + std::strerror(errno));
    }
    return fd;
}

void unpin(Line& line, std::span<const std::byte> body) {
    wire::Reader in(body);
    for (std::uint32_t left = in.count(unpin_size); left > 0; --left) {
        const Unpin one = decode_unpin(in);
        line.pins.unpin(one.call, one.pin);
    }
    in.end();
}

}  // namespace

bool has_ended(pid_t process) noexcept {
    const Descriptor handle(static_cast<int>(::syscall(SYS_pidfd_open, process, 0)));
    if (!handle) return errno == ESRCH;
    pollfd waiting{handle.get(), POLLIN, 0};
    return ::poll(&waiting, 1, 0) > 0;
}

Endpoint::Endpoint(const std::string& name, Listener& listener, std::size_t most_lines)
    : listener_(listener),
      most_lines_(most_lines),
      waiting_(::epoll_create1(EPOLL_CLOEXEC)),
      socket_(listen_at(name)),
      buffer_(Socket::max_message) {
    epoll_event event{.events = EPOLLIN, .data = {.fd = socket_.get()}};
    if (!waiting_ || ::epoll_ctl(waiting_.get(), EPOLL_CTL_ADD, socket_.get(), &event) != 0) {
        throw Error(Errc::internal, "no descriptor to wait for clients: too many files open");
    }
}

Endpoint::~Endpoint() {
    std::vector<LinePtr> pinned;
    for (auto& [fd, line] : lines_) {
        line->socket.shut_down(SHUT_WR);
        if (!line->pins.is_empty()) pinned.push_back(std::move(line));
    }
    if (pinned.empty()) return;
    // Their clients have views of the server's memory. What they see must not change, so it stays
    // pinned until they let go of it or are gone, or this process is: the store may go on, and even
    // that may end before them. So nobody can wait for this thread.
    std::thread([pinned = std::move(pinned)]() mutable {
        await_unpins(std::move(pinned));
    }).detach();
}

void Endpoint::await_unpins(std::vector<LinePtr> lines) noexcept {
    std::vector<std::byte> buffer(Socket::max_message);
    while (!lines.empty()) {
        std::vector<pollfd> waiting;
        for (const LinePtr& line : lines) waiting.push_back({line->socket.fd(), POLLIN, 0});
        if (::poll(waiting.data(), waiting.size(), -1) < 0) continue;
        std::erase_if(lines, [&](const LinePtr& line) {
            try {
                while (const auto message = line->socket.receive(buffer)) {
                    std::span<const std::byte> part;
                    const wire::Frame frame = wire::decode_frame(message->bytes, part);
                    if (frame.kind == wire::Kind::unpin) unpin(*line, part);
                }
            } catch (const Error& error) {
                if (error.code() == Errc::protocol) return false;
                line->pins.end();
            }
            return line->pins.is_empty();
        });
    }
}

std::size_t Endpoint::progress() {
    std::array<epoll_event, 32> events;
    const int count = ::epoll_wait(waiting_.get(), events.data(), events.size(), 0);
    bool has_new = false;
    if (is_paused() && std::chrono::steady_clock::now() - paused_ >= pause) watch_socket(true);
    // Who goes makes room for who comes.
    for (int i = 0; i < count; ++i) {
        const epoll_event& event = events[static_cast<std::size_t>(i)];
        const int fd = event.data.fd;
        if (fd == socket_.get()) {
            has_new = true;
            continue;
        }
        const auto found = lines_.find(fd);
        if (found != lines_.end()) receive(LinePtr(found->second));
    }
    if (has_new) accept();
    return static_cast<std::size_t>(std::max(0, count));
}

void Endpoint::watch_socket(bool accepts) noexcept {
    epoll_event event{.events = accepts ? std::uint32_t{EPOLLIN} : 0,
                      .data = {.fd = socket_.get()}};
    ::epoll_ctl(waiting_.get(), EPOLL_CTL_MOD, socket_.get(), &event);
    paused_ = accepts ? std::chrono::steady_clock::time_point{} : std::chrono::steady_clock::now();
}

void Endpoint::accept() {
    for (int i = 0; i < accepts_a_round; ++i) {
        Descriptor connection(
            ::accept4(socket_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
        if (!connection) {
            if (errno == EAGAIN || errno == EWOULDBLOCK || errno == ECONNABORTED) return;
            // They wait in the queue meanwhile.
            watch_socket(false);
            return;
        }
        if (lines_.size() >= most_lines_) {
            listener_.complain("a client is refused: too many of this host");
            continue;
        }
        try {
            const auto line = std::make_shared<Line>(Socket(std::move(connection)));
            if (const uid_t user = line->socket.peer().uid; user != ::geteuid()) {
                listener_.complain("a client of user " + std::to_string(user) +
                                   " is refused at the socket of this host");
                continue;
            }
            const int fd = line->socket.fd();
            lines_.emplace(fd, line);
            epoll_event event{.events = EPOLLIN, .data = {.fd = fd}};
            if (::epoll_ctl(waiting_.get(), EPOLL_CTL_ADD, fd, &event) != 0) lines_.erase(fd);
        } catch (const std::exception&) {
            listener_.complain("a client of this host is refused: no memory for it");
        }
    }
}

void Endpoint::receive(const LinePtr& line) {
    try {
        if (line->socket.has_kept() && !line->is_closed) {
            if (!line->socket.flush()) return;
            watch(*line);
        }
        for (int i = 0; i < messages_a_round && !line->is_over; ++i) {
            const auto message = line->socket.receive(buffer_);
            if (!message) return;
            hear(line, message->bytes);
            if (line->socket.has_kept() && !line->is_closed) return;
        }
    } catch (const Error& error) {
        const bool is_gone = error.code() == Errc::connection;
        if (!line->is_closed) {
            close(*line);
            listener_.ended(line, error);
        }
        if (is_gone) end(line);
    }
}

void Endpoint::hear(const LinePtr& line, std::span<std::byte> message) {
    std::span<const std::byte> part;
    const wire::Frame frame = wire::decode_frame(message, part);
    if (frame.kind == wire::Kind::unpin) {
        if (frame.total != part.size()) throw Error(Errc::protocol, "malformed message: an unpin");
        unpin(*line, part);
        if (line->is_closed && line->pins.is_empty()) end(line);
    } else if (!line->is_closed) {
        listener_.received(line, message);
    }
}

void Endpoint::send(Line& line, std::span<const std::byte> head, std::span<const std::byte> part,
                    int passed) {
    if (line.is_closed) return;
    const bool had_kept = line.socket.has_kept();
    try {
        line.socket.send(head, part, passed);
    } catch (const Error&) {
        return;  // the next look at it finds the same
    }
    if (had_kept || !line.socket.has_kept()) return;
    line.blocked = Line::Clock::now();
    watch(line);
}

void Endpoint::close(Line& line) noexcept {
    if (std::exchange(line.is_closed, true)) return;
    line.socket.shut_down(SHUT_WR);
    line.blocked = {};
    if (!line.pins.is_empty()) {
        watch(line);
        return;
    }
    if (const auto found = lines_.find(line.socket.fd()); found != lines_.end()) {
        end(LinePtr(found->second));
    }
}

void Endpoint::end(const LinePtr& line) noexcept {
    if (std::exchange(line->is_over, true)) return;
    line->is_closed = true;
    line->socket.shut_down(SHUT_RDWR);
    ::epoll_ctl(waiting_.get(), EPOLL_CTL_DEL, line->socket.fd(), nullptr);
    lines_.erase(line->socket.fd());
    line->pins.end();
}

void Endpoint::watch(Line& line) noexcept {
    const bool is_blocked = !line.is_closed && line.socket.has_kept();
    if (!is_blocked) line.blocked = {};
    epoll_event event{.events = is_blocked ? EPOLLOUT : EPOLLIN, .data = {.fd = line.socket.fd()}};
    ::epoll_ctl(waiting_.get(), EPOLL_CTL_MOD, line.socket.fd(), &event);
}

}  // namespace cpp_store::local
