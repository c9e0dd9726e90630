#include "replication/follower.hpp"

#include <algorithm>
#include <utility>

namespace cpp_store::replication {
namespace {

constexpr unsigned longest_rest = 64;  // rounds between two tries of what fails
constexpr std::size_t states_at_once = 512;

}  // namespace

Follower::Follower(Replica& replica, Network& network, std::function<void(const std::string&)> warn)
    : replica_(replica), network_(network), warn_(std::move(warn)) {
    for (std::size_t i = 0; i < replica_.placement().servers().size(); ++i) {
        if (i != replica_.self()) peers_.emplace_back().server = i;
    }
}

Request Follower::ask_changes(const Peer& peer, bool joining) const {
    Request request(Request::Kind::changes);
    request.asker = replica_.self();
    request.asking = replica_.incarnation();
    request.joining = joining;
    request.anyway = joining;
    request.incarnation = peer.incarnation;
    request.since = peer.since;
    return request;
}

Task<void> Follower::round(Replica::Clock::time_point now) {
    const unsigned suspicions = replica_.suspicions();
    const bool was_ready = replica_.is_ready();
    const bool joining = !was_ready && heard_since_ == suspicions;
    if (heard_since_ != suspicions) had_ = replica_.last_change();
    std::vector<Network::Call> calls;
    std::vector<Incarnation> there;
    for (const Peer& peer : peers_) {
        there.push_back(replica_.membership().of(peer.server));
        calls.push_back({peer.server, ask_changes(peer, joining)});
    }
    std::vector<Answer> answers = co_await network_.ask_all(std::move(calls));
    bool joined = true;
    for (std::size_t i = 0; i < peers_.size(); ++i) {
        Peer& peer = peers_[i];
        if (answers[i].error) {
            answers[i] = co_await leave_out(peer, std::move(answers[i]), there[i], joining);
            if (answers[i].error) continue;
        }
        if (answers[i].incarnation != there[i]) {
            replica_.membership().leave(peer.server, there[i]);
        }
        // That the others left it out, it finds out from them.
        if (was_ready && answers[i].ready && answers[i].joined != replica_.incarnation()) {
            replica_.suspect();
        }
        const bool knows_ours = answers[i].followed >= had_;
        const bool all = co_await catch_up(peer, std::move(answers[i]), joining);
        joined = joined && all && knows_ours;
    }
    if (joining && joined) replica_.set_ready(suspicions);
    heard_since_ = suspicions;
    co_await settle(now);
}

// A server that does not answer takes no part any more, once that is certain: it may have another
// connection by now, or be slow.
Task<Answer> Follower::leave_out(const Peer& peer, Answer silent, Incarnation there, bool joining) {
    if (there == 0 && !joining) co_return silent;
    if (silent.error == Errc::connection) {
        Request again = ask_changes(peer, joining);
        again.anyway = true;
        silent = co_await network_.ask(peer.server, std::move(again));
        if (!silent.error) co_return silent;
    }
    if (silent.error == Errc::connection || !replica_.hears(peer.server)) {
        replica_.membership().leave(peer.server, there);
    }
    co_return silent;
}

// All that the peer knew when it first answered, or, of one that joins, when it last did. Whether
// it has joined.
Task<bool> Follower::catch_up(Peer& peer, Answer answer, bool joining) {
    const bool is_ready = replica_.is_ready();
    const std::uint64_t goal = answer.last;
    const Version forgotten = answer.forgotten;
    if (answer.incarnation != peer.incarnation) {
        peer.left.clear();
        replica_.doubt_all_of(peer.server);
    }
    peer.lost = false;
    if (peer.rest > 0) {
        --peer.rest;
    } else {
        peer.failed = false;
        co_await follow_all(peer, std::exchange(peer.left, {}));
        peer.failures = peer.failed ? peer.failures + 1 : 0;
        peer.rest = peer.failed ? std::min(longest_rest, 1u << std::min(peer.failures, 6u)) : 0;
    }
    bool joined = false;
    while (true) {
        peer.incarnation = answer.incarnation;
        peer.since = answer.since;
        joined = joining && answer.joined == replica_.incarnation();
        // What it decides from now on is on its way through here.
        if (joined && answer.ready) {
            replica_.membership().join(peer.server, answer.incarnation);
        }
        co_await follow_all(peer, std::move(answer.changes));
        replica_.note_followed(peer.server, peer.incarnation, peer.since);
        if (peer.since >= goal && (joined || !joining)) break;
        answer = co_await network_.ask(peer.server, ask_changes(peer, joining));
        if (answer.error || answer.incarnation != peer.incarnation) co_return false;
    }
    if (!is_ready && forgotten > 0) co_await drop_forgotten(peer.server, forgotten);
    co_return joined && !peer.lost;
}

Task<void> Follower::follow_all(Peer& peer, std::vector<Change> changes) {
    for (Change& change : changes) {
        // What is tried again later is the latest that is known.
        std::erase_if(peer.left, [&](const Change& old) { return old.model == change.model; });
        Outcome outcome = Outcome::failed;
        try {
            outcome = co_await follow(peer, change);
        } catch (const Error& error) {  // a full disk, say
            if (error.code() != Errc::storage) throw;
            warn_("cannot follow what happened to model '" + change.model + "': " + error.what());
        }
        if (outcome == Outcome::done) continue;
        peer.failed = peer.failed || outcome == Outcome::failed;
        peer.left.push_back(std::move(change));
    }
}

Task<Follower::Outcome> Follower::follow(Peer& peer, const Change& change) {
    replica_.doubt(change.model, change.version, change.retired);
    if (change.retired) {
        if (replica_.placement().keeps(replica_.self(), change.model)) {
            replica_.bury(change.model, change.version, change.by);
        }
        co_return Outcome::done;
    }
    Outcome worst = Outcome::done;
    for (const auto& [owner, names] : change.references) {
        if (!replica_.placement().keeps(replica_.self(), id_of(owner))) continue;
        const Outcome held = co_await hold(change, owner, names);
        worst = std::max(worst, held);
    }
    if (replica_.wants(change)) {
        const Outcome pulled = co_await pull(peer.server, change);
        peer.lost = peer.lost || pulled == Outcome::unreachable;
        worst = std::max(worst, pulled);
    }
    co_return worst;
}

Task<Follower::Outcome> Follower::pull(std::size_t peer, const Change& change) {
    Request request(Request::Kind::pull);
    request.model = change.model;
    const Answer answer = co_await network_.ask(peer, std::move(request));
    if (answer.is_unreachable()) co_return Outcome::unreachable;
    // What is retired or replaced meanwhile is another change.
    if (answer.error == Errc::not_found) co_return Outcome::done;
    if (answer.error) co_return Outcome::failed;
    try {
        replica_.take_in(*answer.pulled);
    } catch (const Error& error) {
        if (error.code() == Errc::already_exists) {
            co_return replica_.wants(change) ? Outcome::failed : Outcome::done;
        }
        warn_("model '" + change.model +
              "' has one replica less, as it cannot be taken in: " + error.what());
        co_return Outcome::failed;
    }
    co_return Outcome::done;
}

// Makes sure that the layers which an heir inherits are here, and stay.
Task<Follower::Outcome> Follower::hold(const Change& change, const std::string& owner,
                                       const std::vector<std::string>& names) {
    const std::vector<LayerKey> keys = keys_of(names);
    const std::string holder = versioned(change.model, change.version);
    bool all_answered = true;
    for (const std::size_t server : replica_.placement().of(id_of(owner))) {
        const std::vector<LayerKey> missing = replica_.missing(owner, keys);
        if (missing.empty()) break;
        if (server == replica_.self()) continue;
        // An owner that is still visible comes whole.
        Request whole(Request::Kind::pull);
        whole.model = id_of(owner);
        const Answer found = co_await network_.ask(server, std::move(whole));
        const bool is_visible = !found.error && found.pulled->owner == owner;
        Answer answer;
        if (!is_visible && !found.is_unreachable()) {
            Request request(Request::Kind::fetch);
            request.model = owner;
            request.keys = missing;
            answer = co_await network_.ask(server, std::move(request));
        }
        all_answered = all_answered && !found.is_unreachable() && !answer.is_unreachable();
        try {
            if (is_visible) {
                replica_.take_in(*found.pulled);
            } else if (!answer.layers.empty()) {
                replica_.adopt(owner, answer.layers, holder);
            }
        } catch (const Error& error) {
            if (error.code() != Errc::already_exists) {
                warn_("layers of model '" + owner + "', which '" + change.model +
                      "' inherits, have one replica less: " + error.what());
            }
        }
    }
    try {
        replica_.acquire(owner, keys, holder);
    } catch (const Error& error) {
        if (error.code() != Errc::not_found) throw;
        co_return all_answered ? Outcome::failed : Outcome::unreachable;
    }
    co_return Outcome::done;
}

// A peer that has forgotten retirements does not say which: what it should have and does not know,
// and what is not newer than they, was retired.
Task<void> Follower::drop_forgotten(std::size_t peer, Version forgotten) {
    std::vector<std::string> models = replica_.visible_until(forgotten);
    std::erase_if(
        models, [&](const std::string& model) { return !replica_.placement().keeps(peer, model); });
    for (std::size_t first = 0; first < models.size(); first += states_at_once) {
        const std::size_t end = std::min(models.size(), first + states_at_once);
        Request request(Request::Kind::state);
        request.models.assign(models.begin() + static_cast<std::ptrdiff_t>(first),
                              models.begin() + static_cast<std::ptrdiff_t>(end));
        const std::vector<std::string> asked = request.models;
        const Answer answer = co_await network_.ask(peer, std::move(request));
        if (answer.error) co_return;
        for (std::size_t i = 0; i < asked.size(); ++i) {
            if (answer.states[i].presence == Presence::unknown) replica_.bury(asked[i], forgotten);
        }
    }
}

// Ends references whose heirs are out of use at all of their servers.
Task<void> Follower::settle(Replica::Clock::time_point now) {
    const auto heirs = replica_.doubtful(now, patience);
    for (const auto& [heir, doubts] : heirs) {
        std::vector<State> states;
        std::vector<Network::Call> calls;
        for (const std::size_t server : replica_.placement().of(heir.model)) {
            if (server == replica_.self()) {
                states.push_back(replica_.state(heir.model));
                continue;
            }
            Request request(Request::Kind::state);
            request.models = {heir.model};
            calls.push_back({server, std::move(request)});
        }
        const std::vector<Answer> answers = co_await network_.ask_all(std::move(calls));
        bool all_answered = true;
        for (const Answer& answer : answers) {
            all_answered = all_answered && !answer.error;
            if (!answer.error) states.push_back(answer.states.front());
        }
        const Version version = heir.version;
        const auto in_use = [&](const State& state) {
            return state.version == version &&
                   (state.presence == Presence::visible || state.presence == Presence::leased);
        };
        if (std::ranges::any_of(states, in_use)) {
            const bool visible = std::ranges::any_of(states, [&](const State& state) {
                return in_use(state) && state.presence == Presence::visible;
            });
            if (visible) replica_.confirm(heir, doubts);
        } else if (all_answered) {
            replica_.end(heir);
        }
    }
}

}  // namespace cpp_store::replication
