// The bytes of one call by RMA.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "net/endpoint.hpp"
#include "server/transfer.hpp"

namespace cpp_store::server {

// How much of a transfer is handed to the provider at a time. A provider moves all that it was
// given before it looks at anything else, so this is also how long a small call may have to wait.
struct Pace {
    std::uint64_t chunk = 0;   // bytes of one RMA
    std::uint64_t window = 0;  // bytes in flight
};

// Cut into chunks with a few in flight, so that the wire stays full and no client waits long for
// another one's. It must live until it is done or the endpoint is closed.
class RmaTransfer final : public Transfer {
  public:
    // `pace` is asked whenever something has ended: it may change while the transfer runs.
    RmaTransfer(net::Endpoint& endpoint, net::Peer peer, Plan plan, std::function<Pace()> pace,
                Done done);
    void start() override { fill(); }
    [[nodiscard]] bool cancel(int error) noexcept override {
        error_ = error;
        return false;
    }

  private:
    struct Chunk : net::Rma {
        RmaTransfer* transfer = nullptr;
        void completed(int error) override { transfer->completed(*this, error); }
    };
    static constexpr std::size_t most_chunks = 32;

    void fill();
    bool post_next(std::uint64_t most);
    void completed(Chunk& slot, int error);

    net::Endpoint& endpoint_;
    std::vector<Piece> pieces_;
    // One a piece, where the provider wants them. Not cached: the arena gives pages back to the
    // kernel and takes new ones at the same address, which a registration that outlived the
    // transfer would not notice. Clients register for each call for the same reason: nobody tells
    // us when NumPy frees. (libfabric's verbs provider has a cache of its own that watches for
    // both.)
    std::vector<net::MemoryRegion> regions_;
    std::function<Pace()> pace_;
    Done done_;
    std::array<Chunk, most_chunks> chunks_;
    std::vector<Chunk*> idle_;
    std::size_t piece_ = 0;  // next to be posted: from byte offset_ of this one
    std::uint64_t offset_ = 0;
    std::uint64_t flying_ = 0;  // bytes in flight
    int error_ = 0;
};

}  // namespace cpp_store::server
