#include "client/link.hpp"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "core/checksum.hpp"
#include "net/waiting.hpp"

namespace cpp_store::client {
namespace {

// How long a waiting thread looks before it sleeps: somewhat longer than a call over loopback
// takes.
constexpr std::chrono::microseconds longest_spin{20};
constexpr std::chrono::milliseconds echo_time{100};  // that an echo may take, without a doubt
constexpr std::chrono::milliseconds silence{5'000};  // of a server that was asked for one
// Of a server that was told that nobody waits for a call: what it was about to move.
constexpr std::chrono::milliseconds farewell{1'000};
constexpr std::uint64_t slowest_wire = 32'000'000;  // bytes a second, for the deadline of a call

// A call has ended while its tensors were put in.
struct Ended {};

}  // namespace

std::string client_name() {
    std::array<char, 256> host{};
    gethostname(host.data(), host.size() - 1);
    return std::string(host.data()) + "/" + std::to_string(getpid());
}

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

PendingCall::PendingCall(std::shared_ptr<Link> link)
    : link_(std::move(link)), waiter_(Waiter::of_this_thread()), done_(true) {}

PendingCall::~PendingCall() {
    if (!done_) {
        link_->give_up(*this);
    } else if (may_pin_ && code_ == 0 && !was_decoded_) {
        link_->tell_given_up(*this);
    }
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

local::SharedLayer PendingCall::decode_layer(wire::Reader& in) const {
    was_decoded_ = true;
    return link_->decode_layer(*this, in);
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
    if (link_->encrypts_) {
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
                    link_->options_.address + ": the bytes of tensors were changed on their way");
    }
}

// ------------------------------------------------------------------------------------ joining

security::Request::Options Link::request() const {
    return {.address = options_.address,
            .name = name(),
            .client = client_name(),
            .servers = options_.servers,
            .shared = options_.key,
            .encrypt = options_.encrypt,
            .way = way()};
}

void Link::join(Clock::time_point deadline) {
    security::Request request(this->request());
    std::uint64_t call = 0;  // of both
    {
        const std::scoped_lock lock(mutex());
        call = next_call();
        greeted(call);
    }
    const std::vector<std::byte> challenge =
        ask(wire::Operation::hello, call, request.hello(), deadline);
    const std::vector<std::byte> join = request.join(challenge);
    {
        const std::scoped_lock lock(mutex());
        session_ = request.session();
        incarnation_ = request.incarnation();
        seals_ = request.take_seals();
        encrypts_ = request.encrypts();
        joining_ = true;
        joined(session_);
    }
    const std::vector<std::byte> answer = ask(wire::Operation::join, call, join, deadline);
    wire::Reader in(answer);
    const wire::Welcome welcome = wire::decode_welcome(in);
    in.end();
    request.check(welcome);
    const std::scoped_lock lock(mutex());
    joining_ = false;
}

std::vector<std::byte> Link::ask(wire::Operation operation, std::uint64_t id,
                                 std::span<const std::byte> body, Clock::time_point deadline) {
    PendingCallPtr call(new PendingCall(shared_from_this()));
    call->id_ = id;
    call->deadline_ = deadline;
    {
        const std::scoped_lock lock(mutex());
        calls_[id] = call.get();
        call->done_ = false;
        send_body(operation, id, body);
    }
    wait({&call, 1});
    if (call->code_ == static_cast<std::uint16_t>(Errc::deadline)) {
        throw Error(Errc::connection, options_.address +
                                          ": something listens there, but no cpp-store-server of "
                                          "this version and of provider " +
                                          transport() + " answers");
    }
    (void)call->response();  // throws, if it is an error
    return std::move(call->body_);
}

void Link::leave() noexcept {
    if (is_broken_ || birthplace_.is_elsewhere()) return;
    try {
        const std::scoped_lock lock(mutex());
        send_body(wire::Operation::bye, next_call(), {});
        // Messages this small leave at once, unless the server does not read: then it is no loss.
        (void)progress();
    } catch (const std::exception&) {
        // It learns of it as the kernel tells it.
    }
}

// ------------------------------------------------------------------------------------ calls

void Link::check_size(wire::Operation operation, std::span<const std::byte> body) {
    if (body.size() <= wire::max_body) return;
    throw Error(Errc::invalid_argument, std::string(wire::operation_name(operation)) + ": " +
                                            std::to_string(body.size()) +
                                            " bytes besides tensors, at most " +
                                            std::to_string(wire::max_body) + " are possible");
}

std::chrono::milliseconds Link::time_for(std::span<const Exposure> exposures) const {
    std::uint64_t bytes = 0;
    for (const Exposure& exposure : exposures) bytes += exposure.memory.size();
    return options_.timeout + std::chrono::milliseconds(bytes / (slowest_wire / 1000));
}

void Link::send_body(wire::Operation operation, std::uint64_t call,
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

std::size_t Link::room() const {
    return most_part() - (seals_ ? security::Seal::tag_size : std::size_t{0});
}

void Link::send_frame(const wire::Frame& frame, std::span<const std::byte> part) {
    send_message(wire::encode(frame), part, seals_ ? &seals_->out : nullptr);
}

PendingCallPtr Link::start(wire::Operation operation, const Encode& encode,
                           std::span<const Exposure> exposures) {
    PendingCallPtr call(new PendingCall(shared_from_this()));
    std::vector<wire::Remote> remotes;
    remotes.reserve(exposures.size());
    const std::scoped_lock lock(mutex());
    if (is_broken_) throw Error(Errc::connection, options_.address + ": the connection was reset");
    try {
        prepare(*call, exposures, remotes);
        wire::Writer body;
        encode(body, remotes);
        if (operation == wire::Operation::put) add_sums(body, exposures);
        call->id_ = next_call();
        if (calls_.empty()) last_heard_ = Clock::now();  // before, nobody asked
        call->deadline_ = Clock::now() + time_for(exposures);
        send_body(operation, call->id_, body.data());
        calls_[call->id_] = call.get();
    } catch (...) {
        call->regions_.clear();  // under the lock, as the endpoint wants
        throw;
    }
    call->may_pin_ =
        is_on_host() && (operation == wire::Operation::read || operation == wire::Operation::fetch);
    call->done_ = false;
    return call;
}

void Link::tell(wire::Operation operation, const Encode& encode) {
    wire::Writer body;
    encode(body, {});
    const std::scoped_lock lock(mutex());
    send_body(operation, next_call(), body.data());
    (void)progress();
    settle();
}

void Link::wait(std::span<const PendingCallPtr> calls) {
    if (calls.empty()) return;
    Waiter& waiter = *Waiter::of_this_thread();
    std::vector<pollfd> waiting;
    thread_local net::Spin spin(longest_spin);
    bool slept = false;
    auto signals_checked = Clock::now();
    const auto& check_signals = calls.front()->link_->options_.check_signals;
    spin.start(Clock::now());
    while (true) {
        std::size_t handled = 0;
        bool all_done = true;
        for (const PendingCallPtr& call : calls) {
            if (call->done_) continue;
            handled += call->link_->drive();
            if (call->may_fill_) call->link_->fill(*call);
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
            if (!call->done_) call->link_->look_after(*call);
            if (call->done_ || call->may_fill_) {
                limit = {};
                continue;
            }
            const Nap nap = call->link_->nap_of(*call);
            limit = std::min(limit, nap.limit);
            if (nap.fd >= 0) waiting.push_back({nap.fd, nap.events, 0});
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

std::size_t Link::drive() {
    const std::scoped_lock lock(mutex());
    if (is_broken_) return 0;
    const std::size_t handled = progress();
    settle();
    return handled;
}

Link::Nap Link::nap_of(PendingCall& call) {
    const std::scoped_lock lock(mutex());
    if (call.done_ || is_broken_) return {};
    return before_sleep();
}

void Link::look_after(PendingCall& call) {
    const auto now = Clock::now();
    if (now >= call.deadline_) {
        give_up(call);
        const std::scoped_lock lock(mutex());
        if (call.done_) return;
        fail(call, Errc::deadline,
             options_.address + " is alive, but has not done it within the time-out; give it more");
        return;
    }
    const std::scoped_lock lock(mutex());
    if (!is_broken_) check(now);
}

void Link::check(Clock::time_point now) {
    if (now - last_heard_ < probe_interval) return;
    const bool is_silent = silent_since_ != Clock::time_point{};
    if (is_silent && now - silent_since_ >= echo_time) {
        if (const std::string why = find_out(false); !why.empty()) {
            disconnect(why);
            return;
        }
    }
    if (now - last_probe_ < probe_interval) return;
    if (!is_silent) silent_since_ = now;
    if (now - silent_since_ >= silence) {
        disconnect(
            "the server is silent for " +
            std::to_string(std::chrono::duration_cast<std::chrono::seconds>(silence).count()) +
            " s: it hangs, or the network is down");
        return;
    }
    if (const std::string why = find_out(true); !why.empty()) {
        disconnect(why);
        return;
    }
    last_probe_ = now;
    send_frame({.kind = wire::Kind::probe, .session = session_}, {});
}

// Puts the tensors of a put into the memory that the server has given it, while this takes them
// out.
void Link::fill(PendingCall& call) {
    call.may_fill_ = false;
    const std::shared_ptr<local::Staging> stage = call.stage_;
    std::vector<std::uint64_t> sizes;
    for (const Exposure& exposure : call.exposures_) sizes.push_back(exposure.memory.size());
    stage->begin(std::move(sizes));
    try {
        stage->fill(
            [&](std::size_t tensor, std::uint64_t offset, std::span<std::byte> memory) {
                std::memcpy(memory.data(), call.exposures_[tensor].memory.data() + offset,
                            memory.size());
            },
            [&] {
                (void)drive();
                if (!call.done_) look_after(call);
                if (call.done_) throw Ended{};
                if (options_.check_signals) options_.check_signals();
            },
            [&] {
                const std::scoped_lock lock(mutex());
                if (call.done_) throw Ended{};
                send_frame({.kind = wire::Kind::staging, .session = session_, .call = call.id_},
                           {});
            });
    } catch (const Ended&) {
        // With an error, which the call has.
    }
    const std::scoped_lock lock(mutex());
    last_heard_ = Clock::now();  // it has taken what we put in
}

// The caller's memory is its own again when this returns, whether the server answers or not;
// nothing else of this client is touched if it does.
void Link::give_up(PendingCall& call) noexcept {
    try {
        std::unique_lock lock(mutex());
        if (call.done_ || is_broken_) return;
        const bool must_wait = must_confirm(call);
        responses_.forget(call.id_);
        calls_.erase(call.id_);
        if (session_ == 0 || joining_) return;
        if (must_wait) given_up_[call.id_] = false;
        send_frame({.kind = wire::Kind::give_up, .session = session_, .call = call.id_}, {});
        (void)progress();
        settle();
        if (!must_wait) return;
        // Until then its memory is exposed: taken away before, the server would see an error.
        const auto end = Clock::now() + farewell;
        while (!is_broken_ && !given_up_[call.id_] && Clock::now() < end) {
            if (progress() == 0) {
                const Nap nap = before_sleep();
                lock.unlock();
                pollfd waiting{nap.fd, nap.events, 0};
                net::sleep({&waiting, 1}, std::min<std::chrono::nanoseconds>(
                                              nap.limit, std::chrono::milliseconds(10)));
                lock.lock();
            }
            settle();
        }
        const bool is_confirmed = given_up_[call.id_];
        given_up_.erase(call.id_);
        if (!is_confirmed && !is_broken_) {
            close(true);
            disconnect("reset, as the server does not say that it leaves a call alone");
        }
        call.regions_.clear();  // under the lock, as the endpoint wants
    } catch (const std::exception&) {
        try {
            const std::scoped_lock lock(mutex());
            close(true);
            disconnect("reset for want of memory");
            call.regions_.clear();
        } catch (const std::exception&) {
        }
    }
}

void Link::tell_given_up(const PendingCall& call) noexcept {
    try {
        const std::scoped_lock lock(mutex());
        if (is_broken_) return;
        send_frame({.kind = wire::Kind::give_up, .session = session_, .call = call.id_}, {});
    } catch (const std::exception&) {
        // It stays pinned until this client is gone.
    }
}

// ------------------------------------------------------------------------------------ answers

PendingCall* Link::find(std::uint64_t call) {
    const auto found = calls_.find(call);
    return found == calls_.end() ? nullptr : found->second;
}

void Link::received(std::span<std::byte> message, local::Descriptor passed) {
    try {
        // Others may know our address, but not the session.
        if (session_ != 0 && wire::session_of(message) != session_) return;
        if (seals_ && !(joining_ && is_refusal(message))) {
            message = seals_->in.open(message);
            if (message.empty()) {
                break_off("a message that is not the server's, or comes twice or out of turn");
                return;
            }
        }
        last_heard_ = Clock::now();
        silent_since_ = {};
        heard();
        std::span<const std::byte> part;
        const wire::Frame frame = wire::decode_frame(message, part);
        PendingCall* const call = find(frame.call);
        switch (frame.kind) {
            case wire::Kind::response:
                if (!call) {
                    responses_.forget(frame.call);
                } else if (auto body = responses_.add(frame, part)) {
                    finish(*call, frame.code, std::move(*body));
                }
                return;
            case wire::Kind::credit:
                if (call) send_bulk(*call, part);
                return;
            case wire::Kind::bulk:
                if (call) take_bulk(*call, part);
                return;
            case wire::Kind::give_up:
                if (const auto told = given_up_.find(frame.call); told != given_up_.end()) {
                    told->second = true;
                }
                return;
            case wire::Kind::echo:
                return;
            default:
                hear_else(frame, part, std::move(passed));
        }
    } catch (const std::exception& error) {
        break_off(error.what());
    }
}

void Link::hear_else(const wire::Frame& /*frame*/, std::span<const std::byte> /*part*/,
                     local::Descriptor /*passed*/) {
    break_off("malformed message: what does not belong here");
}

// A server that does not know our key cannot seal that it does not. What anybody could have said
// here ends the connection, and no more.
bool Link::is_refusal(std::span<const std::byte> message) const {
    try {
        std::span<const std::byte> part;
        const wire::Frame frame = wire::decode_frame(message, part);
        return frame.kind == wire::Kind::response && frame.code != 0 &&
               calls_.contains(frame.call) && part.size() == frame.total;
    } catch (const Error&) {
        return false;
    }
}

void Link::add_sums(wire::Writer& body, std::span<const Exposure> exposures) const {
    if (!seals_ || encrypts_) return;
    std::vector<Checksum> sums;
    sums.reserve(exposures.size());
    for (const Exposure& exposure : exposures) {
        sums.push_back(checksum_of(exposure.memory.data(), exposure.memory.size()));
    }
    body.sums(sums);
}

void Link::send_bulk(PendingCall& call, std::span<const std::byte> credit) {
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

void Link::take_bulk(PendingCall& call, std::span<const std::byte> bytes) {
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

void Link::finish(PendingCall& call, std::uint16_t code, std::vector<std::byte> body) {
    calls_.erase(call.id_);
    call.code_ = code;
    call.body_ = std::move(body);
    call.regions_.clear();
    const std::shared_ptr<Waiter> waiter = call.waiter_;
    call.done_ = true;  // its thread may destroy it from here on, and end
    waiter->wake();
    // The server dropped us with this answer.
    if (code == static_cast<std::uint16_t>(Errc::protocol)) break_off("the server dropped us");
}

void Link::fail(PendingCall& call, Errc code, const std::string& why) {
    wire::Writer body;
    body.string(why);
    responses_.forget(call.id_);
    finish(call, static_cast<std::uint16_t>(code), body.take());
}

void Link::settle() {
    if (!broken_.empty() && !is_broken_) disconnect(broken_);
}

void Link::disconnect(const std::string& why) {
    if (is_broken_.exchange(true)) return;
    const std::string text = options_.address + ": " + why;
    const bool moving = std::ranges::any_of(
        calls_, [](const auto& entry) { return !entry.second->regions_.empty(); });
    close(moving);
    while (!calls_.empty()) fail(*calls_.begin()->second, Errc::connection, text);
}

}  // namespace cpp_store::client
