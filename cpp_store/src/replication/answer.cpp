// A server's answers to what the protocol asks.
#include "replication/replica.hpp"

namespace cpp_store::replication {
namespace {

LayerData data_of(const StoredLayerPtr& stored) {
    LayerData layer{.key = stored->key, .specs = {}, .tensors = {}, .pin = stored};
    for (const StoredLayer::Tensor& tensor : stored->tensors) {
        layer.specs.push_back(tensor.spec);
        layer.tensors.emplace_back(tensor.extent.data, tensor.spec.nbytes());
    }
    return layer;
}

void put(Replica& replica, const Request& request, Answer& answer) {
    PendingPut pending = replica.prepare(*request.put);
    for (std::size_t i = 0; i < request.tensors.size(); ++i) {
        pending.fill(i, request.tensors[i].data());
    }
    const Replica::Published published = replica.publish(std::move(pending));
    answer.bytes = published.bytes;
    answer.is_new = published.is_new;
}

// Those that are here; the others are somewhere else, or lost.
void fetch(Replica& replica, const Request& request, Answer& answer) {
    for (const LayerKey& key : request.keys) {
        try {
            const auto found = replica.store().find_layers(request.model, {&key, 1});
            answer.layers.push_back(data_of(found.front()));
        } catch (const Error& error) {
            if (error.code() != Errc::not_found) throw;
        }
    }
}

void pull(Replica& replica, const Request& request, Answer& answer) {
    answer.info = replica.described(request.model);
    Request own(Request::Kind::fetch);
    own.model = request.model;
    for (const LayerLocation& location : answer.info->layers) {
        if (location.owner == request.model) {
            own.keys.push_back(answer.info->table->key(location.layer));
        }
    }
    fetch(replica, own, answer);
}

void do_as_asked(Replica& replica, const Request& request, Answer& answer) {
    using Kind = Request::Kind;
    switch (request.kind) {
        case Kind::put:
            put(replica, request, answer);
            break;
        case Kind::retire:
            answer.foreign = replica.retire(request.model);
            break;
        case Kind::undo:
            replica.undo(request.model);
            break;
        case Kind::state:
            for (const std::string& name : request.names) {
                answer.states.push_back(replica.state(name));
            }
            break;
        case Kind::acquire:
            replica.store().acquire(request.model, request.keys, request.holder);
            answer.sizes = replica.store().layer_bytes(request.model, request.keys);
            break;
        case Kind::release:
            replica.store().release(request.model, request.keys, request.holder);
            break;
        case Kind::read:
            answer.info = replica.store().lookup(request.model);
            break;
        case Kind::pull:
            pull(replica, request, answer);
            break;
        case Kind::fetch:
            fetch(replica, request, answer);
            break;
        case Kind::compare:
            answer.sums = replica.compare(request.asker, request.buckets);
            break;
        case Kind::shared:
            answer.page = replica.shared(request.asker, request.buckets, request.cursor);
            break;
        case Kind::repair:
            replica.repair(request.model, request.degraded);
            break;
    }
}

}  // namespace

Answer answer(Replica& replica, const Request& request) {
    Answer answer;
    try {
        do_as_asked(replica, request, answer);
    } catch (const Error& error) {
        answer = {};
        answer.error = error.code();
        answer.why = error.what();
    }
    return answer;
}

}  // namespace cpp_store::replication
