#include "client/gather.hpp"

#include <algorithm>
#include <cstring>
#include <map>

namespace cpp_store::client {

void describe(Source& source, local::SharedLayer layer) {
    source.described = true;
    source.serial = layer.description.serial;
    source.specs = std::move(layer.description.specs);
    source.data = std::move(layer.description.data);
    source.pin = std::move(layer.pin);
}

namespace {

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

// Whether all of the sources can be tried elsewhere.
bool all_elsewhere(const std::vector<Source*>& sources, const Elsewhere& elsewhere,
                   const Error& error) {
    for (Source* source : sources) {
        if (!elsewhere || !elsewhere(*source, error)) return false;
        source->described = false;
        source->data.clear();
    }
    return true;
}

// Asks the owners' servers what tensors the layers have; keeps the answers, which may hold data.
void describe_all(const std::vector<std::shared_ptr<Connection>>& connections,
                  std::vector<Source>& sources, std::vector<PendingCallPtr>& answers,
                  const Elsewhere& elsewhere) {
    const auto is_unknown = [](const Source& source) { return !source.described; };
    while (std::ranges::any_of(sources, is_unknown)) {
        const auto groups = by_server(sources, is_unknown);
        std::vector<PendingCallPtr> started;
        std::vector<const std::vector<Source*>*> wanted_of;
        for (const auto& [server, wanted] : groups) {
            try {
                started.push_back(connections[server]->start(
                    wire::Operation::fetch,
                    [&, &asked = wanted](wire::Writer& out, std::span<const wire::Remote>) {
                        wire::encode(out, fetch_request(asked));
                    }));
                wanted_of.push_back(&wanted);
            } catch (const Error& error) {
                if (!all_elsewhere(wanted, elsewhere, error)) throw;
            }
        }
        Connection::wait(started);
        for (std::size_t i = 0; i < started.size(); ++i) {
            const std::vector<Source*>& wanted = *wanted_of[i];
            try {
                wire::Reader in = started[i]->response();
                if (in.count(1) != wanted.size()) {
                    throw Error(Errc::protocol,
                                connections[wanted.front()->server]->address() + " lost layers");
                }
                for (Source* source : wanted) describe(*source, started[i]->decode_layer(in));
            } catch (const Error& error) {
                if (!all_elsewhere(wanted, elsewhere, error)) throw;
            }
        }
        for (PendingCallPtr& done : started) answers.push_back(std::move(done));
    }
}

void check_buffers(const Source& source) {
    if (source.viewed) return;
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

void take_buffers(std::vector<Source>& sources, const Cluster::Buffers& buffers,
                  const Cluster::Views& views) {
    for (Source& source : sources) {
        if (source.placed) {  // and has come from elsewhere since
            check_buffers(source);
            continue;
        }
        source.placed = true;
        if (source.pin && views) {
            views(source.name, source.specs, source.data, std::move(source.pin));
            source.viewed = true;
            continue;
        }
        source.buffers = buffers(source.name, source.specs);
        check_buffers(source);
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

// Lets the servers write the rest into the buffers, all servers at once. False if some have to be
// described again, elsewhere.
bool deliver(const std::vector<std::shared_ptr<Connection>>& connections,
             std::vector<Source>& sources, const Elsewhere& elsewhere) {
    const auto groups = by_server(sources, [](const Source& source) {
        return source.data.empty() && !source.specs.empty() && !source.viewed && !source.delivered;
    });
    std::vector<PendingCallPtr> calls;
    std::vector<std::vector<std::span<std::byte>>> inlined;  // by call
    std::vector<const std::vector<Source*>*> wanted_of;      // by call
    bool all = true;
    for (const auto& [server, wanted] : groups) {
        wire::Fetch fetch = fetch_request(wanted);
        fetch.deliver = true;
        for (const Source* source : wanted) fetch.serials.push_back(source->serial);
        std::vector<Exposure> exposures;
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
        try {
            calls.push_back(connections[server]->start(
                wire::Operation::fetch,
                [&](wire::Writer& out, std::span<const wire::Remote> remotes) {
                    for (std::size_t i = 0; i < remotes.size(); ++i) {
                        fetch.destinations.push_back({remotes[i], exposures[i].memory.size()});
                    }
                    wire::encode(out, fetch);
                },
                exposures));
            wanted_of.push_back(&wanted);
        } catch (const Error& error) {
            inlined.pop_back();
            if (!all_elsewhere(wanted, elsewhere, error)) throw;
            all = false;
        }
    }
    Connection::wait(calls);
    for (std::size_t i = 0; i < calls.size(); ++i) {
        try {
            wire::Reader in = calls[i]->response();
            for (const auto& buffer : inlined[i]) {
                const auto data = in.raw(buffer.size());
                if (!data.empty()) std::memcpy(buffer.data(), data.data(), data.size());
            }
            for (Source* source : *wanted_of[i]) source->delivered = true;
        } catch (const Error& error) {
            if (!all_elsewhere(*wanted_of[i], elsewhere, error)) throw;
            all = false;
        }
    }
    return all;
}

}  // namespace

std::uint64_t gather(const std::vector<std::shared_ptr<Connection>>& connections,
                     std::vector<Source>& sources, const Cluster::Buffers& buffers,
                     const Cluster::Views& views, const Elsewhere& elsewhere) {
    std::vector<PendingCallPtr> answers;
    do {
        describe_all(connections, sources, answers, elsewhere);
        take_buffers(sources, buffers, views);
        copy_described(sources);
    } while (!deliver(connections, sources, elsewhere));
    std::uint64_t bytes = 0;
    for (const Source& source : sources) {
        for (const TensorSpec& spec : source.specs) bytes += spec.nbytes();
    }
    return bytes;
}

}  // namespace cpp_store::client
