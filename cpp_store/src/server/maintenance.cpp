// Calls for people and tools.
#include "server/call.hpp"

namespace cpp_store::server {

void stats(Call& call) {
    wire::Writer out;
    StoreStats stats = call.store().stats();
    if (const replication::Replica* const replica = call.replica()) replica->count_into(stats);
    wire::encode(out, stats);
    call.reply(std::move(out));
}

void verify(Call& call) {
    wire::Writer out;
    out.strings(call.store().verify());
    call.reply(std::move(out));
}

void shutdown(Call& call) {
    call.reply();
    call.request_shutdown();
}

}  // namespace cpp_store::server
