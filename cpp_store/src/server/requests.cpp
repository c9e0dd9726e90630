// What clients ask for, and who answers it.
#include "server/engine.hpp"

#include <algorithm>

namespace cpp_store::server {
namespace {

// The longest that a call is expected to take on the progress thread.
constexpr std::chrono::microseconds brief{100};

constexpr std::array<Handler, wire::operation_count> handlers = {
    nullptr,     nullptr,     put,         read,        fetch,      best_matches, end_lease,
    lookup,      list,        retire,      acquire,     release,    holders,      release_holder,
    state,       stats,       verify,      nullptr,     shutdown,   contains,     nullptr,
    of_replicas, of_replicas, of_replicas, of_replicas, of_replicas};

// Whatever is kept on a disk or at other servers, too.
constexpr bool asks_memory_only(wire::Operation operation) {
    using wire::Operation;
    return operation == Operation::best_matches || operation == Operation::lookup ||
           operation == Operation::contains || operation == Operation::holders ||
           operation == Operation::end_lease || operation == Operation::stats;
}

}  // namespace

void Engine::hear(std::span<std::byte> message, const local::LinePtr& line) {
    heard = true;
    std::uint64_t from = 0;
    try {
        if (const auto old = line ? std::nullopt : decode_old_hello(message)) {
            refuse_old(*old);
            return;
        }
        const std::uint64_t id = wire::session_of(message);
        if (id == 0) {
            hello(message, line);
            return;
        }
        if (line && line->session != id) {
            throw Error(Errc::protocol, "it said no hello, or speaks for another client");
        }
        const auto found = sessions.find(id);
        if (found == sessions.end()) {
            if (lobby.contains(id) && lobby.is_at(id, line)) join(lobby.leave(id), message);
            // A client that was dropped goes on until it notices; it will connect again.
            return;
        }
        const std::shared_ptr<Session> session = found->second;
        if (session->at.line != line) {
            throw Error(Errc::protocol, "a stranger speaks for a client of this host");
        }
        from = id;
        if (!open(*session, message)) {
            drop(*session, "a message that is forged, or comes twice or out of turn");
            return;
        }
        std::span<const std::byte> part;
        const wire::Frame frame = wire::decode_frame(message, part);
        session->heard = Clock::now();
        session->probes = 0;
        hear(session, frame, part);
    } catch (const Error& error) {
        complain(std::string("a message is dropped: ") + error.what());
        if (line) {
            ended(line, error);
            host_endpoint->close(*line);
        }
    } catch (const std::bad_alloc&) {
        complain("a message is dropped: no memory for it");
        if (from != 0) cut(from);
    }
}

void Engine::hear(const std::shared_ptr<Session>& session, const wire::Frame& frame,
                  std::span<const std::byte> part) {
    switch (frame.kind) {
        case wire::Kind::request:
            request(session, frame, part);
            return;
        case wire::Kind::probe:
            send(*session, {.kind = wire::Kind::echo, .session = session->id}, {});
            return;
        case wire::Kind::bulk:
        case wire::Kind::credit:
        case wire::Kind::staging:
            hear_transfer(*session, frame, part);
            return;
        case wire::Kind::give_up:
            give_up(*session, frame.call);
            return;
        case wire::Kind::response:
        case wire::Kind::echo:
        case wire::Kind::unpin:
        case wire::Kind::region:
            drop(*session, "sent what does not belong here");
            return;
    }
}

void Engine::request(const std::shared_ptr<Session>& session, const wire::Frame& frame,
                     std::span<const std::byte> part) {
    std::optional<std::vector<std::byte>> body;
    std::shared_ptr<Call> call;
    const auto operation = static_cast<wire::Operation>(frame.code);
    try {
        body = session->requests.add(frame, part);
        if (!body) return;
        call = std::make_shared<Call>(*this, session, operation, frame.call, std::move(*body));
        if (!session->calls.emplace(frame.call, false).second) {
            throw Error(Errc::protocol, "a call's number while that call is under way");
        }
    } catch (const Error& error) {
        drop(*session, error.what());
        return;
    } catch (const std::bad_alloc&) {
        if (!body && part.size() != frame.total) throw;  // more of it is to come
        refuse_now(*session, frame.call, Refusal::of(false));
        return;
    }
    if (!session->requests_rate.take(session->heard)) {
        call->fail(Error(Errc::busy, "more requests a second than a client may make; try again"));
        return;
    }
    if (operation == wire::Operation::ping) {
        call->reply();
    } else if (operation == wire::Operation::bye) {
        forget(*session, true);
    } else if (auto* handler = handlers[frame.code]) {
        note_small_call(*session);
        Clock::duration& cost = costs[frame.code];
        if (is_brief(frame, operation)) {
            work_here(*call, handler, cost);
            return;
        }
        cost = cost * 15 / 16;  // what has been slow is tried again
        guarded(*call, [this, handler](Call& one) {
            auto task = [self = one.shared_from_this(), handler] { guarded(*self, handler); };
            if (one.operation() == wire::Operation::verify) {
                workers->heavy(std::move(task));
            } else {
                workers->light(std::move(task));
            }
        });
    } else {
        drop(*session, "said hello twice");
    }
}

bool Engine::is_brief(const wire::Frame& frame, wire::Operation operation) {
    // Who hears everybody waits neither for a disk nor for other servers.
    if ((store_->has_data_dir() || replica_now) && !asks_memory_only(operation)) return false;
    return std::exchange(may_work, false) && operation != wire::Operation::verify &&
           operation != wire::Operation::list && operation != wire::Operation::shutdown &&
           frame.total <= endpoint->max_message() && costs[frame.code] <= brief;
}

void Engine::work_here(Call& call, Handler handler, Clock::duration& cost) {
    const auto start = Clock::now();
    guarded(call, handler);
    cost = std::clamp<Clock::duration>(Clock::now() - start, cost * 15 / 16, 4 * brief);
}

}  // namespace cpp_store::server
