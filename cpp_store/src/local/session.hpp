// One connection of a client of this host, and the thread that serves it.
#pragma once

#include <atomic>
#include <chrono>
#include <memory>
#include <mutex>
#include <set>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "local/layers.hpp"
#include "local/listener.hpp"
#include "local/socket.hpp"
#include "local/staging.hpp"
#include "net/assembler.hpp"
#include "server/call.hpp"

namespace cpp_store::local {

// One call after the other, each done before the next one is looked at. What the client has views
// of is pinned until it says otherwise, or is gone.
class Session final : public server::Host {
  public:
    Session(local::Host& host, const Instance& instance, Socket socket);

    void run();  // until the client or the server ends it
    // From any thread, when the server ends: after this, nothing of it is touched. Returns false if
    // the client has views: run() then goes on until it has let go of them, or is gone.
    [[nodiscard]] bool end() noexcept;
    [[nodiscard]] bool is_over() const noexcept { return over_; }

  private:
    // Of server::Host, for the calls that are the same over every way in.
    [[nodiscard]] Store& store() override { return host_.store(); }
    [[nodiscard]] replication::Replica* replica() override { return host_.replica(); }
    void respond(server::CallPtr call, std::uint16_t code, std::vector<std::byte> body) override;
    void refuse(server::CallPtr call) noexcept override;
    void start_transfer(server::CallPtr call, server::Transfer::Direction direction,
                        std::vector<server::Transfer::Piece> pieces,
                        std::function<void()> then) override;
    void request_shutdown() override { host_.request_shutdown(); }

    void serve();
    void handle(const Message& message);
    [[nodiscard]] bool has_pins();
    void log(LogLevel level, std::string_view line) noexcept;
    void complain(std::string_view line) noexcept;
    void report(const std::exception& error) noexcept;  // why it is over
    void request(wire::Operation operation, std::uint64_t id, std::vector<std::byte> body);
    void check_stranger(const wire::Frame& frame, std::size_t part) const;
    void hello(server::Call& call);
    void join(server::Call& call);
    void put(server::Call& call);
    void read(server::Call& call);
    void fetch(server::Call& call);
    void unpin(std::span<const std::byte> body);

    void stage(const server::Call& call, PendingPut& pending,
               const std::vector<std::size_t>& tensors);
    void reply(server::Call& call, const std::vector<wire::Layer>& layers,
               const std::vector<StoredLayerPtr>& stored);
    [[nodiscard]] Layer pin(wire::Layer description, const StoredLayerPtr& stored);
    void unpin_since(std::uint64_t last_pin) noexcept;
    void refuse(std::uint64_t call, const server::Refusal& refusal);
    void hand_over(int region);

    local::Host& host_;
    const Instance instance_;
    Socket socket_;
    std::atomic<bool> over_ = false;
    std::atomic<bool> ended_ = false;  // by the server
    bool stopping_ = false;            // after this call
    const std::chrono::steady_clock::time_point begun_ = std::chrono::steady_clock::now();

    std::mutex mutex_;  // held while a message is handled; guards the rest and what `ended_` says

    std::unique_ptr<security::Reception> reception_;  // from hello to join
    std::shared_ptr<server::Session> client_;         // null before join
    net::Assembler requests_;
    std::unique_ptr<Staging> staging_;  // once a put needed it
    std::unordered_map<std::uint64_t, StoredLayerPtr> pins_;
    std::uint64_t last_pin_ = 0;
    std::set<int> regions_;  // that the client has
};

}  // namespace cpp_store::local
