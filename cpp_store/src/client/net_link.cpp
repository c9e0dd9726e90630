#include "client/net_link.hpp"

#include <netdb.h>
#include <poll.h>
#include <pthread.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>

#include "net/libfabric.hpp"

namespace cpp_store::client {
namespace {

bool is_over_tcp(const net::Address& address) {
    return address.raw.empty() &&
           (address.provider.starts_with("tcp") || address.provider.starts_with("net") ||
            address.provider == "sockets");
}

// Providers try to connect to a dead port for ever, without a word. So ask the kernel.
// Returns 0, or the errno of a plain connection to the port.
int try_port(const net::Address& address, std::chrono::milliseconds patience) {
    addrinfo hints{};
    hints.ai_socktype = SOCK_STREAM;
    addrinfo* found = nullptr;
    if (getaddrinfo(address.host.c_str(), std::to_string(address.port).c_str(), &hints, &found) !=
        0) {
        return EHOSTUNREACH;
    }
    int error = EHOSTUNREACH;
    for (const addrinfo* target = found; target != nullptr && error != 0;
         target = target->ai_next) {
        const int fd = socket(target->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        if (fd < 0) continue;
        error = ::connect(fd, target->ai_addr, target->ai_addrlen) == 0 ? 0 : errno;
        if (error == EINPROGRESS) {
            pollfd waiting{.fd = fd, .events = POLLOUT, .revents = 0};
            error = ETIMEDOUT;
            socklen_t length = sizeof error;
            if (poll(&waiting, 1, static_cast<int>(patience.count())) == 1) {
                getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length);
            }
        }
        close(fd);
    }
    freeaddrinfo(found);
    return error;
}

// The fabrics of this process, by provider and address of this host.
struct Fabrics {
    std::mutex mutex;
    std::map<std::string, std::weak_ptr<Fabric>> known;

