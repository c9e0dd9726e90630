// What clients are told.
#include "server/engine.hpp"

#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace cpp_store::server {
namespace {

std::vector<std::byte> body_of(std::string_view text) {
    wire::Writer out;
    out.string(text);
    return out.take();
}
// Made before they are needed.
const std::vector<std::byte> nothing_changed =
    body_of("the server has no memory left for this request; nothing has changed");
const std::vector<std::byte> not_answered =
    body_of("the server had no memory left to answer; what was asked for is done");

// A second descriptor of a memory file, which can only be read by.
local::Descriptor read_only(int fd) {
    const std::string path = "/proc/self/fd/" + std::to_string(fd);
    local::Descriptor copy(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (!copy) throw Error(Errc::internal, "cannot open " + path + ": " + std::strerror(errno));
    return copy;
}

}  // namespace

void Call::reply(wire::Writer body) {
    std::vector<std::byte> answer = body.take();
    if (answer.size() > wire::max_body) {
        fail(Error(Errc::invalid_argument,
                   "the answer of " + std::to_string(answer.size()) +
                       " bytes is larger than a message may be; ask for less"));
        return;
    }
    note_time();
    host_.respond(shared_from_this(), 0, std::move(answer));
}

void Call::note_time() noexcept {
    store().note_call(static_cast<std::size_t>(operation_),
                      std::chrono::steady_clock::now() - began_);
}

void Call::fail(const std::exception& error) {
    note_time();
    const auto* known = dynamic_cast<const Error*>(&error);
    const auto* memory = dynamic_cast<const std::bad_alloc*>(&error);
    if (!memory) {
        try {
            const Errc code = known ? known->code() : Errc::internal;
            wire::Writer out;
            out.string(std::string_view(error.what()).substr(0, wire::max_id));
            host_.respond(shared_from_this(), static_cast<std::uint16_t>(code), out.take());
            return;
        } catch (const std::bad_alloc&) {
        }
    }
    host_.refuse(shared_from_this());
}

Refusal Refusal::of(bool has_changed) noexcept {
    const Errc code = has_changed ? Errc::connection : Errc::out_of_memory;
    return {static_cast<std::uint16_t>(code), has_changed ? not_answered : nothing_changed};
}

void Engine::send(const Session& session, wire::Frame frame, std::span<const std::byte> part) {
    send(session.at, session.seals ? &session.seals->out : nullptr, frame, part);
}

void Engine::send_body(const Session& session, wire::Frame frame, std::span<const std::byte> body) {
    send_body(session.at, session.seals ? &session.seals->out : nullptr, frame, body);
}

std::size_t Engine::room(const Place& place, bool is_sealed) const {
    if (place.line) return local::Socket::max_part;
    return endpoint->max_message() - wire::frame_header_size -
           (is_sealed ? security::Seal::tag_size : std::size_t{0});
}

void Engine::send(const Place& place, security::Seal* seal, const wire::Frame& frame,
                  std::span<const std::byte> part, int passed) {
    if (place.line) {
        host_endpoint->send(*place.line, wire::encode(frame), part, passed);
    } else {
        endpoint->send(place.peer, wire::encode(frame), part, seal);
    }
}

void Engine::send_body(const Place& place, security::Seal* seal, wire::Frame frame,
                       std::span<const std::byte> body) {
    const std::size_t most = room(place, seal != nullptr);
    frame.total = static_cast<std::uint32_t>(body.size());
    do {
        const std::size_t size = std::min(most, body.size() - frame.offset);
        send(place, seal, frame, body.subspan(frame.offset, size));
        frame.offset += static_cast<std::uint32_t>(size);
    } while (frame.offset < body.size());
}

void Engine::refuse(CallPtr call) noexcept {
    if (std::this_thread::get_id() == progress_id) {
        call->session()->calls.erase(call->id());
        refuse_now(*call->session(), call->id(), Refusal::of(call->has_changed()));
        return;
    }
    {
        const std::scoped_lock lock(posted_mutex);
        call->next = std::move(refused);
        refused = std::move(call);
    }
    wake_up();
}

void Engine::refuse_calls() noexcept {
    CallPtr first;
    {
        const std::scoped_lock lock(posted_mutex);
        first = std::move(refused);
    }
    while (first) {
        first->session()->calls.erase(first->id());
        refuse_now(*first->session(), first->id(), Refusal::of(first->has_changed()));
        first = CallPtr(std::move(first->next));
    }
}

void Engine::refuse_now(const Session& session, std::uint64_t call,
                        const Refusal& refusal) noexcept {
    if (!sessions.contains(session.id)) return;
    if (session.at.line) session.at.line->pins.unpin(call);
    try {
        send_body(session,
                  {.kind = wire::Kind::response,
                   .code = refusal.code,
                   .session = session.id,
                   .call = call},
                  refusal.body);
    } catch (const std::bad_alloc&) {
        cut(session.id);
    }
}

void Engine::cut(std::uint64_t session) noexcept {
    const auto found = sessions.find(session);
    if (found == sessions.end()) return;
    found->second->is_cut = true;
    has_cut = true;
}

void Engine::drop_cut() {
    for (auto entry = sessions.begin(); entry != sessions.end();) {
        const std::shared_ptr<Session> session = (entry++)->second;
        if (!session->is_cut) continue;
        complain("a client is dropped: there is no memory to answer it");
        forget(*session);
    }
    has_cut = false;
}

void Engine::respond(CallPtr call, std::uint16_t code, std::vector<std::byte> body) {
    if (std::this_thread::get_id() == progress_id) {
        answer(*call, code, body);
    } else {
        post([this, call = std::move(call), code, body = std::move(body)] {
            answer(*call, code, body);
        });
    }
}

void Engine::answer(Call& call, std::uint16_t code, const std::vector<std::byte>& body) {
    Session& session = *call.session();
    const bool is_gone = !sessions.contains(session.id);
    const auto known = session.calls.find(call.id());
    const bool is_given_up = known == session.calls.end() || known->second;
    if (known != session.calls.end()) session.calls.erase(known);
    // What nobody will have views of.
    if (session.at.line && (is_gone || is_given_up || code != 0)) {
        session.at.line->pins.unpin(call.id());
    }
    if (is_gone) return;
    try {
        if (code == 0 && !is_given_up) hand_over(session, call.regions());
        send_body(
            session,
            {.kind = wire::Kind::response, .code = code, .session = session.id, .call = call.id()},
            body);
    } catch (const Error& error) {  // no descriptor
        drop(session, error.what());
        return;
    } catch (const std::bad_alloc&) {  // perhaps in the middle of it
        cut(session.id);
        return;
    }
    if (code == static_cast<std::uint16_t>(Errc::protocol)) {
        drop(session, std::string(wire::operation_name(call.operation())) + ": malformed request");
    } else if (code == static_cast<std::uint16_t>(Errc::internal)) {
        log(LogLevel::error, std::string(wire::operation_name(call.operation())) + ": " +
                                 wire::Reader(body).string());
    }
}

void Engine::hand_over(const Session& session, const std::set<int>& regions) {
    std::set<int>* const known = session.at.line ? &session.at.line->regions : nullptr;
    if (!known || std::ranges::includes(*known, regions)) return;
    const Arena& arena = store_->arena();
    const auto tell = [&](int region, int fd) {
        wire::Writer out;
        out.u32(static_cast<std::uint32_t>(region));
        send(session.at, nullptr,
             {.kind = wire::Kind::region,
              .session = session.id,
              .total = static_cast<std::uint32_t>(out.data().size())},
             out.data(), fd);
    };
    std::erase_if(*known, [&](int region) {
        if (arena.has_region(region)) return false;
        tell(region, -1);
        return true;
    });
    for (const int region : regions) {
        if (known->contains(region)) continue;
        tell(region, read_only(arena.region_fd(region)).get());
        known->insert(region);
    }
}

}  // namespace cpp_store::server
