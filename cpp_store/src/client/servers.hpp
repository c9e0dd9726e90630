// The servers of a replicated store as its protocol sees them, for clients and for each other.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "client/connection.hpp"
#include "replication/network.hpp"

namespace cpp_store::client {

// How a list says that its servers keep several replicas: as one more word of it, so that clients
// with another number are refused as those with another list are.
[[nodiscard]] std::string replicas_word(std::size_t replicas);
// Takes it out of a list again; 1 if it is not there.
[[nodiscard]] std::size_t take_replicas(std::vector<std::string>& list);

// Thread-safe. Calls return when all are answered: whoever awaits them does not wait. A server that
// does not answer counts as down for a while, the longer the longer that took to find out.
class Servers final : public replication::Network {
  public:
    using Here = std::function<replication::Answer(const replication::Request&)>;
    // One a server of the list; null for oneself, who answers by `here`.
    explicit Servers(std::vector<std::shared_ptr<Connection>> connections,
                     std::function<void()> check_signals = nullptr, Here here = nullptr);
    ~Servers() override;

    [[nodiscard]] std::shared_ptr<Exchange> start(std::vector<Call> calls) override;
    [[nodiscard]] bool is_down(std::size_t server) const override;
    // Whether it has not answered since it last did not.
    [[nodiscard]] bool is_absent(std::size_t server) const { return down_until_[server] != 0; }
    [[nodiscard]] std::shared_ptr<Exchange> pause(std::chrono::milliseconds length) override;
    [[nodiscard]] std::uint32_t random() override;

    // Before a call to a server and after it. Nothing is noted of errors that say that it is there.
    [[nodiscard]] Clock::time_point begin(std::size_t server);
    void answered(std::size_t server) noexcept;
    void failed(std::size_t server, Clock::time_point begun, const Error& error) noexcept;

  private:
    [[nodiscard]] PendingCallPtr send(const Call& call);
    [[nodiscard]] replication::Answer receive(const Call& call, const PendingCallPtr& sent);
    [[nodiscard]] replication::Answer pull(const Call& call);
    [[nodiscard]] replication::Answer fetch(const Call& call);
    [[nodiscard]] std::vector<replication::LayerData> fetch(std::size_t server,
                                                            const std::string& owner,
                                                            std::span<const LayerKey> keys);

    const std::vector<std::shared_ptr<Connection>> connections_;
    const std::function<void()> check_signals_;
    const Here here_;
    const std::unique_ptr<std::atomic<Clock::rep>[]> down_until_;
};

}  // namespace cpp_store::client
