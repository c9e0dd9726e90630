// What only servers of several replicas are asked: docs/store.md, "Replicas".
#include "replication/wire.hpp"
#include "server/call.hpp"

namespace cpp_store::server {

void of_replicas(Call& call) {
    replication::Replica* const replica = call.replica();
    if (!replica) {
        throw Error(Errc::invalid_argument, "this server keeps the only replica of its models");
    }
    wire::Reader in = call.body();
    const replication::Request request = replication::decode_request(call.operation(), in);
    in.end();
    const replication::Answer answer = replication::answer(*replica, request);
    if (answer.error) throw answer.exception();
    wire::Writer out;
    replication::encode(out, request.kind, answer);
    call.reply(std::move(out));
}

}  // namespace cpp_store::server
