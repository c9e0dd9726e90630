// What the protocol's own operations say over the wire, field by field: docs/formats.md, "Wire".
#pragma once

#include "net/wire.hpp"
#include "replication/network.hpp"

namespace cpp_store::replication {

// Of all kinds but put, acquire, release and read, which are encoded in net/wire.hpp, and fetch: a
// pair each way, what one side encodes the other decodes. A pull's tensors are fetched as any
// others.
[[nodiscard]] wire::Operation operation_of(Request::Kind kind);
void encode(wire::Writer& out, const Request& request);
[[nodiscard]] Request decode_request(wire::Operation operation, wire::Reader& in);
void encode(wire::Writer& out, Request::Kind kind, const Answer& answer);
[[nodiscard]] Answer decode_answer(Request::Kind kind, wire::Reader& in);

}  // namespace cpp_store::replication
