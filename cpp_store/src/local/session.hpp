// One connection of a client of this host, and the thread that serves it.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "local/layers.hpp"
#include "local/listener.hpp"
#include "local/socket.hpp"
#include "local/staging.hpp"
#include "net/assembler.hpp"
#include "server/call.hpp"

namespace cpp_store::local {

// A call that its session's thread waits for: whoever answers it, the thread of the log for one,
// leaves the answer here and has nothing to do with the client.
class Request final : public server::Call {
  public:
    struct Answer {
        std::uint16_t code = 0;
        std::vector<std::byte> body;
        std::optional<server::Refusal> refusal;  // instead of these two
    };
    using server::Call::Call;
    void answer(Answer given) noexcept;
    [[nodiscard]] Answer wait();

  private:
    std::mutex mutex_;  // guards the answer
    std::condition_variable answered_;
    std::optional<Answer> answer_;
};

// One call after the other, each done before the next one is looked at. What an answer pins is the
// client's from the next message on, which says that the answer has come; if the connection ends
// before that, it is pinned no more.
class Session final : public server::Host {
  public:
    Session(local::Host& host, Clients& clients, Socket socket);

    void run();  // until the client or the server ends it
    // From any thread, when the server ends: after this, nothing of it is touched. Returns false if
    // the client has views and this is its first connection: run() then goes on until it has let
    // go of them, or is gone.
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
    [[nodiscard]] bool keeps_pins();
    void log(LogLevel level, std::string_view line) noexcept;
    void complain(std::string_view line) noexcept;
    void report(const std::exception& error) noexcept;  // why it is over
    void request(wire::Operation operation, std::uint64_t id, std::vector<std::byte> body);
    void dispatch(server::Call& call);
    void send(const Request& call, const Request::Answer& answer);
    void drop_unconfirmed() noexcept;
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
    void send(std::uint64_t call, std::uint16_t code, std::span<const std::byte> body);
    void hand_over(int region);

    local::Host& host_;
    Clients& clients_;  // of no use once the server has ended
    Socket socket_;
    std::atomic<bool> over_ = false;
    std::atomic<bool> ended_ = false;  // by the server
    bool stopping_ = false;            // after this call
    const std::chrono::steady_clock::time_point begun_ = std::chrono::steady_clock::now();

    std::mutex mutex_;  // held while a message is handled; guards the rest and what `ended_` says

    std::unique_ptr<security::Reception> reception_;  // from hello to join
    std::shared_ptr<Client> client_;                  // null before join
    bool is_first_ = false;                           // of the client's connections
    net::Assembler requests_;
    std::unique_ptr<Staging> staging_;        // once a put needed it
    std::vector<std::uint64_t> unconfirmed_;  // pins of the last answer
    std::set<int> regions_;                   // that the client has
};

}  // namespace cpp_store::local
