#include "server/old_clients.hpp"

#include "net/wire.hpp"

namespace cpp_store::server {
namespace {

constexpr std::size_t version_at = 4;
// Of version 1, whose header was another one.
constexpr std::uint8_t request = 1;
constexpr std::uint8_t response = 2;

void read_address(wire::Reader& in, OldHello& hello) {
    const auto address = in.bytes(wire::max_hello);
    hello.address.assign(address.begin(), address.end());
}

}  // namespace

std::optional<OldHello> decode_old_hello(std::span<const std::byte> message) {
    wire::Reader in(message);
    if (message.size() < 6 || in.u32() != wire::magic) return std::nullopt;
    OldHello hello;
    hello.version = in.u8();
    if (hello.version == 1) {
        if (in.u8() != request || in.u16() != 0 || in.u64() != 0) return std::nullopt;
        hello.call = in.u64();
        (void)in.u64();  // total, offset
        read_address(in, hello);
        return hello;
    }
    if (hello.version != 2) return std::nullopt;
    // The header is today's.
    std::vector<std::byte> today(message.begin(), message.end());
    today[version_at] = std::byte{wire::version};
    std::span<const std::byte> part;
    const wire::Frame frame = wire::decode_frame(today, part);
    if (frame.kind != wire::Kind::request || frame.code != 0 || frame.session != 0) {
        return std::nullopt;
    }
    hello.call = frame.call;
    wire::Reader body(part);
    read_address(body, hello);
    return hello;
}

std::vector<std::byte> encode_old_refusal(const OldHello& hello, const std::string& server) {
    wire::Writer body;
    body.string(server + ": the server speaks version " + std::to_string(wire::version) +
                " of the wire format, this client version " + std::to_string(hello.version) +
                "; install the server's version of transfer-nas here");
    const auto code = static_cast<std::uint16_t>(Errc::invalid_argument);
    const auto size = static_cast<std::uint32_t>(body.data().size());
    wire::Writer out;
    if (hello.version == 1) {
        out.u32(wire::magic);
        out.u8(hello.version);
        out.u8(response);
        out.u16(code);
        out.u64(0);
        out.u64(hello.call);
        out.u32(size);
        out.u32(0);
    } else {
        auto header = wire::encode(
            {.kind = wire::Kind::response, .code = code, .call = hello.call, .total = size});
        header[version_at] = std::byte{hello.version};
        out.raw(header);
    }
    out.raw(body.data());
    return out.take();
}

}  // namespace cpp_store::server
