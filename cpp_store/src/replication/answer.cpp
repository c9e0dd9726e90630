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
    std::optional<PendingPut> pending = replica.prepare(said, request.through);
    Replica::Published published;
    if (pending) {
        for (std::size_t i = 0; i < request.tensors.size(); ++i) {
            pending->fill(i, request.tensors[i].data());
        }
        published = replica.commit(*std::move(pending), said.model, said.created_ns,
                                   references_of(said), request.through);
    } else {
        published = replica.passed(said.model);
    }
    answer.bytes = published.bytes;
    answer.done = published.is_new;
    answer.chain = std::move(published.chain);
}

void retire(Replica& replica, const Request& request, Answer& answer) {
    Replica::Retired retired =
        replica.retire(request.model, request.token, request.version, request.by, request.through);
    answer.by = retired.by;
    answer.chain = std::move(retired.chain);
}

void changes(Replica& replica, const Request& request, Answer& answer) {
    auto changes = replica.changes(request.asker, request.asking, request.joining,
                                   request.incarnation, request.since);
    answer.incarnation = replica.incarnation();
    answer.ready = replica.is_ready();
    answer.joined = replica.membership().of(request.asker);
    answer.followed = replica.followed(request.asker, request.asking);
    answer.since = changes.since;
    answer.last = changes.last;
    answer.forgotten = changes.forgotten;
    answer.changes = std::move(changes.changes);
    // So that it need not wait for this server's next round.
    if (request.joining) replica.look();
}

void acquire(Replica& replica, const Request& request, Answer& answer) {
    replica.acquire(request.model, request.keys, request.holder);
    answer.sizes = replica.store().layer_bytes(request.model, request.keys);
}

void read(const Replica& replica, const Request& request, Answer& answer) {
    std::tie(answer.info, answer.version) = replica.look_up(request.model);
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
            case Kind::retire:
                retire(replica, request, answer);
                break;
            case Kind::bury:
                replica.bury(request.model, request.version, request.by);
                break;
            case Kind::undo:
                replica.undo(request.model, request.version);
                break;
            case Kind::refuse:
                answer.done = replica.refuse(request.model, request.version);
                break;
            case Kind::state:
                for (const std::string& model : request.models) {
                    if (request.decisive) replica.check_answers(model);
                    const State state = replica.state(model);
                    if (state.presence == Presence::unknown) replica.check_ready();
                    answer.states.push_back(state);
                }
                break;
            case Kind::chain:
                replica.look();
                answer.chain = replica.chain(request.model);
                break;
            case Kind::acquire:
                acquire(replica, request, answer);
                break;
            case Kind::release:
                replica.release(request.model, request.keys, request.holder);
                break;
            case Kind::changes:
                changes(replica, request, answer);
                break;
            case Kind::read:
                replica.check_answers(request.model);
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
