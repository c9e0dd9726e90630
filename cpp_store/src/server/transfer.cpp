#include "server/transfer.hpp"

#include <algorithm>
#include <utility>

namespace cpp_store::server {

Transfer::Transfer(net::Endpoint& endpoint, net::Peer peer, Direction direction,
                   std::vector<Piece> pieces, Done done)
    : endpoint_(endpoint), pieces_(std::move(pieces)), done_(std::move(done)) {
    regions_.reserve(pieces_.size());
    for (const Piece& piece : pieces_) {
        regions_.push_back(endpoint_.register_local({piece.local, piece.length}));
    }
    for (Chunk& slot : chunks_) {
        slot.transfer = this;
        slot.peer = peer;
        slot.write = direction == Direction::to_client;
    }
}

void Transfer::start() {
    fill();
}

void Transfer::fill() {
    for (Chunk& slot : chunks_) {
        while (piece_ < pieces_.size() && offset_ == pieces_[piece_].length) {
            ++piece_;
            offset_ = 0;
        }
        if (error_ != 0 || piece_ == pieces_.size()) break;
        if (slot.busy) continue;
        const Piece& piece = pieces_[piece_];
        slot.local = piece.local + offset_;
        slot.length = std::min(chunk, piece.length - offset_);
        slot.descriptor = regions_[piece_].descriptor();
        slot.remote = piece.remote.address + offset_;
        slot.key = piece.remote.key;
        slot.busy = true;
        ++busy_;
        offset_ += slot.length;
        endpoint_.start(slot);
    }
    if (busy_ == 0) std::exchange(done_, nullptr)(error_);
}

void Transfer::completed(Chunk& slot, int error) {
    slot.busy = false;
    --busy_;
    if (error_ == 0) error_ = error;
    fill();
}

}  // namespace cpp_store::server
