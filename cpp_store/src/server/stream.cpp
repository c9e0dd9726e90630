#include "server/stream.hpp"

#include <algorithm>
#include <cstring>
#include <utility>

namespace cpp_store::server {
namespace {

constexpr int messages_a_round = 4;  // so that nobody waits long for another one's

}  // namespace

Stream::Stream(Plan plan, std::size_t most, Send send, Done done)
    : direction_(plan.direction),
      pieces_(std::move(plan.pieces)),
      most_(most),
      send_(std::move(send)),
      done_(std::move(done)) {
    for (const Piece& piece : pieces_) total_ += piece.length;
}

void Stream::start() {
    if (direction_ == Direction::to_client) {
        credit_ = wire::bulk_window;
    } else {
        tell_credit();
    }
}

bool Stream::hear(wire::Kind kind, std::span<const std::byte> part) {
    if (direction_ == Direction::from_client) {
        if (kind != wire::Kind::bulk || !take(part)) return false;
        if (moved_ < total_) tell_credit();
        end_if_through();
        return true;
    }
    if (kind != wire::Kind::credit || part.size() != sizeof credit_) return false;
    const std::uint64_t credit = wire::Reader(part).u64();
    if (credit < credit_) return false;
    credit_ = credit;
    return true;
}

void Stream::end_if_through() {
    if (moved_ < total_) return;
    const Done done = std::exchange(done_, nullptr);
    done(0);
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

void Stream::tell_credit() {
    if (credit_ == total_ || credit_ - moved_ > wire::bulk_window / 2) return;
    credit_ = std::min(total_, moved_ + wire::bulk_window);
    wire::Writer out;
    out.u64(credit_);
    send_(wire::Kind::credit, out.data());
}

std::size_t Stream::send_some() {
    std::size_t sent = 0;
    for (; sent < messages_a_round && may_send(); ++sent) {
        const std::span<std::byte> found = rest();
        const std::uint64_t size = std::min<std::uint64_t>({found.size(), most_, credit_ - moved_});
        offset_ += size;
        moved_ += size;
        send_(wire::Kind::bulk, found.first(static_cast<std::size_t>(size)));
    }
    end_if_through();
    return sent;
}

}  // namespace cpp_store::server
