#include "server/call.hpp"

namespace cpp_store::server {
namespace {

// Pairs the tensors with the client's buffers; small ones go into the response. `sums` are those of
// the others.
std::vector<Transfer::Piece> pair_up(const std::vector<StoredLayerPtr>& stored,
                                     const std::vector<wire::Fetch::Destination>& destinations,
                                     wire::Writer& response, std::vector<Checksum>& sums) {
    std::vector<Transfer::Piece> pieces;
    pieces.reserve(destinations.size());
    wire::InlineBudget budget;
    for (const StoredLayerPtr& layer : stored) {
        for (const auto& tensor : layer->tensors) {
            const std::uint64_t nbytes = tensor.spec.nbytes();
            if (budget.take(nbytes)) {
                response.raw({tensor.extent.data, nbytes});
                continue;
            }
            const auto* destination =
                pieces.size() < destinations.size() ? &destinations[pieces.size()] : nullptr;
            if (!destination || destination->nbytes != nbytes) {
                throw Error(Errc::invalid_argument,
                            "a tensor of " + std::to_string(nbytes) + " bytes of " + layer->owner +
                                (destination ? " cannot go into a buffer of " +
                                                   std::to_string(destination->nbytes)
                                             : " has no buffer"));
            }
            pieces.push_back({tensor.extent.data, nbytes, destination->remote});
            sums.push_back(tensor.checksum);
        }
    }
    if (pieces.size() != destinations.size()) {
        throw Error(Errc::invalid_argument, "more buffers than tensors");
    }
    return pieces;
}

// Between the description of layers and their delivery, their owner may have been retired and
// another model been put under its id: what the client is about to read is then gone.
void check_serials(const std::vector<StoredLayerPtr>& stored,
                   const std::vector<std::uint64_t>& serials) {
    if (serials.size() != stored.size()) {
        throw Error(Errc::protocol, std::to_string(serials.size()) + " serial numbers for " +
                                        std::to_string(stored.size()) + " layers");
    }
    for (std::size_t i = 0; i < stored.size(); ++i) {
        if (stored[i]->serial == serials[i]) continue;
        throw Error(Errc::not_found,
                    "there is no model '" + stored[i]->owner + "' any more: it was retired");
    }
}

}  // namespace

Described describe_layers(Store& store, const wire::Fetch& request) {
    Described found;
    for (const wire::Fetch::Group& group : request.groups) {
        for (StoredLayerPtr& layer : store.find_layers(group.owner, group.keys)) {
            wire::Layer described;
            described.owner = group.owner;
            described.key = layer->key;
            found.layers.push_back(std::move(described));
            found.stored.push_back(std::move(layer));
        }
    }
    return found;
}

// Describes layers by owner, or writes their tensors into the client's buffers.
void fetch(Call& call) {
    wire::Reader in = call.body();
    const wire::Fetch request = wire::decode_fetch(in);
    in.end();

    if (request.deliver && call.session()->shares_memory()) {
        throw Error(Errc::protocol, "malformed message: tensors are not sent here");
    }
    Described found = describe_layers(call.store(), request);
    if (!request.deliver) {
        reply_with_layers(call, std::move(found));
        return;
    }
    std::vector<StoredLayerPtr> stored = std::move(found.stored);
    wire::Writer out;
    check_serials(stored, request.serials);
    call.store().count_read(stored);
    std::vector<Checksum> sums;
    std::vector<Transfer::Piece> pieces = pair_up(stored, request.destinations, out, sums);
    if (call.session()->sums_bulk()) out.sums(sums);
    if (pieces.empty()) {
        call.reply(std::move(out));
        return;
    }
    // The layers are held until the last byte has left.
    call.transfer({Transfer::Direction::to_client, std::move(pieces), nullptr},
                  [self = call.shared_from_this(), stored = std::move(stored),
                   out = std::move(out)] { self->reply(out); });
}

}  // namespace cpp_store::server
