#include "cpp_store/server.hpp"

#include <rdma/fi_errno.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdio>
#include <ctime>
#include <mutex>
#include <set>
#include <thread>
#include <unordered_map>

#include "client/servers.hpp"
#include "core/forks.hpp"
#include "local/listener.hpp"
#include "local/names.hpp"
#include "net/libfabric.hpp"
#include "net/waiting.hpp"
#include "security/greeting.hpp"
#include "server/call.hpp"
#include "server/lobby.hpp"
#include "server/old_clients.hpp"
#include "server/replication.hpp"
#include "server/stream.hpp"
#include "server/workers.hpp"

namespace cpp_store {
namespace {

using namespace server;
using Clock = std::chrono::steady_clock;

// How long the progress thread looks for more before it sleeps, so that calls that follow each
// other find it awake.
constexpr std::chrono::microseconds longest_spin{50};

// Measured over loopback TCP: below 512 KiB the round trips show. But what is handed over at once
// is moved at once, at some 4 GB/s; so not more than 512 KiB of it while a client makes small
// calls.
constexpr Pace alone{.chunk = 1 << 20, .window = 4 << 20};
constexpr Pace beside_small_calls{.chunk = 128 << 10, .window = 512 << 10};
// For how long after a call a client counts as one of small calls, or of bulk.
constexpr std::chrono::seconds habit{1};
// The longest that a call is expected to take on the progress thread.
constexpr std::chrono::microseconds brief{100};
constexpr std::chrono::milliseconds lease_check{10'000};

// Clients die without a word. One that a transfer waits for is alive as long as it sends probes or
// its bytes move, for a while; one that asks for nothing is sent a message now and then, which
// fails if nobody is there. That one reads nothing meanwhile, so there is an end to what its socket
// is filled with. All in units of Options::silence.
constexpr int sweeps = 4;
constexpr int standstill = 6;  // of a transfer, whatever its client says
constexpr int probe_interval = 3;
constexpr unsigned most_probes = 500;

constexpr std::array<void (*)(Call&), wire::operation_count> handlers = {
    nullptr,     nullptr,        put,         read,        fetch,       best_matches,
    end_lease,   lookup,         list,        retire,      acquire,     release,
    holders,     release_holder, alive,       stats,       verify,      nullptr,
    shutdown,    contains,       nullptr,     of_replicas, of_replicas, of_replicas,
    of_replicas, of_replicas,    of_replicas, of_replicas, of_replicas};

class EventFd {
  public:
    EventFd() : fd_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
        if (fd_ < 0) throw Error(Errc::internal, "no event descriptor: too many files open");
    }
    ~EventFd() { close(fd_); }
    EventFd(const EventFd&) = delete;
    EventFd& operator=(const EventFd&) = delete;
    [[nodiscard]] int fd() const noexcept { return fd_; }
    void set() noexcept { [[maybe_unused]] const int done = eventfd_write(fd_, 1); }
    void clear() noexcept {
        eventfd_t value = 0;
        [[maybe_unused]] const int done = eventfd_read(fd_, &value);
    }

  private:
    int fd_;
};

void log_to_stderr(LogLevel level, std::string_view line) {
    constexpr std::array names = {"error", "warning", "info", "debug"};
    const std::time_t now = std::time(nullptr);
    std::tm utc{};
    gmtime_r(&now, &utc);
    std::array<char, 32> stamp{};
    std::strftime(stamp.data(), stamp.size(), "%FT%TZ", &utc);
    std::fprintf(stderr, "%s %s %.*s\n", stamp.data(), names[static_cast<std::size_t>(level)],
                 static_cast<int>(line.size()), line.data());
}

std::uint64_t random_session() {
    std::uint64_t id = 0;
    while (id == 0) {
        if (getrandom(&id, sizeof id, 0) != sizeof id) {
            throw Error(Errc::internal, "no random numbers from the kernel");
        }
    }
    return id;
}

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

std::string join_words(const std::vector<std::string>& parts) {
    std::string text;
    for (const std::string& part : parts) text += (text.empty() ? "" : " ") + part;
    return text;
}

}  // namespace

namespace server {

Handler handler_of(wire::Operation operation) {
    const Handler handler = handlers.at(static_cast<std::size_t>(operation));
    if (!handler) throw Error(Errc::protocol, "malformed message: this cannot be asked for here");
    return handler;
}

void Call::reply(wire::Writer body) {
    std::vector<std::byte> answer = body.take();
    if (answer.size() > wire::max_body) {
        fail(Error(Errc::invalid_argument,
                   "the answer of " + std::to_string(answer.size()) +
                       " bytes is larger than a message may be; ask for less"));
        return;
    }
    host_.respond(shared_from_this(), 0, std::move(answer));
}

void Call::fail(const std::exception& error) {
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

}  // namespace server

struct Server::Impl final : server::Host, local::Host, net::Endpoint::Listener {
    Impl(std::shared_ptr<Store> served, Options given)
        : store_(std::move(served)),
          options(checked(std::move(given))),
          endpoint(std::make_unique<net::Endpoint>(net::Address::parse(options.address),
                                                   net::Endpoint::Role::server, *this,
                                                   options.silence / 2)),
          address(endpoint->address().text()),
          greeting_policy{.address = address, .shared = {}, .encrypt = options.encrypt} {
        if (!options.key.empty()) greeting_policy.shared = security::secret_of(options.key);
        security::wipe(options.key);
        workers = std::make_unique<Workers>(options.threads);
        progress_thread = std::thread([this] { run(); });
        listen_on_host();
    }

