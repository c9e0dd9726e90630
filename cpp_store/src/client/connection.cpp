#include "client/connection.hpp"

#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "core/checksum.hpp"
#include "net/libfabric.hpp"
#include "net/waiting.hpp"

namespace cpp_store::client {
namespace {

// How long a waiting thread looks before it sleeps: somewhat longer than a call over loopback
// takes.
constexpr std::chrono::microseconds longest_spin{20};
constexpr std::chrono::milliseconds probe_interval{1'000};
constexpr std::chrono::milliseconds signal_interval{100};
constexpr std::chrono::milliseconds echo_time{100};  // that an echo may take, without a doubt
constexpr std::chrono::milliseconds silence{5'000};  // of a server that was asked for one
constexpr std::uint64_t slowest_wire = 32'000'000;   // bytes a second, for the deadline of a call

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

std::string client_name() {
    std::array<char, 256> host{};
    gethostname(host.data(), host.size() - 1);
    return std::string(host.data()) + "/" + std::to_string(getpid());
}

}  // namespace

// ------------------------------------------------------------------------------------ Waiter

Waiter::Waiter() : fd_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
    if (fd_ < 0) throw Error(Errc::internal, "no event descriptor: too many files open");
}

Waiter::~Waiter() {
    close(fd_);
}

const std::shared_ptr<Waiter>& Waiter::of_this_thread() {
    thread_local const auto waiter = std::make_shared<Waiter>();
    return waiter;
}

void Waiter::wake() noexcept {
    if (asleep_) [[maybe_unused]]
        const int done = eventfd_write(fd_, 1);
}

// ------------------------------------------------------------------------------------ PendingCall

PendingCall::~PendingCall() {
    if (!done_) connection_->abandon(*this);
}

wire::Reader PendingCall::response() const {
    if (code_ == 0) {
        if (!exposures_.empty() && exposures_.front().writable) check_sums();
        return wire::Reader(body_);
    }
    std::string why = wire::Reader(body_).string();
    const bool known = code_ < errc_count;
    throw Error(known ? static_cast<Errc>(code_) : Errc::protocol, why);
}

std::uint64_t PendingCall::exposed_bytes() const {
    std::uint64_t bytes = 0;
    for (const Exposure& exposure : exposures_) bytes += exposure.memory.size();
    return bytes;
}

std::span<const std::byte> PendingCall::take_memory(std::uint64_t most) {
    while (exposure_ < exposures_.size() && offset_ == exposures_[exposure_].memory.size()) {
        ++exposure_;
        offset_ = 0;
    }
    if (exposure_ == exposures_.size()) return {};
    const auto rest = exposures_[exposure_].memory.subspan(offset_);
    const auto taken = rest.first(std::min<std::uint64_t>(most, rest.size()));
    offset_ += taken.size();
    moved_ += taken.size();
    return taken;
}

// The memory that was fetched into holds what the server says it sent.
void PendingCall::check_sums() const {
    bool is_right = true;
    if (encrypts_) {
        is_right = moved_ == exposed_bytes();
    } else {
        // They are the last part of the response.
        const std::size_t size = exposures_.size() * sizeof(Checksum) + sizeof(std::uint32_t);
        if (body_.size() < size) throw Error(Errc::protocol, "malformed message: no checksums");
        wire::Reader in{std::span<const std::byte>(body_).last(size)};
        const std::vector<Checksum> sums = in.sums(exposures_.size());
        for (std::size_t i = 0; i < sums.size(); ++i) {
            const auto memory = exposures_[i].memory;
            is_right = is_right && checksum_of(memory.data(), memory.size()) == sums[i];
        }
    }
    if (!is_right) {
        throw Error(Errc::connection,
                    connection_->address() + ": the bytes of tensors were changed on their way");
    }
}

// ------------------------------------------------------------------------------------ Connection

Connection::Connection(Options options)
    : options_(std::move(options)), parsed_(net::Address::parse(options_.address)) {
    if (parsed_.raw.empty() && parsed_.port == 0) {
        throw Error(Errc::invalid_argument,
                    options_.address +
                        ": port 0 is for servers; give the port that the server "
                        "printed");
    }
}

Connection::~Connection() {
    if (birthplace_.is_elsewhere()) {
        // A fork's words would come out of the other's mouth.
        static_cast<void>(endpoint_.release());
        static_cast<void>(knock_.release());
        return;
    }
    if (endpoint_ && broken_.empty()) {
        send_locked(wire::Operation::bye, ++last_call_, {});
        // Messages this small leave at once, unless the server does not read: then it is no loss.
        endpoint_->progress();
    }
}

void Connection::connect() {
    const std::scoped_lock lock(mutex_);
    connect_locked();
}

void Connection::connect_locked() {
    if (endpoint_ && birthplace_.is_elsewhere()) {
        throw Error(Errc::invalid_argument, options_.address +
                                                ": the connection belongs to process " +
                                                std::to_string(birthplace_.process()) +
                                                ", of which this is a fork; connect again here");
    }
    if (endpoint_ || (local_ && local_->is_usable())) return;
    if ((local_ = open_local())) return;
    const auto patience = std::min(options_.timeout, connect_patience);
    const auto deadline = Clock::now() + patience;
    if (is_over_tcp(parsed_)) {
        if (const int error = try_port(parsed_, patience); error != 0) {
            throw Error(Errc::connection,
                        "no server at " + options_.address + ": " + net::error_text(error));
        }
    }
    endpoint_ = std::make_unique<net::Endpoint>(parsed_, net::Endpoint::Role::client,
                                                static_cast<net::Endpoint::Listener&>(*this));
    session_ = 0;
    joining_ = false;
    seals_.reset();
    encrypts_ = false;
    broken_.clear();
    responses_ = {};
    last_heard_ = last_probe_ = Clock::now();
    silent_since_ = {};
    try {
        say_hello(deadline);
    } catch (...) {
        endpoint_.reset();
        throw;
    }
}

security::Request::Options Connection::request(security::Way way) const {
    return {.address = options_.address,
            .name = endpoint_ ? endpoint_->name() : std::vector<std::byte>(),
            .client = client_name(),
            .servers = options_.servers,
            .shared = options_.key,
            .encrypt = options_.encrypt,
            .way = way};
}

void Connection::say_hello(Clock::time_point deadline) {
    security::Request request(this->request(security::Way::network));
    ++last_call_;  // of both
    const std::vector<std::byte> challenge = ask(wire::Operation::hello, request.hello(), deadline);
    const std::vector<std::byte> join = request.join(challenge);
    session_ = request.session();
    incarnation_ = request.incarnation();
    seals_ = request.take_seals();
    encrypts_ = request.encrypts();
    joining_ = true;
    const std::vector<std::byte> answer = ask(wire::Operation::join, join, deadline);
    joining_ = false;
    wire::Reader in(answer);
    const wire::Welcome welcome = wire::decode_welcome(in);
    in.end();
    request.check(welcome);
}

std::vector<std::byte> Connection::ask(wire::Operation operation, std::span<const std::byte> body,
                                       Clock::time_point deadline) {
    PendingCall call(nullptr);
    call.id_ = last_call_;
    call.waiter_ = Waiter::of_this_thread();
    calls_[call.id_] = &call;
    send_locked(operation, call.id_, body);
    while (!call.done_ && broken_.empty() && Clock::now() < deadline) {
        if (endpoint_->progress() > 0) continue;
        pollfd waiting{.fd = endpoint_->wait_fd(), .events = POLLIN, .revents = 0};
        net::sleep({&waiting, 1},
                   std::min<std::chrono::nanoseconds>(endpoint_->may_sleep(), signal_interval));
    }
    calls_.erase(call.id_);
    if (!call.done_) {
        call.done_ = true;  // nothing to abandon
        throw Error(Errc::connection,
                    options_.address + ": " +
                        (broken_.empty() ? "something listens there, but no cpp-store-server of "
                                           "this version and of provider " +
                                               endpoint_->provider() + " answers"
                                         : broken_));
    }
    (void)call.response();  // throws, if it is an error
    return std::move(call.body_);
}

void Connection::check_size(wire::Operation operation, std::span<const std::byte> body) {
    if (body.size() <= wire::max_body) return;
    throw Error(Errc::invalid_argument, std::string(wire::operation_name(operation)) + ": " +
                                            std::to_string(body.size()) +
                                            " bytes besides tensors, at most " +
                                            std::to_string(wire::max_body) + " are possible");
}

std::chrono::milliseconds Connection::time_for(std::span<const Exposure> exposures) const {
    std::uint64_t bytes = 0;
    for (const Exposure& exposure : exposures) bytes += exposure.memory.size();
    return options_.timeout + std::chrono::milliseconds(bytes / (slowest_wire / 1000));
}

void Connection::send_locked(wire::Operation operation, std::uint64_t call,
                             std::span<const std::byte> body) {
    check_size(operation, body);
    wire::Frame frame{.kind = wire::Kind::request,
                      .code = static_cast<std::uint16_t>(operation),
                      .session = session_,
                      .call = call,
                      .total = static_cast<std::uint32_t>(body.size())};
    do {
        const std::size_t size = std::min(room(), body.size() - frame.offset);
        send_frame(frame, body.subspan(frame.offset, size));
        frame.offset += static_cast<std::uint32_t>(size);
    } while (frame.offset < body.size());
}

std::size_t Connection::room() const {
    return endpoint_->max_message() - wire::frame_header_size -
           (seals_ ? security::Seal::tag_size : std::size_t{0});
}

void Connection::send_frame(const wire::Frame& frame, std::span<const std::byte> part) {
    endpoint_->send(endpoint_->server(), wire::encode(frame), part,
                    seals_ ? &seals_->out : nullptr);
}

PendingCallPtr Connection::start(wire::Operation operation, const Encode& encode,
                                 std::span<const Exposure> exposures) {
    if (auto link = local_link()) {
        return start_local(std::move(link), operation, encode, exposures);
    }
    PendingCallPtr call(new PendingCall(shared_from_this()));
    call->done_ = true;  // until it is under way there is nothing to abandon
    call->waiter_ = Waiter::of_this_thread();
    const std::scoped_lock lock(mutex_);
    connect_locked();
    if (!endpoint_) {  // a server that has moved to this host in just this moment
        throw Error(Errc::connection, options_.address + ": the connection was reset");
    }
    std::vector<wire::Remote> remotes;
    remotes.reserve(exposures.size());
    call->encrypts_ = encrypts_;
    if (seals_) call->exposures_.assign(exposures.begin(), exposures.end());
    if (encrypts_) remotes.resize(exposures.size());
    for (const Exposure& exposure : encrypts_ ? std::span<const Exposure>() : exposures) {
        const auto& region =
            call->regions_.emplace_back(endpoint_->expose(exposure.memory, exposure.writable));
        remotes.push_back({region.address(), region.key()});
    }
    try {
        wire::Writer body;
        encode(body, remotes);
        if (operation == wire::Operation::put) add_sums(body, exposures);
        call->id_ = ++last_call_;
        if (calls_.empty()) last_heard_ = Clock::now();  // before, nobody asked
        call->deadline_ = Clock::now() + time_for(exposures);
        send_locked(operation, call->id_, body.data());
        calls_[call->id_] = call.get();
    } catch (...) {
        call->regions_.clear();  // under the lock, as the endpoint wants
        throw;
    }
    call->done_ = false;
    return call;
}

PendingCallPtr Connection::call(wire::Operation operation, const Encode& encode) {
    PendingCallPtr call = start(operation, encode);
    wait({&call, 1});
    return call;
}

void Connection::tell(wire::Operation operation, const Encode& encode) {
    if (auto link = local_link()) {  // where it is no use not to wait
        start_local(std::move(link), operation, encode, {})->wait_for_local();
        return;
    }
    wire::Writer body;
    encode(body, {});
    const std::scoped_lock lock(mutex_);
    connect_locked();
    send_locked(operation, ++last_call_, body.data());
    endpoint_->progress();
}

// ------------------------------------------------------------------------------------ waiting

void Connection::wait(std::span<const PendingCallPtr> calls) {
    if (calls.empty()) return;
    for (const PendingCallPtr& call : calls) call->wait_for_local();
    Waiter& waiter = *Waiter::of_this_thread();
    std::vector<pollfd> waiting;
    thread_local net::Spin spin(longest_spin);
    bool slept = false;
    auto signals_checked = Clock::now();
    const auto& check_signals = calls.front()->connection_->options_.check_signals;
    spin.start(Clock::now());
    while (true) {
        std::size_t handled = 0;
        bool all_done = true;
        for (const PendingCallPtr& call : calls) {
            if (call->done_) continue;
            handled += call->connection_->drive();
            all_done = all_done && call->done_;
        }
        if (all_done) {
            if (!slept) spin.found();
            return;
        }
        if (handled > 0 || spin.goes_on(Clock::now())) continue;
        if (!std::exchange(slept, true)) spin.missed();

        waiter.asleep_ = true;  // before looking again: who ends a call after this wakes us
        waiting.assign(1, {waiter.fd_, POLLIN, 0});
        std::chrono::microseconds limit = signal_interval;
        for (const PendingCallPtr& call : calls) {
            if (call->done_) continue;
            int fd = -1;
            limit = std::min(limit, call->connection_->before_sleep(*call, fd));
            if (fd >= 0) waiting.push_back({fd, POLLIN, 0});
        }
        net::sleep(waiting, limit);
        waiter.asleep_ = false;
        if (check_signals && Clock::now() - signals_checked >= signal_interval) {
            signals_checked = Clock::now();
            check_signals();
        }
        eventfd_t ignored = 0;
        if (waiting[0].revents != 0) eventfd_read(waiter.fd_, &ignored);
    }
}

std::size_t Connection::drive() {
    const std::scoped_lock lock(mutex_);
    if (!endpoint_) return 0;
    const std::size_t handled = endpoint_->progress();
    if (!broken_.empty()) disconnect(broken_);
    return handled;
}

std::chrono::microseconds Connection::before_sleep(PendingCall& call, int& fd) {
    const std::scoped_lock lock(mutex_);
    if (!call.done_) check(call, Clock::now());
    if (call.done_ || !endpoint_) return {};
    fd = endpoint_->wait_fd();
    return endpoint_->may_sleep();
}

void Connection::check(PendingCall& call, Clock::time_point now) {
    if (now >= call.deadline_) {
        const bool exposed = !call.regions_.empty() || !call.exposures_.empty();
        fail(call, Errc::deadline,
             options_.address + " is alive, but has not done it within the time-out; give it more");
        // The server may still be about to write: only the end of the endpoint ends its right.
        if (exposed) disconnect("reset after another call ran out of time");
        return;
    }
    if (now - last_heard_ < probe_interval) return;
    if (silent_since_ != Clock::time_point{} && now - silent_since_ >= echo_time &&
        was_restarted()) {
        disconnect("the server was started again, and knows nothing of this connection");
        return;
    }
    if (now - last_probe_ < probe_interval) return;
    if (silent_since_ == Clock::time_point{}) silent_since_ = now;
    if (now - silent_since_ >= silence) {
        disconnect(
            "the server is silent for " +
            std::to_string(std::chrono::duration_cast<std::chrono::seconds>(silence).count()) +
            " s: it hangs, or the network is down");
        return;
    }
    if (is_over_tcp(parsed_)) {
        const int error = try_port(parsed_, std::chrono::milliseconds(100));
        if (error != 0 && error != ETIMEDOUT) {
            disconnect("the server is gone: " + net::error_text(error));
            return;
        }
    }
    last_probe_ = now;
    send_frame({.kind = wire::Kind::probe, .session = session_}, {});
}

bool Connection::was_restarted() {
    try {
        if (!knock_) knock_ = std::make_unique<Knock>(parsed_, request(security::Way::network));
        const std::uint64_t there = knock_->answer();
        return there != 0 && there != incarnation_;
    } catch (const Error&) {  // not to be found out this way
        return false;
    }
}

// ------------------------------------------------------------------------------------ answers

void Connection::received(std::span<std::byte> message) {
    try {
        // Others may know our address, but not the session.
        if (session_ != 0 && wire::session_of(message) != session_) return;
        if (seals_ && !(joining_ && is_refusal(message))) {
            message = seals_->in.open(message);
            if (message.empty()) {
                broken_ = "a message that is not the server's, or comes twice or out of turn";
                return;
            }
        }
        last_heard_ = Clock::now();
        silent_since_ = {};
        knock_.reset();
        std::span<const std::byte> part;
        const wire::Frame frame = wire::decode_frame(message, part);
        const bool is_bulk = frame.kind == wire::Kind::bulk || frame.kind == wire::Kind::credit;
        if (frame.kind != wire::Kind::response && !is_bulk) return;
        const auto found = calls_.find(frame.call);
        if (found == calls_.end()) {
            responses_.forget(frame.call);
            return;
        }
        if (is_bulk) {
            if (frame.kind == wire::Kind::credit) {
                send_bulk(*found->second, part);
            } else {
                take_bulk(*found->second, part);
            }
            return;
        }
        if (auto body = responses_.add(frame, part)) {
            finish(*found->second, frame.code, std::move(*body));
        }
    } catch (const Error& error) {
        broken_ = error.what();
    }
}

// A server that does not know our key cannot seal that it does not. What anybody could have said
// here ends the connection, and no more.
bool Connection::is_refusal(std::span<const std::byte> message) const {
    try {
        std::span<const std::byte> part;
        const wire::Frame frame = wire::decode_frame(message, part);
        return frame.kind == wire::Kind::response && frame.code != 0 &&
               calls_.contains(frame.call) && part.size() == frame.total;
    } catch (const Error&) {
        return false;
    }
}

void Connection::add_sums(wire::Writer& body, std::span<const Exposure> exposures) const {
    if (!seals_ || encrypts_) return;
    std::vector<Checksum> sums;
    sums.reserve(exposures.size());
    for (const Exposure& exposure : exposures) {
        sums.push_back(checksum_of(exposure.memory.data(), exposure.memory.size()));
    }
    body.sums(sums);
}

void Connection::send_bulk(PendingCall& call, std::span<const std::byte> credit) {
    call.credit_ = std::max(call.credit_, wire::Reader(credit).u64());
    while (call.moved_ < call.credit_) {
        const auto part =
            call.take_memory(std::min<std::uint64_t>(room(), call.credit_ - call.moved_));
        if (part.empty()) throw Error(Errc::protocol, "malformed message: credit for no bytes");
        send_frame({.kind = wire::Kind::bulk,
                    .session = session_,
                    .call = call.id_,
                    .total = static_cast<std::uint32_t>(part.size())},
                   part);
    }
}

void Connection::take_bulk(PendingCall& call, std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
        const auto memory = call.take_memory(bytes.size());
        if (memory.empty() || !call.exposures_.front().writable) {
            throw Error(Errc::protocol, "malformed message: bytes that nobody asked for");
        }
        // Exposed to be written to, which its type does not say.
        std::memcpy(const_cast<std::byte*>(memory.data()), bytes.data(), memory.size());
        bytes = bytes.subspan(memory.size());
    }
    const std::uint64_t total = call.exposed_bytes();
    const std::uint64_t allowed = std::max(call.credit_, wire::bulk_window);
    if (allowed >= total || allowed - call.moved_ > wire::bulk_window / 2) return;
    call.credit_ = call.moved_ + wire::bulk_window;
    wire::Writer out;
    out.u64(call.credit_);
    send_frame({.kind = wire::Kind::credit,
                .session = session_,
                .call = call.id_,
                .total = static_cast<std::uint32_t>(out.data().size())},
               out.data());
}

void Connection::send_failed(net::Peer, int error) {
    broken_ = "the server cannot be reached any more: " + net::error_text(error);
}

void Connection::finish(PendingCall& call, std::uint16_t code, std::vector<std::byte> body) {
    calls_.erase(call.id_);
    call.code_ = code;
    call.body_ = std::move(body);
    call.regions_.clear();
    const std::shared_ptr<Waiter> waiter = call.waiter_;
    call.done_ = true;  // its thread may destroy it from here on, and end
    waiter->wake();
    // The server dropped us with this answer.
    if (code == static_cast<std::uint16_t>(Errc::protocol)) broken_ = "the server dropped us";
}

void Connection::fail(PendingCall& call, Errc code, const std::string& why) {
    wire::Writer body;
    body.string(why);
    responses_.forget(call.id_);
    finish(call, static_cast<std::uint16_t>(code), body.take());
}

void Connection::disconnect(const std::string& why) {
    const std::string text = options_.address + ": " + why;
    endpoint_->close();
    while (!calls_.empty()) fail(*calls_.begin()->second, Errc::connection, text);
    endpoint_.reset();
    knock_.reset();
    broken_.clear();
}

void Connection::abandon(PendingCall& call) {
    const std::scoped_lock lock(mutex_);
    if (call.done_) return;
    const bool exposed = !call.regions_.empty() || !call.exposures_.empty();
    calls_.erase(call.id_);
    responses_.forget(call.id_);
    call.regions_.clear();
    if (exposed) disconnect("reset after another call was given up");
}

}  // namespace cpp_store::client
