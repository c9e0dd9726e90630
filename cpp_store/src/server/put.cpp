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

void answer(Call& call, const replication::Replica::Published& published) {
    wire::Writer out;
    out.u64(published.bytes);
    out.u8(published.is_new ? 1 : 0);
    wire::encode_chain(out, published.chain);
    call.reply(std::move(out));
}

}  // namespace

std::optional<Incoming> prepare(Call& call, PutRequest request, replication::Chain through) {
    replication::Replica* const replica = call.replica();
    if (!replica) return Incoming{call.store().prepare(std::move(request)), {}, 0, {}, {}};
    std::string model = request.model;
    const replication::Version version = request.created_ns;
    replication::References references = replication::references_of(request);
    std::optional<PendingPut> pending = replica->prepare(std::move(request), through);
    if (pending) {
        return Incoming{*std::move(pending), std::move(model), version, std::move(references),
                        std::move(through)};
    }
    answer(call, replica->passed(model));
    return std::nullopt;
}

void commit(Call& call, Incoming incoming) {
    if (replication::Replica* const replica = call.replica()) {
        const auto published =
            replica->commit(std::move(incoming.pending), incoming.model, incoming.version,
                            std::move(incoming.references), incoming.through);
        call.note_change();
        answer(call, published);
        return;
    }
    call.store().commit(
        std::move(incoming.pending),
        [self = call.shared_from_this()](const std::exception_ptr& error, std::uint64_t bytes) {
            try {
                if (error) std::rethrow_exception(error);
                self->note_change();
                wire::Writer answer;
                answer.u64(bytes);
                answer.u8(1);
                wire::encode_chain(answer, {});
                self->reply(std::move(answer));
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
    std::optional<Incoming> prepared =
        prepare(call, std::move(request.request), std::move(request.through));
    if (!prepared) return;
    auto incoming = std::make_shared<Incoming>(*std::move(prepared));
    const auto buffers = incoming->pending.buffers();
    std::vector<Transfer::Piece> pieces;
    std::vector<std::size_t> moved;  // which tensors they are
    for (std::size_t i = 0; i < request.tensors.size(); ++i) {
        const wire::Payload& tensor = request.tensors[i];
        if (tensor.nbytes == 0) continue;
        if (tensor.remote) {
            pieces.push_back({buffers[i].data(), tensor.nbytes, *tensor.remote});
            moved.push_back(i);
        } else {
            incoming->pending.fill(i, tensor.data.data());
        }
    }
    if (pieces.empty()) {
        commit(call, std::move(*incoming));
        return;
    }
    // Of bytes that are copied on their way the checksums are taken at the same time.
    const auto take = [incoming, moved](std::size_t i, std::span<const std::byte> bytes) {
        incoming->pending.append(moved[i], bytes);
    };
    call.transfer({Transfer::Direction::from_client, std::move(pieces), take},
                  [self = call.shared_from_this(), incoming, moved = std::move(moved),
                   sums = std::move(sums)] {
                      check_sums(incoming->pending, moved, sums);
                      commit(*self, std::move(*incoming));
                  });
}

}  // namespace cpp_store::server
