#include "replication/calls.hpp"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <tuple>
#include <unordered_map>

#include "replication/replica.hpp"

namespace cpp_store::replication {
namespace {

constexpr int most_tries = 8;            // of versions, while others retire the id
constexpr Version puts_apart = 1 << 16;  // the lowest bits of Network::now() are the call's own

[[noreturn]] void nobody(const Answer& last, const std::string& model) {
    throw Error(*last.error, "no server of model '" + model + "' can be reached: " + last.why);
}

// The servers to be asked, of those that keep a model: none that is down, unless all are.
std::vector<std::size_t> reachable(const Network& network, const Placement& placement,
                                   std::string_view model) {
    std::vector<std::size_t> servers = placement.of(model);
    if (!std::ranges::all_of(servers, [&](auto server) { return network.is_down(server); })) {
        std::erase_if(servers, [&](auto server) { return network.is_down(server); });
    }
    return servers;
}

// References to all that is inherited, at all reachable servers of each owner.
std::vector<Network::Call> to_owners(const Network& network, const Placement& placement,
                                     Request::Kind kind, const References& references,
                                     const std::string& holder) {
    std::vector<Network::Call> calls;
    for (const auto& [owner, names] : references) {
        for (const std::size_t server : reachable(network, placement, id_of(owner))) {
            Request request(kind);
            request.model = owner;
            request.keys = keys_of(names);
            request.holder = holder;
            calls.push_back({server, std::move(request)});
        }
    }
    return calls;
}

// Each owner must have answered from one server at least. Fills in the bytes of what is inherited.
void check_owners(PutRequest& request, const References& references,
                  const std::vector<Network::Call>& calls, const std::vector<Answer>& answers) {
    std::map<std::pair<std::string, LayerKey>, std::uint64_t> bytes;
    for (const auto& [owner, names] : references) {
        const Answer* best = nullptr;
        for (std::size_t i = 0; i < calls.size(); ++i) {
            if (calls[i].request.model != owner) continue;
            if (!best || !answers[i].error || best->is_unreachable()) best = &answers[i];
            if (!best->error) break;
        }
        if (best->error) throw best->exception();
        const std::vector<LayerKey> keys = keys_of(names);
        if (best->sizes.size() != keys.size()) throw Error(Errc::protocol, "acquire lost layers");
        for (std::size_t i = 0; i < keys.size(); ++i) bytes[{owner, keys[i]}] = best->sizes[i];
    }
    for (Inherited& inherited : request.inherited) {
        inherited.bytes = bytes.at({inherited.owner, request.table->key(inherited.layer)});
    }
}

std::uint64_t bytes_of(std::span<const std::span<const std::byte>> tensors) {
    std::uint64_t bytes = 0;
    for (const auto& tensor : tensors) bytes += tensor.size();
    return bytes;
}

struct Attempt {
    Answer answer;  // the last one, or what went wrong
    std::uint64_t bytes = 0;
    std::vector<std::size_t> kept;  // by servers where the model is new
    bool stored = false;            // by one at least
    Version before = 0;             // that the first of them knew
    bool uncertain = false;         // whether another one may have it
};

Task<Attempt> put_everywhere(Network& network, const Placement& placement,
                             const PutRequest& request,
                             std::span<const std::span<const std::byte>> tensors) {
    Attempt attempt;
    for (const std::size_t server : reachable(network, placement, request.model)) {
        Request put(Request::Kind::put);
        put.model = request.model;
        put.put = &request;
        put.tensors = tensors;
        attempt.answer = co_await network.ask(server, std::move(put));
        if (attempt.answer.is_unreachable()) {
            attempt.uncertain = true;
            continue;
        }
        if (attempt.stored && attempt.answer.error == Errc::already_exists) {
            Request state(Request::Kind::state);
            state.models = {request.model};
            const Answer now = co_await network.ask(server, std::move(state));
            if (now.error) continue;
            const State there = now.states.front();
            // Retired since the first server took it: then it was put, and retired.
            if (there.presence != Presence::visible && there.version >= request.created_ns) {
                continue;
            }
            // Retired before, but this server has not heard of it yet.
            if (there.presence == Presence::visible && there.version <= attempt.before) {
                Request bury(Request::Kind::bury);
                bury.model = request.model;
                bury.version = attempt.before;
                const Answer buried = co_await network.ask(server, std::move(bury));
                Request again(Request::Kind::put);
                again.model = request.model;
                again.put = &request;
                again.tensors = tensors;
                attempt.answer = co_await network.ask(server, std::move(again));
                if (attempt.answer.is_unreachable()) continue;
            }
        }
        if (attempt.answer.error) co_return attempt;
        attempt.bytes = attempt.answer.bytes;
        if (!attempt.stored) attempt.before = attempt.answer.before;
        attempt.stored = true;
        if (attempt.answer.done) attempt.kept.push_back(server);
    }
    if (attempt.stored) attempt.answer.error.reset();
    co_return attempt;
}

Task<void> undo(Network& network, const PutRequest& request, const Attempt& attempt) {
    std::vector<Network::Call> calls;
    for (const std::size_t server : attempt.kept) {
        Request bury(Request::Kind::bury);
        bury.model = request.model;
        bury.version = request.created_ns;
        calls.push_back({server, std::move(bury)});
    }
    const std::vector<Answer> answers = co_await network.ask_all(std::move(calls));
}

Task<std::vector<Answer>> ask_states(Network& network, const Placement& placement,
                                     const std::string& model) {
    std::vector<Network::Call> calls;
    for (const std::size_t server : reachable(network, placement, model)) {
        Request request(Request::Kind::state);
        request.models = {model};
        calls.push_back({server, std::move(request)});
    }
    co_return co_await network.ask_all(std::move(calls));
}

// The version at which an id was retired for good, as its servers know; 0 if it was not.
Task<Version> retired_at(Network& network, const Placement& placement, const std::string& model) {
    const std::vector<Answer> answers = co_await ask_states(network, placement, model);
    Version version = 0;
    for (const Answer& answer : answers) {
        if (answer.error) continue;
        const State& state = answer.states.front();
        if (state.presence == Presence::visible || state.presence == Presence::leased) co_return 0;
        version = std::max(version, state.version);
    }
    co_return version;
}

}  // namespace

std::vector<std::size_t> order_of_reading(const Network& network, const Placement& placement,
                                          std::string_view model) {
    std::vector<std::size_t> servers = placement.of(model);
    // Not that of ranges, which Clang 14 cannot read in GCC 12's library.
    std::stable_partition(servers.begin(), servers.end(),
                          [&](auto server) { return !network.is_down(server); });
    return servers;
}

Task<std::uint64_t> put(Network& network, const Placement& placement, PutRequest request,
                        std::span<const std::span<const std::byte>> tensors) {
    const References references = references_of(request);
    for (Inherited& inherited : request.inherited) inherited.foreign = true;
    if (request.created_ns == 0) request.created_ns = network.now();
    for (int tries = 1;; ++tries) {
        const std::string holder = versioned(request.model, request.created_ns);
        std::vector<Network::Call> calls =
            to_owners(network, placement, Request::Kind::acquire, references, holder);
        const std::vector<Network::Call> asked = calls;
        const std::vector<Answer> owners = co_await network.ask_all(std::move(calls));
        Attempt attempt;
        try {
            check_owners(request, references, asked, owners);
        } catch (const Error& error) {
            attempt.answer.error = error.code();
            attempt.answer.why = error.what();
        }
        if (!attempt.answer.error) {
            attempt = co_await put_everywhere(network, placement, request, tensors);
        }
        if (!attempt.answer.error) co_return attempt.bytes;

        co_await undo(network, request, attempt);
        if (!attempt.uncertain && attempt.kept.empty()) {  // else the owners find out
            std::vector<Network::Call> releases =
                to_owners(network, placement, Request::Kind::release, references, holder);
            const std::vector<Answer> released = co_await network.ask_all(std::move(releases));
        }
        if (attempt.answer.error != Errc::already_exists) {
            if (attempt.answer.is_unreachable() && attempt.uncertain) {
                nobody(attempt.answer, request.model);
            }
            throw attempt.answer.exception();
        }
        const Version retired = co_await retired_at(network, placement, request.model);
        // It was put at a server that did not answer, and is retired already.
        if (retired == request.created_ns) co_return bytes_of(tensors);
        if (retired > request.created_ns && attempt.uncertain) {
            nobody(attempt.answer, request.model);
        }
        if (retired < request.created_ns || !attempt.kept.empty() || tries == most_tries) {
            throw attempt.answer.exception();
        }
        // Retired by a client whose clock is ahead of ours. No two puts have the same version.
        const Version now = network.now();
        const Version after = (retired / puts_apart + 1) * puts_apart + now % puts_apart;
        request.created_ns = std::max(now, after);
    }
}

Task<void> retire(Network& network, const Placement& placement, std::string model) {
    // Which version it is about, so that one that is put meanwhile stays.
    std::vector<Answer> answers = co_await ask_states(network, placement, model);
    Version version = 0;
    const Answer* silent = nullptr;
    bool answered = false;
    for (const Answer& answer : answers) {
        if (answer.error) {
            silent = &answer;
            continue;
        }
        answered = true;
        const State& state = answer.states.front();
        if (state.presence == Presence::visible) version = std::max(version, state.version);
    }
    if (!answered) nobody(*silent, model);
    bool first = true;  // whose answer says who of several retired it
    bool retired = false;
    std::optional<Answer> uncertain;
    if (version > 0) {
        for (const std::size_t server : reachable(network, placement, model)) {
            Request request(Request::Kind::bury);
            request.model = model;
            request.version = version;
            const Answer answer = co_await network.ask(server, std::move(request));
            if (answer.error) {  // it may have done it, and told the next one before this did
                uncertain = answer;
                continue;
            }
            // A server that has not heard of the version leaves the word to the next.
            if (first && answer.before == version) {
                retired = answer.done;
                first = false;
            }
        }
    }
    if (!retired && uncertain) nobody(*uncertain, model);
    if (!retired) {
        throw Error(Errc::not_found, "there is no model '" + model + "' to retire");
    }
}

Task<Found> find(Network& network, const Placement& placement, std::string model) {
    Version retired = 0;  // the latest that any of them knows
    Answer missing;
    Answer silent;
    for (const std::size_t server : order_of_reading(network, placement, model)) {
        Request request(Request::Kind::read);
        request.model = model;
        Answer answer = co_await network.ask(server, std::move(request));
        if (!answer.error && answer.version > retired) {
            co_return Found{server, std::move(*answer.info)};
        }
        if (answer.is_unreachable()) {
            // One that answers soon is worth waiting for.
            if (!silent.error || answer.error == Errc::deadline) silent = std::move(answer);
            continue;
        }
        if (answer.error && answer.error != Errc::not_found) throw answer.exception();
        retired = std::max(retired, answer.version);
        if (answer.error) missing = std::move(answer);
    }
    if (missing.error) throw missing.exception();
    nobody(silent, model);
}

void put_in_order(PutRequest& request, std::vector<std::span<const std::byte>>& tensors) {
    std::vector<std::size_t> first;  // tensor of each layer
    std::size_t next = 0;
    for (const Own& own : request.own) {
        first.push_back(next);
        next += own.tensors.size();
    }
    if (next != tensors.size()) {
        throw Error(Errc::invalid_argument, std::to_string(tensors.size()) + " buffers for " +
                                                std::to_string(next) + " tensors");
    }
    std::vector<std::size_t> order(request.own.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::ranges::stable_sort(order, {}, [&](std::size_t i) { return request.own[i].layer; });
    std::vector<Own> own;
    std::vector<std::span<const std::byte>> sorted;
    for (const std::size_t i : order) {
        const std::size_t count = request.own[i].tensors.size();
        if (count == 0) continue;
        for (std::size_t j = 0; j < count; ++j) sorted.push_back(tensors[first[i] + j]);
        own.push_back(std::move(request.own[i]));
    }
    request.own = std::move(own);
    tensors = std::move(sorted);
    std::ranges::stable_sort(request.inherited, {}, &Inherited::layer);
}

std::vector<Merged> merge(std::vector<Answered> answers, Weight weight, std::size_t count,
                          std::vector<Lease>& spare) {
    std::vector<Merged> matches;
    std::unordered_map<std::string, std::size_t> found;
    for (Answered& answered : answers) {
        for (LeasedMatch& match : answered.matches) {
            const auto [at, is_new] = found.try_emplace(match.match.model, matches.size());
            if (is_new) {
                matches.push_back({std::move(match), answered.server, {}});
            } else if (match.lease != 0) {
                matches[at->second].others.push_back({answered.server, match.lease});
            }
        }
    }
    const auto rank = [weight](const Merged& merged) {
        const Match& match = merged.match.match;
        const bool scored = !std::isnan(match.score);
        return std::tuple(weight == Weight::layers ? match.layers : match.bytes, scored,
                          scored ? match.score : 0.0, match.sequence);
    };
    std::ranges::stable_sort(matches,
                             [&](const Merged& a, const Merged& b) { return rank(a) > rank(b); });
    for (std::size_t i = count; i < matches.size(); ++i) {
        if (matches[i].match.lease != 0)
            spare.push_back({matches[i].server, matches[i].match.lease});
        std::ranges::copy(matches[i].others, std::back_inserter(spare));
    }
    if (matches.size() > count)
        matches.erase(matches.begin() + static_cast<std::ptrdiff_t>(count), matches.end());
    return matches;
}

}  // namespace cpp_store::replication
