#include "client/host_link.hpp"

#include <poll.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "local/names.hpp"

namespace cpp_store::client {
namespace {

// Pins that have ended are told to the server with the next call, or at once when there are many.
constexpr std::size_t many_unpinned = 64;
constexpr std::uint64_t much_unpinned = std::uint64_t{1} << 20;
constexpr std::size_t unpins_in_a_frame = 4096;
constexpr std::uint32_t most_stages = 64;
constexpr int messages_a_look = 16;

}  // namespace

// A region of the server's arena, mapped to be read. Its pages are touched as they are used, once.
struct HostLink::Mapping {
    const std::byte* base = nullptr;
    std::uint64_t size = 0;

    explicit Mapping(const local::Descriptor& file) {
        struct stat found {};
        if (!file || ::fstat(file.get(), &found) != 0 || found.st_size <= 0) {
            throw Error(Errc::protocol, "malformed message: a region without its memory");
        }
        size = static_cast<std::uint64_t>(found.st_size);
        void* const mapped = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, file.get(), 0);
        if (mapped == MAP_FAILED) {
            throw Error(Errc::connection,
                        "cannot map the server's memory: " + std::string(std::strerror(errno)));
        }
        base = static_cast<const std::byte*>(mapped);
    }
    Mapping(const Mapping&) = delete;
    Mapping& operator=(const Mapping&) = delete;
    ~Mapping() { ::munmap(const_cast<std::byte*>(base), size); }
};

struct HostLink::Pin {
    std::shared_ptr<HostLink> link;
    local::Unpin id;
    std::uint64_t bytes = 0;
    std::vector<std::shared_ptr<Mapping>> regions;

    Pin() = default;
    Pin(const Pin&) = delete;
    Pin& operator=(const Pin&) = delete;
    ~Pin() { link->unpin(id, bytes); }
};

std::shared_ptr<HostLink> HostLink::open(const LinkOptions& options, const net::Address& address) {
    const auto patience = std::min(options.timeout, connect_patience);
    for (const std::string& name : local::client_names(address)) {
        std::optional<local::Socket> socket = local::Socket::connect(name, patience);
        if (!socket || socket->peer().uid != ::geteuid()) continue;
        const std::shared_ptr<HostLink> link(new HostLink(options, *std::move(socket)));
        try {
            link->join(Clock::now() + patience);
        } catch (const Error& error) {
            // Who says nothing there is no server of another version, whose socket has another
            // name.
            if (error.code() == Errc::connection) {
                throw Error(Errc::connection,
                            options.address + ": the server of this host says nothing");
            }
            throw;
        }
        return link;
    }
    return nullptr;
}

void HostLink::send_message(std::span<const std::byte> head, std::span<const std::byte> part,
                            security::Seal* /*seal*/) {
    try {
        socket_.send(head, part);
    } catch (const Error& error) {
        break_off(std::string("the server is gone: ") + error.what());
    }
}

std::size_t HostLink::progress() {
    std::size_t handled = 0;
    try {
        if (socket_.has_kept()) (void)socket_.flush();
        while (handled < messages_a_look) {
            auto message = socket_.receive(buffer_);
            if (!message) break;
            ++handled;
            received(message->bytes, std::move(message->passed));
        }
    } catch (const Error& error) {
        break_off(std::string("the server is gone: ") + error.what());
    }
    return handled;
}

Link::Nap HostLink::before_sleep() {
    const int events = POLLIN | (socket_.has_kept() ? POLLOUT : 0);
    return {socket_.fd(), static_cast<short>(events), signal_interval};
}

void HostLink::prepare(PendingCall& call, std::span<const Exposure> exposures,
                       std::vector<wire::Remote>& remotes) {
    {
        const std::scoped_lock lock(unpinned_mutex_);
        if (!unpinned_.empty()) tell_unpinned();
    }
    call.exposures_.assign(exposures.begin(), exposures.end());
    remotes.resize(exposures.size());
}

