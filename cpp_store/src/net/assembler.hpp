// Bodies that came in several frames, put together again.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "net/wire.hpp"

namespace cpp_store::net {

// Frames of one body arrive in order (endpoints ask for that); bodies of different calls may
// interleave. What one session may leave unfinished is bounded.
class Assembler {
  public:
    static constexpr std::uint64_t max_unfinished_bytes = 2 * std::uint64_t{wire::max_body};
    static constexpr std::size_t max_unfinished_calls = 256;

    // The whole body, once its last frame is here. Throws Errc::protocol for a frame that does not
    // follow its predecessor, or beyond the bounds.
    [[nodiscard]] std::optional<std::vector<std::byte>> add(const wire::Frame& frame,
                                                            std::span<const std::byte> part);
    void forget(std::uint64_t call);
    // Nothing is unfinished.
    [[nodiscard]] bool empty() const noexcept { return unfinished_.empty(); }

  private:
    struct Unfinished {
        wire::Frame first;
        std::vector<std::byte> body;
    };
    std::map<std::uint64_t, Unfinished> unfinished_;
    std::uint64_t unfinished_bytes_ = 0;
};

}  // namespace cpp_store::net
