// The bytes of one call, between the server's memory and the client's, in pieces.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "net/wire.hpp"

namespace cpp_store::server {

// How they move is up to its kinds: by RMA (rma.hpp), inside the client's sealed messages
// (stream.hpp), or through memory that a client of this host shares with us (staged.hpp). Belongs
// to the progress thread.
class Transfer {
  public:
    using Clock = std::chrono::steady_clock;
    enum class Direction : std::uint8_t { from_client, to_client };
    struct Piece {
        std::byte* local = nullptr;
        std::uint64_t length = 0;
        wire::Remote remote;
    };
    struct Plan {
        Direction direction = Direction::from_client;
        std::vector<Piece> pieces;
        // Takes the next bytes of a piece from where they came by. Null: copied to the piece.
        std::function<void(std::size_t piece, std::span<const std::byte> bytes)> take;
    };
    // Called once, when nothing touches the memory any more; `error` is 0 or one of libfabric. May
    // destroy the transfer.
    using Done = std::function<void(int error)>;

    Transfer() = default;
    Transfer(const Transfer&) = delete;
    Transfer& operator=(const Transfer&) = delete;
    virtual ~Transfer() = default;

    virtual void start() = 0;  // may end it at once
    // What its client says of it; false if that breaks the rules. May end it.
    [[nodiscard]] virtual bool hear(wire::Kind kind, std::span<const std::byte> part);
    // Sends a few messages of it; how many. May end it.
    virtual std::size_t send_some() { return 0; }
    // Whether send_some() has something to do.
    [[nodiscard]] virtual bool may_send() const noexcept { return false; }
    // Moves no more. True if nothing touches the memory from now on, and done is never called; else
    // that is, with this error, once nothing does.
    [[nodiscard]] virtual bool cancel(int error) noexcept = 0;
    // Whether another thread is through with it; then look() ends it, or throws why it cannot.
    [[nodiscard]] virtual bool is_through() const noexcept { return false; }
    virtual void look() {}
    // When something moved last, as far as it is known here.
    [[nodiscard]] virtual Clock::time_point moved() const noexcept { return {}; }
};

inline bool Transfer::hear(wire::Kind /*kind*/, std::span<const std::byte> /*part*/) {
    return false;
}

}  // namespace cpp_store::server
