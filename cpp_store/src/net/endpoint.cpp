#include "net/endpoint.hpp"

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <rdma/fi_cm.h>
#include <rdma/fi_errno.h>
#include <rdma/fi_rma.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <set>
#include <utility>

#include "core/random.hpp"
#include "cpp_store/error.hpp"
#include "net/libfabric.hpp"

namespace cpp_store::net {
namespace {

using namespace std::chrono_literals;

constexpr std::size_t buffer_size = 64 << 10;
constexpr std::size_t rxm_message = 16
                                    << 10;  // its eager limit; larger ones take a round trip more
// More as there are more peers, so that each finds one, but for so many.
constexpr std::size_t server_receives = 128;
constexpr std::size_t client_receives = 16;
constexpr std::size_t most_receives = 512;
constexpr std::size_t more_receives = 16;
constexpr std::size_t queue_depth = 4096;
// Between two tries to post what could not be. To a server, more from one to the next, as a peer
// that cannot be connected to costs it a system call or two each time, and anybody can name such
// ones; a client has one peer, and looks for it.
constexpr std::chrono::microseconds shortest_wait{1'000};
constexpr std::chrono::microseconds longest_wait{256'000};
// Between two looks at a provider that cannot wake us.
constexpr std::chrono::microseconds shortest_nap{50};
constexpr std::chrono::microseconds longest_nap{10'000};

// `tcp` means the provider that speaks FI_PROTO_XNET, which needs no ofi_rxm: half the latency. It
// is called `net` in libfabric 1.17 and `tcp` later, and both talk to each other. `tcp;ofi_rxm` of
// the two do as well, but not with these.
std::vector<std::string> provider_names(const std::string& asked) {
    if (asked == "tcp" || asked == "net") return {"tcp", "net"};
    if (asked == "verbs") return {"verbs;ofi_rxm"};
    return {asked};
}

[[noreturn]] void fail_call(const std::string& what, const Address& address, long error) {
    const Errc code = error == -FI_EADDRINUSE || error == -FI_EADDRNOTAVAIL || error == -FI_EACCES
                          ? Errc::invalid_argument
                          : Errc::connection;
    throw Error(code, address.text() + ": " + error_text(error) + " (" + what + ")");
}

void check_host(const Address& address) {
    addrinfo* found = nullptr;
    const int error = getaddrinfo(address.host.c_str(), nullptr, nullptr, &found);
    if (error != 0) {
        throw Error(Errc::invalid_argument, address.text() + ": host '" + address.host +
                                                "' cannot be resolved: " + gai_strerror(error));
    }
    freeaddrinfo(found);
}

// The address under which others reach a socket that is bound to all of them.
std::string outward_address(int family) {
    const int probe = socket(family, SOCK_DGRAM, 0);
    std::array<char, INET6_ADDRSTRLEN> text{};
    bool found = false;
    if (family == AF_INET) {
        sockaddr_in peer{.sin_family = AF_INET, .sin_port = 9, .sin_addr = {}, .sin_zero = {}};
        inet_pton(AF_INET, "192.0.2.1", &peer.sin_addr);  // for documentation; nothing is sent
        sockaddr_in self{};
        socklen_t length = sizeof self;
        found = connect(probe, reinterpret_cast<sockaddr*>(&peer), sizeof peer) == 0 &&
                getsockname(probe, reinterpret_cast<sockaddr*>(&self), &length) == 0 &&
                inet_ntop(AF_INET, &self.sin_addr, text.data(), text.size()) != nullptr;
    }
    if (probe >= 0) close(probe);
    if (found) return text.data();
    return family == AF_INET ? "127.0.0.1" : "::1";
}

std::string join(const std::set<std::string>& names) {
    std::string list;
    for (const std::string& name : names) list += (list.empty() ? "" : ", ") + name;
    return list;
}

}  // namespace

std::set<std::string> available_providers() {
    const Libfabric& library = libfabric();
    fi_info* hints = library.dupinfo(nullptr);
    hints->ep_attr->type = FI_EP_RDM;
    hints->caps = FI_MSG | FI_RMA;
    fi_info* found = nullptr;
    library.getinfo(FI_VERSION(1, 17), nullptr, nullptr, 0, hints, &found);
    std::set<std::string> names;
    for (const fi_info* info = found; info != nullptr; info = info->next) {
        names.insert(info->fabric_attr->prov_name);
    }
    library.freeinfo(hints);
    if (found != nullptr) library.freeinfo(found);
    return names;
}

struct Endpoint::MessageBuffer : Operation {
    MessageBuffer(Kind operation_kind, std::byte* bytes, void* desc)
        : Operation(operation_kind), data(bytes), descriptor(desc) {}
    std::byte* data;
    void* descriptor;
    Peer peer = FI_ADDR_UNSPEC;
    std::size_t length = 0;
};

void MemoryRegion::Close::operator()(fid_mr* mr) const noexcept {
    fi_close(&mr->fid);
}

void Endpoint::FreeInfo::operator()(fi_info* info) const noexcept {
    libfabric().freeinfo(info);
}

Endpoint::Endpoint(const Address& address, Role role, Listener& listener,
                   std::chrono::milliseconds patience)
    : listener_(listener),
      patience_(patience),
      most_wait_(role == Role::server ? longest_wait : shortest_wait),
      address_(address),
      info_(find(address, role)) {
    open();
    learn_name(address);
    const bool layered = provider_.find("ofi_rxm") != std::string::npos;
    max_message_ = layered ? rxm_message : buffer_size;
    add_buffers(role == Role::server ? server_receives : client_receives, Operation::Kind::receive);
    if (role == Role::client) {
        server_ = insert(destination(address, *info_));
    }
}

std::vector<std::byte> Endpoint::destination(const Address& address, const fi_info& info) {
    const auto* const bytes = address.raw.empty()
                                  ? static_cast<const std::byte*>(info.dest_addr)
                                  : reinterpret_cast<const std::byte*>(address.raw.data());
    return {bytes, bytes + (address.raw.empty() ? info.dest_addrlen : address.raw.size())};
}

Endpoint::Target Endpoint::resolve(const Address& server) {
    const Info info = find(server, Role::client);
    Target target{.name = destination(server, *info), .local = info->fabric_attr->prov_name};
    if (info->src_addr == nullptr) return target;
    const auto* const from = static_cast<const sockaddr*>(info->src_addr);
    std::array<char, INET6_ADDRSTRLEN> text{};
    if (info->src_addrlen >= sizeof(sockaddr_in) && from->sa_family == AF_INET) {
        inet_ntop(AF_INET, &reinterpret_cast<const sockaddr_in*>(from)->sin_addr, text.data(),
                  text.size());
    } else if (info->src_addrlen >= sizeof(sockaddr_in6) && from->sa_family == AF_INET6) {
        inet_ntop(AF_INET6, &reinterpret_cast<const sockaddr_in6*>(from)->sin6_addr, text.data(),
                  text.size());
    }
    target.local += std::string(" ") + text.data();
    return target;
}

Endpoint::~Endpoint() = default;

Endpoint::Info Endpoint::find(const Address& address, Role role) {
    const Libfabric& library = libfabric();
    if (!address.host.empty()) check_host(address);
    const std::string port = std::to_string(address.port);
    const char* node = address.host.empty() ? nullptr : address.host.c_str();
    const char* service = address.host.empty() ? nullptr : port.c_str();
    const bool server = role == Role::server;

    for (const std::string& name : provider_names(address.provider)) {
        // Messages and RMA in order, so that an answer never overtakes the bytes before it; where a
        // provider cannot promise that, writes complete only when they are delivered.
        for (const std::uint64_t order : {FI_ORDER_SAS | FI_ORDER_SAW, FI_ORDER_SAS}) {
            const Info hints(library.dupinfo(nullptr));
            hints->ep_attr->type = FI_EP_RDM;
            hints->caps = FI_MSG | FI_SEND | FI_RECV | FI_RMA;
            hints->caps |= server ? FI_READ | FI_WRITE : FI_REMOTE_READ | FI_REMOTE_WRITE;
            hints->mode = FI_CONTEXT | FI_CONTEXT2;
            hints->tx_attr->msg_order = order;
            hints->rx_attr->msg_order = order;
            if (order == FI_ORDER_SAS) hints->tx_attr->op_flags = FI_DELIVERY_COMPLETE;
            hints->domain_attr->mr_mode =
                FI_MR_LOCAL | FI_MR_VIRT_ADDR | FI_MR_ALLOCATED | FI_MR_PROV_KEY | FI_MR_ENDPOINT;
            hints->domain_attr->threading = FI_THREAD_DOMAIN;
            hints->domain_attr->control_progress = FI_PROGRESS_MANUAL;
            hints->domain_attr->data_progress = FI_PROGRESS_MANUAL;
            hints->fabric_attr->prov_name = strdup(name.c_str());  // freed with the hints
            fi_info* found = nullptr;
            const int error = library.getinfo(FI_VERSION(1, 17), node, service,
                                              server && node ? FI_SOURCE : 0, hints.get(), &found);
            Info all(found);
            for (fi_info* info = found; error == 0 && info != nullptr; info = info->next) {
                // "net" also finds "net;ofi_rxm", which speaks another protocol.
                if (info->fabric_attr->prov_name == name) return Info(library.dupinfo(info));
            }
        }
    }
    throw Error(Errc::invalid_argument,
                address.text() + ": no provider '" + address.provider + "' for it in libfabric " +
                    std::to_string(FI_MAJOR(library.version)) + "." +
                    std::to_string(FI_MINOR(library.version)) + " (" + library.path +
                    "); it has: " + join(available_providers()));
}

void Endpoint::open() {
    const auto check = [this](long error, const char* what) {
        if (error != 0) fail_call(what, address_, error);
    };
    fid_fabric* fabric = nullptr;
    check(libfabric().fabric(info_->fabric_attr, &fabric, nullptr), "fi_fabric");
    fabric_.reset(fabric);
    fid_domain* domain = nullptr;
    check(fi_domain(fabric, info_.get(), &domain, nullptr), "fi_domain");
    domain_.reset(domain);
    fi_av_attr av_attr{};
    av_attr.type = FI_AV_TABLE;
    fid_av* av = nullptr;
    check(fi_av_open(domain, &av_attr, &av, nullptr), "fi_av_open");
    av_.reset(av);
    open_queue();
    fid_ep* endpoint = nullptr;
    check(fi_endpoint(domain, info_.get(), &endpoint, nullptr), "fi_endpoint");
    endpoint_.reset(endpoint);
    check(fi_ep_bind(endpoint, &av->fid, 0), "fi_ep_bind");
    check(fi_ep_bind(endpoint, &cq_->fid, FI_TRANSMIT | FI_RECV), "fi_ep_bind");
    check(fi_enable(endpoint), "fi_enable");
    provider_ = info_->fabric_attr->prov_name;
    // Here fi_trywait() does nothing: once readable, the descriptor stays so until an
    // fi_cq_sread().
    sticky_wait_ = provider_ == "net" && FI_VERSION_LT(libfabric().version, FI_VERSION(1, 18));
    rma_flags_ = info_->tx_attr->op_flags & FI_DELIVERY_COMPLETE;
}

// With a file descriptor to sleep on, if the provider has that.
void Endpoint::open_queue() {
    fi_cq_attr attr{};
    attr.size = queue_depth;
    attr.format = FI_CQ_FORMAT_MSG;
    fid_cq* cq = nullptr;
    attr.wait_obj = FI_WAIT_FD;
    if (fi_cq_open(domain_.get(), &attr, &cq, nullptr) == 0) {
        cq_.reset(cq);
        if (fi_control(&cq->fid, FI_GETWAIT, &wait_fd_) == 0) return;
        wait_fd_ = -1;
        cq_.reset();
    }
    attr.wait_obj = FI_WAIT_NONE;
    if (const int error = fi_cq_open(domain_.get(), &attr, &cq, nullptr); error != 0) {
        fail_call("fi_cq_open", address_, error);
    }
    cq_.reset(cq);
}

void Endpoint::learn_name(const Address& asked) {
    std::size_t length = 256;
    name_.resize(length);
    if (const int error = fi_getname(&endpoint_->fid, name_.data(), &length); error != 0) {
        fail_call("fi_getname", address_, error);
    }
    name_.resize(length);
    if (!asked.raw.empty()) return;
    const auto* any = reinterpret_cast<const sockaddr*>(name_.data());
    std::array<char, INET6_ADDRSTRLEN> text{};
    if (info_->addr_format == FI_SOCKADDR_IN ||
        (info_->addr_format == FI_SOCKADDR && any->sa_family == AF_INET)) {
        const auto* self = reinterpret_cast<const sockaddr_in*>(any);
        inet_ntop(AF_INET, &self->sin_addr, text.data(), text.size());
        address_.port = ntohs(self->sin_port);
        if (self->sin_addr.s_addr == htonl(INADDR_ANY)) address_.host = outward_address(AF_INET);
    } else if (info_->addr_format == FI_SOCKADDR_IN6 || info_->addr_format == FI_SOCKADDR) {
        const auto* self = reinterpret_cast<const sockaddr_in6*>(any);
        address_.port = ntohs(self->sin6_port);
        if (IN6_IS_ADDR_UNSPECIFIED(&self->sin6_addr)) address_.host = outward_address(AF_INET6);
    } else {
        address_.host.clear();
        address_.port = 0;
        address_.raw.assign(reinterpret_cast<const char*>(name_.data()), length);
    }
}

// Whether a stranger's words may be an address at all, as far as one can see from our own.
// Providers look at little of it, and some take no address any more once they have failed to take
// one.
bool Endpoint::may_be_peer(std::span<const std::byte> name) const {
    if (name.size() > 4096) return false;
    if (info_->addr_format == FI_ADDR_STR) return true;
    const bool is_ip = info_->addr_format == FI_SOCKADDR_IN ||
                       info_->addr_format == FI_SOCKADDR_IN6 || info_->addr_format == FI_SOCKADDR;
    if (!is_ip) return name.size() >= name_.size();  // as many bytes as they read
    if (name.size() != name_.size() ||
        std::memcmp(name.data(), name_.data(), sizeof(sa_family_t)) != 0) {
        return false;
    }
    sa_family_t family = AF_UNSPEC;
    std::memcpy(&family, name.data(), sizeof family);
    if (family == AF_INET && name.size() >= sizeof(sockaddr_in)) {
        sockaddr_in in{};
        std::memcpy(&in, name.data(), sizeof in);
        return in.sin_port != 0 && in.sin_addr.s_addr != htonl(INADDR_ANY);
    }
    if (family == AF_INET6 && name.size() >= sizeof(sockaddr_in6)) {
        sockaddr_in6 in{};
        std::memcpy(&in, name.data(), sizeof in);
        return in.sin6_port != 0 && !IN6_IS_ADDR_UNSPECIFIED(&in.sin6_addr);
    }
    return true;
}

Peer Endpoint::insert(std::span<const std::byte> name) {
    std::string key(reinterpret_cast<const char*>(name.data()), name.size());
    if (const auto known = peers_by_name_.find(key); known != peers_by_name_.end()) {
        ++peers_.at(known->second).uses;
        return known->second;
    }
    Peer peer = FI_ADDR_UNSPEC;
    if (!may_be_peer(name) || fi_av_insert(av_.get(), name.data(), 1, &peer, 0, nullptr) != 1) {
        throw Error(Errc::protocol, "peer's address of " + std::to_string(name.size()) +
                                        " bytes is none of provider " + provider_);
    }
    peers_[peer] = {key, 1};
    peers_by_name_[std::move(key)] = peer;
    add_receives();
    return peer;
}

void Endpoint::add_receives() {
    if (peers_.size() <= receives_ || receives_ >= most_receives) return;
    add_buffers(more_receives, Operation::Kind::receive);
}

void Endpoint::remove(Peer peer) {
    const auto known = peers_.find(peer);
    if (known == peers_.end() || --known->second.uses > 0) return;
    peers_by_name_.erase(known->second.name);
    peers_.erase(known);
    const auto queued = queued_.find(peer);
    if (queued != queued_.end()) {
        for (Operation* operation : queued->second.operations) {
            failures_.push_back({operation, FI_ECANCELED});
        }
        queued_.erase(queued);
    }
    fi_av_remove(av_.get(), &peer, 1, 0);
}

MemoryRegion Endpoint::register_memory(std::span<const std::byte> memory, std::uint64_t access) {
    const auto mode = static_cast<std::uint64_t>(info_->domain_attr->mr_mode);
    MemoryRegion region;
    fid_mr* mr = nullptr;
    const std::uint64_t asked = (mode & FI_MR_PROV_KEY) ? 0 : random_number();
    long error =
        fi_mr_reg(domain_.get(), memory.data(), memory.size(), access, 0, asked, 0, &mr, nullptr);
    if (error == 0) {
        region.mr_.reset(mr);
        if (mode & FI_MR_ENDPOINT) {
            error = fi_mr_bind(mr, &endpoint_->fid, 0);
            if (error == 0) error = fi_mr_enable(mr);
        }
    }
    if (error != 0) {
        throw Error(Errc::connection, "cannot register " + std::to_string(memory.size()) +
                                          " bytes with provider " + provider_ + ": " +
                                          error_text(error));
    }
    region.key_ = fi_mr_key(mr);
    region.address_ =
        (mode & FI_MR_VIRT_ADDR) ? reinterpret_cast<std::uintptr_t>(memory.data()) : 0;
    return region;
}

MemoryRegion Endpoint::expose(std::span<const std::byte> memory, bool writable) {
    return register_memory(memory, writable ? FI_REMOTE_WRITE : FI_REMOTE_READ);
}

MemoryRegion Endpoint::register_local(std::span<std::byte> memory) {
    if ((info_->domain_attr->mr_mode & FI_MR_LOCAL) == 0) return {};
    return register_memory(memory, FI_READ | FI_WRITE | FI_SEND | FI_RECV);
}

void Endpoint::add_buffers(std::size_t count, Operation::Kind kind) {
    auto& slab = slabs_.emplace_back(new std::byte[count * buffer_size]);
    slab_regions_.push_back(register_local({slab.get(), count * buffer_size}));
    for (std::size_t i = 0; i < count; ++i) {
        MessageBuffer& buffer = buffers_.emplace_back(kind, slab.get() + i * buffer_size,
                                                      slab_regions_.back().descriptor());
        if (kind == Operation::Kind::receive) {
            ++receives_;
            post_receive(buffer);
        } else {
            free_.push_back(&buffer);
        }
    }
}

void Endpoint::post_receive(MessageBuffer& buffer) {
    post(buffer, FI_ADDR_UNSPEC);
}

void Endpoint::send(Peer peer, std::span<const std::byte> head, std::span<const std::byte> body,
                    Tagging* seal) {
    const std::size_t length =
        head.size() + body.size() + (seal ? Tagging::tag_size : std::size_t{0});
    if (length > max_message_) {
        throw Error(Errc::internal, "message larger than the endpoint sends");
    }
    if (free_.empty()) add_buffers(16, Operation::Kind::send);
    MessageBuffer& buffer = *free_.back();
    free_.pop_back();
    std::memcpy(buffer.data, head.data(), head.size());
    if (!body.empty()) std::memcpy(buffer.data + head.size(), body.data(), body.size());
    if (seal) seal->close({buffer.data, length});
    buffer.length = length;
    buffer.peer = peer;
    post(buffer, peer);
}

void Endpoint::start(Rma& rma) {
    post(rma, rma.peer);
}

void Endpoint::post(Operation& operation, Peer peer) {
    const auto queued = queued_.find(peer);
    if (queued != queued_.end()) {
        queued->second.operations.push_back(&operation);
        return;
    }
    const ssize_t error = try_post(operation);
    if (error == -FI_EAGAIN) {
        const auto now = std::chrono::steady_clock::now();
        queued_[peer] = {{&operation}, now, now + shortest_wait, shortest_wait};
    } else if (error != 0) {
        failures_.push_back({&operation, static_cast<int>(-error)});
    }
}

ssize_t Endpoint::try_post(Operation& operation) {
    void* context = static_cast<fi_context2*>(&operation);
    if (operation.kind == Operation::Kind::rma) {
        auto& rma = static_cast<Rma&>(operation);
        iovec local{rma.local, rma.length};
        const fi_rma_iov remote{rma.remote, rma.length, rma.key};
        const fi_msg_rma message{.msg_iov = &local,
                                 .desc = &rma.descriptor,
                                 .iov_count = 1,
                                 .addr = rma.peer,
                                 .rma_iov = &remote,
                                 .rma_iov_count = 1,
                                 .context = context,
                                 .data = 0};
        return rma.write ? fi_writemsg(endpoint_.get(), &message, FI_COMPLETION | rma_flags_)
                         : fi_readmsg(endpoint_.get(), &message, FI_COMPLETION);
    }
    auto& buffer = static_cast<MessageBuffer&>(operation);
    if (operation.kind == Operation::Kind::receive) {
        return fi_recv(endpoint_.get(), buffer.data, buffer_size, buffer.descriptor, FI_ADDR_UNSPEC,
                       context);
    }
    return fi_send(endpoint_.get(), buffer.data, buffer.length, buffer.descriptor, buffer.peer,
                   context);
}

std::size_t Endpoint::progress() {
    std::size_t handled = report_failures();
    Completions entries;
    handled += handle(entries, fi_cq_read(cq_.get(), entries.data(), entries.size()));
    handled += post_queued();
    if (wait_fd_ < 0 && handled > 0) last_event_ = std::chrono::steady_clock::now();
    return handled;
}

std::size_t Endpoint::handle(const Completions& entries, ssize_t count) {
    if (count == -FI_EAVAIL) return report_error();
    if (count <= 0) return 0;
    for (std::size_t i = 0; i < static_cast<std::size_t>(count); ++i) {
        auto* context = static_cast<fi_context2*>(entries[i].op_context);
        if (context != nullptr) finish(*static_cast<Operation*>(context), entries[i].len, 0);
    }
    return static_cast<std::size_t>(count);
}

std::size_t Endpoint::report_error() {
    fi_cq_err_entry entry{};
    if (fi_cq_readerr(cq_.get(), &entry, 0) < 0) return 0;
    auto* context = static_cast<fi_context2*>(entry.op_context);
    if (context != nullptr) {
        finish(*static_cast<Operation*>(context), 0, entry.err != 0 ? entry.err : FI_EOTHER);
    }
    return 1;
}

void Endpoint::finish(Operation& operation, std::size_t bytes, int error) {
    switch (operation.kind) {
        case Operation::Kind::rma:
            try_again(static_cast<Rma&>(operation).peer);
            static_cast<Rma&>(operation).completed(error);
            return;
        case Operation::Kind::receive: {
            auto& buffer = static_cast<MessageBuffer&>(operation);
            if (error == 0) listener_.received({buffer.data, bytes});
            if (error != FI_ECANCELED) post_receive(buffer);
            return;
        }
        case Operation::Kind::send: {
            auto& buffer = static_cast<MessageBuffer&>(operation);
            const Peer peer = buffer.peer;
            free_.push_back(&buffer);
            try_again(peer);
            if (error != 0) listener_.send_failed(peer, error);
            return;
        }
    }
}

// There is room for another one, perhaps.
void Endpoint::try_again(Peer peer) {
    if (const auto queued = queued_.find(peer); queued != queued_.end()) queued->second.next = {};
}

std::size_t Endpoint::post_queued() {
    if (queued_.empty()) return 0;
    std::size_t posted = 0;
    const auto now = std::chrono::steady_clock::now();
    for (auto queued = queued_.begin(); queued != queued_.end();) {
        auto& [operations, moved, next, wait] = queued->second;
        while (!operations.empty() && now >= next) {
            Operation* operation = operations.front();
            ssize_t error = try_post(*operation);
            if (error == -FI_EAGAIN) {
                // A provider may try to connect for ever.
                const bool is_receive = operation->kind == Operation::Kind::receive;
                if (now - moved < patience_ || is_receive) {
                    wait = is_receive ? shortest_wait
                                      : std::clamp(2 * wait, shortest_wait, most_wait_);
                    next = now + wait;
                    break;
                }
                error = -FI_ETIMEDOUT;
            }
            operations.pop_front();
            ++posted;
            if (error != 0) {
                failures_.push_back({operation, static_cast<int>(-error)});
            } else {
                moved = now;
                wait = {};
            }
        }
        queued = operations.empty() ? queued_.erase(queued) : std::next(queued);
    }
    return posted;
}

std::size_t Endpoint::report_failures() {
    const std::vector<Failure> failures = std::exchange(failures_, {});
    for (const Failure& failure : failures) finish(*failure.operation, 0, failure.error);
    return failures.size();
}

std::chrono::microseconds Endpoint::may_sleep() {
    if (!failures_.empty()) return 0us;
    if (wait_fd_ < 0) {
        // The longer nothing has happened, the longer it may take to notice that something does.
        const auto quiet = std::chrono::steady_clock::now() - last_event_;
        return std::clamp(std::chrono::duration_cast<std::chrono::microseconds>(quiet / 8),
                          shortest_nap, longest_nap);
    }
    if (sticky_wait_) {
        Completions entries;
        if (handle(entries, fi_cq_sread(cq_.get(), entries.data(), entries.size(), nullptr, 1))) {
            return 0us;
        }
    }
    fid* waited = &cq_->fid;
    if (fi_trywait(fabric_.get(), &waited, 1) != 0) return 0us;
    if (queued_.empty()) return forever;
    const auto first = std::ranges::min_element(
        queued_, {}, [](const auto& queued) { return queued.second.next; });
    return std::max(0us, std::chrono::ceil<std::chrono::microseconds>(
                             first->second.next - std::chrono::steady_clock::now()));
}

void Endpoint::interrupt() noexcept {
    if (sticky_wait_) fi_cq_signal(cq_.get());
}

}  // namespace cpp_store::net
