#include <algorithm>
#include <limits>

#include "server/call.hpp"

namespace cpp_store::server {

void best_matches(Call& call) {
    wire::Reader in = call.body();
    wire::BestMatches request = wire::decode_best_matches(in);
    in.end();

    request.query.ns = request.ns;
    constexpr std::uint64_t month_ms = 30ull * 86'400'000;
    const bool is_default = request.lease_ms == std::numeric_limits<std::uint64_t>::max();
    const std::chrono::milliseconds lease(
        is_default ? -1 : static_cast<std::int64_t>(std::min(request.lease_ms, month_ms)));
    wire::Writer out;
    const auto matches = call.store().best_matches(*request.table, request.query, lease);
    try {
        out.count(matches.size());
        for (const LeasedMatch& match : matches) {
            wire::encode(out, match);
            if (match.lease != 0) call.session()->add_lease(match.lease);
        }
        call.reply(std::move(out));
    } catch (const std::bad_alloc&) {
        for (const LeasedMatch& match : matches) {  // of which nobody will know
            call.session()->remove_lease(match.lease);
            call.store().drop_lease(match.lease);
        }
        throw;
    }
}

void end_lease(Call& call) {
    wire::Reader in = call.body();
    const std::uint64_t lease = in.u64();
    in.end();
    const ForeignReferences foreign = call.store().end_lease(lease);
    call.note_change();
    call.session()->remove_lease(lease);
    wire::Writer out;
    wire::encode(out, foreign);
    call.reply(std::move(out));
}

}  // namespace cpp_store::server
