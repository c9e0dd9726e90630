// For tests of hostile clients.
#pragma once

#include <algorithm>
#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "net/endpoint.hpp"
#include "net/wire.hpp"
#include "security/greeting.hpp"

namespace cpp_store {

inline bool wait_until(const std::function<bool()>& done,
                       std::chrono::steady_clock::duration patience = std::chrono::seconds(20)) {
    const auto deadline = std::chrono::steady_clock::now() + patience;
    while (!done()) {
        if (std::chrono::steady_clock::now() > deadline) return false;
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return true;
}

// A client that says what it likes. It moves no bytes but in call() and what connects it.
class RawClient : net::Endpoint::Listener {
  public:
    using Bytes = std::vector<std::byte>;
    using Clock = std::chrono::steady_clock;

    // Connects, unless it is told to be a `stranger`.
    explicit RawClient(const std::string& server, const std::string& key = {},
                       bool stranger = false)
        : server_(server),
          key_(key),
          endpoint_(std::make_unique<net::Endpoint>(net::Address::parse(server),
                                                    net::Endpoint::Role::client,
                                                    static_cast<net::Endpoint::Listener&>(*this))) {
        if (!stranger) connect();
    }

    [[nodiscard]] const Bytes& name() const { return endpoint_->name(); }
    // What it says, with another one's address if one is given.
    [[nodiscard]] security::Request request(const Bytes& name = {}) const {
        std::optional<security::Secret> shared;
        if (!key_.empty()) shared = security::secret_of(key_);
        return security::Request({.address = server_,
                                  .name = name.empty() ? endpoint_->name() : name,
                                  .client = "hostile/1",
                                  .servers = {server_},
                                  .shared = shared});
    }
    // The server's answer to a hello, whatever it is; from then on what is sent leaves at once.
    std::optional<Bytes> knock() { return call(wire::Operation::hello, request().hello()); }
    void connect() {
        security::Request asked = request();
        const auto challenge = call(wire::Operation::hello, asked.hello());
        if (!challenge || code_ != 0) throw std::runtime_error("no challenge");
        const Bytes join = asked.join(*challenge);
        session_ = asked.session();
        seals_ = asked.take_seals();
        --call_;  // a join has the number of its hello
        const auto welcome = call(wire::Operation::join, join);
        if (!welcome || code_ != 0) throw std::runtime_error("no welcome");
        wire::Reader in(*welcome);
        asked.check(wire::decode_welcome(in));
    }

    // Nothing else happens to what was sent, but that it leaves.
    void send(std::span<const std::byte> message) {
        endpoint_->send(endpoint_->server(), message, {});
        endpoint_->progress();
    }
    // As a message of ours would look now, with its seal.
    [[nodiscard]] Bytes message(wire::Frame frame, std::span<const std::byte> part) {
        frame.session = session_;
        const auto header = wire::encode(frame);
        const std::size_t tag = seals_ ? security::Seal::tag_size : 0;
        Bytes bytes(header.size() + part.size() + tag);
        std::ranges::copy(part, std::ranges::copy(header, bytes.begin()).out);
        if (seals_) seals_->out.close(bytes);
        return bytes;
    }
    [[nodiscard]] Bytes message(wire::Operation operation, std::span<const std::byte> body) {
        return message({.kind = wire::Kind::request,
                        .code = static_cast<std::uint16_t>(operation),
                        .call = ++call_,
                        .total = static_cast<std::uint32_t>(body.size())},
                       body);
    }
    void send(wire::Frame frame, std::span<const std::byte> part) { send(message(frame, part)); }
    void send(wire::Operation operation, std::span<const std::byte> body) {
        send(message(operation, body));
    }
    // The answer's body (code() is set), or nothing if none comes.
    std::optional<Bytes> call(wire::Operation operation, std::span<const std::byte> body,
                              Clock::duration patience = std::chrono::seconds(5)) {
        answer_.reset();
        send(operation, body);
        const auto deadline = Clock::now() + patience;
        while (!answer_ && Clock::now() < deadline) endpoint_->progress();
        return answer_;
    }
    [[nodiscard]] Errc code() const { return static_cast<Errc>(code_); }
    [[nodiscard]] std::uint64_t session() const { return session_; }
    [[nodiscard]] net::MemoryRegion expose(std::span<const std::byte> memory) {
        return endpoint_->expose(memory, false);
    }
    // Without a word.
    void vanish() { endpoint_.reset(); }

  private:
    void received(std::span<std::byte> message) override {
        Bytes clear(message.begin(), message.end());
        if (seals_) {
            if (const auto opened = seals_->in.open(message); !opened.empty()) {
                clear.assign(opened.begin(), opened.end());
            }
        }
        try {
            std::span<const std::byte> part;
            const wire::Frame frame = wire::decode_frame(clear, part);
            if (frame.kind != wire::Kind::response || frame.call != call_) return;
            code_ = frame.code;
            answer_ = Bytes(part.begin(), part.end());
        } catch (const Error&) {
            return;  // sealed for somebody else
        }
    }
    void send_failed(net::Peer, int) override {}

    const std::string server_;
    const std::string key_;
    std::optional<Bytes> answer_;
    std::uint16_t code_ = 0;
    std::uint64_t session_ = 0;
    std::uint64_t call_ = 0;
    std::unique_ptr<security::Seals> seals_;
    std::unique_ptr<net::Endpoint> endpoint_;
};

}  // namespace cpp_store
