// The name of the Unix socket beside a server.
//
// It is in the abstract namespace, which belongs to a network namespace as ports do: whoever holds
// the name of "tcp at 10.0.0.1:4711" here is the server that a connection to 10.0.0.1:4711 would
// reach, if 10.0.0.1 is an address of ours; a host or container of equal address is another
// namespace. There are no files to go stale. Other users may take a name first or knock at it, so
// both ends look at the other one's user id.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "net/address.hpp"

namespace cpp_store::local {

// What the server of an address listens at; `raw` is the address as its provider says it. Empty:
// its provider's addresses are unknown here.
[[nodiscard]] std::string server_name(const net::Address& address, std::span<const std::byte> raw);

// Where the server of an address would listen if it is on this host; none if it is not.
[[nodiscard]] std::vector<std::string> client_names(const net::Address& address);

}  // namespace cpp_store::local
