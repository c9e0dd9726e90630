// The bytes of one call inside its client's sealed messages, where RMA would show them to the
// network.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "server/transfer.hpp"

namespace cpp_store::server {

// A position in pieces of memory that follow each other.
class Stream final : public Transfer {
  public:
    using Send = std::function<void(wire::Kind kind, std::span<const std::byte> part)>;

    // `most`: bytes of a message to the client.
    Stream(Plan plan, std::size_t most, Send send, Done done);

    void start() override;
    [[nodiscard]] bool hear(wire::Kind kind, std::span<const std::byte> part) override;
    std::size_t send_some() override;
    [[nodiscard]] bool may_send() const noexcept override {
        return direction_ == Direction::to_client && moved_ < credit_ && moved_ < total_;
    }
    [[nodiscard]] bool cancel(int /*error*/) noexcept override { return true; }

  private:
    // Of the piece that is next.
    [[nodiscard]] std::span<std::byte> rest();
    [[nodiscard]] bool take(std::span<const std::byte> bytes);
    void tell_credit();
    void end_if_through();

    const Direction direction_;
    std::vector<Piece> pieces_;
    const std::size_t most_;
    Send send_;
    Done done_;
    std::size_t piece_ = 0;
    std::uint64_t offset_ = 0;
    std::uint64_t moved_ = 0;
    std::uint64_t credit_ = 0;  // that the client has, or gave: bytes in all
    std::uint64_t total_ = 0;
};

}  // namespace cpp_store::server