    // Without this socket, clients on this host come over libfabric, too.
    void listen_on_host() {
        try {
            const std::string name = local::server_name(endpoint->address(), endpoint->name());
            if (!name.empty()) local_listener = std::make_unique<local::Listener>(*this, name);
        } catch (const Error& error) {
            log(LogLevel::warning, address + ": " + error.what());
        }
    }

    static Options checked(Options options) {
        if (options.threads == 0 || options.threads > 1024) {
            throw Error(Errc::invalid_argument, "a server of " + std::to_string(options.threads) +
                                                    " threads; 1 to 1024 are possible");
        }
        if (options.silence.count() <= 0) {
            throw Error(Errc::invalid_argument, "no time for clients to be silent in");
        }
        if (options.key.empty() && options.encrypt) {
            throw Error(Errc::invalid_argument,
                        "to encrypt takes a key; make one: cpp-store keygen FILE, and name it: "
                        "--key_file FILE");
        }
        if (options.key.empty() && !options.insecure &&
            !net::Address::parse(options.address).is_of_this_host_only()) {
            throw Error(Errc::invalid_argument,
                        options.address +
                            ": without a key, whoever reaches this address may read, change and "
                            "delete the models; make a key: cpp-store keygen FILE, and name it: "
                            "--key_file FILE (or, where nobody else is on the network, say "
                            "--insecure)");
        }
        if (!options.log) options.log = log_to_stderr;
        return options;
    }

    ~Impl() override { stop(); }

    void stop() {
        if (stopping.exchange(true)) return;
        stop_replication();
        local_listener.reset();
        wake_up();
        progress_thread.join();
        workers.reset();
        await_disk();
        endpoint->close();  // from here on nothing touches the memory of transfers
        transfers.clear();
        for (const auto& [id, session] : sessions) session->waiting.clear();
        endpoint.reset();
        shutdown_wanted.set();
    }

    // Of a call; one of both.
    struct Moving {
        std::unique_ptr<Transfer> transfer;
        std::unique_ptr<Stream> stream;
        std::uint64_t session = 0;
        std::uint64_t call = 0;
        std::uint64_t bytes = 0;
    };

    // Puts that are on their way to disk hold calls, and these hold us.
    void await_disk() noexcept {
        try {
            store_->flush();
        } catch (const std::exception&) {
            // They have ended all the same, and whoever closes the store is told.
        }
    }

    // ------------------------------------------------------------------ the progress thread

    void run() {
        progress_id = std::this_thread::get_id();
        net::Spin spin(longest_spin);
        bool looking = false;
        while (!stopping) {
            may_work = true;
            heard = false;
            const std::size_t handled = make_progress();
            if (handled > 0) {
                if (looking && heard) spin.found();
                looking = false;
                continue;
            }
            const auto now = Clock::now();
            if (!std::exchange(looking, true)) spin.start(now);
            if (spin.goes_on(now)) continue;
            spin.missed();
            looking = false;
            sleep();
        }
    }

