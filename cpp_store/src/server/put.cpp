#include <cstring>

#include "server/call.hpp"

namespace cpp_store::server {
namespace {

void commit(Call& call, PendingPut pending) {
    wire::Writer out;
    out.u64(call.store().commit(std::move(pending)));
    call.reply(std::move(out));
}

}  // namespace

// Reserves memory, lets the tensors come (small ones are in the request), then publishes the model.
void put(Call& call) {
    wire::Reader in = call.body();
    wire::Put request = wire::decode_put(in);
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
    call.transfer(
        Transfer::Direction::from_client, std::move(pieces),
        [self = call.shared_from_this(), pending] { commit(*self, std::move(*pending)); });
}

}  // namespace cpp_store::server
