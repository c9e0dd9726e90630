// The key that servers and their clients share, and what it is turned into (where it comes from:
// cpp_store/keys.hpp).
#pragma once

#include <array>
#include <cstddef>
#include <span>
#include <string>
#include <string_view>

namespace cpp_store::security {

// 32 bytes that nobody else may know. Overwritten when they are no longer needed.
class Secret {
  public:
    static constexpr std::size_t size = 32;
    Secret() = default;
    Secret(const Secret&) = default;
    Secret& operator=(const Secret&) = default;
    ~Secret();
    [[nodiscard]] unsigned char* data() noexcept { return bytes_.data(); }
    [[nodiscard]] const unsigned char* data() const noexcept { return bytes_.data(); }

  private:
    std::array<unsigned char, size> bytes_{};
};

// Overwrites a text and empties it.
void wipe(std::string& text) noexcept;

// Of whatever text people take as a key; 256 bits of `cpp-store keygen` are what it should be.
[[nodiscard]] Secret secret_of(std::string_view key);

}  // namespace cpp_store::security