    // One round. Whatever finds no memory in it is tried again, or costs its client the connection.
    std::size_t make_progress() noexcept {
        std::size_t handled = 1;
        try {
            handled = endpoint->progress() + run_posted() + send_streams();
            refuse_calls();
            sweep();
            if (has_cut) drop_cut();
        } catch (const std::bad_alloc&) {
            complain("no memory");
        }
        return handled;
    }

    void sleep() {
        asleep = true;
        // What was posted before `asleep` was set woke nobody.
        if (!has_posted() && !stopping) {
            const auto limit =
                std::min<std::chrono::nanoseconds>(endpoint->may_sleep(), options.silence / sweeps);
            std::array<pollfd, 2> waiting{pollfd{wake.fd(), POLLIN, 0},
                                          pollfd{endpoint->wait_fd(), POLLIN, 0}};
            net::sleep(waiting, limit);
            if (waiting[0].revents != 0) wake.clear();
        }
        asleep = false;
    }

    // What has to be done now and then.
    void sweep() {
        const auto now = Clock::now();
        if (now - last_expiry >= lease_check) {
            last_expiry = now;
            workers->light([this] { store_->expire_leases(); });
        }
        if (now - last_sweep < options.silence / sweeps) return;
        last_sweep = now;
        // Not when they went: what they were told last should reach them.
        for (const net::Peer peer : gone) endpoint->remove(peer);
        gone.clear();
        for (const Lobby::Guest& guest : lobby.expire(now)) {
            complain(guest.session->client + " is dropped: it did not join after its hello");
            gone.push_back(guest.session->peer);
        }
        std::set<std::uint64_t> moving;
        for (const auto& [id, transfer] : transfers) moving.insert(transfer.session);
        for (auto entry = sessions.begin(); entry != sessions.end();) {
            const std::shared_ptr<Session> session = (entry++)->second;
            look_after(*session, moving.contains(session->id), now);
        }
    }

    void look_after(Session& session, bool moving, Clock::time_point now) {
        const auto quiet = now - std::max(session.heard, session.moved);
        if (moving &&
            (quiet >= options.silence || now - session.moved >= options.silence * standstill)) {
            drop(session, "its bytes do not move any more");
        } else if (!session.requests.empty() && quiet >= options.silence) {
            drop(session, "a message that it began has no end");
        } else if (const auto interval = options.silence * probe_interval;
                   quiet >= interval && now - session.probed >= interval &&
                   session.probes < most_probes) {
            session.probed = now;
            ++session.probes;
            send(session, {.kind = wire::Kind::echo, .session = session.id}, {});
        }
    }

    // Runs something on the progress thread, from any thread. It must not throw.
    void post(std::function<void()> work) {
        {
            const std::scoped_lock lock(posted_mutex);
            posted.push_back(std::move(work));
        }
        wake_up();
    }

    void wake_up() {
        if (!asleep) return;
        wake.set();
        endpoint->interrupt();
    }

    bool has_posted() {
        const std::scoped_lock lock(posted_mutex);
        return !posted.empty();
    }

    std::size_t run_posted() {
        {
            const std::scoped_lock lock(posted_mutex);
            running.swap(posted);
        }
        const std::size_t count = running.size();
        for (auto& work : running) {
            try {
                work();
            } catch (const std::bad_alloc&) {  // of work that is nobody's call
                complain("no memory");
            }
        }
        running.clear();
        return count;
    }

    // ------------------------------------------------------------------ requests

