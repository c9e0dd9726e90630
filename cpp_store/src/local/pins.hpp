// What a client of this host has views of.
#pragma once

#include <cstdint>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "cpp_store/store.hpp"

namespace cpp_store::local {

// Pins are the client's, and named by the call whose answer told of them. They go when the client
// says so, or when its socket is closed, which the kernel does when its process ends. No end of a
// call, and nothing that a server does to a client, takes any of them away. Thread-safe.
class Pins {
  public:
    // Of an answer that is being made. Throws Errc::invalid_argument if the client has too many.
    void pin(std::uint64_t call, StoredLayerPtr layer);
    void unpin(std::uint64_t call, std::uint32_t pin) noexcept;
    void unpin(std::uint64_t call) noexcept;  // all of an answer, which nobody took
    [[nodiscard]] bool is_empty() const;
    void end() noexcept;  // the client is gone

  private:
    struct Answer {
        std::vector<StoredLayerPtr> layers;
        std::size_t held = 0;
    };
    mutable std::mutex mutex_;  // guards the rest
    bool is_over_ = false;
    std::unordered_map<std::uint64_t, Answer> answers_;
    std::size_t held_ = 0;
};

}  // namespace cpp_store::local
