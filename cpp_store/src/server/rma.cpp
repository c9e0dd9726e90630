#include "server/rma.hpp"

#include <algorithm>
#include <utility>

#include "durable/failpoints.hpp"

namespace cpp_store::server {

RmaTransfer::RmaTransfer(net::Endpoint& endpoint, net::Peer peer, Plan plan,
                         std::function<Pace()> pace, Done done)
    : endpoint_(endpoint),
      pieces_(std::move(plan.pieces)),
      pace_(std::move(pace)),
      done_(std::move(done)) {
    regions_.reserve(pieces_.size());
    for (const Piece& piece : pieces_) {
        regions_.push_back(endpoint_.register_local({piece.local, piece.length}));
    }
    idle_.reserve(chunks_.size());
    for (Chunk& chunk : chunks_) {
        chunk.transfer = this;
        chunk.peer = peer;
        chunk.write = plan.direction == Direction::to_client;
        idle_.push_back(&chunk);
    }
}

void RmaTransfer::fill() {
    const Pace pace = pace_();
    while (error_ == 0 && !idle_.empty() && flying_ < pace.window && post_next(pace.chunk)) {
    }
    if (flying_ == 0) std::exchange(done_, nullptr)(error_);
}

// False if everything is on its way.
bool RmaTransfer::post_next(std::uint64_t most) {
    while (piece_ < pieces_.size() && offset_ == pieces_[piece_].length) {
        ++piece_;
        offset_ = 0;
    }
    if (piece_ == pieces_.size()) return false;
    Chunk& chunk = *idle_.back();
    idle_.pop_back();
    const Piece& piece = pieces_[piece_];
    chunk.local = piece.local + offset_;
    chunk.length = std::min(most, piece.length - offset_);
    chunk.descriptor = regions_[piece_].descriptor();
    chunk.remote = piece.remote.address + offset_;
    chunk.key = piece.remote.key;
    offset_ += chunk.length;
    flying_ += chunk.length;
    endpoint_.start(chunk);
    return true;
}

void RmaTransfer::completed(Chunk& chunk, int error) {
    (void)failpoints::visit("transfer.done");
    flying_ -= chunk.length;
    idle_.push_back(&chunk);
    if (error_ == 0) error_ = error;
    fill();
}

}  // namespace cpp_store::server
