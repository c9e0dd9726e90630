#include "net/assembler.hpp"

#include "cpp_store/error.hpp"

namespace cpp_store::net {

std::optional<std::vector<std::byte>> Assembler::add(const wire::Frame& frame,
                                                     std::span<const std::byte> part) {
    if (frame.offset == 0 && part.size() == frame.total) {
        return std::vector<std::byte>(part.begin(), part.end());
    }
    auto [entry, is_new] = unfinished_.try_emplace(frame.call);
    Unfinished& unfinished = entry->second;
    if (is_new) unfinished.first = frame;
    const bool follows = frame.offset == unfinished.body.size() &&
                         frame.total == unfinished.first.total &&
                         frame.code == unfinished.first.code;
    // Memory grows with what has arrived, not with what was announced.
    if (!follows || unfinished_bytes_ + part.size() > max_unfinished_bytes ||
        unfinished_.size() > max_unfinished_calls) {
        forget(frame.call);
        throw Error(Errc::protocol,
                    "malformed message: a frame that does not follow the last one, "
                    "or too many unfinished ones");
    }
    unfinished.body.insert(unfinished.body.end(), part.begin(), part.end());
    unfinished_bytes_ += part.size();
    if (unfinished.body.size() < frame.total) return std::nullopt;
    std::vector<std::byte> body = std::move(unfinished.body);
    unfinished_bytes_ -= body.size();
    unfinished_.erase(entry);
    return body;
}

void Assembler::forget(std::uint64_t call) {
    const auto entry = unfinished_.find(call);
    if (entry == unfinished_.end()) return;
    unfinished_bytes_ -= entry->second.body.size();
    unfinished_.erase(entry);
}

}  // namespace cpp_store::net