    // A fork has none of the parent's, whatever a thread of the parent was doing with them.
    static Fabrics& here() {
        static Fabrics* all = new Fabrics;
        [[maybe_unused]] static const int registered =
            ::pthread_atfork(nullptr, nullptr, [] { all = new Fabrics; });
        return *all;
    }
};

}  // namespace

// ------------------------------------------------------------------------------------ Fabric

std::shared_ptr<Fabric> Fabric::reaching(const net::Address& server, const std::string& local) {
    Fabrics& all = Fabrics::here();
    const std::scoped_lock lock(all.mutex);
    std::weak_ptr<Fabric>& known = all.known[local];
    if (std::shared_ptr<Fabric> fabric = known.lock()) {
        const std::scoped_lock inner(fabric->mutex);
        if (!fabric->is_closed_) return fabric;
    }
    const std::shared_ptr<Fabric> made(new Fabric(server));
    known = made;
    return made;
}

Fabric::~Fabric() {
    // A fork's words would come out of the other's mouth.
    if (birthplace_.is_elsewhere()) static_cast<void>(endpoint_.release());
}

void Fabric::received(std::span<std::byte> message) {
    try {
        const std::uint64_t session = wire::session_of(message);
        if (const auto known = joined_.find(session); known != joined_.end()) {
            known->second->received(message);
            has_broken_ = has_broken_ || !known->second->broken_.empty();
            return;
        }
        std::span<const std::byte> part;
        const wire::Frame frame = wire::decode_frame(message, part);
        if (const auto asked = greeting_.find(frame.call); asked != greeting_.end()) {
            asked->second->received(message);
        }
    } catch (const Error&) {  // nobody's
    }
}

void Fabric::send_failed(net::Peer peer, int error) {
    for (NetLink* const link : links_) {
        if (link->peer_ != peer) continue;
        link->break_off("the server cannot be reached any more: " + net::error_text(error));
        has_broken_ = true;
    }
}

std::size_t Fabric::progress() {
    if (is_closed_) return 0;
    const std::size_t handled = endpoint_->progress();
    if (!std::exchange(has_broken_, false)) return handled;
    const std::set<NetLink*> links = links_;
    for (NetLink* const link : links) {
        if (links_.contains(link)) link->settle();
    }
    return handled;
}

void Fabric::close() noexcept {
    if (std::exchange(is_closed_, true)) return;
    endpoint_->close();
    for (const std::set<NetLink*> links = links_; NetLink* const link : links) {
        if (links_.contains(link)) {
            link->disconnect("reset, since another server died while it moved bytes");
        }
    }
}

// ------------------------------------------------------------------------------------ NetLink

std::shared_ptr<NetLink> NetLink::open(const LinkOptions& options, const net::Address& address) {
    const auto patience = std::min(options.timeout, connect_patience);
    const auto deadline = Clock::now() + patience;
    if (is_over_tcp(address)) {
        if (const int error = try_port(address, patience); error != 0) {
            throw Error(Errc::connection,
                        "no server at " + options.address + ": " + net::error_text(error));
        }
    }
    const net::Endpoint::Target target = net::Endpoint::resolve(address);
    const std::shared_ptr<NetLink> link(
        new NetLink(options, address, target.name, Fabric::reaching(address, target.local)));
    link->join(deadline);
    return link;
}

NetLink::NetLink(const LinkOptions& options, const net::Address& address,
                 std::span<const std::byte> name, std::shared_ptr<Fabric> fabric)
    : Link(options), address_(address), fabric_(std::move(fabric)) {
    const std::scoped_lock lock(fabric_->mutex);
    if (fabric_->is_closed_) throw Error(Errc::connection, options.address + ": reset; try again");
    peer_ = fabric_->endpoint_->insert(name);
    fabric_->links_.insert(this);
}

NetLink::~NetLink() {
    if (birthplace().is_elsewhere()) {
        static_cast<void>(knock_.release());
        // Whoever held its lock in the parent does not let go of it here.
        static_cast<void>(new std::shared_ptr<Fabric>(std::move(fabric_)));
        return;
    }
    const std::scoped_lock lock(fabric_->mutex);
    forget();
}

void NetLink::forget() noexcept {
    if (fabric_->links_.erase(this) == 0) return;
    fabric_->greeting_.erase(hello_);
    fabric_->joined_.erase(session_);
    if (!fabric_->is_closed_) fabric_->endpoint_->remove(peer_);
}

std::string NetLink::transport() const {
    return fabric_->endpoint_->provider();
}

std::vector<std::byte> NetLink::name() const {
    return fabric_->endpoint_->name();
}

std::size_t NetLink::most_part() const {
    return fabric_->endpoint_->max_message() - wire::frame_header_size;
}

void NetLink::send_message(std::span<const std::byte> head, std::span<const std::byte> part,
                           security::Seal* seal) {
    if (!fabric_->is_closed_) fabric_->endpoint_->send(peer_, head, part, seal);
}

Link::Nap NetLink::before_sleep() {
    if (fabric_->is_closed_) return {};
    return {fabric_->endpoint_->wait_fd(), POLLIN, fabric_->endpoint_->may_sleep()};
}

void NetLink::greeted(std::uint64_t call) {
    hello_ = call;
    fabric_->greeting_[call] = this;
}

void NetLink::joined(std::uint64_t session) {
    fabric_->greeting_.erase(hello_);
    fabric_->joined_[session] = this;
}

void NetLink::prepare(PendingCall& call, std::span<const Exposure> exposures,
                      std::vector<wire::Remote>& remotes) {
    if (fabric_->is_closed_) {
        throw Error(Errc::connection, options_.address + ": the connection was reset");
    }
    if (seals_) call.exposures_.assign(exposures.begin(), exposures.end());
    if (encrypts_) {
        remotes.resize(exposures.size());
        return;
    }
    for (const Exposure& exposure : exposures) {
        const auto& region = call.regions_.emplace_back(
            fabric_->endpoint_->expose(exposure.memory, exposure.writable));
        remotes.push_back({region.address(), region.key()});
    }
}

local::SharedLayer NetLink::decode_layer(const PendingCall& /*call*/, wire::Reader& in) {
    return {wire::decode_layer(in), nullptr};
}

std::string NetLink::find_out(bool at_once) {
    if (at_once) {
        if (!is_over_tcp(address_)) return {};
        const int error = try_port(address_, std::chrono::milliseconds(100));
        if (error == 0 || error == ETIMEDOUT) return {};
        return "the server is gone: " + net::error_text(error);
    }
    try {
        if (!knock_) {
            knock_ = std::make_unique<Knock>(
                address_, security::Request::Options{.address = options_.address,
                                                     .name = {},
                                                     .client = client_name(),
                                                     .servers = options_.servers,
                                                     .shared = options_.key,
                                                     .encrypt = options_.encrypt});
        }
        const std::uint64_t there = knock_->answer();
        if (there == 0 || there == incarnation_) return {};
        return "the server was started again, and knows nothing of this connection";
    } catch (const Error&) {  // not to be found out this way
        return {};
    }
}

void NetLink::close(bool moving) noexcept {
    knock_.reset();
    forget();
    // Only the end of the endpoint ends what is on its way already.
    if (moving) fabric_->close();
}

}  // namespace cpp_store::client
