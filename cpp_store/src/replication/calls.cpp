#include "replication/calls.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>
#include <map>
#include <numeric>
#include <optional>
#include <tuple>
#include <unordered_map>
#include <utility>

#include "replication/replica.hpp"

namespace cpp_store::replication {
namespace {

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

Task<void> give_back(Network& network, const Placement& placement, const References& references,
                     const std::string& holder) {
    std::vector<Network::Call> calls =
        to_owners(network, placement, Request::Kind::release, references, holder);
    const std::vector<Answer> answers = co_await network.ask_all(std::move(calls));
}

// All of them, or none.
Task<void> take_references(Network& network, const Placement& placement, PutRequest& request,
                           const References& references, const std::string& holder) {
    std::vector<Network::Call> calls =
        to_owners(network, placement, Request::Kind::acquire, references, holder);
    const std::vector<Network::Call> asked = calls;
    const std::vector<Answer> answers = co_await network.ask_all(std::move(calls));
    std::optional<Error> missing;
    try {
        check_owners(request, references, asked, answers);
    } catch (const Error& error) {
        missing = error;
    }
    if (!missing) co_return;
    co_await give_back(network, placement, references, holder);
    throw *missing;
}

std::uint64_t bytes_of(std::span<const std::span<const std::byte>> tensors) {
    std::uint64_t bytes = 0;
    for (const auto& tensor : tensors) bytes += tensor.size();
    return bytes;
}

// A change on its way through the servers of a model.
struct Pass {
    enum class End : std::uint8_t {
        done,     // all that take part have it
        refused,  // by the server that `answer` is from
        again,    // from the first server, a moment later: `answer` says why
    };
    End end = End::done;
    Answer answer;
    std::size_t server = 0;         // that refused
    std::vector<std::size_t> took;  // servers that have it
    bool uncertain = false;         // whether others have it
};

using Ask = std::function<Request(const Chain& through)>;
using Took = std::function<void(const Answer& answer)>;

// Waits until the server that took a change last says that another one takes no part, or that one
// takes it. `answer` is what that one said last.
Task<Answer> insist(Network& network, std::size_t last, std::size_t server, std::size_t place,
                    const std::string& model, const Chain& through, const Ask& ask,
                    Patience& patience, Answer answer, bool& left_out) {
    left_out = false;
    while (true) {
        Request request(Request::Kind::chain);
        request.model = model;
        const Answer seen = co_await network.ask(last, std::move(request));
        if (seen.error) co_return seen;
        if (seen.chain.at(place) == 0) {
            left_out = true;
            co_return answer;
        }
        const auto pause = patience.next({&server, 1});
        if (!pause) co_return answer;
        co_await network.rest(*pause);
        if (network.is_down(server)) continue;
        answer = co_await network.ask(server, ask(through));
        if (answer.error == Errc::connection) patience.note_silent(server);
        if (!answer.is_unreachable()) co_return answer;
    }
}

Task<Pass> pass(Network& network, const Placement& placement, const std::string& model,
                const Ask& ask, const Took& took, Patience& patience) {
    const std::vector<std::size_t> servers = placement.of(model);
    const bool all_down =
        std::ranges::all_of(servers, [&](std::size_t server) { return network.is_down(server); });
    Pass pass;
    Chain through;
    Chain chain;  // as the last that took it has it
    for (std::size_t i = 0; i < servers.size(); ++i) {
        const std::size_t server = servers[i];
        // The first that takes it says who else has to.
        const bool counts = !pass.took.empty() && chain.at(i) != 0;
        const bool is_left_alone = !all_down && network.is_down(server);
        if (pass.took.empty() ? is_left_alone : !counts) {
            through.push_back(0);
            continue;
        }
        Answer answer = co_await network.ask(server, ask(through));
        if (answer.error == Errc::connection) patience.note_silent(server);
        if (answer.is_unreachable() && counts) {
            pass.uncertain = true;
            bool left_out = false;
            answer = co_await insist(network, pass.took.back(), server, i, model, through, ask,
                                     patience, std::move(answer), left_out);
            if (answer.is_unreachable() && !left_out) {
                pass.end = Pass::End::again;
                pass.answer = std::move(answer);
                co_return pass;
            }
        }
        if (answer.is_unreachable()) {
            pass.uncertain = true;
            pass.answer = std::move(answer);
            through.push_back(0);
            continue;
        }
        if (answer.error) {
            pass.end = Pass::End::refused;
            pass.answer = std::move(answer);
            pass.server = server;
            co_return pass;
        }
        chain = answer.chain;
        if (chain.size() != servers.size()) throw Error(Errc::protocol, "a chain of another list");
        through.push_back(chain[i]);
        took(answer);
        pass.took.push_back(server);
    }
    if (pass.took.empty()) pass.end = Pass::End::again;
    co_return pass;
}

// Before another try. Throws what the last one met if there have been enough.
Task<void> wait(Network& network, const Placement& placement, const std::string& model,
                Patience& patience, const Answer& answer) {
    const std::vector<std::size_t> servers = placement.of(model);
    // Nobody there: nobody will say who takes part.
    const bool gone =
        answer.error == Errc::connection &&
        std::ranges::all_of(servers, [&](auto each) { return network.is_down(each); });
    const auto pause = gone ? std::nullopt : patience.next(servers);
    if (!pause) nobody(answer, model);
    co_await network.rest(*pause);
}

// Takes back what a put that a server refused left at others. False if that server has it by now,
// though the others decided: from one of them, as servers follow each other.
Task<bool> undo(Network& network, const Placement& placement, const PutRequest& request,
                const Pass& pass) {
    const auto about = [&](Request::Kind kind) {
        Request made(kind);
        made.model = request.model;
        made.version = request.created_ns;
        return made;
    };
    if (!pass.took.empty()) {
        const Answer answer = co_await network.ask(pass.server, about(Request::Kind::refuse));
        if (answer.error) throw answer.exception();
        if (!answer.done) co_return false;
    }
    std::vector<Network::Call> calls;
    for (const std::size_t server : reachable(network, placement, request.model)) {
        calls.push_back({server, about(Request::Kind::undo)});
    }
    const std::vector<Answer> answers = co_await network.ask_all(std::move(calls));
    co_return true;
}

Task<Answer> ask_state(Network& network, std::size_t server, const std::string& model) {
    Request request(Request::Kind::state);
    request.models = {model};
    Answer answer = co_await network.ask(server, std::move(request));
    co_return answer;
}

// Whether the other put of an id, for which a server refused one, is done: else it may still be
// lost, and there would never have been another one. Null if that is not known yet.
Task<std::optional<State>> other_put(Network& network, const Placement& placement,
                                     const std::string& model, std::size_t refused_by) {
    const Answer first = co_await ask_state(network, refused_by, model);
    if (first.error) co_return std::nullopt;
    const State other = first.states.front();
    if (other.presence != Presence::visible) co_return other;
    Request request(Request::Kind::chain);
    request.model = model;
    const Answer part = co_await network.ask(refused_by, std::move(request));
    if (part.error) co_return std::nullopt;
    const std::vector<std::size_t> servers = placement.of(model);
    bool later = false;
    for (std::size_t i = 0; i < servers.size(); ++i) {
        if (later && part.chain.at(i) != 0) {
            const Answer answer = co_await ask_state(network, servers[i], model);
            if (answer.error) co_return std::nullopt;
            if (answer.states.front().presence != Presence::visible) co_return std::nullopt;
        }
        later = later || servers[i] == refused_by;
    }
    co_return other;
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
    Patience patience(network);
    std::string holder;      // in whose name references were taken
    bool uncertain = false;  // whether this version is somewhere where it is not known
    while (true) {
        if (holder != versioned(request.model, request.created_ns)) {
            holder = versioned(request.model, request.created_ns);
            co_await take_references(network, placement, request, references, holder);
        }
        std::uint64_t bytes = 0;
        bool is_new = false;
        const auto ask = [&](const Chain& through) {
            Request put(Request::Kind::put);
            put.model = request.model;
            put.put = &request;
            put.tensors = tensors;
            put.through = through;
            return put;
        };
        const auto took = [&](const Answer& answer) {
            bytes = std::max(bytes, answer.bytes);
            is_new = is_new || answer.done;
        };
        Pass made = co_await pass(network, placement, request.model, ask, took, patience);
        if (made.end == Pass::End::done) co_return bytes;
        uncertain = uncertain || made.uncertain || is_new;
        if (made.end == Pass::End::again) {
            co_await wait(network, placement, request.model, patience, made.answer);
            continue;
        }
        if (made.answer.error == Errc::already_exists) {
            const auto other = co_await other_put(network, placement, request.model, made.server);
            if (!other || (other->presence == Presence::unknown) ||
                (other->presence == Presence::gone && other->version < request.created_ns)) {
                made.answer.error = Errc::deadline;
                co_await wait(network, placement, request.model, patience, made.answer);
                continue;
            }
            // It was put at a server that did not answer, and is retired already.
            if (other->presence != Presence::visible && other->version == request.created_ns) {
                co_return bytes_of(tensors);
            }
            if (uncertain && other->version > request.created_ns) {
                throw Error(Errc::connection,
                            "model '" + request.model +
                                "' may have been put and retired; a server that knows is gone");
            }
            if (other->presence == Presence::gone) {
                co_await give_back(network, placement, references, holder);
                // Retired by a client whose clock is ahead of ours. No two puts have the same
                // version.
                const Version now = network.now();
                const Version after =
                    (other->version / puts_apart + 1) * puts_apart + now % puts_apart;
                request.created_ns = std::max(now, after);
                continue;
            }
        }
        if (uncertain) {
            const bool undone = co_await undo(network, placement, request, made);
            if (!undone) {
                co_await wait(network, placement, request.model, patience, made.answer);
                continue;
            }
        } else {
            co_await give_back(network, placement, references, holder);
        }
        throw made.answer.exception();
    }
}

namespace {

// What the server answers that is to be asked about a model. Throws Errc::connection or deadline
// if nobody does.
Task<Answer> ask_about(Network& network, const Placement& placement, const std::string& model,
                       const Request& request) {
    Reading reading(network, placement, model);
    while (true) {
        while (const auto server = reading.next()) {
            Answer answer = co_await network.ask(*server, request);
            answer.server = *server;
            if (!answer.is_unreachable()) co_return answer;
            reading.failed(answer.exception());
        }
        const Error silent = reading.silent();
        const auto pause = reading.again();
        if (!pause) {
            throw Error(silent.code(),
                        "no server of model '" + model + "' can be reached: " + silent.what());
        }
        co_await network.rest(*pause);
    }
}

}  // namespace

Task<void> retire(Network& network, const Placement& placement, std::string model) {
    const auto nothing = [&] {
        return Error(Errc::not_found, "there is no model '" + model + "' to retire");
    };
    // First what there is: a server that retires it may stop before it says so, and then what was
    // put meanwhile must not be retired in its place.
    Request question(Request::Kind::state);
    question.models = {model};
    question.decisive = true;
    const Answer there = co_await ask_about(network, placement, model, question);
    if (there.error) throw there.exception();
    if (there.states.front().presence != Presence::visible) throw nothing();
    const Version version = there.states.front().version;
    const Retirement token = network.now();
    Retirement by = 0;  // the call that retired it, as far as is known
    bool uncertain = false;
    Patience patience(network);
    while (true) {
        const auto ask = [&](const Chain& through) {
            Request request(Request::Kind::retire);
            request.model = model;
            request.token = token;
            request.version = version;
            request.by = by;
            request.through = through;
            return request;
        };
        const auto took = [&](const Answer& answer) { by = answer.by; };
        const Pass made = co_await pass(network, placement, model, ask, took, patience);
        uncertain = uncertain || made.uncertain;
        if (made.end == Pass::End::done) break;
        if (made.end == Pass::End::refused) throw made.answer.exception();
        co_await wait(network, placement, model, patience, made.answer);
    }
    if (by == token) co_return;
    if (by == 0 && uncertain) {
        throw Error(Errc::connection, "model '" + model +
                                          "' may have been retired, and is replaced; a server that "
                                          "knows is gone");
    }
    throw nothing();
}

std::optional<std::chrono::milliseconds> Patience::next(std::span<const std::size_t> servers) {
    constexpr std::chrono::milliseconds longest{10'000};
    constexpr unsigned slowest = 5;  // 32 ms
    if (waited_ >= longest) return std::nullopt;
    // One that did not answer a moment ago is asked again seldom, as that may take long.
    const bool all = tries_ % 16 == 15;
    for (const std::size_t server : servers) {
        const bool is_silent = std::ranges::find(silent_, server) != silent_.end();
        if (all || !is_silent) network_.forget_down(server);
    }
    const std::chrono::milliseconds pause(1 << std::min(tries_++, slowest));
    waited_ += pause;
    return pause;
}

Reading::Reading(Network& network, const Placement& placement, std::string_view model)
    : network_(network), patience_(network), servers_(placement.of(model)) {
    std::ranges::reverse(servers_);
    begin();
}

void Reading::begin() {
    left_ = servers_;
    if (std::ranges::all_of(left_, [&](auto server) { return network_.is_down(server); })) return;
    std::erase_if(left_, [&](auto server) { return network_.is_down(server); });
}

std::optional<std::size_t> Reading::next() {
    if (left_.empty()) return std::nullopt;
    asked_ = left_.front();
    left_.erase(left_.begin());
    return asked_;
}

void Reading::failed(const Error& error) {
    if (error.code() == Errc::connection) patience_.note_silent(asked_);
    // One that says to ask another one, or later, is worth waiting for.
    if (!silent_ || error.code() == Errc::deadline) silent_ = error;
}

std::optional<std::chrono::milliseconds> Reading::again() {
    if (silent_->code() != Errc::deadline) return std::nullopt;
    const auto pause = patience_.next(servers_);
    if (pause) {
        begin();
        silent_.reset();
    }
    return pause;
}

Task<Found> find(Network& network, const Placement& placement, std::string model) {
    Request request(Request::Kind::read);
    request.model = model;
    Answer answer = co_await ask_about(network, placement, model, request);
    if (answer.error) throw answer.exception();
    co_return Found{answer.server, std::move(*answer.info)};
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
