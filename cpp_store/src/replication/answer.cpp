#include "replication/answer.hpp"

#include <tuple>

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
    const PutRequest& said = *request.put;
    PendingPut pending = replica.prepare(said);
    for (std::size_t i = 0; i < request.tensors.size(); ++i) {
        pending.fill(i, request.tensors[i].data());
    }
    const auto published =
        replica.commit(std::move(pending), said.model, said.created_ns, references_of(said));
    answer.bytes = published.bytes;
    answer.done = published.is_new;
    answer.before = published.before;
}

void acquire(Replica& replica, const Request& request, Answer& answer) {
    replica.acquire(request.model, request.keys, request.holder);
    answer.sizes = replica.store().layer_bytes(request.model, request.keys);
}

void read(const Replica& replica, const Request& request, Answer& answer) {
    try {
        std::tie(answer.info, answer.version) = replica.look_up(request.model);
    } catch (const Error&) {
        answer.version = replica.state(request.model).version;
        throw;
    }
}

void pull(Replica& replica, const Request& request, Answer& answer) {
    auto [info, version] = replica.look_up(request.model);
    Pulled pulled{.info = {}, .version = version, .owner = {}, .layers = {}};
    // Which may take a disk's time.
    info.layers = replica.store().find_layers(request.model, std::span<const std::uint32_t>());
    if (replica.look_up(request.model).second != version) {
        throw Error(Errc::not_found, "model '" + request.model + "' was replaced meanwhile");
    }
    for (const LayerLocation& location : info.layers) {
        if (location.foreign) continue;
        pulled.owner = location.owner;
        pulled.layers.push_back(data_of(location.stored));
    }
    pulled.info = std::move(info);
    answer.pulled = std::move(pulled);
}

}  // namespace

Answer answer(Replica& replica, const Request& request) {
    using Kind = Request::Kind;
    Answer answer;
    try {
        switch (request.kind) {
            case Kind::put:
                put(replica, request, answer);
                break;
            case Kind::bury: {
                const auto buried = replica.bury(request.model, request.version);
                answer.before = buried.before;
                answer.done = buried.retired;
                break;
            }
            case Kind::state:
                for (const std::string& model : request.models) {
                    const State state = replica.state(model);
                    if (state.presence == Presence::unknown) replica.check_ready();
                    answer.states.push_back(state);
                }
                break;
            case Kind::acquire:
                acquire(replica, request, answer);
                break;
            case Kind::release:
                replica.release(request.model, request.keys, request.holder);
                break;
            case Kind::changes: {
                auto changes = replica.changes(request.asker, request.incarnation, request.since);
                answer.incarnation = changes.incarnation;
                answer.since = changes.since;
                answer.last = changes.last;
                answer.forgotten = changes.forgotten;
                answer.changes = std::move(changes.changes);
                break;
            }
            case Kind::read:
                replica.check_ready();
                read(replica, request, answer);
                break;
            case Kind::pull:
                pull(replica, request, answer);
                break;
            case Kind::fetch:
                for (const LayerKey& key : request.keys) {
                    // Those that are here; the others are somewhere else, or lost.
                    try {
                        const auto found = replica.store().find_layers(request.model, {&key, 1});
                        answer.layers.push_back(data_of(found.front()));
                    } catch (const Error& error) {
                        if (error.code() != Errc::not_found) throw;
                    }
                }
                break;
        }
    } catch (const Error& error) {
        answer.error = error.code();
        answer.why = error.what();
    }
    return answer;
}

}  // namespace cpp_store::replication
