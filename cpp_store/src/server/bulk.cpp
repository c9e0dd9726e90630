// Tensors on their way to and from clients.
#include "server/engine.hpp"

#include <rdma/fi_errno.h>

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

Error given_up() {
    return {Errc::connection, "the client has given the call up"};
}

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

void Engine::start_transfer(CallPtr call, Transfer::Plan plan, std::function<void()> then) {
    if (std::this_thread::get_id() == progress_id) {
        start_or_wait(*call, std::move(plan), std::move(then));
        return;
    }
    post([this, call = std::move(call), plan = std::move(plan), then = std::move(then)]() mutable {
        guarded(*call, [&](Call& one) { start_or_wait(one, std::move(plan), std::move(then)); });
    });
}

void Engine::start_or_wait(Call& call, Transfer::Plan plan, std::function<void()> then) {
    Session& session = *call.session();
    std::uint64_t bytes = 0;
    for (const Transfer::Piece& piece : plan.pieces) bytes += piece.length;
    auto start = [this, call = call.shared_from_this(), plan = std::move(plan),
                  then = std::move(then),
                  bytes]() mutable { start_now(call, std::move(plan), std::move(then), bytes); };
    const std::uint64_t limit = options.limits.bytes_in_flight;
    const std::uint64_t flying = session.bytes_in_flight;
    const bool has_room = flying == 0 || (flying < limit && bytes <= limit - flying);
    if (has_room && (!session.shares_memory() || session.stages->has_room())) {
        start();
    } else {
        session.waiting.emplace_back(std::move(start));
    }
}

void Engine::start_now(const CallPtr& call, Transfer::Plan plan, std::function<void()> then,
                       std::uint64_t bytes) {
    Session& session = *call->session();
    if (!sessions.contains(session.id)) return;
    const auto known = session.calls.find(call->id());
    if (known == session.calls.end() || known->second) {
        call->fail(given_up());
        start_waiting(session);
        return;
    }
    const std::uint64_t id = ++last_transfer;
    Moving& moving = transfers[id];
    moving.call = call;
    moving.bytes = bytes;
    session.bytes_in_flight += bytes;
    session.moved = Clock::now();
    try {
        moving.transfer = make_transfer(
            call, std::move(plan), [this, call, then = std::move(then), id](int error) mutable {
                finished(call, std::move(then), id, error);
            });
        Transfer& transfer = *moving.transfer;
        transfer.start();
        if (transfers.contains(id) && transfer.may_send()) sending.insert(id);
    } catch (const std::exception& error) {  // memory that cannot be registered, or had
        end_transfer(session, id);
        call->fail(error);
    }
}

std::unique_ptr<Transfer> Engine::make_transfer(const CallPtr& call, Transfer::Plan plan,
                                                Transfer::Done done) {
    const std::shared_ptr<Session> session = call->session();
    const auto tell = [this, session, call = call->id()](wire::Kind kind,
                                                         std::span<const std::byte> part, int fd) {
        send(session->at, session->seals ? &session->seals->out : nullptr,
             {.kind = kind,
              .session = session->id,
              .call = call,
              .total = static_cast<std::uint32_t>(part.size())},
             part, fd);
    };
    if (session->shares_memory()) {
        return std::make_unique<Staged>(
            std::move(plan), session->stages,
            Staged::Host{.tell =
                             [tell](const Stages::Taken& stage) {
                                 wire::Writer out;
                                 out.u32(stage.number);
                                 tell(wire::Kind::staging, out.data(),
                                      stage.is_new ? stage.memory->fd() : -1);
                             },
                         .work = [this](Workers::Task task) { workers->heavy(std::move(task)); },
                         .over =
                             [this] {
                                 is_through = true;
                                 wake_up();
                             }},
            std::move(done));
    }
    if (session->encrypts) {
        return std::make_unique<Stream>(
            std::move(plan), room(session->at, true),
            [tell](wire::Kind kind, std::span<const std::byte> part) { tell(kind, part, -1); },
            std::move(done));
    }
    return std::make_unique<RmaTransfer>(
        *endpoint, session->at.peer, std::move(plan),
        [this, session] { return pace_for(*session); }, std::move(done));
}

