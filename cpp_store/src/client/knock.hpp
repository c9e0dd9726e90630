// Which life of a server answers at its address.
#pragma once

#include <cstdint>
#include <span>

#include "net/address.hpp"
#include "net/endpoint.hpp"
#include "security/greeting.hpp"

namespace cpp_store::client {

// A server that was killed and started again looks alive to its clients of before, and drops what
// they say, as it does not know them. This says hello to it beside the connection, as another
// client would, and goes no further: the challenge names the server's incarnation. Nothing proves
// it; who could forge the answer could cut the connection as well.
class Knock : private net::Endpoint::Listener {
  public:
    // Throws Errc::connection, or invalid_argument if the host has no address any more.
    Knock(const net::Address& server, security::Request::Options request);

    // Looks for the answer, without waiting. The incarnation that it names; 0 as long as there is
    // none.
    [[nodiscard]] std::uint64_t answer();

  private:
    void received(std::span<std::byte> message) override;
    void send_failed(net::Peer peer, int error) override;

    net::Endpoint endpoint_;
    std::uint64_t incarnation_ = 0;
};

}  // namespace cpp_store::client
