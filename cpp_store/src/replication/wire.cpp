#include "replication/wire.hpp"

namespace cpp_store::replication {
namespace {

using Kind = Request::Kind;

void encode(wire::Writer& out, const Change& change) {
    out.id(change.model);
    out.u64(change.version);
    out.u8(change.retired ? 1 : 0);
    out.u64(change.by);
    out.count(change.references.size());
    for (const auto& [owner, names] : change.references) {
        out.id(owner);
        out.strings(names);
    }
}

Change decode_change(wire::Reader& in) {
    Change change;
    change.model = in.id();
    change.version = in.u64();
    change.retired = in.u8() != 0;
    change.by = in.u64();
    for (std::uint32_t left = in.count(8); left > 0; --left) {
        std::string owner = in.id();
        change.references[std::move(owner)] = in.strings();
    }
    return change;
}

State decode_state(wire::Reader& in) {
    const std::uint8_t presence = in.u8();
    if (presence > static_cast<std::uint8_t>(Presence::gone)) {
        throw Error(Errc::protocol, "malformed message: presence " + std::to_string(presence));
    }
    return {static_cast<Presence>(presence), in.u64()};
}

}  // namespace

wire::Operation operation_of(Kind kind) {
    switch (kind) {
        case Kind::retire:
            return wire::Operation::retire_through;
        case Kind::bury:
            return wire::Operation::bury;
        case Kind::chain:
            return wire::Operation::chain;
        case Kind::undo:
            return wire::Operation::undo;
        case Kind::refuse:
            return wire::Operation::refuse;
        case Kind::state:
            return wire::Operation::state;
        case Kind::changes:
            return wire::Operation::changes;
        case Kind::pull:
            return wire::Operation::pull;
        default:
            throw Error(Errc::internal, "an operation that is encoded elsewhere");
    }
}

void encode(wire::Writer& out, const Request& request) {
    switch (request.kind) {
        case Kind::retire:
            out.id(request.model);
            out.u64(request.token);
            out.u64(request.version);
            out.u64(request.by);
            wire::encode_chain(out, request.through);
            break;
        case Kind::bury:
            out.id(request.model);
            out.u64(request.version);
            out.u64(request.by);
            break;
        case Kind::undo:
        case Kind::refuse:
            out.id(request.model);
            out.u64(request.version);
            break;
        case Kind::state:
            out.strings(request.models);
            out.u8(request.decisive ? 1 : 0);
            break;
        case Kind::changes:
            out.u64(request.asker);
            out.u64(request.asking);
            out.u8(request.joining ? 1 : 0);
            out.u64(request.incarnation);
            out.u64(request.since);
            break;
        default:
            out.id(request.model);
    }
}

Request decode_request(wire::Operation operation, wire::Reader& in) {
    Request request(Kind::pull);
    switch (operation) {
        case wire::Operation::retire_through:
            request.kind = Kind::retire;
            request.model = in.id();
            request.token = in.u64();
            request.version = in.u64();
            request.by = in.u64();
            request.through = wire::decode_chain(in);
            break;
        case wire::Operation::bury:
            request.kind = Kind::bury;
            request.model = in.id();
            request.version = in.u64();
            request.by = in.u64();
            break;
        case wire::Operation::undo:
        case wire::Operation::refuse:
            request.kind = operation == wire::Operation::undo ? Kind::undo : Kind::refuse;
            request.model = in.id();
            request.version = in.u64();
            break;
        case wire::Operation::chain:
            request.kind = Kind::chain;
            request.model = in.id();
            break;
        case wire::Operation::state:
            request.kind = Kind::state;
            request.models = in.strings();
            request.decisive = in.u8() != 0;
            break;
        case wire::Operation::changes:
            request.kind = Kind::changes;
            request.asker = in.u64();
            request.asking = in.u64();
            request.joining = in.u8() != 0;
            request.incarnation = in.u64();
            request.since = in.u64();
            break;
        default:
            request.model = in.id();
    }
    return request;
}

void encode(wire::Writer& out, Kind kind, const Answer& answer) {
    switch (kind) {
        case Kind::retire:
            out.u64(answer.by);
            wire::encode_chain(out, answer.chain);
            break;
        case Kind::bury:
        case Kind::undo:
            break;
        case Kind::refuse:
            out.u8(answer.done ? 1 : 0);
            break;
        case Kind::chain:
            wire::encode_chain(out, answer.chain);
            break;
        case Kind::state:
            out.count(answer.states.size());
            for (const State& state : answer.states) {
                out.u8(static_cast<std::uint8_t>(state.presence));
                out.u64(state.version);
            }
            break;
        case Kind::changes:
            out.u64(answer.incarnation);
            out.u8(answer.ready ? 1 : 0);
            out.u64(answer.joined);
            out.u64(answer.followed);
            out.u64(answer.since);
            out.u64(answer.last);
            out.u64(answer.forgotten);
            out.count(answer.changes.size());
            for (const Change& change : answer.changes) encode(out, change);
            break;
        default:
            out.u64(answer.pulled->version);
            out.id(answer.pulled->owner);
            wire::encode(out, answer.pulled->info);
    }
}

Answer decode_answer(Kind kind, wire::Reader& in) {
    Answer answer;
    switch (kind) {
        case Kind::retire:
            answer.by = in.u64();
            answer.chain = wire::decode_chain(in);
            break;
        case Kind::bury:
        case Kind::undo:
            break;
        case Kind::refuse:
            answer.done = in.u8() != 0;
            break;
        case Kind::chain:
            answer.chain = wire::decode_chain(in);
            break;
        case Kind::state:
            for (std::uint32_t left = in.count(9); left > 0; --left) {
                answer.states.push_back(decode_state(in));
            }
            break;
        case Kind::changes:
            answer.incarnation = in.u64();
            answer.ready = in.u8() != 0;
            answer.joined = in.u64();
            answer.followed = in.u64();
            answer.since = in.u64();
            answer.last = in.u64();
            answer.forgotten = in.u64();
            for (std::uint32_t left = in.count(25); left > 0; --left) {
                answer.changes.push_back(decode_change(in));
            }
            break;
        default: {
            Pulled pulled{.info = {}, .version = in.u64(), .owner = in.id(), .layers = {}};
            pulled.info = wire::decode_info(in);
            answer.pulled = std::move(pulled);
        }
    }
    return answer;
}

}  // namespace cpp_store::replication