    void received(std::span<std::byte> message) override {
        heard = true;
        std::uint64_t from = 0;
        try {
            if (const auto old = decode_old_hello(message)) {
                refuse_old(*old);
                return;
            }
            const std::uint64_t id = wire::session_of(message);
            if (id == 0) {
                hello(message);
                return;
            }
            const auto found = sessions.find(id);
            if (found == sessions.end()) {
                if (lobby.contains(id)) join(lobby.leave(id), message);
                // A client that was dropped goes on until it notices; it will connect again.
                return;
            }
            const std::shared_ptr<Session> session = found->second;
            from = id;
            if (!open(*session, message)) {
                drop(*session, "a message that is forged, or comes twice or out of turn");
                return;
            }
            std::span<const std::byte> part;
            const wire::Frame frame = wire::decode_frame(message, part);
            session->heard = Clock::now();
            session->probes = 0;
            switch (frame.kind) {
                case wire::Kind::request:
                    request(session, frame, part);
                    return;
                case wire::Kind::probe:
                    send(*session, {.kind = wire::Kind::echo, .session = session->id}, {});
                    return;
                case wire::Kind::bulk:
                case wire::Kind::credit:
                    move_stream(*session, frame, part);
                    return;
                case wire::Kind::response:
                case wire::Kind::echo:
                case wire::Kind::unpin:
                case wire::Kind::region:
                case wire::Kind::staging:
                    drop(*session, "sent what does not belong here");
                    return;
            }
        } catch (const Error& error) {
            complain(std::string("a message is dropped: ") + error.what());
        } catch (const std::bad_alloc&) {
            complain("a message is dropped: no memory for it");
            if (from != 0) cut(from);
        }
    }

