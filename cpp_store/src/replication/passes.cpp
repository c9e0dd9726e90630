#include "replication/passes.hpp"

#include <algorithm>
#include <map>
#include <tuple>
#include <utility>

namespace cpp_store::replication {

Task<std::vector<Use>> uses_of(Network& network, const Placement& placement,
                               std::vector<std::string> names) {
    std::map<std::size_t, std::vector<std::size_t>> by_server;  // which of the names
    for (std::size_t i = 0; i < names.size(); ++i) {
        for (const std::size_t server : placement.of_owner(names[i]))
            by_server[server].push_back(i);
    }
    std::vector<Network::Call> calls;
    for (const auto& [server, asked] : by_server) {
        Request request(Request::Kind::state);
        for (const std::size_t i : asked) request.names.push_back(names[i]);
        calls.push_back({server, std::move(request)});
    }
    const std::vector<Answer> answers = co_await network.ask_all(std::move(calls));
    std::vector<Use> uses(names.size(), Use::none);
    auto answer = answers.begin();
    for (const auto& [server, asked] : by_server) {
        const bool is_answered = !answer->error && answer->states.size() == asked.size();
        for (std::size_t j = 0; j < asked.size(); ++j) {
            Use& use = uses[asked[j]];
            if (!is_answered || answer->states[j] == Presence::in_use) {
                use = Use::possible;
            } else if (use == Use::none && answer->states[j] == Presence::retired) {
                use = Use::ended;
            }
        }
        ++answer;
    }
    co_return uses;
}

Passes::Passes(Replica& replica, Network& network, std::function<void(const std::string&)> warn,
               Ages ages)
    : replica_(replica), network_(network), warn_(std::move(warn)), ages_(ages) {}

Task<bool> Passes::with(std::size_t peer) {
    const Replica::Doubts doubts = replica_.take_doubts(peer);
    const Sums ours = replica_.sums(peer);
    Request request(Request::Kind::compare);
    request.asker = replica_.self();
    request.buckets = doubts.ours;
    const Answer answer = co_await network_.ask(peer, std::move(request));
    bool complete = !answer.error && answer.sums.size() == bucket_count;
    if (complete) {
        Buckets different = doubts.ours | doubts.theirs;
        for (std::size_t i = 0; i < bucket_count; ++i) {
            if (answer.sums[i] != ours[i]) different.set(i);
        }
        if (different.any()) complete = co_await list(peer, different);
    }
    if (!complete) replica_.doubt(peer, doubts);
    // One that was away may have missed more than it or we know of.
    if (answer.is_silent()) replica_.doubt(peer, {.ours = Buckets().set(), .theirs = {}});
    replica_.note_pass(peer, complete);
    co_return complete;
}

Task<bool> Passes::list(std::size_t peer, Buckets buckets) {
    bool complete = true;
    Cursor cursor;
    while (cursor.section != Cursor::Section::end) {
        Request request(Request::Kind::shared);
        request.asker = replica_.self();
        request.buckets = buckets;
        request.cursor = cursor;
        const Answer answer = co_await network_.ask(peer, std::move(request));
        if (answer.error) co_return false;
        const Cursor& next = answer.page.next;
        if (std::tie(next.section, next.after) <= std::tie(cursor.section, cursor.after)) {
            warn_("the list of '" + replica_.placement().servers()[peer] + "' does not go on");
            co_return false;
        }
        const bool followed = co_await follow(peer, answer.page);
        complete = complete && followed;
        cursor = next;
    }
    co_return complete;
}

Task<bool> Passes::follow(std::size_t peer, const Page& page) {
    bool complete = true;
    for (const std::string& owner : page.retired) {
        const bool buried = co_await bury(owner);
        complete = complete && buried;
    }
    for (const std::string& owner : page.models) {
        if (!replica_.expect(owner)) continue;
        const bool pulled = co_await pull(peer, owner);
        replica_.arrived(owner);
        complete = complete && pulled;
    }
    for (const HeldLayers& held : page.held) {
        const bool is_held = co_await hold(peer, held);
        complete = complete && is_held;
    }
    co_return complete;
}

// Who retired it left its references, as not all of its servers answered; the last of these to hear
// of it ends them.
Task<bool> Passes::bury(const std::string& owner) {
    ForeignReferences foreign;
    try {
        foreign = replica_.bury(owner);
    } catch (const Error& error) {  // a full disk, say
        warn_("cannot retire '" + owner + "', as another server did: " + error.what());
        co_return false;
    }
    if (foreign.by_owner.empty()) co_return true;
    const std::vector<std::string> names{owner};
    const std::vector<Use> uses = co_await uses_of(network_, replica_.placement(), names);
    if (uses.front() != Use::ended) co_return true;  // the scrub sees to it
    std::vector<Network::Call> calls;
    for (const auto& [from, keys] : foreign.by_owner) {
        for (const std::size_t server : replica_.placement().of_owner(from)) {
            Request request(Request::Kind::release);
            request.model = from;
            request.keys = keys;
            request.holder = foreign.holder;
            calls.push_back({server, std::move(request)});
        }
    }
    const std::vector<Answer> answers = co_await network_.ask_all(std::move(calls));
    co_return true;
}

Task<bool> Passes::pull(std::size_t peer, const std::string& owner) {
    Request request(Request::Kind::pull);
    request.model = owner;
    const Answer answer = co_await network_.ask(peer, std::move(request));
    // Retired meanwhile. Of any other error nobody can say that.
    if (answer.error == Errc::not_found) co_return true;
    if (answer.error || !answer.info || answer.info->owner != owner) co_return false;
    try {
        replica_.take_in(*answer.info, answer.layers);
    } catch (const Error& error) {
        warn_("'" + owner + "' has one replica less, as it cannot be taken in: " + error.what());
        co_return false;
    }
    co_return true;
}

// Makes sure that the layers which an heir inherits are here, and stay.
Task<bool> Passes::hold(std::size_t peer, const HeldLayers& held) {
    const std::vector<std::size_t> servers = replica_.placement().of_owner(held.owner);
    if (std::ranges::find(servers, replica_.self()) == servers.end()) co_return true;
    try {
        if (replica_.store().is_held(held.owner, held.keys, held.holder)) co_return true;
        std::vector<LayerKey> missing = replica_.missing(held.owner, held.keys);
        if (!missing.empty()) {
            Request request(Request::Kind::fetch);
            request.model = held.owner;
            request.keys = missing;
            const Answer answer = co_await network_.ask(peer, std::move(request));
            if (answer.error) co_return false;
            if (!answer.layers.empty()) replica_.adopt(held.owner, answer.layers, held.holder);
        }
        // What neither has is gone since.
        missing = replica_.missing(held.owner, held.keys);
        std::vector<LayerKey> here = held.keys;
        std::erase_if(here, [&](const LayerKey& key) {
            return std::ranges::find(missing, key) != missing.end();
        });
        replica_.store().acquire(held.owner, here, held.holder);
    } catch (const Error& error) {
        if (error.code() == Errc::not_found) co_return false;  // in this moment
        warn_("layers of '" + held.owner + "', which '" + held.holder +
              "' inherits, have one replica less: " + error.what());
        co_return false;
    }
    co_return true;
}

Task<bool> Passes::scrub(Clock::time_point now) {
    const std::vector<HeldLayers> held = replica_.store().held_after(scrubbed_, scrubbed_at_once);
    std::vector<std::string> heirs;
    std::vector<Clock::duration> ages;
    for (const HeldLayers& each : held) {
        if (!heirs.empty() && heirs.back() == each.holder) continue;
        heirs.push_back(each.holder);
        ages.push_back(now - each.acquired);
    }
    scrubbed_ = heirs.empty() ? std::string() : heirs.back();
    const std::vector<Use> uses = co_await uses_of(network_, replica_.placement(), heirs);
    for (std::size_t i = 0; i < heirs.size(); ++i) {
        const bool is_over = (uses[i] == Use::none && ages[i] >= ages_.unknown) ||
                             (uses[i] == Use::ended && ages[i] >= ages_.retired);
        if (is_over) replica_.store().release_holder(heirs[i]);
    }
    co_return heirs.empty();
}

}  // namespace cpp_store::replication
