// Messages that only the two ends of a connection can have made, each at its place in the order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "net/tagging.hpp"

#include "security/key.hpp"

namespace cpp_store::security {

// Values are part of the wire format: append, never renumber. Both are AEADs with keys of 32 bytes,
// nonces of 12 and tags of 16.
enum class Cipher : std::uint8_t {
    none = 0,
    chacha20_poly1305 = 1,  // RFC 8439
    aes256_gcm = 2,         // where processors have instructions for it: twice as quick
};

// Those that this machine has, a bit each: 1 << Cipher.
[[nodiscard]] std::uint8_t available_ciphers();
// The quickest of those that both ends have; there always is one. Throws Errc::protocol if not.
[[nodiscard]] Cipher choose_cipher(std::uint8_t mine, std::uint8_t theirs);

// One direction of one connection, and one end of it. The nonce of a message is how many went
// before it, which both ends count and nobody sends: a message that is forged, or comes twice, or
// not in its turn, has a wrong tag, and so has one of another connection or of the other direction,
// which have keys of their own.
class Seal final : public net::Tagging {
  public:
    // `clear`: so many first bytes of each message are never encrypted; the rest is if `encrypt`.
    // All of it is authenticated either way.
    Seal(Cipher cipher, const Secret& key, std::size_t clear, bool encrypt);
    ~Seal();
    Seal(const Seal&) = delete;
    Seal& operator=(const Seal&) = delete;

    // `message` has at least `clear` bytes and, at its end, room for the tag.
    void close(std::span<std::byte> message) override;
    // The message without its tag, decrypted where it lay; empty if it is not the one that the
    // other end sent next. After that no other one is.
    [[nodiscard]] std::span<std::byte> open(std::span<std::byte> message);

  private:
    struct State;
    std::unique_ptr<State> state_;
};

// Both directions, at one end.
struct Seals {
    Seal out;
    Seal in;
};

}  // namespace cpp_store::security
