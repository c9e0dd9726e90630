// The bytes of one call inside its client's sealed messages, where RMA would show them to the
// network.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "server/transfer.hpp"

namespace cpp_store::server {

// A position in pieces of memory that follow each other. Belongs to the progress thread.
class Stream {
  public:
    Stream(Transfer::Direction direction, std::vector<Transfer::Piece> pieces,
           std::function<void(int error)> done);

    [[nodiscard]] Transfer::Direction direction() const noexcept { return direction_; }
    [[nodiscard]] bool is_over() const noexcept { return moved_ == total_; }
    void end() { std::exchange(done_, nullptr)(0); }

    // From the client: takes the next bytes; false if there are more of them than asked for.
    [[nodiscard]] bool take(std::span<const std::byte> bytes);
    // How much the client may have sent in all, if it should be told.
    [[nodiscard]] std::optional<std::uint64_t> new_credit();

    // To the client: the next bytes, at most so many and what it gave credit for; empty: none.
    [[nodiscard]] std::span<const std::byte> next(std::size_t most);
    // False if that is less than before.
    [[nodiscard]] bool give_credit(std::uint64_t bytes);

  private:
    // Of the piece that is next.
    [[nodiscard]] std::span<std::byte> rest();

    const Transfer::Direction direction_;
    std::vector<Transfer::Piece> pieces_;
    std::function<void(int error)> done_;
    std::size_t piece_ = 0;
    std::uint64_t offset_ = 0;
    std::uint64_t moved_ = 0;
    std::uint64_t credit_ = 0;
    std::uint64_t total_ = 0;
};

}  // namespace cpp_store::server
