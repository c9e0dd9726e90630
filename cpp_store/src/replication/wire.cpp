#include "replication/wire.hpp"

namespace cpp_store::replication {
namespace {

using Kind = Request::Kind;

template <typename Number>
Number at_most(Number value, Number most, const char* what) {
    if (value <= most) return value;
    throw Error(Errc::protocol,
                std::string("malformed message: ") + what + " is " + std::to_string(value));
}

void encode(wire::Writer& out, const Buckets& buckets) {
    for (std::size_t first = 0; first < bucket_count; first += 8) {
        unsigned byte = 0;
        for (std::size_t i = 0; i < 8; ++i) byte |= unsigned{buckets.test(first + i)} << i;
        out.u8(static_cast<std::uint8_t>(byte));
    }
}

Buckets decode_buckets(wire::Reader& in) {
    Buckets buckets;
    for (std::size_t first = 0; first < bucket_count; first += 8) {
        const unsigned byte = in.u8();
        for (std::size_t i = 0; i < 8; ++i) buckets.set(first + i, ((byte >> i) & 1) != 0);
    }
    return buckets;
}

void encode(wire::Writer& out, const Cursor& cursor) {
    out.u8(static_cast<std::uint8_t>(cursor.section));
    out.id(cursor.after);
}

Cursor decode_cursor(wire::Reader& in) {
    const auto last = static_cast<std::uint8_t>(Cursor::Section::end);
    const std::uint8_t section = at_most(in.u8(), last, "a section");
    return {static_cast<Cursor::Section>(section), in.id()};
}

void encode(wire::Writer& out, const Page& page) {
    out.strings(page.retired);
    out.strings(page.models);
    out.count(page.held.size());
    for (const HeldLayers& held : page.held) {
        wire::encode(out, wire::References{held.owner, held.keys, held.holder});
    }
    encode(out, page.next);
}

Page decode_page(wire::Reader& in) {
    Page page;
    page.retired = in.strings();
    page.models = in.strings();
    for (std::uint32_t left = in.count(12); left > 0; --left) {
        wire::References references = wire::decode_references(in);
        page.held.push_back({std::move(references.holder), std::move(references.owner),
                             std::move(references.keys)});
    }
    page.next = decode_cursor(in);
    return page;
}

}  // namespace

wire::Operation operation_of(Kind kind) {
    switch (kind) {
        case Kind::retire:
            return wire::Operation::retire;
        case Kind::undo:
            return wire::Operation::undo;
        case Kind::state:
            return wire::Operation::state;
        case Kind::compare:
            return wire::Operation::compare;
        case Kind::shared:
            return wire::Operation::shared;
        case Kind::pull:
            return wire::Operation::pull;
        case Kind::repair:
            return wire::Operation::repair;
        default:
            throw Error(Errc::internal, "an operation that is encoded elsewhere");
    }
}

void encode(wire::Writer& out, const Request& request) {
    switch (request.kind) {
        case Kind::state:
            out.strings(request.names);
            break;
        case Kind::compare:
            out.u64(request.asker);
            encode(out, request.buckets);
            break;
        case Kind::shared:
            out.u64(request.asker);
            encode(out, request.buckets);
            encode(out, request.cursor);
            break;
        case Kind::repair:
            out.id(request.model);
            out.u8(request.degraded ? 1 : 0);
            break;
        default:
            out.id(request.model);
    }
}

Request decode_request(wire::Operation operation, wire::Reader& in) {
    using enum wire::Operation;
    Request request(Kind::retire);
    switch (operation) {
        case state:
            request.kind = Kind::state;
            request.names = in.strings();
            break;
        case compare:
            request.kind = Kind::compare;
            request.asker = in.u64();
            request.buckets = decode_buckets(in);
            break;
        case shared:
            request.kind = Kind::shared;
            request.asker = in.u64();
            request.buckets = decode_buckets(in);
            request.cursor = decode_cursor(in);
            break;
        case repair:
            request.kind = Kind::repair;
            request.model = in.id();
            request.degraded = at_most<std::uint8_t>(in.u8(), 1, "degraded") == 1;
            break;
        default:
            if (operation == undo) request.kind = Kind::undo;
            if (operation == pull) request.kind = Kind::pull;
            request.model = in.id();
    }
    return request;
}

void encode(wire::Writer& out, Kind kind, const Answer& answer) {
    switch (kind) {
        case Kind::retire:
            wire::encode(out, answer.foreign);
            break;
        case Kind::state:
            out.count(answer.states.size());
            for (const Presence state : answer.states) out.u8(static_cast<std::uint8_t>(state));
            break;
        case Kind::compare:
            out.count(answer.sums.size());
            for (const std::uint64_t sum : answer.sums) out.u64(sum);
            break;
        case Kind::shared:
            encode(out, answer.page);
            break;
        case Kind::pull:
            wire::encode(out, *answer.info);
            break;
        default:  // there is nothing to say
            break;
    }
}

Answer decode_answer(Kind kind, wire::Reader& in) {
    Answer answer;
    switch (kind) {
        case Kind::retire:
            answer.foreign = wire::decode_foreign(in);
            break;
        case Kind::state:
            for (std::uint32_t left = in.count(1); left > 0; --left) {
                const auto last = static_cast<std::uint8_t>(Presence::retired);
                const std::uint8_t state = at_most(in.u8(), last, "a presence");
                answer.states.push_back(static_cast<Presence>(state));
            }
            break;
        case Kind::compare:
            for (std::uint32_t left = in.count(8); left > 0; --left)
                answer.sums.push_back(in.u64());
            break;
        case Kind::shared:
            answer.page = decode_page(in);
            break;
        case Kind::pull:
            answer.info = wire::decode_info(in);
            break;
        default:
            break;
    }
    return answer;
}

}  // namespace cpp_store::replication
