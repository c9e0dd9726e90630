// Connection strings: ofi+<provider>://<host>:<port>
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace cpp_store::net {

// `ofi+tcp://10.0.0.1:4711`, `ofi+tcp;ofi_rxm://[::1]:0`, `ofi+verbs://ib0-host:0`. Providers whose
// addresses are not host and port (shm, cxi) are reached by the raw address that the server
// printed: `ofi+shm://raw-<hex>`; such a server itself is started with an empty address,
// `ofi+shm://`.
struct Address {
    std::string provider;    // as written: "tcp", "tcp;ofi_rxm", "shm", ...
    std::string host;        // a name or a number; without the brackets of IPv6
    std::uint16_t port = 0;  // 0: any free one (servers only)
    std::string raw;         // bytes of a provider's own address, or empty

    // Throws Errc::invalid_argument, naming the text and what is wrong with it.
    [[nodiscard]] static Address parse(std::string_view text);
    [[nodiscard]] std::string text() const;
    // Whether nobody but processes of this host can reach it.
    [[nodiscard]] bool is_of_this_host_only() const;
};

}  // namespace cpp_store::net
