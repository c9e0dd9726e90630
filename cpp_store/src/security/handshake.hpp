// How two ends prove to each other that they know the key, and agree on keys of their connection.
//
// Field by field, with what it is good for: docs/formats.md, "Handshake".
#pragma once

#include <array>
#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "security/key.hpp"

namespace cpp_store::security {

// A nonce, a public key, a digest or a proof.
using Bytes32 = std::array<std::byte, 32>;

// What one end brings to one handshake: random numbers, never used again.
class Contribution {
  public:
    Contribution();
    [[nodiscard]] const Bytes32& nonce() const noexcept { return nonce_; }
    [[nodiscard]] const Bytes32& public_key() const noexcept { return public_key_; }

  private:
    friend struct Agreement;
    Bytes32 nonce_{};
    Bytes32 public_key_{};
    Secret secret_;
};

// What both ends know after hello and challenge, and nobody else: neither without the shared key,
// nor, once the contributions are gone, with it.
struct Agreement {
    // `hello` and `challenge` are the bodies of those messages, which hold both contributions and
    // all that was agreed on: if one byte of them was changed on the way, both ends come to
    // different results. Throws Errc::protocol for a public key that is none.
    Agreement(const Contribution& mine, const Bytes32& their_public_key, const Secret& shared,
              std::span<const std::byte> hello, std::span<const std::byte> challenge);

    Bytes32 proof_of_client;
    Bytes32 proof_of_server;
    Secret to_server;  // keys of the two directions
    Secret to_client;
};

// In constant time.
[[nodiscard]] bool is_equal(const Bytes32& one, const Bytes32& other) noexcept;

// Of the addresses that a client was given, in any order.
[[nodiscard]] Bytes32 digest_of(std::vector<std::string> servers);

}  // namespace cpp_store::security
