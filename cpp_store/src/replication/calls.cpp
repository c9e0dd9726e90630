#include "replication/calls.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>
#include <tuple>
#include <unordered_map>
#include <utility>

#include "core/checksum.hpp"
#include "core/content.hpp"
#include "replication/passes.hpp"

namespace cpp_store::replication {
namespace {

using Kind = Request::Kind;

// Inherited layers that are referred to elsewhere, by their owners' names.
using References = std::map<std::string, std::vector<LayerKey>>;

// How often a call is tried again that a server had no time for, or that met another one.
constexpr unsigned most_tries = 6;
constexpr std::chrono::milliseconds first_pause{10};  // doubled each time

Task<void> rest(Network& network, unsigned tries) {
    const auto longest = static_cast<std::uint32_t>(first_pause.count() << tries);
    co_await network.rest(std::chrono::milliseconds(longest / 2 + network.random() % longest));
}

// The servers to be asked first: none that is down, unless all are.
std::vector<std::size_t> reachable(const Network& network, std::vector<std::size_t> servers) {
    if (!std::ranges::all_of(servers, [&](auto server) { return network.is_down(server); })) {
        std::erase_if(servers, [&](auto server) { return network.is_down(server); });
    }
    return servers;
}

// One server's answer to what a model's servers were all asked.
struct Said {
    std::size_t server = 0;
    Answer answer;
};

// The same request to all of these servers at once; those that are busy are asked again for a
// while.
Task<std::vector<Said>> ask_each(Network& network, std::vector<std::size_t> servers,
                                 Request request) {
    std::vector<Said> said;
    for (unsigned tries = 0;; ++tries) {
        std::vector<Network::Call> calls;
        for (const std::size_t server : servers) calls.push_back({server, request});
        std::vector<Answer> answers = co_await network.ask_all(std::move(calls));
        std::vector<std::size_t> busy;
        for (std::size_t i = 0; i < servers.size(); ++i) {
            if (answers[i].error == Errc::busy && tries < most_tries) {
                busy.push_back(servers[i]);
            } else {
                said.push_back({servers[i], std::move(answers[i])});
            }
        }
        if (busy.empty()) break;
        servers = std::move(busy);
        co_await rest(network, tries);
    }
    co_return said;
}

// Of a model's servers: those that are down are only asked where none of the others answers. All of
// them have said something in the end, if only that they are down.
Task<std::vector<Said>> ask_servers(Network& network, std::vector<std::size_t> servers,
                                    Request request) {
    const std::vector<std::size_t> first = reachable(network, servers);
    std::erase_if(servers,
                  [&](auto server) { return std::ranges::find(first, server) != first.end(); });
    std::vector<Said> said = co_await ask_each(network, first, request);
    const bool is_answered =
        std::ranges::any_of(said, [](const Said& each) { return !each.answer.is_silent(); });
    if (!is_answered && !servers.empty()) {
        std::vector<Said> more = co_await ask_each(network, std::move(servers), std::move(request));
        std::ranges::move(more, std::back_inserter(said));
        co_return said;
    }
    for (const std::size_t server : servers) {
        Said& skipped = said.emplace_back();
        skipped.server = server;
        skipped.answer.error = Errc::connection;
        skipped.answer.why = "a server did not answer a moment ago";
    }
    co_return said;
}

// ------------------------------------------------------------------------------------ references

// At all reachable servers of each owner.
std::vector<Network::Call> to_owners(const Network& network, const Placement& placement, Kind kind,
                                     const References& references, const std::string& holder) {
    std::vector<Network::Call> calls;
    for (const auto& [owner, keys] : references) {
        for (const std::size_t server : reachable(network, placement.of_owner(owner))) {
            Request request(kind);
            request.model = owner;
            request.keys = keys;
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
    for (const auto& [owner, keys] : references) {
        const Answer* best = nullptr;
        for (std::size_t i = 0; i < calls.size(); ++i) {
            if (calls[i].request.model != owner) continue;
            // Of errors, one of those that may have it.
            const bool is_none = best && best->error == Errc::not_found;
            if (!best || !answers[i].error || is_none) best = &answers[i];
            if (!best->error) break;
        }
        if (best->error) throw best->exception();
        if (best->sizes.size() != keys.size()) throw Error(Errc::protocol, "acquire lost layers");
        for (std::size_t i = 0; i < keys.size(); ++i) bytes[{owner, keys[i]}] = best->sizes[i];
    }
    for (Inherited& inherited : request.inherited) {
        if (!inherited.foreign) continue;
        inherited.bytes = bytes.at({inherited.owner, request.table->key(inherited.layer)});
    }
}

Task<void> release(Network& network, const Placement& placement, const References& references,
                   const std::string& holder) {
    std::vector<Network::Call> calls =
        to_owners(network, placement, Kind::release, references, holder);
    const std::vector<Answer> answers = co_await network.ask_all(std::move(calls));
}

// Another put of the same model may hold the same references; only if there is no model, anywhere,
// they are ours to give back. What is not given back, servers find out.
Task<void> give_back(Network& network, const Placement& placement, const References& references,
                     const std::string& holder) {
    if (references.empty()) co_return;
    const std::vector<std::string> heirs{holder};
    const std::vector<Use> uses = co_await uses_of(network, placement, heirs);
    if (uses.front() != Use::possible) co_await release(network, placement, references, holder);
}

// All of them, or none. Where one server of an owner has them and another could not be asked, the
// first sees to it.
Task<void> take_references(Network& network, const Placement& placement, PutRequest& request,
                           const References& references, const std::string& holder) {
    if (references.empty()) co_return;
    std::vector<Network::Call> calls =
        to_owners(network, placement, Kind::acquire, references, holder);
    const std::vector<Network::Call> asked = calls;
    const std::vector<Answer> answers = co_await network.ask_all(std::move(calls));
    std::optional<Error> missing;
    try {
        check_owners(request, references, asked, answers);
    } catch (const Error& error) {
        missing = error;
    }
    if (missing) {
        co_await give_back(network, placement, references, holder);
        throw *missing;
    }
    for (const auto& [owner, keys] : references) {
        std::vector<std::size_t> took;
        for (std::size_t i = 0; i < asked.size(); ++i) {
            if (asked[i].request.model == owner && !answers[i].error)
                took.push_back(asked[i].server);
        }
        if (took.size() == placement.replicas()) continue;
        took.resize(1);
        const std::string model(id_of(owner));
        co_await tell_to_repair(network, model, took);
    }
}

// ------------------------------------------------------------------------------------ put

// What must be the same at all servers so that the content is: layers in the order of the table,
// and none named that has no tensors.
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

// What the owner of the put's own layers is called by, whoever puts it.
void name_owner(PutRequest& request, std::vector<std::span<const std::byte>>& tensors) {
    put_in_order(request, tensors);
    for (Inherited& inherited : request.inherited) inherited.foreign = true;
    std::vector<Checksum> sums;
    sums.reserve(tensors.size());
    for (const auto& tensor : tensors) sums.push_back(checksum_of(tensor.data(), tensor.size()));
    request.owner = owner_name(request.model, content_of(description_of(request), sums));
}

References references_of(PutRequest& request, const Placement& placement) {
    References references;
    const bool alone = placement.replicas() == 1;
    const std::size_t home = placement.home(request.model);
    for (Inherited& inherited : request.inherited) {
        // A single replica refers to layers of its own server as such.
        inherited.foreign = !alone || placement.home(inherited.owner) != home;
        if (!inherited.foreign) continue;
        if (inherited.layer >= request.table->size()) {
            throw Error(Errc::invalid_argument,
                        "inherited layer " + std::to_string(inherited.layer) + " of a model of " +
                            std::to_string(request.table->size()));
        }
        references[inherited.owner].push_back(request.table->key(inherited.layer));
    }
    return references;
}

std::uint64_t now_ns() {
    return static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(
                                          std::chrono::system_clock::now().time_since_epoch())
                                          .count());
}

// How a put went at a model's servers.
struct Attempt {
    std::vector<std::size_t> took;
    std::vector<std::size_t> is_new;     // of those
    std::vector<std::size_t> different;  // have other content of this id
    std::optional<Error> refused;
    std::optional<Error> silent;
    std::uint64_t bytes = 0;
};

Attempt attempt_of(const std::vector<Said>& said) {
    Attempt made;
    for (const auto& [server, answer] : said) {
        if (!answer.error) {
            made.took.push_back(server);
            if (answer.is_new) made.is_new.push_back(server);
            made.bytes = std::max(made.bytes, answer.bytes);
        } else if (answer.is_silent()) {
            // What one says that was asked names it.
            if (!made.silent) made.silent = answer.exception();
        } else {
            if (answer.error == Errc::already_exists) made.different.push_back(server);
            made.refused = answer.exception();
        }
    }
    return made;
}

Task<void> undo(Network& network, const std::string& owner,
                const std::vector<std::size_t>& servers) {
    if (servers.empty()) co_return;
    Request request(Kind::undo);
    request.model = owner;
    const std::vector<Said> said = co_await ask_each(network, servers, request);
}

}  // namespace

Task<void> tell_to_repair(Network& network, std::string model, std::vector<std::size_t> servers) {
    std::vector<Network::Call> calls;
    for (const std::size_t server : servers) {
        Request request(Kind::repair);
        request.model = model;
        calls.push_back({server, std::move(request)});
    }
    const std::vector<Answer> answers = co_await network.ask_all(std::move(calls));
}

Task<std::uint64_t> put(Network& network, const Placement& placement, PutRequest request,
                        std::vector<std::span<const std::byte>> tensors) {
    const bool alone = placement.replicas() == 1;
    if (request.created_ns == 0) request.created_ns = now_ns();
    if (!alone) name_owner(request, tensors);
    const std::string holder = alone ? request.model : request.owner;
    const References references = references_of(request, placement);
    co_await take_references(network, placement, request, references, holder);
    Request ask(Kind::put);
    ask.model = request.model;
    ask.put = &request;
    ask.tensors = tensors;
    bool uncertain = false;  // whether a server that did not answer may still take it
    for (unsigned tries = 0;; ++tries) {
        const std::vector<std::size_t> servers = placement.of(request.model);
        const std::vector<Said> said = co_await ask_servers(network, servers, ask);
        const Attempt made = attempt_of(said);
        if (!made.refused && !made.took.empty()) {
            if (made.took.size() < placement.replicas()) {
                Request degraded(Kind::repair);
                degraded.model = request.model;
                degraded.degraded = true;
                const Answer told = co_await network.ask(made.took.front(), std::move(degraded));
            }
            co_return made.bytes;
        }
        if (!made.refused) throw *made.silent;
        uncertain = uncertain || made.silent;
        co_await undo(network, request.owner, made.is_new);
        // Of two puts that meet, or beside a server that has not heard yet that the other content
        // is retired, one can be done a moment later.
        const bool met = !made.different.empty() && !made.took.empty();
        if (met && tries < most_tries) {
            co_await tell_to_repair(network, request.model, made.different);
            co_await rest(network, tries);
            continue;
        }
        // What may still be taken refers to what it inherits, until servers find out.
        if (!uncertain) co_await give_back(network, placement, references, holder);
        throw *made.refused;
    }
}

// ------------------------------------------------------------------------------------ retire

Task<void> retire(Network& network, const Placement& placement, std::string model) {
    Request ask(Kind::retire);
    ask.model = model;
    const std::vector<std::size_t> servers = placement.of(model);
    const std::vector<Said> said = co_await ask_servers(network, servers, ask);
    std::vector<const Said*> done;
    std::vector<std::size_t> without;
    std::optional<Error> none;
    std::optional<Error> other;
    for (const Said& each : said) {
        if (!each.answer.error) {
            done.push_back(&each);
        } else if (each.answer.error == Errc::not_found) {
            none = each.answer.exception();
            without.push_back(each.server);
        } else if (!other || !each.answer.is_silent()) {
            other = each.answer.exception();
        }
    }
    if (done.empty()) {
        if (!other) throw *none;
        // Of those that do not answer nobody knows, unless another one knows that it was retired.
        const bool retired = co_await is_retired(network, model, without);
        throw retired ? *none : *other;
    }
    const ForeignReferences& foreign = done.front()->answer.foreign;
    const bool all_agree =
        done.size() == servers.size() && std::ranges::all_of(done, [&](const Said* each) {
            return each->answer.foreign.holder == foreign.holder &&
                   each->answer.foreign.by_owner == foreign.by_owner;
        });
    // Else one of them may still need what it refers to, and the owners' servers find out when not.
    if (all_agree) {
        co_await release(network, placement, foreign.by_owner, foreign.holder);
    } else {
        const std::vector<std::size_t> one{done.front()->server};
        co_await tell_to_repair(network, model, one);
    }
}

// ------------------------------------------------------------------------------------ reading

Reading::Reading(const Network& network, const Placement& placement, std::string_view model)
    : left_(placement.of(model)) {
    // Not that of ranges, which Clang 14 cannot read in GCC 12's library.
    std::stable_partition(left_.begin(), left_.end(),
                          [&](auto server) { return !network.is_down(server); });
}

std::optional<std::size_t> Reading::next() {
    if (left_.empty()) return std::nullopt;
    asked_ = left_.front();
    left_.erase(left_.begin());
    return asked_;
}

void Reading::failed(const Error& error) {
    if (error.code() == Errc::invalid_argument || error.code() == Errc::protocol) throw error;
    if (error.code() == Errc::not_found) {
        without_.push_back(asked_);
        none_ = error;
    } else if (!silent_) {
        silent_ = error;
    }
}

Task<bool> is_retired(Network& network, std::string model, std::vector<std::size_t> servers) {
    std::vector<Network::Call> calls;
    for (const std::size_t server : servers) {
        Request request(Kind::state);
        request.names.push_back(model);
        calls.push_back({server, std::move(request)});
    }
    const std::vector<Answer> answers = co_await network.ask_all(std::move(calls));
    co_return std::ranges::any_of(answers, [](const Answer& answer) {
        return !answer.error && answer.states.size() == 1 &&
               answer.states.front() == Presence::retired;
    });
}

Task<Error> outcome_of(Network& network, std::string model, const Reading& reading) {
    if (!reading.none()) co_return *reading.silent();
    if (!reading.silent()) co_return *reading.none();
    const bool retired = co_await is_retired(network, std::move(model), reading.without());
    co_return retired ? *reading.none() : *reading.silent();
}

Task<Found> find(Network& network, const Placement& placement, std::string model) {
    Request request(Kind::read);
    request.model = model;
    Reading reading(network, placement, model);
    while (const auto server = reading.next()) {
        Answer answer = co_await network.ask(*server, request);
        if (answer.error) {
            reading.failed(answer.exception());
            continue;
        }
        if (!reading.without().empty()) {
            co_await tell_to_repair(network, model, reading.without());
        }
        co_return Found{*server, std::move(*answer.info)};
    }
    const Error outcome = co_await outcome_of(network, model, reading);
    throw outcome;
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
