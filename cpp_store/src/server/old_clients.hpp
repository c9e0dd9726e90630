// Clients of earlier versions of the wire format: all that they get is a line that says so.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace cpp_store::server {

// A hello of version 1 or 2. Throws Errc::protocol if it is one, but malformed.
struct OldHello {
    std::vector<std::byte> address;  // of the client, as its provider says it
    std::uint64_t call = 0;
    std::uint8_t version = 0;
};
[[nodiscard]] std::optional<OldHello> decode_old_hello(std::span<const std::byte> message);

// The answer to it, in words that such clients print.
[[nodiscard]] std::vector<std::byte> encode_old_refusal(const OldHello& hello,
                                                        const std::string& server);

}  // namespace cpp_store::server
