#include "server/engine.hpp"

#include <algorithm>
#include <cstdio>
#include <ctime>

#include "core/random.hpp"
#include "local/names.hpp"
#include "net/waiting.hpp"
#include "security/key.hpp"

namespace cpp_store::server {
namespace {

// How long the progress thread looks for more before it sleeps, so that calls that follow each
// other find it awake.
constexpr std::chrono::microseconds longest_spin{50};

constexpr std::chrono::milliseconds lease_check{10'000};

// Clients die without a word. One that a transfer waits for is alive as long as it sends probes or
// its bytes move, for a while; one that asks for nothing is sent a message now and then, which
// fails if nobody is there. That one reads nothing meanwhile, so there is an end to what its socket
// is filled with. All in units of Options::silence.
constexpr int sweeps = 4;
constexpr int standstill = 6;  // of a transfer, whatever its client says
constexpr int probe_interval = 3;
constexpr unsigned most_probes = 500;

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

}  // namespace

Engine::Engine(std::shared_ptr<Store> served, Options given)
    : store_(std::move(served)),
      options(checked(std::move(given))),
      endpoint(std::make_unique<net::Endpoint>(net::Address::parse(options.address),
                                               net::Endpoint::Role::server, *this,
                                               options.silence / 2)),
      address(endpoint->address().text()),
      greeting_policy{.address = address,
                      .incarnation = random_number(),
                      .shared = {},
                      .encrypt = options.encrypt} {
    if (!options.key.empty()) greeting_policy.shared = security::secret_of(options.key);
    security::wipe(options.key);
    workers = std::make_unique<Workers>(options.threads);
    listen_on_host();
    progress_thread = std::thread([this] { run(); });
}

void Engine::listen_on_host() {
    try {
        const std::string name = local::server_name(endpoint->address(), endpoint->name());
        if (!name.empty()) {
            host_endpoint = std::make_unique<local::Endpoint>(
                name, static_cast<local::Endpoint::Listener&>(*this), 2 * options.limits.clients);
        }
    } catch (const Error& error) {
        log(LogLevel::warning, address + ": " + error.what());
    }
}

Engine::Options Engine::checked(Options options) {
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

void Engine::stop() {
    if (stopping.exchange(true)) return;
    stop_replication();
    wake_up();
    progress_thread.join();
    workers.reset();
    await_disk();
    endpoint->close();  // from here on nothing touches the memory of transfers
    transfers.clear();
    for (const auto& [id, session] : sessions) session->waiting.clear();
    endpoint.reset();
    host_endpoint.reset();
    shutdown_wanted.set();
}

void Engine::await_disk() noexcept {
    try {
        store_->flush();
    } catch (const std::exception&) {
        // They have ended all the same, and whoever closes the store is told.
    }
}

void Engine::run() {
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

std::size_t Engine::make_progress() noexcept {
    std::size_t handled = 1;
    try {
        handled = endpoint->progress() + (host_endpoint ? host_endpoint->progress() : 0);
        if (is_through.exchange(false)) look_at_transfers();
        handled += run_posted() + send_bulk();
        refuse_calls();
        sweep();
        if (has_cut) drop_cut();
    } catch (const std::bad_alloc&) {
        complain("no memory");
    }
    return handled;
}

void Engine::sleep() {
    asleep = true;
    // What was posted before `asleep` was set woke nobody.
    if (!has_posted() && !stopping && !is_through) {
        auto limit =
            std::min<std::chrono::nanoseconds>(endpoint->may_sleep(), options.silence / sweeps);
        if (host_endpoint && host_endpoint->is_paused()) {
            limit = std::min<std::chrono::nanoseconds>(limit, local::Endpoint::pause);
        }
        std::array<pollfd, 3> waiting{
            pollfd{wake.fd(), POLLIN, 0}, pollfd{endpoint->wait_fd(), POLLIN, 0},
            pollfd{host_endpoint ? host_endpoint->wait_fd() : -1, POLLIN, 0}};
        net::sleep(waiting, limit);
        if (waiting[0].revents != 0) wake.clear();
    }
    asleep = false;
}

void Engine::sweep() {
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
    look_after_strangers(now);
    expire_orphans(now);
    std::set<std::uint64_t> moving;
    for (const auto& [id, transfer] : transfers) {
        Session& session = *transfer.call->session();
        session.moved = std::max(session.moved, transfer.transfer->moved());
        moving.insert(session.id);
    }
    for (auto entry = sessions.begin(); entry != sessions.end();) {
        const std::shared_ptr<Session> session = (entry++)->second;
        look_after(*session, moving.contains(session->id), now);
    }
}

void Engine::look_after_strangers(Clock::time_point now) {
    for (const Lobby::Guest& guest : lobby.expire(now)) {
        complain(guest.session->client + " is dropped: it did not join after its hello");
        leave(guest.session->at);
    }
    if (!host_endpoint) return;
    std::vector<local::LinePtr> silent;
    for (const auto& [fd, line] : host_endpoint->lines()) {
        if (line->session == 0 && now - line->since >= lobby.patience()) silent.push_back(line);
    }
    for (const local::LinePtr& line : silent) {
        complain("a client of this host is dropped: it said no hello");
        host_endpoint->close(*line);
    }
}

void Engine::look_after(Session& session, bool moving, Clock::time_point now) {
    const auto quiet = now - std::max(session.heard, session.moved);
    if (moving &&
        (quiet >= options.silence || now - session.moved >= options.silence * standstill)) {
        drop(session, "its bytes do not move any more");
    } else if (!session.requests.empty() && quiet >= options.silence) {
        drop(session, "a message that it began has no end");
    } else if (session.at.line) {  // the kernel says when it is gone
        const auto blocked = session.at.line->blocked;
        if (blocked != Clock::time_point{} && now - blocked >= options.silence) {
            drop(session, "it reads no answers");
        }
    } else if (const auto interval = options.silence * probe_interval;
               quiet >= interval && now - session.probed >= interval &&
               session.probes < most_probes) {
        session.probed = now;
        ++session.probes;
        send(session, {.kind = wire::Kind::echo, .session = session.id}, {});
    }
}

void Engine::post(std::function<void()> work) {
    {
        const std::scoped_lock lock(posted_mutex);
        posted.push_back(std::move(work));
    }
    wake_up();
}

void Engine::wake_up() {
    if (!asleep) return;
    wake.set();
    endpoint->interrupt();
}

bool Engine::has_posted() {
    const std::scoped_lock lock(posted_mutex);
    return !posted.empty();
}

std::size_t Engine::run_posted() {
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

void Engine::complain(std::string_view what) noexcept {
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
        const std::string others = more ? " (and " + std::to_string(more) + " more like this)" : "";
        log(LogLevel::warning, std::string(what) + others);
    } catch (const std::bad_alloc&) {
        log(LogLevel::warning, what);
    }
}

void Engine::log(LogLevel level, std::string_view line) noexcept {
    if (level > options.log_level) return;
    try {
        options.log(level, line);
    } catch (const std::bad_alloc&) {
        // Whoever writes it had no memory; what it is about has an end of its own.
    }
}

void Engine::request_shutdown() {
    // Behind the response, which is posted already.
    post([this] { shutdown_wanted.set(); });
}

}  // namespace cpp_store::server
