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
constexpr std::chrono::milliseconds farewell{250};
// For the next request of a client that has just had an answer.
constexpr std::chrono::microseconds request_look{50};

// A second descriptor of a memory file, which can only be read by.
Descriptor read_only(int fd) {
    const std::string path = "/proc/self/fd/" + std::to_string(fd);
    Descriptor copy(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (!copy) throw Error(Errc::internal, "cannot open " + path + ": " + std::strerror(errno));
    return copy;
}

}  // namespace

void Request::answer(Answer given) noexcept {
    const std::scoped_lock lock(mutex_);
    if (!answer_) answer_ = std::move(given);
    answered_.notify_one();
}

Request::Answer Request::wait() {
    std::unique_lock lock(mutex_);
    answered_.wait(lock, [this] { return answer_.has_value(); });
    return *std::move(answer_);
}

Session::Session(local::Host& host, Clients& clients, Socket socket)
    : host_(host), clients_(clients), socket_(std::move(socket)) {
    socket_.set_patience(stranger_patience, stranger_patience);
}

bool Session::end() noexcept {
    ended_ = true;  // a put that waits for its bytes sees it
    socket_.shut_down(SHUT_WR);
    const std::scoped_lock lock(mutex_);
    if (keeps_pins()) return false;
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
        if (!ended_) drop_unconfirmed();  // else nobody knows whether they came
        staging_.reset();
        if (is_first_) {
            client_->end();
            for (const std::uint64_t lease : client_->session->take_leases()) {
                if (!ended_) host_.store().drop_lease(lease);
            }
        }
        client_.reset();
    }
    socket_.shut_down(SHUT_RDWR);
    over_ = true;
}

void Session::report(const std::exception& error) noexcept {
    try {
        const std::string client = client_ ? client_->session->client : "a client of this host";
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
        const std::scoped_lock lock(mutex_);
        if (ended_ && !keeps_pins()) return;
    }
}

bool Session::keeps_pins() {
    return is_first_ && client_ && client_->has_pins();
}

void Session::handle(const Message& message) {
    const std::scoped_lock lock(mutex_);
    const wire::Frame& frame = message.frame;
    unconfirmed_.clear();
    if (frame.kind == wire::Kind::unpin && client_ && frame.total == message.part.size()) {
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
        drop_unconfirmed();
        const server::Refusal refusal = server::Refusal::of(false);
        send(frame.call, refusal.code, refusal.body);
    }
}

void Session::respond(server::CallPtr call, std::uint16_t code, std::vector<std::byte> body) {
    static_cast<Request&>(*call).answer({.code = code, .body = std::move(body), .refusal = {}});
}

void Session::refuse(server::CallPtr call) noexcept {
    static_cast<Request&>(*call).answer(
        {.code = 0, .body = {}, .refusal = server::Refusal::of(call->has_changed())});
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
    const auto call = std::make_shared<Request>(*this, client_ ? client_->session : nullptr,
                                                operation, id, std::move(body));
    try {
        dispatch(*call);
    } catch (const Error& error) {
        if (error.code() == Errc::connection) throw;  // nobody to tell
        call->fail(error);
    } catch (const std::exception& error) {
        call->fail(error);
    }
    send(*call, call->wait());
}

void Session::dispatch(server::Call& call) {
    using wire::Operation;
    if (client_ && !client_->may_request()) {
        throw Error(Errc::busy, "more requests a second than a client may make; try again");
    }
    switch (call.operation()) {
        case Operation::hello:
            return hello(call);
        case Operation::join:
            return join(call);
        case Operation::ping:
            return call.reply();
        case Operation::put:
            return put(call);
        case Operation::read:
            return read(call);
        case Operation::fetch:
            return fetch(call);
        default:
            return server::handler_of(call.operation())(call);
    }
}

void Session::send(const Request& call, const Request::Answer& answer) {
    const std::uint16_t code = answer.refusal ? answer.refusal->code : answer.code;
    if (code != 0) drop_unconfirmed();
    send(call.id(), code,
         answer.refusal ? answer.refusal->body : std::span<const std::byte>(answer.body));
    const bool is_malformed = code == static_cast<std::uint16_t>(Errc::protocol);
    if (!is_malformed && code != static_cast<std::uint16_t>(Errc::internal)) return;
    try {
        const std::string operation(wire::operation_name(call.operation()));
        if (is_malformed) throw Error(Errc::protocol, operation + ": malformed request");
        host_.log(LogLevel::error, operation + ": " + wire::Reader(answer.body).string());
    } catch (const std::bad_alloc&) {
        stopping_ = true;  // it is answered: nobody shall answer it again
    }
}

void Session::send(std::uint64_t call, std::uint16_t code, std::span<const std::byte> body) {
    if (!socket_.send_body({.kind = wire::Kind::response, .code = code, .call = call}, body)) {
        throw Error(Errc::connection, "it reads no answers");
    }
}

void Session::drop_unconfirmed() noexcept {
    if (client_) client_->unpin(unconfirmed_);
    unconfirmed_.clear();
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
    const std::vector<std::byte>& number = reception_->hello().address;
    std::shared_ptr<Client> joining;
    std::string refusal;
    try {
        const std::vector<std::string> servers = reception_->join(call.bytes());
        joining = number.empty() ? clients_.enter(client, host_.limits().requests_per_second)
                                 : clients_.find(number);
        // Of a client that has just gone, the threads may not know yet.
        const auto patience = Clock::now() + farewell;
        while (!(refusal = host_.refuse(servers, *joining->session)).empty() && !ended_ &&
               Clock::now() < patience) {
            std::this_thread::sleep_for(farewell / 50);
        }
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
    is_first_ = number.empty();
    client_ = std::move(joining);
    if (is_first_) host_.log(LogLevel::debug, client + " connected from this host");
    wire::Writer out;
    wire::encode(out, wire::Welcome{.proof = reception_->proof(),
                                    .memory_limit = store().arena().stats().limit});
    reception_.reset();
    out.u64(clients_.instance.high);
    out.u64(clients_.instance.low);
    out.u64(client_->id);
    call.reply(std::move(out));
}

// ------------------------------------------------------------------------------------ put

void Session::put(server::Call& call) {
    wire::Reader in = call.body();
    wire::Put request = wire::decode_put(in);
    in.end();

    PendingPut pending = server::prepare(call, std::move(request.request));
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
    server::commit(call, std::move(pending));
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
    wire::Writer out;
    out.count(layers.size());
    for (std::size_t i = 0; i < layers.size(); ++i) encode(out, pin(layers[i], stored[i]));
    call.reply(std::move(out));
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
    unconfirmed_.push_back(0);
    layer.pin = unconfirmed_.back() = client_->pin(stored);
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
    for (std::uint32_t left = in.count(8); left > 0; --left) {
        const std::uint64_t pin = in.u64();
        client_->unpin({&pin, 1});
    }
    in.end();
}

}  // namespace cpp_store::local