void Engine::end_transfer(Session& session, std::uint64_t id) {
    const auto found = transfers.find(id);
    session.bytes_in_flight -= found->second.bytes;
    sending.erase(id);
    transfers.erase(found);
    start_waiting(session);
}

void Engine::start_waiting(Session& session) {
    if (session.waiting.empty()) return;
    try {
        post(std::move(session.waiting.front()));  // not here: it may end at once, too
    } catch (const std::bad_alloc&) {
        cut(session.id);
    }
    session.waiting.pop_front();
}

Engine::Transfers::iterator Engine::find_transfer(const Session& session, std::uint64_t call) {
    return std::ranges::find_if(transfers, [&](const auto& entry) {
        return entry.second.call->session().get() == &session && entry.second.call->id() == call;
    });
}

void Engine::hear_transfer(Session& session, const wire::Frame& frame,
                           std::span<const std::byte> part) {
    const auto found = find_transfer(session, frame.call);
    if (found == transfers.end()) {
        // It may have ended meanwhile; but nobody sends bytes that nobody asked for.
        const bool is_late = frame.kind != wire::Kind::bulk || session.calls.contains(frame.call);
        if (!is_late) drop(session, "sent bytes that nobody asked for");
        return;
    }
    const std::uint64_t id = found->first;
    Transfer& transfer = *found->second.transfer;
    session.moved = Clock::now();
    if (frame.total != part.size() || !transfer.hear(frame.kind, part)) {
        drop(session, "sent bytes that nobody asked for");
    } else if (transfers.contains(id) && transfer.may_send()) {
        sending.insert(id);
    }
}

void Engine::give_up(Session& session, std::uint64_t call) {
    if (session.at.line) session.at.line->pins.unpin(call);
    const auto known = session.calls.find(call);
    if (known != session.calls.end()) known->second = true;
    const auto found = find_transfer(session, call);
    if (found == transfers.end()) {
        tell_given_up(session, call);
    } else if (found->second.transfer->cancel(FI_ECANCELED)) {
        const CallPtr ended = found->second.call;
        end_transfer(session, found->first);
        tell_given_up(session, call);
        ended->fail(given_up());
    } else {
        found->second.is_given_up = true;
    }
}

void Engine::tell_given_up(const Session& session, std::uint64_t call) {
    if (!sessions.contains(session.id) || session.shares_memory()) return;
    send(session, {.kind = wire::Kind::give_up, .session = session.id, .call = call}, {});
}

std::size_t Engine::send_bulk() {
    if (sending.empty()) return 0;
    std::size_t sent = 0;
    for (const std::uint64_t id : std::set(sending)) {
        const auto found = transfers.find(id);
        if (found == transfers.end()) {
            sending.erase(id);
            continue;
        }
        const CallPtr call = found->second.call;
        Transfer& transfer = *found->second.transfer;
        call->session()->moved = Clock::now();
        sent += transfer.send_some();
        // Else until there is credit, or it has ended.
        if (!transfers.contains(id) || !transfer.may_send()) sending.erase(id);
    }
    return sent;
}

void Engine::look_at_transfers() {
    while (true) {
        const auto found = std::ranges::find_if(
            transfers, [](const auto& entry) { return entry.second.transfer->is_through(); });
        if (found == transfers.end()) return;
        const std::uint64_t id = found->first;
        const CallPtr call = found->second.call;
        try {
            found->second.transfer->look();
        } catch (const std::exception& error) {
            if (transfers.contains(id)) end_transfer(*call->session(), id);
            call->fail(error);
        }
    }
}

void Engine::finished(const CallPtr& call, std::function<void()> then, std::uint64_t id,
                      int error) {
    const bool is_given_up = transfers.at(id).is_given_up;
    end_transfer(*call->session(), id);
    call->session()->moved = Clock::now();
    if (is_given_up) {
        tell_given_up(*call->session(), call->id());
        if (error != 0) call->fail(given_up());
        if (error != 0) return;
    }
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
