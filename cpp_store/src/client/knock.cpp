#include "client/knock.hpp"

#include <utility>

#include "net/wire.hpp"

namespace cpp_store::client {

Knock::Knock(const net::Address& server, security::Request::Options options)
    : endpoint_(server, net::Endpoint::Role::client, static_cast<net::Endpoint::Listener&>(*this)) {
    options.name = endpoint_.name();
    const security::Request request(std::move(options));
    const std::vector<std::byte>& hello = request.hello();
    const wire::Frame frame{.kind = wire::Kind::request,
                            .code = static_cast<std::uint16_t>(wire::Operation::hello),
                            .total = static_cast<std::uint32_t>(hello.size())};
    endpoint_.send(endpoint_.server(), wire::encode(frame), hello);
}

std::uint64_t Knock::answer() {
    if (incarnation_ == 0) endpoint_.progress();
    return incarnation_;
}

void Knock::received(std::span<std::byte> message) {
    try {
        std::span<const std::byte> part;
        const wire::Frame frame = wire::decode_frame(message, part);
        // A server that turns clients away does not say which one it is.
        if (frame.kind != wire::Kind::response || frame.code != 0) return;
        wire::Reader in(part);
        incarnation_ = wire::decode_challenge(in).incarnation;
    } catch (const Error&) {  // nothing that says so
    }
}

void Knock::send_failed(net::Peer, int) {}

}  // namespace cpp_store::client
