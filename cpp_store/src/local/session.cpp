#include "local/session.hpp"

#include <fcntl.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstring>

namespace cpp_store::local {
namespace {

using Clock = std::chrono::steady_clock;

// Of a client that reads no answers, or promised bytes and sends none.
constexpr std::chrono::seconds silence{30};
// Until a client has joined.
constexpr std::chrono::seconds stranger_patience{5};
// For the next request of a client that has just had an answer.
constexpr std::chrono::microseconds request_look{50};
constexpr std::size_t max_pins = std::size_t{1} << 22;

// A second descriptor of a memory file, which can only be read by.
Descriptor read_only(int fd) {
    const std::string path = "/proc/self/fd/" + std::to_string(fd);
    Descriptor copy(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (!copy) throw Error(Errc::internal, "cannot open " + path + ": " + std::strerror(errno));
    return copy;
}

}  // namespace

Session::Session(local::Host& host, const Instance& instance, Socket socket)
    : host_(host), instance_(instance), socket_(std::move(socket)) {
    socket_.set_patience(stranger_patience, stranger_patience);
}

bool Session::end() noexcept {
    ended_ = true;  // a put that waits for its bytes sees it
    socket_.shut_down(SHUT_WR);
    const std::scoped_lock lock(mutex_);
    if (!pins_.empty()) return false;
    socket_.shut_down(SHUT_RDWR);
    return true;
}

void Session::run() {
    try {
        serve();
    } catch (const std::exception& error) {
        report(error);
    }
    {
        const std::scoped_lock lock(mutex_);
        pins_.clear();
        staging_.reset();
        if (client_ && !ended_) {
            for (const std::uint64_t lease : client_->take_leases()) {
                host_.store().drop_lease(lease);
            }
        }
    }
    socket_.shut_down(SHUT_RDWR);
    over_ = true;
}

void Session::report(const std::exception& error) noexcept {
    try {
        const std::string client = client_ ? client_->client : "a client of this host";
        const auto* const known = dynamic_cast<const Error*>(&error);
        if (!known) {
            log(LogLevel::error, client + " is dropped: " + error.what());
        } else if (known->code() == Errc::connection) {
            log(LogLevel::debug, client + " is gone: " + error.what());
        } else {
            complain(client + " is dropped: " + error.what());
        }
    } catch (const std::bad_alloc&) {
        complain("a client of this host is dropped: no memory");
    }
}

void Session::log(LogLevel level, std::string_view line) noexcept {
    const std::scoped_lock lock(mutex_);
    if (!ended_) host_.log(level, line);
}

void Session::complain(std::string_view line) noexcept {
    const std::scoped_lock lock(mutex_);
    if (!ended_) host_.complain(line);
}

void Session::serve() {
    while (!stopping_) {
        if (const auto message = socket_.receive(request_look)) handle(*message);
        if (!client_ && Clock::now() - begun_ >= stranger_patience) {
            throw Error(Errc::protocol, "it said no hello, or did not join after it");
        }
        if (ended_ && !has_pins()) return;
    }
}

bool Session::has_pins() {
    const std::scoped_lock lock(mutex_);
    return !pins_.empty();
}

void Session::handle(const Message& message) {
    const std::scoped_lock lock(mutex_);
    const wire::Frame& frame = message.frame;
    if (frame.kind == wire::Kind::unpin && frame.total == message.part.size()) {
        unpin(message.part);
        return;
    }
    if (ended_) throw Error(Errc::connection, "the server has ended");
    if (frame.kind != wire::Kind::request) {
        throw Error(Errc::protocol, "it sent what only servers send");
    }
    if (!client_) check_stranger(frame, message.part.size());
    std::optional<std::vector<std::byte>> body;
    try {
        body = requests_.add(frame, message.part);
        if (body) request(static_cast<wire::Operation>(frame.code), frame.call, std::move(*body));
    } catch (const std::bad_alloc&) {
        if (!body && frame.total != message.part.size()) throw;  // more of it is to come
        refuse(frame.call, server::Refusal::of(false));
    }
}

void Session::refuse(std::uint64_t call, const server::Refusal& refusal) {
    if (!socket_.send_body({.kind = wire::Kind::response, .code = refusal.code, .call = call},
                           refusal.body)) {
        throw Error(Errc::connection, "it reads no answers");
    }
}

void Session::refuse(server::CallPtr call) noexcept {
    try {
        refuse(call->id(), server::Refusal::of(call->has_changed()));
    } catch (const std::exception&) {
        socket_.shut_down(SHUT_RDWR);
    }
}

void Session::request(wire::Operation operation, std::uint64_t id, std::vector<std::byte> body) {
    using wire::Operation;
    const Operation expected = reception_ ? Operation::join : Operation::hello;
    const bool is_greeting = operation == Operation::hello || operation == Operation::join;
    if (client_ ? is_greeting : operation != expected) {
        throw Error(Errc::protocol, client_ ? "it said hello twice" : "it said no hello");
    }
    if (operation == Operation::bye) {
        stopping_ = true;
        return;
    }
    const auto call =
        std::make_shared<server::Call>(*this, client_, operation, id, std::move(body));
    try {
        if (client_ && !client_->requests_rate.take(Clock::now())) {
            throw Error(Errc::busy, "more requests a second than a client may make; try again");
        }
        switch (operation) {
            case Operation::hello:
                hello(*call);
                break;
            case Operation::join:
                join(*call);
                break;
            case Operation::ping:
                call->reply();
                break;
            case Operation::put:
                put(*call);
                break;
            case Operation::read:
                read(*call);
                break;
            case Operation::fetch:
                fetch(*call);
                break;
            default:
                server::handler_of(operation)(*call);
        }
    } catch (const Error& error) {
        if (error.code() == Errc::connection) throw;  // nobody to tell
        call->fail(error);
    } catch (const std::exception& error) {
        call->fail(error);
    }
}

void Session::respond(server::CallPtr call, std::uint16_t code, std::vector<std::byte> body) {
    if (!socket_.send_body({.kind = wire::Kind::response, .code = code, .call = call->id()},
                           body)) {
        throw Error(Errc::connection, "it reads no answers");
    }
    if (code != static_cast<std::uint16_t>(Errc::protocol) &&
        code != static_cast<std::uint16_t>(Errc::internal)) {
        return;
    }
    try {
        const std::string operation(wire::operation_name(call->operation()));
        if (code == static_cast<std::uint16_t>(Errc::protocol)) {
            throw Error(Errc::protocol, operation + ": malformed request");
        }
        host_.log(LogLevel::error, operation + ": " + wire::Reader(body).string());
    } catch (const std::bad_alloc&) {
        stopping_ = true;  // it is answered: nobody shall answer it again
    }
}

void Session::start_transfer(server::CallPtr, server::Transfer::Direction,
                             std::vector<server::Transfer::Piece>, std::function<void()>) {
    throw Error(Errc::internal, "a transfer to a client of this host, which needs none");
}

// Who has not joined yet gets no memory to speak of.
void Session::check_stranger(const wire::Frame& frame, std::size_t part) const {
    if (frame.total != part || (!reception_ && part > wire::max_hello)) {
        throw Error(Errc::protocol, "malformed message: more than a hello may say");
    }
}

void Session::hello(server::Call& call) {
    try {
        reception_ = std::make_unique<security::Reception>(host_.policy(), security::Way::one_host,
                                                           0, call.bytes());
    } catch (const Error& error) {
        stopping_ = true;
        if (error.code() == Errc::permission) {
            host_.complain(std::string("a client of this host is refused: ") + error.what());
        }
        throw;
    }
    wire::Writer out;
    out.raw(reception_->challenge());
    call.reply(std::move(out));
}

void Session::join(server::Call& call) {
    stopping_ = true;  // unless all is well
    const std::string client = reception_->hello().client;
    std::string refusal;
    try {
        refusal = host_.refuse(reception_->join(call.bytes()));
    } catch (const Error& error) {
        if (error.code() != Errc::permission) throw;
        host_.complain(client + " is refused: " + error.what());
        throw Error(Errc::permission, security::wrong_key(host_.policy().address));
    }
    if (!refusal.empty()) {
        host_.complain(client + " is refused: " + refusal);
        throw Error(Errc::invalid_argument, refusal);
    }
    stopping_ = false;
    socket_.set_patience(std::chrono::milliseconds(0), silence);
    client_ = std::make_shared<server::Session>(0, FI_ADDR_UNSPEC, client);
    if (const double rate = host_.limits().requests_per_second; rate > 0) {
        client_->requests_rate = {rate, rate};
    }
    host_.log(LogLevel::debug, client + " connected from this host");
    wire::Writer out;
    wire::encode(out, wire::Welcome{.proof = reception_->proof(),
                                    .memory_limit = store().arena().stats().limit});
    reception_.reset();
    out.u64(instance_.high);
    out.u64(instance_.low);
    call.reply(std::move(out));
}

// ------------------------------------------------------------------------------------ put

void Session::put(server::Call& call) {
    wire::Reader in = call.body();
    wire::Put request = wire::decode_put(in);
    in.end();

    std::optional<server::Incoming> incoming =
        server::prepare(call, std::move(request.request), std::move(request.through));
    if (!incoming) return;
    PendingPut& pending = incoming->pending;
    std::vector<std::size_t> staged;
    for (std::size_t i = 0; i < request.tensors.size(); ++i) {
        const wire::Payload& tensor = request.tensors[i];
        if (tensor.nbytes == 0) continue;
        if (tensor.remote) {
            staged.push_back(i);
        } else {
            pending.fill(i, tensor.data.data());
        }
    }
    if (!staged.empty()) stage(call, pending, staged);
    server::commit(call, *std::move(incoming));
}

// Takes tensors out of the memory that we share with the client, while it puts them in.
void Session::stage(const server::Call& call, PendingPut& pending,
                    const std::vector<std::size_t>& tensors) {
    std::vector<std::uint64_t> sizes;
    for (const std::size_t tensor : tensors) sizes.push_back(pending.buffers()[tensor].size());
    const bool is_new = !staging_;
    if (is_new) staging_ = std::make_unique<Staging>();
    if (!socket_.send({.kind = wire::Kind::staging, .call = call.id()}, {},
                      is_new ? staging_->fd() : -1)) {
        throw Error(Errc::connection, "it reads no answers");
    }
    auto moved = Clock::now();
    std::exception_ptr failure;  // the client puts all of it in before it listens
    staging_->take(
        sizes,
        [&](std::size_t i, std::uint64_t, std::span<const std::byte> piece) {
            moved = Clock::now();
            if (failure) return;
            try {
                pending.append(tensors[i], piece);
            } catch (const std::bad_alloc&) {
                failure = std::current_exception();
            }
        },
        [&] {
            if (socket_.is_over() || ended_) {
                throw Error(Errc::connection, "it went during a put");
            }
            if (Clock::now() - moved > silence) {
                throw Error(Errc::connection, "it sent no bytes of a put for " +
                                                  std::to_string(silence.count()) + " s");
            }
        });
    if (failure) std::rethrow_exception(failure);
}

// ------------------------------------------------------------------------------------ reads

void Session::read(server::Call& call) {
    server::Described found = server::describe_model(call);
    store().count_read(found.stored);
    reply(call, found.layers, found.stored);
}

void Session::fetch(server::Call& call) {
    wire::Reader in = call.body();
    const wire::Fetch request = wire::decode_fetch(in);
    in.end();
    if (request.deliver)
        throw Error(Errc::protocol, "malformed message: tensors are not sent here");
    server::Described found = server::describe_layers(call.store(), request);
    store().count_read(found.stored);
    reply(call, found.layers, found.stored);
}

void Session::reply(server::Call& call, const std::vector<wire::Layer>& layers,
                    const std::vector<StoredLayerPtr>& stored) {
    if (pins_.size() + layers.size() > max_pins) {
        throw Error(Errc::invalid_argument, "this client has views of " +
                                                std::to_string(pins_.size()) +
                                                " layers; it must let go of some");
    }
    const std::uint64_t last_pin = last_pin_;
    try {
        wire::Writer out;
        out.count(layers.size());
        for (std::size_t i = 0; i < layers.size(); ++i) encode(out, pin(layers[i], stored[i]));
        call.reply(std::move(out));
    } catch (const std::bad_alloc&) {
        unpin_since(last_pin);
        throw;
    }
}

// Of an answer that the client does not get.
void Session::unpin_since(std::uint64_t last_pin) noexcept {
    while (last_pin_ > last_pin) pins_.erase(last_pin_--);
}

Layer Session::pin(wire::Layer description, const StoredLayerPtr& stored) {
    Layer layer;
    layer.description = std::move(description);
    layer.description.here = stored != nullptr;
    if (!stored) return layer;
    for (const StoredLayer::Tensor& tensor : stored->tensors) {
        layer.description.specs.push_back(tensor.spec);
        Layer::Place place;
        if (tensor.extent.size > 0) {
            hand_over(tensor.extent.region);
            place = {static_cast<std::uint32_t>(tensor.extent.region), tensor.extent.offset};
        }
        layer.places.push_back(place);
    }
    layer.pin = ++last_pin_;
    pins_.emplace(layer.pin, stored);
    return layer;
}

// Gives the client a region that it does not have yet, and tells it which ones are no more.
void Session::hand_over(int region) {
    if (regions_.contains(region)) return;
    const auto tell = [this](int which, int fd) {
        wire::Writer out;
        out.u32(static_cast<std::uint32_t>(which));
        const std::vector<std::byte> body = out.take();
        const wire::Frame frame{.kind = wire::Kind::region,
                                .total = static_cast<std::uint32_t>(body.size())};
        if (!socket_.send(frame, body, fd)) throw Error(Errc::connection, "it reads no answers");
    };
    const Arena& arena = store().arena();
    std::erase_if(regions_, [&](int known) {
        if (arena.has_region(known)) return false;
        tell(known, -1);
        return true;
    });
    tell(region, read_only(arena.region_fd(region)).get());
    regions_.insert(region);
}

void Session::unpin(std::span<const std::byte> body) {
    wire::Reader in(body);
    for (std::uint32_t left = in.count(8); left > 0; --left) pins_.erase(in.u64());
    in.end();
}

}  // namespace cpp_store::local
