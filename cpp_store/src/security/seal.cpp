#include "security/seal.hpp"

#include <sodium.h>

#include <array>
#include <cstring>

#include "cpp_store/error.hpp"
#include "security/sodium.hpp"

namespace cpp_store::security {
namespace {

constexpr std::uint8_t bit(Cipher cipher) {
    return static_cast<std::uint8_t>(1u << static_cast<unsigned>(cipher));
}

unsigned char* bytes_of(std::span<std::byte> memory) {
    return reinterpret_cast<unsigned char*>(memory.data());
}

using Nonce = std::array<unsigned char, 12>;
static_assert(crypto_aead_chacha20poly1305_IETF_NPUBBYTES == sizeof(Nonce));
static_assert(crypto_aead_aes256gcm_NPUBBYTES == sizeof(Nonce));
static_assert(crypto_aead_chacha20poly1305_IETF_ABYTES == Seal::tag_size);
static_assert(crypto_aead_aes256gcm_ABYTES == Seal::tag_size);
static_assert(crypto_aead_chacha20poly1305_IETF_KEYBYTES == Secret::size);
static_assert(crypto_aead_aes256gcm_KEYBYTES == Secret::size);

}  // namespace

std::uint8_t available_ciphers() {
    start_sodium();
    return static_cast<std::uint8_t>(
        bit(Cipher::chacha20_poly1305) |
        (crypto_aead_aes256gcm_is_available() == 1 ? bit(Cipher::aes256_gcm) : 0));
}

Cipher choose_cipher(std::uint8_t mine, std::uint8_t theirs) {
    for (const Cipher cipher : {Cipher::aes256_gcm, Cipher::chacha20_poly1305}) {
        if ((mine & theirs & bit(cipher)) != 0) return cipher;
    }
    throw Error(Errc::protocol, "malformed message: no cipher that both ends have");
}

struct Seal::State {
    Cipher cipher;
    Secret key;
    std::size_t clear;
    bool encrypt;
    std::uint64_t count = 0;
    crypto_aead_aes256gcm_state aes;

    ~State() { sodium_memzero(&aes, sizeof aes); }

    Nonce next() {
        Nonce nonce{};
        std::memcpy(nonce.data(), &count, sizeof count);
        ++count;
        return nonce;
    }
    // What is authenticated only, of a message of `size` bytes.
    [[nodiscard]] std::size_t associated(std::size_t size) const { return encrypt ? clear : size; }
};

Seal::Seal(Cipher cipher, const Secret& key, std::size_t clear, bool encrypt)
    : state_(
          new State{.cipher = cipher, .key = key, .clear = clear, .encrypt = encrypt, .aes = {}}) {
    start_sodium();
    if (cipher == Cipher::aes256_gcm) crypto_aead_aes256gcm_beforenm(&state_->aes, key.data());
}

Seal::~Seal() = default;

void Seal::close(std::span<std::byte> message) {
    const std::span<std::byte> body = message.first(message.size() - tag_size);
    const std::size_t known = state_->associated(body.size());
    unsigned char* const start = bytes_of(body);
    unsigned char* const hidden = start + known;
    unsigned char* const tag = start + body.size();
    const Nonce nonce = state_->next();
    if (state_->cipher == Cipher::aes256_gcm) {
        crypto_aead_aes256gcm_encrypt_detached_afternm(hidden, tag, nullptr, hidden,
                                                       body.size() - known, start, known, nullptr,
                                                       nonce.data(), &state_->aes);
    } else {
        crypto_aead_chacha20poly1305_ietf_encrypt_detached(
            hidden, tag, nullptr, hidden, body.size() - known, start, known, nullptr, nonce.data(),
            state_->key.data());
    }
}

std::span<std::byte> Seal::open(std::span<std::byte> message) {
    if (message.size() < state_->clear + tag_size) return {};
    const std::span<std::byte> body = message.first(message.size() - tag_size);
    const std::size_t known = state_->associated(body.size());
    unsigned char* const start = bytes_of(body);
    unsigned char* const hidden = start + known;
    const unsigned char* const tag = start + body.size();
    const Nonce nonce = state_->next();
    const int wrong = state_->cipher == Cipher::aes256_gcm
                          ? crypto_aead_aes256gcm_decrypt_detached_afternm(
                                hidden, nullptr, hidden, body.size() - known, tag, start, known,
                                nonce.data(), &state_->aes)
                          : crypto_aead_chacha20poly1305_ietf_decrypt_detached(
                                hidden, nullptr, hidden, body.size() - known, tag, start, known,
                                nonce.data(), state_->key.data());
    return wrong == 0 ? body : std::span<std::byte>();
}

}  // namespace cpp_store::security
