#include "local/listener.hpp"

#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>

#include "core/random.hpp"
#include "local/session.hpp"

namespace cpp_store::local {
namespace {

constexpr std::size_t max_pins = std::size_t{1} << 22;

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

// ------------------------------------------------------------------------------------ clients

Client::Client(std::uint64_t number, std::shared_ptr<server::Session> described)
    : id(number), session(std::move(described)) {}

bool Client::may_request() {
    const std::scoped_lock lock(mutex_);
    return session->requests_rate.take(std::chrono::steady_clock::now());
}

std::uint64_t Client::pin(const StoredLayerPtr& layer) {
    const std::scoped_lock lock(mutex_);
    if (is_gone_) throw Error(Errc::connection, "it is gone");
    if (pins_.size() >= max_pins) {
        throw Error(Errc::invalid_argument, "this client has views of " +
                                                std::to_string(pins_.size()) +
                                                " layers; it must let go of some");
    }
    pins_.emplace(last_pin_ + 1, layer);
    return ++last_pin_;
}

void Client::unpin(std::span<const std::uint64_t> pins) noexcept {
    const std::scoped_lock lock(mutex_);
    for (const std::uint64_t pin : pins) pins_.erase(pin);
}

bool Client::has_pins() {
    const std::scoped_lock lock(mutex_);
    return !pins_.empty();
}

void Client::end() noexcept {
    const std::scoped_lock lock(mutex_);
    is_gone_ = true;
    pins_.clear();
}

Clients::Clients() : instance(random_instance()) {}

std::shared_ptr<Client> Clients::enter(const std::string& name, double rate) {
    auto session = std::make_shared<server::Session>(0, FI_ADDR_UNSPEC, name);
    if (rate > 0) session->requests_rate = {rate, rate};
    auto client = std::make_shared<Client>(random_number(), std::move(session));
    const std::scoped_lock lock(mutex_);
    std::erase_if(clients_, [](const auto& entry) { return entry.second.expired(); });
    clients_[client->id] = client;
    return client;
}

std::shared_ptr<Client> Clients::find(std::span<const std::byte> number) {
    wire::Reader in(number);
    const std::uint64_t id = in.u64();
    in.end();
    const std::scoped_lock lock(mutex_);
    const auto found = clients_.find(id);
    std::shared_ptr<Client> client = found == clients_.end() ? nullptr : found->second.lock();
    if (!client) throw Error(Errc::connection, "a connection of a client that is gone");
    return client;
}

// ------------------------------------------------------------------------------------ Listener

Listener::Listener(Host& host, const std::string& name) : host_(host), socket_(listen_at(name)) {
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
    auto session = std::make_shared<Session>(host_, clients_, std::move(socket));
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
