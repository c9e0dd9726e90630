// Tensors on their way to and from clients.
#include "server/engine.hpp"

#include <algorithm>

namespace cpp_store::server {
namespace {

// Measured over loopback TCP: below 512 KiB the round trips show. But what is handed over at once
// is moved at once, at some 4 GB/s; so not more than 512 KiB of it while a client makes small
// calls.
constexpr Pace alone{.chunk = 1 << 20, .window = 4 << 20};
constexpr Pace beside_small_calls{.chunk = 128 << 10, .window = 512 << 10};
// For how long after a call a client counts as one of small calls, or of bulk.
constexpr std::chrono::seconds habit{1};
}  // namespace

void Engine::note_small_call(const Session& session) {
    const auto now = Clock::now();
    if (now - session.moved < habit) return;
    if (small_caller != session.id) other_small_call = last_small_call;
    small_caller = session.id;
    last_small_call = now;
}

Pace Engine::pace_for(Session& session) const {
    session.moved = Clock::now();
    const auto waiting = small_caller == session.id ? other_small_call : last_small_call;
    Pace pace = session.moved - waiting < habit ? beside_small_calls : alone;
    pace.window = std::max(pace.chunk, pace.window / std::max<std::size_t>(1, transfers.size()));
    return pace;
}

void Engine::start_transfer(CallPtr call, Transfer::Direction direction,
                            std::vector<Transfer::Piece> pieces, std::function<void()> then) {
    post([this, call = std::move(call), direction, pieces = std::move(pieces),
          then = std::move(then)]() mutable {
        guarded(*call, [&](Call& one) {
            start_or_wait(one, direction, std::move(pieces), std::move(then));
        });
    });
}

void Engine::start_or_wait(Call& call, Transfer::Direction direction,
                           std::vector<Transfer::Piece> pieces, std::function<void()> then) {
    Session& session = *call.session();
    std::uint64_t bytes = 0;
    for (const Transfer::Piece& piece : pieces) bytes += piece.length;
    auto start = [this, call = call.shared_from_this(), direction, pieces = std::move(pieces),
                  then = std::move(then), bytes]() mutable {
        start_now(call, direction, std::move(pieces), std::move(then), bytes);
    };
    const std::uint64_t limit = options.limits.bytes_in_flight;
    const std::uint64_t flying = session.bytes_in_flight;
    if (flying > 0 && (flying >= limit || bytes > limit - flying)) {
        session.waiting.emplace_back(std::move(start));
    } else {
        start();
    }
}

void Engine::start_now(const CallPtr& call, Transfer::Direction direction,
                       std::vector<Transfer::Piece> pieces, std::function<void()> then,
                       std::uint64_t bytes) {
    Session& session = *call->session();
    if (!sessions.contains(session.id)) return;
    const std::uint64_t id = ++last_transfer;
    Moving& moving = transfers[id];
    moving.session = session.id;
    moving.call = call->id();
    moving.bytes = bytes;
    session.bytes_in_flight += bytes;
    try {
        auto done = [this, call, then = std::move(then), id](int error) mutable {
            finished(call, std::move(then), id, error);
        };
        if (session.encrypts) {
            start_stream(session, id, moving,
                         std::make_unique<Stream>(direction, std::move(pieces), std::move(done)));
            return;
        }
        moving.transfer = std::make_unique<Transfer>(
            *endpoint, session.peer, direction, std::move(pieces),
            [this, session = call->session()] { return pace_for(*session); }, std::move(done));
        moving.transfer->start();
    } catch (const std::exception& error) {  // memory that cannot be registered, or had
        sending.erase(id);
        end_transfer(session, id);
        call->fail(error);
    }
}

void Engine::end_transfer(Session& session, std::uint64_t id) {
    const auto found = transfers.find(id);
    session.bytes_in_flight -= found->second.bytes;
    transfers.erase(found);
    if (session.waiting.empty()) return;
    try {
        post(std::move(session.waiting.front()));  // not here: it may end at once, too
    } catch (const std::bad_alloc&) {
        cut(session.id);
    }
    session.waiting.pop_front();
}

void Engine::start_stream(Session& session, std::uint64_t id, Moving& moving,
                          std::unique_ptr<Stream> stream) {
    session.moved = Clock::now();
    moving.stream = std::move(stream);
    if (moving.stream->direction() == Transfer::Direction::to_client) {
        sending.insert(id);
    } else {
        tell_credit(session, moving);
    }
}

void Engine::tell_credit(const Session& session, Moving& moving) {
    const auto credit = moving.stream->new_credit();
    if (!credit) return;
    wire::Writer out;
    out.u64(*credit);
    send_body(session, {.kind = wire::Kind::credit, .session = session.id, .call = moving.call},
              out.data());
}

void Engine::move_stream(Session& session, const wire::Frame& frame,
                         std::span<const std::byte> part) {
    const auto found = std::ranges::find_if(transfers, [&](const auto& entry) {
        return entry.second.stream && entry.second.session == session.id &&
               entry.second.call == frame.call;
    });
    if (found == transfers.end() && frame.kind == wire::Kind::credit) return;  // it is done
    const bool comes = frame.kind == wire::Kind::bulk;
    bool is_right =
        found != transfers.end() && frame.total == part.size() &&
        comes == (found->second.stream->direction() == Transfer::Direction::from_client);
    if (is_right) {
        Stream& stream = *found->second.stream;
        session.moved = Clock::now();
        is_right = comes ? stream.take(part)
                         : part.size() == 8 && stream.give_credit(wire::Reader(part).u64());
    }
    if (!is_right) {
        drop(session, "sent bytes that nobody asked for");
    } else if (comes && found->second.stream->is_over()) {
        const auto stream = std::move(found->second.stream);
        stream->end();
    } else if (comes) {
        tell_credit(session, found->second);
    } else {
        sending.insert(found->first);
    }
}

std::size_t Engine::send_streams() {
    if (sending.empty()) return 0;
    constexpr int messages = 4;
    const std::size_t room =
        endpoint->max_message() - wire::frame_header_size - security::Seal::tag_size;
    std::size_t sent = 0;
    for (const std::uint64_t id : std::set(sending)) {
        const auto found = transfers.find(id);
        const auto session =
            found == transfers.end() ? sessions.end() : sessions.find(found->second.session);
        if (session == sessions.end()) {
            sending.erase(id);
            continue;
        }
        for (int i = 0; i < messages; ++i) {
            const auto part = found->second.stream->next(room);
            if (part.empty()) {
                sending.erase(id);  // until there is credit
                break;
            }
            send_body(
                *session->second,
                {.kind = wire::Kind::bulk, .session = session->first, .call = found->second.call},
                part);
            ++sent;
        }
        session->second->moved = Clock::now();
        if (found->second.stream->is_over()) {
            sending.erase(id);
            const auto stream = std::move(found->second.stream);
            stream->end();
        }
    }
    return sent;
}

void Engine::finished(const CallPtr& call, std::function<void()> then, std::uint64_t id,
                      int error) {
    end_transfer(*call->session(), id);
    call->session()->moved = Clock::now();
    if (error != 0) {
        drop(*call->session(), std::string(wire::operation_name(call->operation())) +
                                   ": cannot move its bytes: " + net::error_text(error));
        return;
    }
    guarded(*call, [&](Call&) {
        auto task = [call, then = std::move(then)] { guarded(*call, [&](Call&) { then(); }); };
        if (call->operation() == wire::Operation::put) {
            workers->heavy(std::move(task));
        } else {
            task();
        }
    });
}

}  // namespace cpp_store::server