    void request(const std::shared_ptr<Session>& session, const wire::Frame& frame,
                 std::span<const std::byte> part) {
        std::optional<std::vector<std::byte>> body;
        std::shared_ptr<Call> call;
        const auto operation = static_cast<wire::Operation>(frame.code);
        try {
            body = session->requests.add(frame, part);
            if (!body) return;
            call = std::make_shared<Call>(*this, session, operation, frame.call, std::move(*body));
        } catch (const Error& error) {
            drop(*session, error.what());
            return;
        } catch (const std::bad_alloc&) {
            if (!body && part.size() != frame.total) throw;  // more of it is to come
            refuse_now(*session, frame.call, Refusal::of(false));
            return;
        }
        if (!session->requests_rate.take(session->heard)) {
            call->fail(
                Error(Errc::busy, "more requests a second than a client may make; try again"));
            return;
        }
        if (operation == wire::Operation::ping) {
            call->reply();
        } else if (operation == wire::Operation::bye) {
            forget(*session);
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

    // Whether to answer at once instead of waking a worker: on a machine whose processors all
    // compute, each thread that has to be woken costs a call milliseconds. One call a round, so
    // that the workers share what many clients ask at a time, and none that took long the last
    // time.
    bool is_brief(const wire::Frame& frame, wire::Operation operation) {
        return std::exchange(may_work, false) && operation != wire::Operation::verify &&
               operation != wire::Operation::list && operation != wire::Operation::shutdown &&
               frame.total <= endpoint->max_message() && costs[frame.code] <= brief;
    }

    static void work_here(Call& call, void (*handler)(Call&), Clock::duration& cost) {
        const auto start = Clock::now();
        guarded(call, handler);
        cost = std::clamp<Clock::duration>(Clock::now() - start, cost * 15 / 16, 4 * brief);
    }

    void note_small_call(const Session& session) {
        const auto now = Clock::now();
        if (now - session.moved < habit) return;
        if (small_caller != session.id) other_small_call = last_small_call;
        small_caller = session.id;
        last_small_call = now;
    }

    // What a client's own small calls, which stand before its transfers, do not slow down.
    Pace pace_for(Session& session) const {
        session.moved = Clock::now();
        const auto waiting = small_caller == session.id ? other_small_call : last_small_call;
        Pace pace = session.moved - waiting < habit ? beside_small_calls : alone;
        pace.window =
            std::max(pace.chunk, pace.window / std::max<std::size_t>(1, transfers.size()));
        return pace;
    }

    template <typename Work>
    static void guarded(Call& call, const Work& work) {
        try {
            work(call);
        } catch (const std::exception& error) {
            call.fail(error);
        }
    }

    // ------------------------------------------------------------------ clients that come

    void hello(std::span<const std::byte> message) {
        std::span<const std::byte> part;
        const wire::Frame frame = wire::decode_frame(message, part);
        if (frame.kind != wire::Kind::request ||
            frame.code != static_cast<std::uint16_t>(wire::Operation::hello) ||
            part.size() != frame.total || part.size() > wire::max_hello) {
            throw Error(Errc::protocol, "malformed message: no hello");
        }
        wire::Reader in(part);
        const std::vector<std::byte> name = wire::decode_hello(in).address;
        const std::string origin = origin_of(name);
        const auto now = Clock::now();
        std::optional<Error> refusal;
        try {
            if (sessions.size() >= options.limits.clients) {
                throw Error(Errc::busy, "too many clients; try again later");
            }
            if (const auto count = clients_of_host.find(origin);
                count != clients_of_host.end() && count->second >= options.limits.clients_of_host) {
                throw Error(Errc::busy, "too many clients of one host; try again later");
            }
            lobby.admit(origin, now);
        } catch (const Error& error) {
            if (!lobby.answers(now)) throw;
            refusal.emplace(error.code(), address + ": " + error.what());
        }
        // There is room for all that may go, so that each of them can.
        gone.reserve(gone.size() + sessions.size() + lobby.size() + 2);
        const net::Peer peer = endpoint->insert(name);
        if (!refusal) {
            try {
                welcome_in(frame.call, part, peer, origin);
                return;
            } catch (const Error& error) {
                refusal = error;
            } catch (const std::bad_alloc&) {
                gone.push_back(peer);
                throw;
            }
        }
        turn_away(peer, 0, frame.call, refusal->code(), refusal->what());
    }

    void welcome_in(std::uint64_t call, std::span<const std::byte> body, net::Peer peer,
                    const std::string& origin) {
        const std::uint64_t id = random_session();
        security::Reception reception(greeting_policy, security::Way::network, id, body);
        auto session = std::make_shared<Session>(id, peer, reception.hello().client);
        send_body(peer, nullptr, {.kind = wire::Kind::response, .session = id, .call = call},
                  reception.challenge());
        session->seals = reception.take_seals();
        session->encrypts = reception.encrypts();
        lobby.enter({.session = std::move(session),
                     .reception = std::move(reception),
                     .call = call,
                     .origin = origin,
                     .since = Clock::now()});
    }

    // The one try of a guest.
    void join(Lobby::Guest guest, std::span<std::byte> message) {
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
            turn_away(
                session.peer, session.id, guest.call, error.code(),
                error.code() == Errc::permission ? security::wrong_key(address) : error.what());
            return;
        }
        wire::Frame answer{.kind = wire::Kind::response, .session = session.id, .call = guest.call};
        wire::Writer out;
        if (const std::string refusal = refuse(std::move(list)); !refusal.empty()) {
            answer.code = static_cast<std::uint16_t>(Errc::invalid_argument);
            out.string(refusal);
            complain(session.client + " is refused: " + refusal);
            gone.push_back(session.peer);
        } else {
            wire::encode(out, wire::Welcome{.proof = guest.reception.proof(),
                                            .memory_limit = store_->arena().stats().limit});
            sessions[session.id] = guest.session;
            session.origin = guest.origin;
            ++clients_of_host[session.origin];
            if (const double rate = options.limits.requests_per_second; rate > 0) {
                session.requests_rate = {rate, rate};
            }
            log(LogLevel::debug, session.client + " connected");
        }
        send_body(session, answer, out.data());
    }

    // Of a client with whom nothing is agreed on.
    void turn_away(net::Peer peer, std::uint64_t session, std::uint64_t call, Errc code,
                   const std::string& why) {
        if (session == 0) complain("a client is refused: " + why);
        wire::Writer out;
        out.string(why);
        send_body(peer, nullptr,
                  {.kind = wire::Kind::response,
                   .code = static_cast<std::uint16_t>(code),
                   .session = session,
                   .call = call},
                  out.data());
        gone.push_back(peer);
    }

    void refuse_old(const OldHello& old) {
        complain("a client of version 1 of the wire format is refused");
        if (!lobby.answers(Clock::now())) return;
        const net::Peer peer = endpoint->insert(old.address);
        endpoint->send(peer, encode_old_refusal(old, address), {});
        gone.push_back(peer);
    }

    const security::Reception::Policy& policy() const override { return greeting_policy; }
    const ServerLimits& limits() const override { return options.limits; }

    std::string refuse(std::vector<std::string> list) override {
        if (list.empty()) return {};
        std::sort(list.begin(), list.end());
        const std::scoped_lock lock(servers_mutex);
        if (servers == list) return {};
        if (!servers.empty() && store_->stats().models != 0) {
            return address + " holds models of clients of the servers '" + join_words(servers) +
                   "', this client has '" + join_words(list) + "'; give all clients the same list";
        }
        if (std::string refusal = replicate(list); !refusal.empty()) return refusal;
        servers = std::move(list);
        return {};
    }

    // Takes its part among servers that keep replicas, if the list says that these do. Calls under
    // way may still use the part that it had; so it stays.
    std::string replicate(std::vector<std::string> list) {
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
            *store_, Replication::Options{.servers = std::move(list),
                                          .replicas = replicas,
                                          .self = *self,
                                          .key = greeting_policy.shared,
                                          .encrypt = options.encrypt,
                                          .warn = [this](const std::string& line) {
                                              log(LogLevel::warning, line);
                                          }}));
        replica_now = &replications.back()->replica();
        return {};
    }

