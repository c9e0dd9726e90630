#include "server/replication.hpp"

#include <algorithm>

#include "core/random.hpp"

namespace cpp_store::server {

Replication::Replication(Store& store, Options options)
    : replica_(store, replication::Placement(options.servers, options.replicas), options.self),
      peers_(connect(options), nullptr,
             [this](const replication::Request& request) {
                 return replication::answer(replica_, request);
             }),
      passes_(replica_, peers_, options.warn, {}),
      warn_(options.warn),
      schedule_(options.servers.size() + 1) {
    for (Peer& peer : schedule_) peer.next = Clock::now();
    schedule_[options.self].next = Clock::time_point::max();
    replica_.on_doubt([this](std::size_t peer, bool heard) {
        {
            const std::scoped_lock lock(mutex_);
            if (!heard && schedule_[peer].rest.count() > 0) return;  // it is tried as it is
            schedule_[peer].next = std::min(schedule_[peer].next, Clock::now() + first_rest);
        }
        woken_.notify_all();
    });
    thread_ = std::thread([this] { run(); });
}

Replication::~Replication() {
    stop();
}

void Replication::stop() {
    {
        const std::scoped_lock lock(mutex_);
        stopping_ = true;
    }
    woken_.notify_all();
    if (thread_.joinable()) thread_.join();
}

std::vector<std::shared_ptr<client::Connection>> Replication::connect(const Options& options) {
    std::vector<std::string> list = options.servers;
    list.push_back(client::replicas_word(options.replicas));
    std::vector<std::shared_ptr<client::Connection>> connections;
    for (std::size_t i = 0; i < options.servers.size(); ++i) {
        if (i == options.self) {
            connections.push_back(nullptr);
            continue;
        }
        connections.push_back(std::make_shared<client::Connection>(client::Connection::Options{
            .address = options.servers[i],
            .servers = list,
            .key = options.key,
            .timeout = timeout,
            // Called while this thread waits for peers.
            .check_signals =
                [this] {
                    if (stopping_) throw Error(Errc::connection, "this server ends");
                },
            .same_host = true,
            .encrypt = options.encrypt}));
    }
    return connections;
}

void Replication::run() {
    std::unique_lock lock(mutex_);
    while (!stopping_) {
        const auto next = std::ranges::min_element(schedule_, {}, &Peer::next);
        const auto now = Clock::now();
        if (next->next > now) {
            const auto until = next->next;
            woken_.wait_until(lock, until);
            continue;
        }
        const auto server = static_cast<std::size_t>(next - schedule_.begin());
        // What is doubted from here on is looked at in the next pass.
        next->next = now + interval / 2 +
                     std::chrono::milliseconds(random_number() %
                                               static_cast<std::uint64_t>(interval.count()));
        lock.unlock();
        try {
            if (server + 1 == schedule_.size()) {
                scrub();
            } else {
                pass(server);
            }
        } catch (const std::exception& error) {
            if (!stopping_) warn_(std::string("cannot follow the other servers: ") + error.what());
        }
        lock.lock();
    }
}

void Replication::pass(std::size_t server) {
    const bool complete = replication::run(passes_.with(server));
    const std::scoped_lock lock(mutex_);
    Peer& peer = schedule_[server];
    peer.rest =
        complete ? std::chrono::milliseconds(0) : std::clamp(2 * peer.rest, first_rest, last_rest);
    if (!complete) peer.next = std::min(peer.next, Clock::now() + peer.rest);
}

void Replication::scrub() {
    const bool is_end = replication::run(passes_.scrub(Clock::now()));
    if (is_end) return;
    const std::scoped_lock lock(mutex_);
    schedule_.back().next = std::min(schedule_.back().next, Clock::now() + interval / 4);
}

}  // namespace cpp_store::server
