#include "local/listener.hpp"

#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>

#include "local/session.hpp"

namespace cpp_store::local {
namespace {

Descriptor listen_at(const std::string& name) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::copy_n(name.data(), std::min(name.size(), sizeof address.sun_path - 1),
                address.sun_path + 1);
    Descriptor fd(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    const auto length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
    if (!fd || ::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), length) != 0 ||
        ::listen(fd.get(), 256) != 0) {
        throw Error(Errc::invalid_argument,
                    std::string("no socket for clients of this host: ") + std::strerror(errno));
    }
    return fd;
}

Instance random_instance() {
    Instance instance;
    if (::getrandom(&instance, sizeof instance, 0) != sizeof instance) {
        throw Error(Errc::internal, "no random numbers from the kernel");
    }
    return instance;
}

}  // namespace

Listener::Listener(Host& host, const std::string& name)
    : host_(host), instance_(random_instance()), socket_(listen_at(name)) {
    thread_ = std::thread([this] { run(); });
}

Listener::~Listener() {
    ::shutdown(socket_.get(), SHUT_RDWR);  // ends accept()
    thread_.join();
    for (Thread& one : sessions_) {
        if (one.session->end()) {
            one.thread.join();
        } else {
            // Its client has views of the server's memory. What they see must not change, so it
            // stays pinned until the client lets go of it or is gone, or this process is.
            one.thread.detach();
        }
    }
}

void Listener::run() {
    while (true) {
        Descriptor connection(::accept4(socket_.get(), nullptr, nullptr, SOCK_CLOEXEC));
        const int error = errno;
        if (!connection && error == EINVAL) return;  // shut down
        join_finished(sessions_);
        if (!connection) {
            if (error == EMFILE || error == ENFILE || error == ENOMEM || error == ENOBUFS) {
                // They wait in the queue meanwhile.
                std::this_thread::sleep_for(std::chrono::milliseconds(100));
            }
            continue;
        }
        try {
            serve(std::move(connection));
        } catch (const Error& failure) {
            host_.complain(failure.what());
        } catch (const std::exception&) {
            host_.complain("a client of this host is refused: no memory or thread for it");
        }
    }
}

void Listener::serve(Descriptor connection) {
    Socket socket(std::move(connection));
    if (socket.peer_user() != ::geteuid()) {
        host_.complain("a client of user " + std::to_string(socket.peer_user()) +
                       " is refused at the socket of this host");
        return;
    }
    if (sessions_.size() >= host_.limits().clients) {
        host_.complain("a client is refused: too many of this host");
        wire::Writer out;
        out.string("too many clients; try again later");
        (void)socket.try_send({.kind = wire::Kind::response,
                               .code = static_cast<std::uint16_t>(Errc::busy),
                               .call = 1,
                               .total = static_cast<std::uint32_t>(out.data().size())},
                              out.data());
        return;
    }
    auto session = std::make_shared<Session>(host_, instance_, std::move(socket));
    Thread& one = sessions_.emplace_back(Thread{session, {}});
    try {
        one.thread = std::thread([session] { session->run(); });
    } catch (const std::exception&) {
        sessions_.pop_back();
        throw;
    }
}

void Listener::join_finished(std::list<Thread>& sessions) {
    std::erase_if(sessions, [](Thread& one) {
        if (!one.session->is_over()) return false;
        one.thread.join();
        return true;
    });
}

}  // namespace cpp_store::local
