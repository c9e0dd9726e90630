#include "server/call.hpp"

namespace cpp_store::server {

void best_matches(Call& call) {
    wire::Reader in = call.body();
    wire::BestMatches request = wire::decode_best_matches(in);
    in.end();

    request.query.ns = request.ns;
    constexpr std::uint64_t day_ms = 86'400'000;
    const std::chrono::milliseconds lease(std::min(request.lease_ms, day_ms));
    wire::Writer out;
    const auto matches = call.store().best_matches(*request.table, request.query, lease);
    out.count(matches.size());
    for (const LeasedMatch& match : matches) wire::encode(out, match);
    call.reply(std::move(out));
}

void end_lease(Call& call) {
    wire::Reader in = call.body();
    const std::uint64_t lease = in.u64();
    in.end();
    wire::Writer out;
    wire::encode(out, call.store().end_lease(lease));
    call.reply(std::move(out));
}

}  // namespace cpp_store::server
