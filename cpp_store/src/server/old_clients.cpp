#include "server/old_clients.hpp"

#include "net/wire.hpp"

namespace cpp_store::server {
namespace {

constexpr std::uint8_t old_version = 1;
constexpr std::uint8_t request = 1;
constexpr std::uint8_t response = 2;

}  // namespace

std::optional<OldHello> decode_old_hello(std::span<const std::byte> message) {
    wire::Reader in(message);
    if (message.size() < 6 || in.u32() != wire::magic || in.u8() != old_version) {
        return std::nullopt;
    }
    OldHello hello;
    if (in.u8() != request || in.u16() != 0 || in.u64() != 0) return std::nullopt;
    hello.call = in.u64();
    (void)in.u64();  // total, offset
    const auto address = in.bytes(wire::max_hello);
    hello.address.assign(address.begin(), address.end());
    return hello;
}

std::vector<std::byte> encode_old_refusal(const OldHello& hello, const std::string& server) {
    wire::Writer body;
    body.string(server + ": the server speaks version " + std::to_string(wire::version) +
                " of the wire format, this client version 1; install the server's version of "
                "transfer-nas here");
    wire::Writer out;
    out.u32(wire::magic);
    out.u8(old_version);
    out.u8(response);
    out.u16(static_cast<std::uint16_t>(Errc::invalid_argument));
    out.u64(0);
    out.u64(hello.call);
    out.u32(static_cast<std::uint32_t>(body.data().size()));
    out.u32(0);
    out.raw(body.data());
    return out.take();
}

}  // namespace cpp_store::server