void HostLink::hear_else(const wire::Frame& frame, std::span<const std::byte> part,
                         local::Descriptor passed) {
    wire::Reader in(part);
    const std::uint32_t number = in.u32();
    in.end();
    if (frame.kind == wire::Kind::region) {
        if (!passed) {
            regions_.erase(number);
        } else if (!regions_.contains(number)) {
            regions_[number] = std::make_shared<Mapping>(passed);
        }
        return;
    }
    if (frame.kind != wire::Kind::staging || number >= most_stages) {
        throw Error(Errc::protocol, "malformed message: what does not belong here");
    }
    if (passed) stages_[number] = std::make_shared<local::Staging>(std::move(passed));
    const auto stage = stages_.find(number);
    if (stage == stages_.end()) throw Error(Errc::protocol, "malformed message: no staging memory");
    PendingCall* const call = find(frame.call);
    if (!call) return;  // given up: the server knows by now
    if (call->stage_) throw Error(Errc::protocol, "malformed message: a put to begin twice");
    call->stage_ = stage->second;
    const std::shared_ptr<Waiter> waiter = call->waiter_;
    call->may_fill_ = true;
    waiter->wake();
}

// Called from wherever the last view of a layer goes, the garbage collector for one, maybe while
// this very thread holds the lock of a call.
void HostLink::unpin(local::Unpin pin, std::uint64_t bytes) noexcept {
    if (birthplace().is_elsewhere()) return;
    const std::scoped_lock lock(unpinned_mutex_);
    try {
        unpinned_.push_back(pin);
        unpinned_bytes_ += bytes;
        if (unpinned_.size() >= many_unpinned || unpinned_bytes_ >= much_unpinned) tell_unpinned();
    } catch (const std::exception&) {
        // No memory, or no server any more: it learns of it when this link goes.
    }
}

// As far as the server listens; the rest is for later.
void HostLink::tell_unpinned() {
    while (!unpinned_.empty()) {
        const std::size_t count = std::min(unpinned_.size(), unpins_in_a_frame);
        const std::size_t first = unpinned_.size() - count;
        wire::Writer out;
        out.count(count);
        for (std::size_t i = first; i < first + count; ++i) local::encode(out, unpinned_[i]);
        const wire::Frame frame{.kind = wire::Kind::unpin,
                                .session = session_,
                                .total = static_cast<std::uint32_t>(out.data().size())};
        if (!socket_.try_send(wire::encode(frame), out.data())) return;
        unpinned_.resize(first);
    }
    unpinned_bytes_ = 0;
}

local::SharedLayer HostLink::decode_layer(const PendingCall& call, wire::Reader& in) {
    local::Layer layer = local::decode_layer(in);
    local::SharedLayer shared{std::move(layer.description), nullptr};
    if (!shared.description.here) return shared;
    auto pin = std::make_shared<Pin>();
    pin->link = std::static_pointer_cast<HostLink>(shared_from_this());
    pin->id = {call.id_, layer.pin};
    const std::scoped_lock lock(mutex_);
    for (std::size_t i = 0; i < layer.places.size(); ++i) {
        const auto [region, offset] = layer.places[i];
        const std::uint64_t size = shared.description.specs[i].nbytes();
        if (size == 0) {
            shared.description.data.emplace_back();
            continue;
        }
        const auto found = regions_.find(region);
        if (found == regions_.end() || offset > found->second->size ||
            size > found->second->size - offset) {
            throw Error(Errc::protocol, "malformed message: a tensor outside the shared memory");
        }
        if (pin->regions.empty() || pin->regions.back() != found->second) {
            pin->regions.push_back(found->second);
        }
        shared.description.data.emplace_back(found->second->base + offset, size);
        pin->bytes += size;
    }
    shared.pin = std::move(pin);
    return shared;
}

}  // namespace cpp_store::client
