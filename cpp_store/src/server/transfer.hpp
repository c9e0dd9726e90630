// The bytes of one call, between the server's memory and the client's, in pieces.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "net/endpoint.hpp"
#include "net/wire.hpp"

namespace cpp_store::server {

// Cut into chunks with a few in flight, so that the wire stays full and no client waits long for
// another one's. Belongs to the thread that drives the endpoint; it must live until it is done or
// the endpoint is closed.
class Transfer {
  public:
    // Measured over loopback TCP: below 512 KiB the round trips show, above it the caches do.
    static constexpr std::uint64_t chunk = 512 << 10;
    static constexpr std::size_t in_flight = 4;

    enum class Direction : std::uint8_t { from_client, to_client };
    struct Piece {
        std::byte* local = nullptr;
        std::uint64_t length = 0;
        wire::Remote remote;
    };
    // Called once, when nothing is in flight any more; `error` is 0 or one of libfabric. May
    // destroy the transfer.
    using Done = std::function<void(int error)>;

    Transfer(net::Endpoint& endpoint, net::Peer peer, Direction direction,
             std::vector<Piece> pieces, Done done);
    void start();

  private:
    struct Chunk : net::Rma {
        Transfer* transfer = nullptr;
        bool busy = false;
        void completed(int error) override { transfer->completed(*this, error); }
    };
    void fill();
    void completed(Chunk& slot, int error);

    net::Endpoint& endpoint_;
    std::vector<Piece> pieces_;
    std::vector<net::MemoryRegion> regions_;  // one a piece, where the provider wants them
    Done done_;
    std::array<Chunk, in_flight> chunks_;
    std::size_t piece_ = 0;  // next to be posted: from byte offset_ of this one
    std::uint64_t offset_ = 0;
    std::size_t busy_ = 0;
    int error_ = 0;
};

}  // namespace cpp_store::server
