#include <algorithm>
#include <cstring>

#include "core/checksum.hpp"
#include "server/call.hpp"

namespace cpp_store::server {
namespace {

// What came by RMA must be what the sealed request said would come.
void check_sums(const std::vector<Transfer::Piece>& pieces, const std::vector<Checksum>& sums) {
    for (std::size_t i = 0; i < sums.size(); ++i) {
        if (checksum_of(pieces[i].local, pieces[i].length) == sums[i]) continue;
        throw Error(Errc::connection,
                    "a tensor of " + std::to_string(pieces[i].length) +
                        " bytes was changed on its way here; nothing of the model is stored");
    }
}

void commit(Call& call, PendingPut pending) {
    call.store().commit(
        std::move(pending),
        [self = call.shared_from_this()](const std::exception_ptr& error, std::uint64_t bytes) {
            try {
                if (error) std::rethrow_exception(error);
                wire::Writer out;
                out.u64(bytes);
                self->reply(std::move(out));
            } catch (const std::exception& caught) {
                self->fail(caught);
            }
        });
}

}  // namespace

// Reserves memory, lets the tensors come (small ones are in the request), then publishes the model.
void put(Call& call) {
    wire::Reader in = call.body();
    wire::Put request = wire::decode_put(in);
    std::vector<Checksum> sums;
    if (call.session()->sums_bulk()) {
        sums = in.sums(static_cast<std::size_t>(std::ranges::count_if(
            request.tensors,
            [](const wire::Payload& tensor) { return tensor.nbytes > 0 && tensor.remote; })));
    }
    in.end();

    // Shared, because std::function must be copyable. It owns the memory until nothing writes
    // there.
    auto pending = std::make_shared<PendingPut>(call.store().prepare(std::move(request.request)));
    const auto buffers = pending->buffers();
    std::vector<Transfer::Piece> pieces;
    for (std::size_t i = 0; i < request.tensors.size(); ++i) {
        const wire::Payload& tensor = request.tensors[i];
        if (tensor.nbytes == 0) continue;
        if (tensor.remote) {
            pieces.push_back({buffers[i].data(), tensor.nbytes, *tensor.remote});
        } else {
            pending->fill(i, tensor.data.data());
        }
    }
    if (pieces.empty()) {
        commit(call, std::move(*pending));
        return;
    }
    std::vector<Transfer::Piece> summed;
    if (!sums.empty()) summed = pieces;
    call.transfer(Transfer::Direction::from_client, std::move(pieces),
                  [self = call.shared_from_this(), pending, summed = std::move(summed),
                   sums = std::move(sums)] {
                      check_sums(summed, sums);
                      commit(*self, std::move(*pending));
                  });
}

}  // namespace cpp_store::server
