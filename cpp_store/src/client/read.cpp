#include "client/cluster.hpp"
#include "client/gather.hpp"

namespace cpp_store {
namespace {

using client::Source;

// The sources of a model's description, which the call keeps.
std::vector<Source> sources_of(const Cluster::Impl& cluster, const client::PendingCall& call,
                               std::size_t server) {
    wire::Reader in = call.response();
    std::vector<Source> sources(in.count(1));
    for (Source& source : sources) {
        local::SharedLayer layer = call.decode_layer(in);
        const wire::Layer& description = layer.description;
        source.name = description.name;
        source.owner = description.owner;
        source.key = description.key;
        source.server = description.here ? server : cluster.home_of_owner(description.owner);
        if (description.here) client::describe(source, std::move(layer));
    }
    return sources;
}

}  // namespace

std::uint64_t Cluster::read(std::string_view model, std::span<const std::string> layers,
                            const Buffers& buffers, const Views& views) {
    const wire::Read request{std::string(model), {layers.begin(), layers.end()}};
    const auto gather = impl_->at_one_that_answers(model, [&](std::size_t server) {
        std::shared_ptr<client::PendingCall> call = impl_->call(
            server, wire::Operation::read, [&](wire::Writer& out) { wire::encode(out, request); });
        auto sources = std::make_shared<std::vector<Source>>(sources_of(*impl_, *call, server));
        return [this, call, sources, &buffers, &views] {
            return client::gather(impl_->connections, *sources, buffers, views, impl_->elsewhere());
        };
    });
    return gather();
}

std::uint64_t Cluster::fetch(std::span<const OwnedLayer> layers, const Buffers& buffers,
                             const Views& views) {
    std::vector<Source> sources(layers.size());
    for (std::size_t i = 0; i < layers.size(); ++i) {
        sources[i].name = layers[i].layer;
        sources[i].owner = layers[i].owner;
        sources[i].key = layers[i].key;
        sources[i].server = impl_->home_of_owner(layers[i].owner);
    }
    return client::gather(impl_->connections, sources, buffers, views, impl_->elsewhere());
}

}  // namespace cpp_store