    // By the whole address, or by the only one with its port.
    [[nodiscard]] std::optional<std::size_t> find_self(const std::vector<std::string>& list) const {
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

    void stop_replication() {
        const std::scoped_lock lock(servers_mutex);
        if (!replications.empty()) replications.back()->stop();
    }

    replication::Replica* replica() override { return replica_now; }

    // Takes the seal off a message, if there has to be one; false if it is not right.
    static bool open(const Session& session, std::span<std::byte>& message) {
        if (!session.seals) return true;
        message = session.seals->in.open(message);
        return !message.empty();
    }

    // ------------------------------------------------------------------ responses

    void send(const Session& session, wire::Frame frame, std::span<const std::byte> part) {
        endpoint->send(session.peer, wire::encode(frame), part,
                       session.seals ? &session.seals->out : nullptr);
    }

    void send_body(const Session& session, wire::Frame frame, std::span<const std::byte> body) {
        send_body(session.peer, session.seals ? &session.seals->out : nullptr, frame, body);
    }

    void send_body(net::Peer peer, security::Seal* seal, wire::Frame frame,
                   std::span<const std::byte> body) {
        const std::size_t room = endpoint->max_message() - wire::frame_header_size -
                                 (seal ? security::Seal::tag_size : std::size_t{0});
        frame.total = static_cast<std::uint32_t>(body.size());
        do {
            const std::size_t size = std::min(room, body.size() - frame.offset);
            endpoint->send(peer, wire::encode(frame), body.subspan(frame.offset, size), seal);
            frame.offset += static_cast<std::uint32_t>(size);
        } while (frame.offset < body.size());
    }

    Store& store() override { return *store_; }

    void refuse(CallPtr call) noexcept override {
        if (std::this_thread::get_id() == progress_id) {
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

    void refuse_calls() noexcept {
        CallPtr first;
        {
            const std::scoped_lock lock(posted_mutex);
            first = std::move(refused);
        }
        while (first) {
            refuse_now(*first->session(), first->id(), Refusal::of(first->has_changed()));
            first = CallPtr(std::move(first->next));
        }
    }

    void refuse_now(const Session& session, std::uint64_t call, const Refusal& refusal) noexcept {
        if (!sessions.contains(session.id)) return;
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

    // The session is to end, for want of memory to tell its client more.
    void cut(std::uint64_t session) noexcept {
        const auto found = sessions.find(session);
        if (found == sessions.end()) return;
        found->second->is_cut = true;
        has_cut = true;
    }

    void drop_cut() {
        for (auto entry = sessions.begin(); entry != sessions.end();) {
            const std::shared_ptr<Session> session = (entry++)->second;
            if (!session->is_cut) continue;
            complain("a client is dropped: there is no memory to answer it");
            forget(*session);
        }
        has_cut = false;
    }

    void respond(CallPtr call, std::uint16_t code, std::vector<std::byte> body) override {
        if (std::this_thread::get_id() == progress_id) {
            answer(*call, code, body);
        } else {
            post([this, call = std::move(call), code, body = std::move(body)] {
                answer(*call, code, body);
            });
        }
    }

    void answer(Call& call, std::uint16_t code, const std::vector<std::byte>& body) {
        const Session& session = *call.session();
        if (!sessions.contains(session.id)) return;
        try {
            send_body(session,
                      {.kind = wire::Kind::response,
                       .code = code,
                       .session = session.id,
                       .call = call.id()},
                      body);
        } catch (const std::bad_alloc&) {  // perhaps in the middle of it
            cut(session.id);
            return;
        }
        if (code == static_cast<std::uint16_t>(Errc::protocol)) {
            drop(session,
                 std::string(wire::operation_name(call.operation())) + ": malformed request");
        } else if (code == static_cast<std::uint16_t>(Errc::internal)) {
            log(LogLevel::error, std::string(wire::operation_name(call.operation())) + ": " +
                                     wire::Reader(body).string());
        }
    }

    void start_transfer(CallPtr call, Transfer::Direction direction,
                        std::vector<Transfer::Piece> pieces, std::function<void()> then) override {
        post([this, call = std::move(call), direction, pieces = std::move(pieces),
              then = std::move(then)]() mutable {
            guarded(*call, [&](Call& one) {
                start_or_wait(one, direction, std::move(pieces), std::move(then));
            });
        });
    }

    void start_or_wait(Call& call, Transfer::Direction direction,
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

    void start_now(const CallPtr& call, Transfer::Direction direction,
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
                start_stream(
                    session, id, moving,
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

    // What waited for the end of this one may begin.
    void end_transfer(Session& session, std::uint64_t id) {
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

    void start_stream(Session& session, std::uint64_t id, Moving& moving,
                      std::unique_ptr<Stream> stream) {
        session.moved = Clock::now();
        moving.stream = std::move(stream);
        if (moving.stream->direction() == Transfer::Direction::to_client) {
            sending.insert(id);
        } else {
            tell_credit(session, moving);
        }
    }

    void tell_credit(const Session& session, Moving& moving) {
        const auto credit = moving.stream->new_credit();
        if (!credit) return;
        wire::Writer out;
        out.u64(*credit);
        send_body(session, {.kind = wire::Kind::credit, .session = session.id, .call = moving.call},
                  out.data());
    }

    // Bytes of a put, or leave to send more of a fetch.
    void move_stream(Session& session, const wire::Frame& frame, std::span<const std::byte> part) {
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

    // A few messages of each stream to a client, so that nobody waits long for another one's.
    std::size_t send_streams() {
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
                send_body(*session->second,
                          {.kind = wire::Kind::bulk,
                           .session = session->first,
                           .call = found->second.call},
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

    void finished(const CallPtr& call, std::function<void()> then, std::uint64_t id, int error) {
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

    // ------------------------------------------------------------------ clients that go

    void send_failed(net::Peer peer, int error) override {
        for (auto entry = sessions.begin(); entry != sessions.end();) {
            const std::shared_ptr<Session> session = (entry++)->second;
            if (session->peer == peer) {
                log(LogLevel::info, session->client + " is gone: " + net::error_text(error));
                forget(*session);
            }
        }
    }

    void drop(const Session& session, const std::string& why) {
        if (!sessions.contains(session.id)) return;
        complain(session.client + " is dropped: " + why);
        forget(session);
    }

    // The memory that a transfer of it fills stays taken until the provider has done with it: when
    // the client's process has ended, or the kernel has given its host up.
    void forget(const Session& session) {
        const auto found = sessions.find(session.id);
        if (found == sessions.end()) return;
        const std::shared_ptr<Session> kept = found->second;
        gone.reserve(gone.size() + 1);  // before anything changes
        sessions.erase(found);
        if (--clients_of_host[kept->origin] == 0) clients_of_host.erase(kept->origin);
        kept->waiting.clear();
        std::erase_if(transfers, [&](const auto& entry) {
            const Moving& moving = entry.second;
            if (moving.session != kept->id) return false;
            if (moving.transfer) moving.transfer->cancel(FI_ECANCELED);
            return moving.stream != nullptr;  // nothing else touches its memory
        });
        gone.push_back(kept->peer);
        pass_on(kept->take_leases(), kept->client);
    }

    // The leases of a session: to another one of the same process, which has connected anew, or to
    // nobody.
    void pass_on(std::set<std::uint64_t> leases, const std::string& client) {
        if (leases.empty()) return;
        for (const auto& [id, session] : sessions) {
            if (session->client != client) continue;
            session->take_over(std::move(leases));
            return;
        }
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

    // At most a line a second: whoever sends garbage shall not fill the log.
    void complain(std::string_view what) noexcept override {
        unsigned more = 0;
        {
            const std::scoped_lock lock(complaints_mutex);
            const auto now = Clock::now();
            if (now - last_complaint < std::chrono::seconds(1)) {
                ++complaints_held_back;
                return;
            }
            last_complaint = now;
            more = std::exchange(complaints_held_back, 0u);
        }
        try {
            const std::string others =
                more ? " (and " + std::to_string(more) + " more like this)" : "";
            log(LogLevel::warning, std::string(what) + others);
        } catch (const std::bad_alloc&) {
            log(LogLevel::warning, what);
        }
    }

    void log(LogLevel level, std::string_view line) noexcept override {
        if (level > options.log_level) return;
        try {
            options.log(level, line);
        } catch (const std::bad_alloc&) {
            // Whoever writes it had no memory; what it is about has an end of its own.
        }
    }

    void request_shutdown() override {
        // Behind the response, which is posted already.
        post([this] { shutdown_wanted.set(); });
    }

    const Birthplace birthplace;
    std::shared_ptr<Store> store_;
    Options options;
    EventFd wake;
    EventFd shutdown_wanted;
    std::atomic<bool> stopping = false;
    std::atomic<bool> asleep = false;

    std::mutex posted_mutex;  // guards these two
    std::vector<std::function<void()>> posted;
    CallPtr refused;  // the last one
    std::vector<std::function<void()>> running;

    std::mutex complaints_mutex;  // guards the next two
    Clock::time_point last_complaint{};
    unsigned complaints_held_back = 0;

    std::mutex servers_mutex;          // guards these two
    std::vector<std::string> servers;  // the sorted list of the clients whose models are here
    std::vector<std::unique_ptr<Replication>> replications;  // the last one is in force
    std::atomic<replication::Replica*> replica_now = nullptr;

    // Of the progress thread.
    std::unordered_map<std::uint64_t, std::shared_ptr<Session>> sessions;
    std::unordered_map<std::string, std::size_t> clients_of_host;  // by origin
    Lobby lobby{options.silence};
    std::unordered_map<std::uint64_t, Moving> transfers;
    std::set<std::uint64_t> sending;  // streams of them with something to send
    std::uint64_t last_transfer = 0;
    // Of clients that move no bulk: the last one, and the last of another one.
    std::uint64_t small_caller = 0;
    Clock::time_point last_small_call{};
    Clock::time_point other_small_call{};
    bool may_work = false;                                       // in this round
    bool heard = false;                                          // in this round
    std::array<Clock::duration, wire::operation_count> costs{};  // by operation, decaying
    bool has_cut = false;                                        // sessions that are to be dropped
    std::vector<net::Peer> gone;  // to be removed from the endpoint at the next sweep
    Clock::time_point last_expiry = Clock::now();
    Clock::time_point last_sweep = Clock::now();
    std::unique_ptr<net::Endpoint> endpoint;

    std::string address;
    security::Reception::Policy greeting_policy;
    std::unique_ptr<Workers> workers;
    std::thread::id progress_id;  // set before any request can come
    std::thread progress_thread;
    std::unique_ptr<local::Listener> local_listener;  // null: no clients of this host but by wire
};

Server::Server(std::shared_ptr<Store> store, Options options)
    : impl_(std::make_unique<Impl>(std::move(store), std::move(options))) {}
Server::~Server() {
    // A fork has none of the threads, and nothing to end.
    if (impl_->birthplace.is_elsewhere()) static_cast<void>(impl_.release());
}

const std::string& Server::address() const noexcept {
    return impl_->address;
}
const std::shared_ptr<Store>& Server::store() const noexcept {
    return impl_->store_;
}
int Server::shutdown_fd() const noexcept {
    return impl_->shutdown_wanted.fd();
}
void Server::stop() {
    impl_->stop();
}

}  // namespace cpp_store
