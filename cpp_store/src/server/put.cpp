#include <algorithm>
#include <cstring>

#include "server/call.hpp"

namespace cpp_store::server {

namespace {

// What came by RMA must be what the sealed request said would come.
void check_sums(PendingPut& put, const std::vector<std::size_t>& tensors,
                const std::vector<Checksum>& sums) {
    for (std::size_t i = 0; i < sums.size(); ++i) {
        if (put.check(tensors[i], sums[i])) continue;
        throw Error(Errc::connection,
                    "a tensor of " + std::to_string(put.buffers()[tensors[i]].size()) +
                        " bytes was changed on its way here; nothing of the model is stored");
    }
}

void answer(Call& call, std::uint64_t bytes, bool is_new) {
    wire::Writer out;
    out.u64(bytes);
    out.u8(is_new ? 1 : 0);
    call.reply(std::move(out));
}

}  // namespace

PendingPut prepare(Call& call, PutRequest request) {
    if (replication::Replica* const replica = call.replica()) {
        return replica->prepare(std::move(request));
    }
    request.owner.clear();  // of a single replica, its id
    return call.store().prepare(std::move(request));
}

void commit(Call& call, PendingPut pending) {
    if (replication::Replica* const replica = call.replica()) {
        const auto published = replica->publish(std::move(pending));
        call.note_change();
        answer(call, published.bytes, published.is_new);
        return;
    }
    call.store().commit(
        std::move(pending),
        [self = call.shared_from_this()](const std::exception_ptr& error, std::uint64_t bytes) {
            try {
                if (error) std::rethrow_exception(error);
                self->note_change();
                answer(*self, bytes, true);
            } catch (const std::exception& caught) {
                self->fail(caught);
            }
        });
}

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
    auto incoming = std::make_shared<PendingPut>(prepare(call, std::move(request.request)));
    const auto buffers = incoming->buffers();
    std::vector<Transfer::Piece> pieces;
    std::vector<std::size_t> moved;  // which tensors they are
    for (std::size_t i = 0; i < request.tensors.size(); ++i) {
        const wire::Payload& tensor = request.tensors[i];
        if (tensor.nbytes == 0) continue;
        if (tensor.remote) {
            pieces.push_back({buffers[i].data(), tensor.nbytes, *tensor.remote});
            moved.push_back(i);
        } else {
            incoming->fill(i, tensor.data.data());
        }
    }
    if (pieces.empty()) {
        commit(call, std::move(*incoming));
        return;
    }
    // Of bytes that are copied on their way the checksums are taken at the same time.
    const auto take = [incoming, moved](std::size_t i, std::span<const std::byte> bytes) {
        incoming->append(moved[i], bytes);
    };
    call.transfer({Transfer::Direction::from_client, std::move(pieces), take},
                  [self = call.shared_from_this(), incoming, moved = std::move(moved),
                   sums = std::move(sums)] {
                      check_sums(*incoming, moved, sums);
                      commit(*self, std::move(*incoming));
                  });
}

}  // namespace cpp_store::server
