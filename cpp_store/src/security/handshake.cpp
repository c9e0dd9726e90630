#include "security/handshake.hpp"

#include <sodium.h>

#include <algorithm>
#include <cstdint>

#include "cpp_store/error.hpp"
#include "security/sodium.hpp"

namespace cpp_store::security {
namespace {

// The name of what is hashed begins each hash, so that none can stand for another.
constexpr std::string_view transcript_label = "cpp_store handshake 3";
constexpr std::string_view secret_label = "cpp_store connection 3";
constexpr std::string_view servers_label = "cpp_store servers 3";
constexpr std::array<char, crypto_kdf_CONTEXTBYTES + 1> context = {"cppstore"};
// Subkeys of a connection.
enum class Use : std::uint64_t {
    proof_of_client = 1,
    proof_of_server = 2,
    to_server = 3,
    to_client = 4
};

static_assert(crypto_scalarmult_BYTES == 32 && crypto_scalarmult_SCALARBYTES == Secret::size);
static_assert(crypto_kdf_KEYBYTES == Secret::size);

unsigned char* raw(Bytes32& bytes) {
    return reinterpret_cast<unsigned char*>(bytes.data());
}
const unsigned char* raw(std::span<const std::byte> bytes) {
    return reinterpret_cast<const unsigned char*>(bytes.data());
}

// BLAKE2b of 256 bits over parts, each with its length in front.
class Hash {
  public:
    explicit Hash(std::string_view label, const Secret* key = nullptr) {
        crypto_generichash_init(&state_, key ? key->data() : nullptr, key ? Secret::size : 0, 32);
        add(std::as_bytes(std::span(label)));
    }
    ~Hash() { sodium_memzero(&state_, sizeof state_); }
    Hash(const Hash&) = delete;
    Hash& operator=(const Hash&) = delete;
    Hash& add(std::span<const std::byte> part) {
        const auto length = static_cast<std::uint32_t>(part.size());
        crypto_generichash_update(&state_, reinterpret_cast<const unsigned char*>(&length),
                                  sizeof length);
        crypto_generichash_update(&state_, raw(part), part.size());
        return *this;
    }
    void end(unsigned char* result) { crypto_generichash_final(&state_, result, 32); }

  private:
    crypto_generichash_state state_;
};

Secret derive(const Secret& connection, Use use) {
    Secret key;
    crypto_kdf_derive_from_key(key.data(), Secret::size, static_cast<std::uint64_t>(use),
                               context.data(), connection.data());
    return key;
}

Bytes32 prove(const Secret& connection, Use use, const Bytes32& transcript) {
    const Secret key = derive(connection, use);
    Bytes32 proof;
    crypto_generichash(raw(proof), proof.size(), raw(transcript), transcript.size(), key.data(),
                       Secret::size);
    return proof;
}

}  // namespace

Contribution::Contribution() {
    start_sodium();
    randombytes_buf(nonce_.data(), nonce_.size());
    randombytes_buf(secret_.data(), Secret::size);
    crypto_scalarmult_base(raw(public_key_), secret_.data());
}

Agreement::Agreement(const Contribution& mine, const Bytes32& their_public_key,
                     const Secret& shared, std::span<const std::byte> hello,
                     std::span<const std::byte> challenge) {
    Secret exchanged;
    if (crypto_scalarmult(exchanged.data(), mine.secret_.data(), raw(their_public_key)) != 0) {
        throw Error(Errc::protocol, "malformed message: a public key that is none");
    }
    Bytes32 transcript;
    Hash(transcript_label).add(hello).add(challenge).end(raw(transcript));
    Secret connection;
    Hash(secret_label, &shared)
        .add(std::as_bytes(std::span(exchanged.data(), Secret::size)))
        .add(transcript)
        .end(connection.data());
    proof_of_client = prove(connection, Use::proof_of_client, transcript);
    proof_of_server = prove(connection, Use::proof_of_server, transcript);
    to_server = derive(connection, Use::to_server);
    to_client = derive(connection, Use::to_client);
}

bool is_equal(const Bytes32& one, const Bytes32& other) noexcept {
    return sodium_memcmp(one.data(), other.data(), one.size()) == 0;
}

Bytes32 digest_of(std::vector<std::string> servers) {
    start_sodium();
    std::sort(servers.begin(), servers.end());
    Hash hash(servers_label);
    for (const std::string& server : servers) hash.add(std::as_bytes(std::span(server)));
    Bytes32 digest;
    hash.end(raw(digest));
    return digest;
}

}  // namespace cpp_store::security
