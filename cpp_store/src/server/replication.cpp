#include "server/replication.hpp"

#include "core/random.hpp"

namespace cpp_store::server {

Replication::Replication(Store& store, Options options)
    : replica_(store, replication::Placement(options.servers, options.replicas), options.self,
               random_number()),
      peers_(connect(options), client::Servers::Patience::skip),
      follower_(replica_, peers_, options.warn),
      warn_(options.warn) {
    replica_.on_doubt([this] {
        {
            const std::scoped_lock lock(mutex_);
            look_ = true;
        }
        stopped_.notify_all();
    });
    replica_.tick();
    pulse_ = std::thread([this] { beat(); });
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
    stopped_.notify_all();
    if (thread_.joinable()) thread_.join();
    if (pulse_.joinable()) pulse_.join();
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

// Beside the thread that waits for peers, which may take longer than this process may be away.
void Replication::beat() {
    std::unique_lock lock(mutex_);
    while (!stopped_.wait_for(lock, interval, [&] { return stopping_.load(); })) replica_.tick();
}

void Replication::run() {
    std::unique_lock lock(mutex_);
    while (!stopping_) {
        lock.unlock();
        try {
            replication::run(follower_.round(replication::Replica::Clock::now()));
        } catch (const std::exception& error) {
            if (!stopping_) warn_(std::string("cannot follow the other servers: ") + error.what());
        }
        lock.lock();
        // It has heard most of what the others know, and has still to join them.
        if (!replica_.is_ready()) look_ = true;
        stopped_.wait_for(lock, shortest_interval, [&] { return stopping_.load(); });
        stopped_.wait_for(lock, interval, [&] { return stopping_ || look_; });
        look_ = false;
    }
}

}  // namespace cpp_store::server
