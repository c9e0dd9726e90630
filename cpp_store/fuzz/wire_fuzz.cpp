// A message as its receiver sees it: a frame, and the body of a request or a response of any kind.
#include <cstddef>
#include <cstdint>

#include "cpp_store/error.hpp"
#include "local/layers.hpp"
#include "net/assembler.hpp"
#include "net/wire.hpp"

namespace {

using namespace cpp_store;

void decode_request(wire::Operation operation, wire::Reader in) {
    switch (operation) {
        case wire::Operation::hello:
            (void)wire::decode_hello(in);
            break;
        case wire::Operation::join:
            (void)wire::decode_join(in);
            break;
        case wire::Operation::put:
            (void)wire::decode_put(in);
            break;
        case wire::Operation::read:
            (void)wire::decode_read(in);
            break;
        case wire::Operation::fetch:
            (void)wire::decode_fetch(in);
            break;
        case wire::Operation::best_matches:
            (void)wire::decode_best_matches(in);
            break;
        case wire::Operation::acquire:
        case wire::Operation::release:
            (void)wire::decode_references(in);
            break;
        case wire::Operation::state:
            (void)in.strings();
            break;
        default:
            (void)in.id();
            break;
    }
    in.end();
}

void decode_response(std::uint16_t code, wire::Reader in) {
    switch (code % 9) {
        case 0:
            (void)wire::decode_layer(in);
            break;
        case 1:
            (void)wire::decode_match(in);
            break;
        case 2:
            (void)wire::decode_info(in);
            break;
        case 3:
            (void)wire::decode_stats(in);
            break;
        case 4:
            (void)wire::decode_challenge(in);
            break;
        case 5:
            (void)wire::decode_welcome(in);
            break;
        case 6:
            (void)local::decode_layer(in);
            break;
        case 7:
            (void)local::decode_unpin(in);
            break;
        default:
            (void)wire::decode_foreign(in);
            break;
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    try {
        std::span<const std::byte> part;
        const wire::Frame frame = wire::decode_frame(std::as_bytes(std::span(data, size)), part);
        net::Assembler assembler;
        const auto body = assembler.add(frame, part);
        if (!body) return 0;
        if (frame.kind == wire::Kind::request) {
            decode_request(static_cast<wire::Operation>(frame.code), wire::Reader(*body));
        } else {
            decode_response(frame.code, wire::Reader(*body));
        }
    } catch (const Error& error) {
        if (error.code() != Errc::protocol) throw;
    }
    return 0;
}
