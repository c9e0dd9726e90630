// Clients that come and go.
#include "server/engine.hpp"

#include <rdma/fi_errno.h>

#include <algorithm>

#include "client/servers.hpp"
#include "core/random.hpp"

namespace cpp_store::server {
namespace {

// Of who may connect anew, in units of Options::silence.
constexpr int patience_with_orphans = 3;

std::string join_words(const std::vector<std::string>& parts) {
    std::string text;
    for (const std::string& part : parts) text += (text.empty() ? "" : " ") + part;
    return text;
}

}  // namespace

void Engine::hello(std::span<const std::byte> message, const local::LinePtr& line) {
    std::span<const std::byte> part;
    const wire::Frame frame = wire::decode_frame(message, part);
    if (frame.kind != wire::Kind::request ||
        frame.code != static_cast<std::uint16_t>(wire::Operation::hello) ||
        part.size() != frame.total || part.size() > wire::max_hello || (line && line->session)) {
        throw Error(Errc::protocol, "malformed message: no hello");
    }
    const auto now = Clock::now();
    // Who reaches the socket of this host is who may, as the kernel says. Others have to stand in
    // line, and have their words for where they are.
    if (!line && !lobby.hears(now)) {
        throw Error(Errc::busy, "more hellos a second than are answered");
    }
    wire::Reader in(part);
    const std::vector<std::byte> name = wire::decode_hello(in).address;
    const std::string origin = line ? std::string() : origin_of(name);
    // There is room for all that may go, so that each of them can.
    gone.reserve(gone.size() + sessions.size() + lobby.size() + 2);
    std::optional<Error> refusal;
    try {
        if (sessions.size() >= options.limits.clients) {
            throw Error(Errc::busy, "too many clients; try again later");
        }
        if (const auto count = clients_of_host.find(origin);
            count != clients_of_host.end() && count->second >= options.limits.clients_of_host) {
            throw Error(Errc::busy, "too many clients of one host; try again later");
        }
        if (!line) {
            if (const auto left = lobby.admit(origin, now)) leave(left->session->at);
        }
    } catch (const Error& error) {
        refusal.emplace(error.code(), address + ": " + error.what());
    }
    const Place place{line ? FI_ADDR_UNSPEC : endpoint->insert(name), line};
    if (!refusal) {
        try {
            welcome_in(frame.call, part, place, origin);
            return;
        } catch (const Error& error) {
            refusal = error;
        } catch (const std::bad_alloc&) {
            leave(place);
            throw;
        }
    }
    turn_away(place, 0, frame.call, refusal->code(), refusal->what());
}

void Engine::welcome_in(std::uint64_t call, std::span<const std::byte> body, Place place,
                        const std::string& origin) {
    const std::uint64_t id = random_number();
    const auto way = place.line ? security::Way::one_host : security::Way::network;
    security::Reception reception(greeting_policy, way, id, body);
    auto session = std::make_shared<Session>(id, std::move(place), reception.hello().client);
    send_body(session->at, nullptr, {.kind = wire::Kind::response, .session = id, .call = call},
              reception.challenge());
    if (session->at.line) session->at.line->session = id;
    session->seals = reception.take_seals();
    session->encrypts = reception.encrypts();
    lobby.enter({.session = std::move(session),
                 .reception = std::move(reception),
                 .call = call,
                 .origin = origin,
                 .since = Clock::now()});
}

void Engine::join(Lobby::Guest guest, std::span<std::byte> message) {
    Session& session = *guest.session;
    std::vector<std::string> list;
    try {
        if (!open(session, message)) {
            throw Error(Errc::permission, "the key is not the server's");
        }
        std::span<const std::byte> part;
        const wire::Frame frame = wire::decode_frame(message, part);
        if (frame.kind != wire::Kind::request ||
            frame.code != static_cast<std::uint16_t>(wire::Operation::join) ||
            frame.call != guest.call || part.size() != frame.total) {
            throw Error(Errc::protocol, "malformed message: no join");
        }
        list = guest.reception.join(part);
    } catch (const Error& error) {
        if (error.code() == Errc::permission) lobby.note_wrong_key(guest.origin, Clock::now());
        complain(session.client + " is refused: " + error.what());
        turn_away(session.at, session.id, guest.call, error.code(),
                  error.code() == Errc::permission ? security::wrong_key(address) : error.what());
        return;
    }
    wire::Frame answer{.kind = wire::Kind::response, .session = session.id, .call = guest.call};
    wire::Writer out;
    if (const std::string refusal = refuse(std::move(list), session); !refusal.empty()) {
        answer.code = static_cast<std::uint16_t>(Errc::invalid_argument);
        out.string(refusal);
        complain(session.client + " is refused: " + refusal);
    } else {
        wire::encode(out, wire::Welcome{.proof = guest.reception.proof(),
                                        .memory_limit = store_->arena().stats().limit});
        sessions[session.id] = guest.session;
        session.origin = guest.origin;
        if (!session.at.line) ++clients_of_host[session.origin];
        take_over(session);
        if (const double rate = options.limits.requests_per_second; rate > 0) {
            session.requests_rate = {rate, rate};
        }
        log(LogLevel::debug, session.client + " connected");
    }
    send_body(session, answer, out.data());
    if (answer.code != 0) leave(session.at);
}

void Engine::turn_away(const Place& place, std::uint64_t session, std::uint64_t call, Errc code,
                       const std::string& why) {
    if (session == 0) complain("a client is refused: " + why);
    wire::Writer out;
    out.string(why);
    send_body(place, nullptr,
              {.kind = wire::Kind::response,
               .code = static_cast<std::uint16_t>(code),
               .session = session,
               .call = call},
              out.data());
    leave(place);
}

void Engine::leave(const Place& place) {
    if (place.line) {
        host_endpoint->close(*place.line);
    } else {
        gone.push_back(place.peer);
    }
}

void Engine::refuse_old(const OldHello& old) {
    complain("a client of version " + std::to_string(old.version) +
             " of the wire format is refused");
    if (!lobby.hears(Clock::now())) return;
    const net::Peer peer = endpoint->insert(old.address);
    endpoint->send(peer, encode_old_refusal(old, address), {});
    gone.push_back(peer);
}

std::string Engine::refuse(std::vector<std::string> list, Session& client) {
    if (list.empty()) return {};
    std::sort(list.begin(), list.end());
    const std::scoped_lock lock(servers_mutex);
    if (!servers || *servers != list) {
        const bool has_models = servers && store_->stats().models != 0;
        if (has_models || servers.use_count() > 1) {
            return address + (has_models ? " holds models of" : " has") +
                   " clients of the servers '" + join_words(*servers) + "', this client has '" +
                   join_words(list) + "'; give all clients the same list";
        }
        if (std::string refusal = replicate(list); !refusal.empty()) return refusal;
        servers = std::make_shared<const std::vector<std::string>>(std::move(list));
    }
    // Servers that keep replicas are clients of each other, and never gone: there, models count.
    if (!client.servers && !replica_now) client.servers = servers;
    return {};
}

std::string Engine::replicate(std::vector<std::string> list) {
    const std::size_t replicas = client::take_replicas(list);
    replica_now = nullptr;
    if (!replications.empty()) replications.back()->stop();
    if (replicas == 1 || stopping) return {};
    const std::optional<std::size_t> self = find_self(list);
    if (!self) {
        return address + " is not in the list '" + join_words(list) +
               "' by this address; with replicas, servers reach each other by the list: start "
               "each with the address that is in it";
    }
    replications.push_back(std::make_unique<Replication>(
        *store_, Replication::Options{
                     .servers = std::move(list),
                     .replicas = replicas,
                     .self = *self,
                     .key = greeting_policy.shared,
                     .encrypt = options.encrypt,
                     .warn = [this](const std::string& line) { log(LogLevel::warning, line); }}));
    replica_now = &replications.back()->replica();
    return {};
}

std::optional<std::size_t> Engine::find_self(const std::vector<std::string>& list) const {
    std::optional<std::size_t> by_port;
    const std::string port = address.substr(address.rfind(':'));
    for (std::size_t i = 0; i < list.size(); ++i) {
        if (list[i] == address) return i;
        if (!list[i].ends_with(port)) continue;
        if (by_port) return std::nullopt;
        by_port = i;
    }
    return by_port;
}

void Engine::stop_replication() {
    const std::scoped_lock lock(servers_mutex);
    if (!replications.empty()) replications.back()->stop();
}

bool Engine::open(const Session& session, std::span<std::byte>& message) {
    if (!session.seals) return true;
    message = session.seals->in.open(message);
    return !message.empty();
}

void Engine::send_failed(net::Peer peer, int error) {
    for (auto entry = sessions.begin(); entry != sessions.end();) {
        const std::shared_ptr<Session> session = (entry++)->second;
        if (!session->at.line && session->at.peer == peer) {
            log(LogLevel::info, session->client + " is gone: " + net::error_text(error));
            forget(*session);
        }
    }
}

void Engine::ended(const local::LinePtr& line, const Error& why) {
    if (line->session == 0) return;
    if (lobby.contains(line->session)) (void)lobby.leave(line->session);
    const auto found = sessions.find(line->session);
    if (found == sessions.end()) return;
    if (why.code() == Errc::protocol) {
        drop(*found->second, why.what());
    } else {
        log(LogLevel::debug, found->second->client + " is gone");
        forget(*found->second);
    }
}

void Engine::drop(const Session& session, const std::string& why) {
    if (!sessions.contains(session.id)) return;
    complain(session.client + " is dropped: " + why);
    forget(session);
}

void Engine::forget(const Session& session, bool said_bye) {
    const auto found = sessions.find(session.id);
    if (found == sessions.end()) return;
    const std::shared_ptr<Session> kept = found->second;
    gone.reserve(gone.size() + 1);  // before anything changes
    sessions.erase(found);
    if (!kept->at.line && --clients_of_host[kept->origin] == 0) clients_of_host.erase(kept->origin);
    kept->waiting.clear();
    std::erase_if(transfers, [&](const auto& entry) {
        const Moving& moving = entry.second;
        return moving.call->session() == kept && moving.transfer->cancel(FI_ECANCELED);
    });
    leave(kept->at);
    std::set<std::uint64_t> leases = kept->take_leases();
    if (said_bye) {
        end_leases(std::move(leases));
    } else {
        pass_on(std::move(leases), *kept);
    }
}

void Engine::pass_on(std::set<std::uint64_t> leases, const Session& from) {
    if (leases.empty()) return;
    for (const auto& [id, session] : sessions) {
        if (session->client != from.client) continue;
        session->take_over(std::move(leases));
        return;
    }
    try {
        orphans.push_back({from.client, leases, from.at.line ? from.at.line->process : 0,
                           Clock::now() + options.silence * patience_with_orphans});
    } catch (const std::bad_alloc&) {
        end_leases(std::move(leases));
    }
}

void Engine::take_over(Session& session) {
    std::erase_if(orphans, [&](Orphans& left) {
        if (left.client != session.client) return false;
        session.take_over(std::move(left.leases));
        return true;
    });
}

void Engine::expire_orphans(Clock::time_point now) {
    std::erase_if(orphans, [&](Orphans& left) {
        if (now < left.until && !(left.process && local::has_ended(left.process))) return false;
        end_leases(std::move(left.leases));
        return true;
    });
}

void Engine::end_leases(std::set<std::uint64_t> leases) noexcept {
    if (leases.empty()) return;
    const auto end = [this](const std::set<std::uint64_t>& ended) noexcept {
        for (const std::uint64_t lease : ended) store_->drop_lease(lease);
    };
    std::shared_ptr<std::set<std::uint64_t>> shared;
    try {
        shared = std::make_shared<std::set<std::uint64_t>>(std::move(leases));
        workers->light([end, shared] { end(*shared); });
    } catch (const std::bad_alloc&) {
        end(shared ? *shared : leases);
    }
}

}  // namespace cpp_store::server
