#include <cstring>
#include <map>

#include "client/cluster.hpp"

namespace cpp_store {
namespace {

using client::Connection;
using client::PendingCallPtr;

// A layer to be read: what it is, where it is, and where it goes.
struct Source {
    std::string name;
    std::string owner;
    LayerKey key;
    std::size_t server = 0;
    bool described = false;
    std::uint64_t serial = 0;
    std::vector<TensorSpec> specs;
    std::vector<std::span<const std::byte>> data;  // where it is already; empty: to be fetched
    std::shared_ptr<const void> pin;  // of data in the server's memory; null: it is in an answer
    bool viewed = false;              // the caller has them
    std::vector<std::span<std::byte>> buffers;
};

void describe(Source& source, local::SharedLayer layer) {
    source.described = true;
    source.serial = layer.description.serial;
    source.specs = std::move(layer.description.specs);
    source.data = std::move(layer.description.data);
    source.pin = std::move(layer.pin);
}

// The sources that `chosen` picks, by server.
template <typename Predicate>
std::map<std::size_t, std::vector<Source*>> by_server(std::vector<Source>& sources,
                                                      const Predicate& chosen) {
    std::map<std::size_t, std::vector<Source*>> groups;
    for (Source& source : sources) {
        if (chosen(source)) groups[source.server].push_back(&source);
    }
    return groups;
}

wire::Fetch fetch_request(const std::vector<Source*>& sources) {
    wire::Fetch fetch;
    for (const Source* source : sources) {
        if (fetch.groups.empty() || fetch.groups.back().owner != source->owner) {
            fetch.groups.push_back({source->owner, {}});
        }
        fetch.groups.back().keys.push_back(source->key);
    }
    return fetch;
}

// Asks the owners' servers what tensors the layers have; keeps the answers, which may hold data.
void describe_all(const std::vector<std::shared_ptr<Connection>>& connections,
                  std::vector<Source>& sources, std::vector<PendingCallPtr>& answers) {
    const auto groups = by_server(sources, [](const Source& source) { return !source.described; });
    std::vector<PendingCallPtr> calls;
    for (const auto& group : groups) {
        calls.push_back(connections[group.first]->start(
            wire::Operation::fetch, [&](wire::Writer& out, std::span<const wire::Remote>) {
                wire::encode(out, fetch_request(group.second));
            }));
    }
    Connection::wait(calls);
    auto call = calls.begin();
    for (const auto& [server, wanted] : groups) {
        wire::Reader in = (*call)->response();
        if (in.count(1) != wanted.size()) {
            throw Error(Errc::protocol, connections[server]->address() + " lost layers");
        }
        for (Source* source : wanted) describe(*source, (*call)->decode_layer(in));
        ++call;
    }
    for (PendingCallPtr& done : calls) answers.push_back(std::move(done));
}

void take_buffers(std::vector<Source>& sources, const Cluster::Buffers& buffers,
                  const Cluster::Views& views) {
    for (Source& source : sources) {
        if (source.pin && views) {
            views(source.name, source.specs, source.data, std::move(source.pin));
            source.viewed = true;
            continue;
        }
        source.buffers = buffers(source.name, source.specs);
        if (source.buffers.size() != source.specs.size()) {
            throw Error(Errc::invalid_argument,
                        "layer '" + source.name + "' has " + std::to_string(source.specs.size()) +
                            " tensors, found " + std::to_string(source.buffers.size()) +
                            " buffers for them");
        }
        for (std::size_t i = 0; i < source.specs.size(); ++i) {
            if (source.buffers[i].size() == source.specs[i].nbytes()) continue;
            throw Error(Errc::invalid_argument,
                        "tensor " + std::to_string(i) + " of layer '" + source.name + "' has " +
                            std::to_string(source.specs[i].nbytes()) + " bytes, its buffer " +
                            std::to_string(source.buffers[i].size()));
        }
    }
}

// Only now that all buffers are known to fit.
void copy_described(std::vector<Source>& sources) {
    for (Source& source : sources) {
        if (source.viewed) continue;
        for (std::size_t i = 0; i < source.data.size(); ++i) {
            const std::span<std::byte> buffer = source.buffers[i];
            if (!buffer.empty()) std::memcpy(buffer.data(), source.data[i].data(), buffer.size());
        }
    }
}

// Lets the servers write the rest into the buffers, all servers at once.
void deliver(const std::vector<std::shared_ptr<Connection>>& connections,
             std::vector<Source>& sources) {
    const auto groups = by_server(
        sources, [](const Source& source) { return source.data.empty() && !source.specs.empty(); });
    std::vector<PendingCallPtr> calls;
    std::vector<std::vector<std::span<std::byte>>> inlined;  // by call
    for (const auto& [server, wanted] : groups) {
        wire::Fetch fetch = fetch_request(wanted);
        fetch.deliver = true;
        for (const Source* source : wanted) fetch.serials.push_back(source->serial);
        std::vector<client::Exposure> exposures;
        wire::InlineBudget budget;
        auto& small = inlined.emplace_back();
        for (const Source* source : wanted) {
            for (const auto& buffer : source->buffers) {
                if (budget.take(buffer.size())) {
                    small.push_back(buffer);
                } else {
                    exposures.push_back({buffer, true});
                }
            }
        }
        calls.push_back(connections[server]->start(
            wire::Operation::fetch,
            [&](wire::Writer& out, std::span<const wire::Remote> remotes) {
                for (std::size_t i = 0; i < remotes.size(); ++i) {
                    fetch.destinations.push_back({remotes[i], exposures[i].memory.size()});
                }
                wire::encode(out, fetch);
            },
            exposures));
    }
    Connection::wait(calls);
    for (std::size_t i = 0; i < calls.size(); ++i) {
        wire::Reader in = calls[i]->response();
        for (const auto& buffer : inlined[i]) {
            const auto data = in.raw(buffer.size());
            if (!data.empty()) std::memcpy(buffer.data(), data.data(), data.size());
        }
    }
}

std::uint64_t gather(const std::vector<std::shared_ptr<Connection>>& connections,
                     std::vector<Source>& sources, const Cluster::Buffers& buffers,
                     const Cluster::Views& views) {
    std::vector<PendingCallPtr> answers;
    describe_all(connections, sources, answers);
    take_buffers(sources, buffers, views);
    copy_described(sources);
    deliver(connections, sources);
    std::uint64_t bytes = 0;
    for (const Source& source : sources) {
        for (const TensorSpec& spec : source.specs) bytes += spec.nbytes();
    }
    return bytes;
}

}  // namespace

std::uint64_t Cluster::read(std::string_view model, std::span<const std::string> layers,
                            const Buffers& buffers, const Views& views) {
    const std::size_t server = home(model);
    const auto call = impl_->call(server, wire::Operation::read, [&](wire::Writer& out) {
        wire::encode(out, wire::Read{std::string(model), {layers.begin(), layers.end()}});
    });
    wire::Reader in = call->response();
    std::vector<Source> sources(in.count(1));
    for (Source& source : sources) {
        local::SharedLayer layer = call->decode_layer(in);
        const wire::Layer& description = layer.description;
        source.name = description.name;
        source.owner = description.owner;
        source.key = description.key;
        source.server = description.here ? server : home(description.owner);
        if (description.here) describe(source, std::move(layer));
    }
    return gather(impl_->connections, sources, buffers, views);
}

std::uint64_t Cluster::fetch(std::span<const OwnedLayer> layers, const Buffers& buffers,
                             const Views& views) {
    std::vector<Source> sources(layers.size());
    for (std::size_t i = 0; i < layers.size(); ++i) {
        sources[i].name = layers[i].layer;
        sources[i].owner = layers[i].owner;
        sources[i].key = layers[i].key;
        sources[i].server = home(layers[i].owner);
    }
    return gather(impl_->connections, sources, buffers, views);
}

}  // namespace cpp_store
