#include "local/link.hpp"

#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "local/names.hpp"

namespace cpp_store::local {
namespace {

constexpr std::chrono::microseconds look{20};               // for an answer, before sleeping
constexpr std::chrono::milliseconds look_interval{100};     // of a thread that waits for an answer
constexpr std::chrono::milliseconds probe_interval{1'000};  // of a server that says nothing
// Pins that have ended are told to the server with the next call, or at once when there are many.
constexpr std::size_t many_unpinned = 64;
constexpr std::uint64_t much_unpinned = std::uint64_t{1} << 20;
constexpr std::size_t unpins_in_a_frame = 4096;

}  // namespace

// A region of the server's arena, mapped to be read. Its pages are touched as they are used, once.
struct Link::Mapping {
    const std::byte* base = nullptr;
    std::uint64_t size = 0;

    explicit Mapping(const Descriptor& file) {
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

struct Link::Pin {
    std::shared_ptr<Link> link;
    std::uint64_t id = 0;
    std::uint64_t bytes = 0;
    std::vector<std::shared_ptr<Mapping>> regions;

    Pin() = default;
    Pin(const Pin&) = delete;
    Pin& operator=(const Pin&) = delete;
    ~Pin() { link->unpin(id, bytes); }
};

// ------------------------------------------------------------------------------------ Link

std::shared_ptr<Link> Link::open(Options options) {
    const std::vector<std::string> names = client_names(options.address);
    const std::shared_ptr<Link> link(new Link(std::move(options)));
    for (const std::string& name : names) {
        link->name_ = name;
        link->first_ = link->connect();
        if (!link->first_) continue;
        const auto channel = link->acquire();  // so that the first call finds one
        channel->busy = false;
        return link;
    }
    return nullptr;
}

std::optional<Socket> Link::connect() {
    std::optional<Socket> socket = Socket::connect(name_, options_.patience);
    if (!socket || socket->peer_user() != ::geteuid()) return std::nullopt;
    socket->set_patience(std::min(look_interval, options_.patience), options_.patience);
    security::Request::Options options = options_.request;
    options.name = number_;
    security::Request request(std::move(options));
    const std::vector<std::byte> challenge =
        ask(*socket, wire::Operation::hello, 1, request.hello());
    const std::vector<std::byte> answer =
        ask(*socket, wire::Operation::join, 2, request.join(challenge));
    wire::Reader in(answer);
    request.check(wire::decode_welcome(in));
    Instance instance;
    instance.high = in.u64();
    instance.low = in.u64();
    wire::Writer number;
    number.u64(in.u64());
    in.end();
    if (number_.empty()) number_ = number.take();
    if (instance_ == Instance{}) instance_ = instance;
    if (instance_ != instance) throw Error(Errc::connection, "the server was restarted");
    return socket;
}

// What begins a connection, and its answer.
std::vector<std::byte> Link::ask(Socket& socket, wire::Operation operation, std::uint64_t call,
                                 std::span<const std::byte> body) {
    const wire::Frame frame{
        .kind = wire::Kind::request, .code = static_cast<std::uint16_t>(operation), .call = call};
    std::optional<Message> answer;
    const auto deadline = Clock::now() + options_.patience;
    if (socket.send_body(frame, body)) {
        while (!(answer = socket.receive()) && Clock::now() < deadline) {
            if (options_.check_signals) options_.check_signals();
        }
    }
    if (!answer) throw Error(Errc::connection, "the server of this host says nothing");
    if (answer->frame.kind != wire::Kind::response || answer->frame.total != answer->part.size()) {
        throw Error(Errc::protocol, "malformed message: no answer to hello");
    }
    if (const std::uint16_t code = answer->frame.code; code != 0) {
        wire::Reader in(answer->part);
        throw Error(code < errc_count ? static_cast<Errc>(code) : Errc::protocol, in.string());
    }
    return {answer->part.begin(), answer->part.end()};
}

std::shared_ptr<Channel> Link::acquire() {
    {
        const std::scoped_lock lock(mutex_);
        std::erase_if(channels_, [](const auto& channel) { return channel->broken.load(); });
        for (const auto& channel : channels_) {
            if (!channel->busy.exchange(true)) return channel;
        }
    }
    std::optional<Socket> socket = connect();
    if (!socket) throw Error(Errc::connection, "the server is gone");
    const auto channel = std::make_shared<Channel>(*std::move(socket));
    const std::scoped_lock lock(mutex_);
    channels_.push_back(channel);
    return channel;
}

std::unique_ptr<Call> Link::start(wire::Operation operation, std::span<const std::byte> body,
                                  std::vector<std::span<const std::byte>> tensors,
                                  Clock::time_point deadline) {
    try {
        const std::shared_ptr<Channel> channel = acquire();
        // From here on it gives the channel back, or ends it.
        auto call =
            std::make_unique<Call>(shared_from_this(), channel, std::move(tensors), deadline);
        {
            const std::scoped_lock lock(unpinned_mutex_);
            if (!unpinned_.empty()) tell_unpinned(channel->socket);
        }
        const wire::Frame frame{.kind = wire::Kind::request,
                                .code = static_cast<std::uint16_t>(operation),
                                .call = ++channel->last_call};
        if (!channel->socket.send_body(frame, body)) {
            throw Error(Errc::connection, "the server takes no requests");
        }
        return call;
    } catch (const Error& error) {
        if (error.code() == Errc::connection) broken_ = true;
        throw;
    }
}

bool Link::is_alive() {
    try {
        return connect().has_value();
    } catch (const Error&) {
        return false;
    }
}

void Link::learn_region(Message message) {
    wire::Reader in(message.part);
    const std::uint32_t id = in.u32();
    in.end();
    const std::scoped_lock lock(mutex_);
    if (!message.passed) {
        regions_.erase(id);
    } else if (!regions_.contains(id)) {
        regions_[id] = std::make_shared<Mapping>(message.passed);
    }
}

// Called from wherever the last view of a layer goes, the garbage collector for one.
void Link::unpin(std::uint64_t pin, std::uint64_t bytes) noexcept {
    if (birthplace_.is_elsewhere()) return;
    const std::scoped_lock lock(unpinned_mutex_);
    try {
        unpinned_.push_back(pin);
        unpinned_bytes_ += bytes;
        if (unpinned_.size() >= many_unpinned || unpinned_bytes_ >= much_unpinned) {
            tell_unpinned(*first_);
        }
    } catch (const std::exception&) {
        // No memory, or no server any more: it learns of it when this link goes.
    }
}

// As far as the server listens; the rest is for later.
void Link::tell_unpinned(Socket& socket) {
    while (!unpinned_.empty()) {
        const std::size_t count = std::min(unpinned_.size(), unpins_in_a_frame);
        const std::size_t first = unpinned_.size() - count;
        wire::Writer out;
        out.count(count);
        for (std::size_t i = first; i < first + count; ++i) out.u64(unpinned_[i]);
        const wire::Frame frame{.kind = wire::Kind::unpin,
                                .total = static_cast<std::uint32_t>(out.data().size())};
        if (!socket.try_send(frame, out.data())) return;
        unpinned_.resize(first);
    }
    unpinned_bytes_ = 0;
}

// ------------------------------------------------------------------------------------ Call

Call::Call(std::shared_ptr<Link> link, std::shared_ptr<Channel> channel,
           std::vector<std::span<const std::byte>> tensors, Clock::time_point deadline)
    : link_(std::move(link)),
      channel_(std::move(channel)),
      tensors_(std::move(tensors)),
      deadline_(deadline) {}

Call::~Call() {
    if (done_) {
        channel_->busy = false;
    } else {
        channel_->broken = true;
        channel_->socket.shut_down(SHUT_RDWR);
    }
}

std::uint16_t Call::wait(std::vector<std::byte>& body) {
    try {
        while (true) {
            std::optional<Message> message = channel_->socket.receive(look);
            if (!message) {
                look_around();
                continue;
            }
            last_heard_ = Clock::now();
            const wire::Frame frame = message->frame;
            if (frame.kind == wire::Kind::region) {
                link_->learn_region(std::move(*message));
                continue;
            }
            if (frame.call != channel_->last_call) {
                throw Error(Errc::protocol, "malformed message: an answer that nobody asked for");
            }
            if (frame.kind == wire::Kind::staging) {
                if (message->passed) {
                    channel_->staging = std::make_unique<Staging>(std::move(message->passed));
                }
                feed();
            } else if (frame.kind == wire::Kind::response) {
                if (auto whole = channel_->responses.add(frame, message->part)) {
                    body = std::move(*whole);
                    done_ = true;
                    if (frame.code == static_cast<std::uint16_t>(Errc::protocol)) {
                        channel_->broken = true;  // the server dropped us with this answer
                    }
                    return frame.code;
                }
            }
        }
    } catch (const Error& error) {
        // After the end of a call's time the server is as good as before.
        if (error.code() != Errc::deadline) link_->broken_ = true;
        throw;
    }
}

void Call::feed() {
    if (!channel_->staging) throw Error(Errc::protocol, "malformed message: no staging memory");
    std::vector<std::uint64_t> sizes;
    for (const auto& tensor : tensors_) sizes.push_back(tensor.size());
    channel_->staging->fill(
        sizes,
        [&](std::size_t tensor, std::uint64_t offset, std::span<std::byte> memory) {
            std::memcpy(memory.data(), tensors_[tensor].data() + offset, memory.size());
            last_heard_ = Clock::now();
        },
        [&] {
            if (channel_->socket.is_over()) throw Error(Errc::connection, "the server is gone");
            look_around();
        });
}

// The server has said nothing for a while: it is busy, or it hangs, or time is up.
void Call::look_around() {
    if (link_->options_.check_signals) link_->options_.check_signals();
    const auto now = Clock::now();
    if (now >= deadline_) {
        throw Error(Errc::deadline,
                    "it is alive, but has not done it within the time-out; give it more");
    }
    if (now - last_heard_ < probe_interval) return;
    if (!link_->is_alive()) {
        throw Error(Errc::connection,
                    "the server is silent for " +
                        std::to_string(std::chrono::duration_cast<std::chrono::seconds>(
                                           Clock::now() - last_heard_)
                                           .count()) +
                        " s: it hangs");
    }
    last_heard_ = now;
}

SharedLayer Call::decode_layer(wire::Reader& in) {
    Layer layer = local::decode_layer(in);
    SharedLayer shared{std::move(layer.description), nullptr};
    if (!shared.description.here) return shared;
    auto pin = std::make_shared<Link::Pin>();
    pin->link = link_;
    pin->id = layer.pin;
    for (std::size_t i = 0; i < layer.places.size(); ++i) {
        const auto [region, offset] = layer.places[i];
        const std::uint64_t size = shared.description.specs[i].nbytes();
        if (size == 0) {
            shared.description.data.emplace_back();
            continue;
        }
        const std::scoped_lock lock(link_->mutex_);
        const auto found = link_->regions_.find(region);
        if (found == link_->regions_.end() || offset > found->second->size ||
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

}  // namespace cpp_store::local
