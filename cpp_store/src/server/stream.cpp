#include "server/stream.hpp"

#include <algorithm>
#include <cstring>
#include <utility>

namespace cpp_store::server {

Stream::Stream(Transfer::Direction direction, std::vector<Transfer::Piece> pieces,
               std::function<void(int error)> done)
    : direction_(direction), pieces_(std::move(pieces)), done_(std::move(done)) {
    for (const Transfer::Piece& piece : pieces_) total_ += piece.length;
    if (direction_ == Transfer::Direction::to_client) credit_ = wire::bulk_window;
}

std::span<std::byte> Stream::rest() {
    while (piece_ < pieces_.size() && offset_ == pieces_[piece_].length) {
        ++piece_;
        offset_ = 0;
    }
    if (piece_ == pieces_.size()) return {};
    const Transfer::Piece& piece = pieces_[piece_];
    return {piece.local + offset_, piece.length - offset_};
}

bool Stream::take(std::span<const std::byte> bytes) {
    if (moved_ + bytes.size() > credit_) return false;
    while (!bytes.empty()) {
        const std::span<std::byte> room = rest();
        if (room.empty()) return false;
        const std::size_t size = std::min(room.size(), bytes.size());
        std::memcpy(room.data(), bytes.data(), size);
        bytes = bytes.subspan(size);
        offset_ += size;
        moved_ += size;
    }
    return true;
}

std::optional<std::uint64_t> Stream::new_credit() {
    if (credit_ == total_ || credit_ - moved_ > wire::bulk_window / 2) return std::nullopt;
    credit_ = std::min(total_, moved_ + wire::bulk_window);
    return credit_;
}

std::span<const std::byte> Stream::next(std::size_t most) {
    const std::span<std::byte> found = rest();
    const std::uint64_t size =
        std::min<std::uint64_t>({found.size(), most, std::max(credit_, moved_) - moved_});
    offset_ += size;
    moved_ += size;
    return found.first(static_cast<std::size_t>(size));
}

bool Stream::give_credit(std::uint64_t bytes) {
    if (bytes < credit_) return false;
    credit_ = bytes;
    return true;
}

}  // namespace cpp_store::server
