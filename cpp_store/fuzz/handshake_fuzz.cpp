// What a stranger may say: a hello and a join to a server with a key, a challenge and a welcome to
// a client with one. The first byte of the input picks which; nothing of it can be right but by
// knowing the key.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "cpp_store/error.hpp"
#include "security/greeting.hpp"

namespace {

using namespace cpp_store;

const security::Secret& key() {
    static const security::Secret secret = security::secret_of("a key that no input knows");
    return secret;
}

security::Request request() {
    return security::Request({.address = "ofi+tcp://127.0.0.1:1",
                              .name = std::vector<std::byte>(16),
                              .client = "host/1",
                              .servers = {"ofi+tcp://127.0.0.1:1"},
                              .shared = key()});
}

void try_it(std::uint8_t which, std::span<const std::byte> bytes) {
    const security::Reception::Policy policy{
        .address = "ofi+tcp://127.0.0.1:1", .shared = key(), .encrypt = false};
    switch (which % 5) {
        case 0: {
            const security::Reception reception(policy, security::Way::network, 1, bytes);
            (void)reception.join(std::vector<std::byte>(36));
            std::abort();  // zeros prove nothing
        }
        case 1: {
            const security::Reception reception(policy, security::Way::one_host, 1,
                                                request().hello());
            (void)reception.join(bytes);
            std::abort();
        }
        case 2:
            (void)request().join(bytes);
            break;
        case 3: {
            security::Request asked = request();
            const security::Reception reception(policy, security::Way::network, 1, asked.hello());
            (void)asked.join(reception.challenge());
            wire::Reader in(bytes);
            asked.check(wire::decode_welcome(in));
            std::abort();
        }
        default: {
            for (const auto cipher :
                 {security::Cipher::chacha20_poly1305, security::Cipher::aes256_gcm}) {
                if (security::choose_cipher(security::available_ciphers(), 6) < cipher) continue;
                for (const bool encrypt : {false, true}) {
                    security::Seal seal(cipher, key(), wire::clear_size, encrypt);
                    std::vector<std::byte> message(bytes.begin(), bytes.end());
                    if (!seal.open(message).empty()) std::abort();
                }
            }
        }
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    if (size == 0) return 0;
    try {
        try_it(data[0], std::as_bytes(std::span(data + 1, size - 1)));
    } catch (const Error& error) {
        if (error.code() != Errc::protocol && error.code() != Errc::permission) throw;
    }
    return 0;
}
