#include "replication/replica.hpp"

#include <algorithm>
#include <charconv>
#include <utility>

namespace cpp_store::replication {
namespace {

constexpr char separator = '@';
constexpr std::size_t most_changes = 4096;  // in one answer

// What a put would have said of a model that another server has.
PutRequest request_of(const Pulled& pulled) {
    const ModelInfo& info = pulled.info;
    PutRequest request{.model = info.model,
                       .ns = info.ns,
                       .table = info.table,
                       .own = {},
                       .inherited = {},
                       .score = info.score,
                       .parent = info.parent,
                       .graph = info.graph,
                       .metadata = info.metadata,
                       .created_ns = pulled.version,
                       .owner = pulled.owner};
    auto data = pulled.layers.begin();
    for (const LayerLocation& location : info.layers) {
        if (location.owner == pulled.owner) {
            if (data == pulled.layers.end() || data->key != info.table->key(location.layer)) {
                throw Error(Errc::protocol, "model '" + info.model + "' came without its tensors");
            }
            request.own.push_back({location.layer, (data++)->specs});
        } else {
            request.inherited.push_back({.layer = location.layer,
                                         .owner = location.owner,
                                         .foreign = true,
                                         .bytes = info.table->nbytes(location.layer)});
        }
    }
    return request;
}

void fill(PendingPut& put, const std::vector<LayerData>& layers) {
    std::size_t tensor = 0;
    for (const LayerData& layer : layers) {
        for (const auto& bytes : layer.tensors) {
            if (put.buffers()[tensor].size() != bytes.size()) {
                throw Error(Errc::protocol, "a tensor came with other bytes than it has");
            }
            put.fill(tensor++, bytes.data());
        }
    }
}

}  // namespace

std::string versioned(std::string_view model, Version version) {
    return std::string(model) + separator + std::to_string(version);
}

std::optional<Heir> heir_of(std::string_view name) {
    const std::size_t at = name.rfind(separator);
    if (at == std::string_view::npos) return std::nullopt;
    Heir heir{std::string(name.substr(0, at)), 0};
    const std::string_view digits = name.substr(at + 1);
    const char* const end = digits.data() + digits.size();
    const auto [rest, error] = std::from_chars(digits.data(), end, heir.version);
    if (error != std::errc{} || rest != end) return std::nullopt;
    return heir;
}

std::string id_of(std::string_view owner) {
    const std::optional<Heir> named = heir_of(owner);
    return named ? named->model : std::string(owner);
}

References references_of(const PutRequest& request) {
    References references;
    for (const Inherited& inherited : request.inherited) {
        references[inherited.owner].emplace_back(request.table->name(inherited.layer));
    }
    return references;
}

std::vector<LayerKey> keys_of(const std::vector<std::string>& names) {
    std::vector<LayerKey> keys;
    keys.reserve(names.size());
    for (const std::string& name : names) keys.push_back(layer_key(name));
    return keys;
}

Replica::Replica(Store& store, Placement placement, std::size_t self, Incarnation incarnation,
                 std::function<Clock::time_point()> clock, std::size_t most_tombstones)
    : store_(store),
      placement_(std::move(placement)),
      self_(self),
      incarnation_(incarnation),
      clock_(std::move(clock)),
      membership_(placement_.servers().size(), self, incarnation),
      ledger_(most_tombstones),
      peers_(placement_.servers().size()) {
    recall();
}

std::mutex& Replica::stripe(std::string_view model) const {
    return stripes_[std::hash<std::string_view>{}(model) % stripes];
}

State Replica::known(std::string_view model) const {
    const std::scoped_lock lock(mutex_);
    const Ledger::Entry* const entry = ledger_.find(model);
    if (!entry) return {};
    return {entry->retired ? Presence::gone : Presence::visible, entry->version};
}

State Replica::state(std::string_view model) const {
    // A put is in the store a moment before the ledger knows: it would look like a lease on what
    // was retired before.
    const std::scoped_lock order(stripe(model));
    State state = known(model);
    if (state.presence == Presence::gone && store_.is_alive(model)) {
        state.presence = Presence::leased;
    }
    return state;
}

std::pair<ModelInfo, Version> Replica::look_up(std::string_view model) const {
    const std::scoped_lock order(stripe(model));
    return {store_.lookup(model), known(model).version};
}

// ------------------------------------------------------------------------------------ put, retire

namespace {

[[noreturn]] void retired_since(std::string_view model) {
    throw Error(Errc::already_exists, "model '" + std::string(model) + "' was retired since");
}

// Whether a version is not to be put any more where this is known.
bool is_passed(const State& here, Version version) {
    return here.version > version || (here.version == version && here.presence == Presence::gone);
}

}  // namespace

// Whether one of the model's servers before this one decided already, and still takes part.
bool Replica::is_decided(std::string_view model, const Chain& through) const {
    const std::vector<std::size_t> servers = placement_.of(model);
    bool decided = false;
    for (std::size_t i = 0; i < servers.size() && servers[i] != self_; ++i) {
        const Incarnation there = membership_.of(servers[i]);
        const Incarnation took = i < through.size() ? through[i] : 0;
        // One that took it and was left out since told nobody else what it decided.
        if (there == 0) continue;
        if (there != took) {
            look();
            throw Error(Errc::deadline, placement_.servers()[servers[i]] +
                                            " is to be asked first about model '" +
                                            std::string(model) + "'");
        }
        decided = true;
    }
    if (!decided) check_ready();
    return decided;
}

std::optional<PendingPut> Replica::prepare(PutRequest request, const Chain& through) {
    const auto held = membership_.hold();
    for (Inherited& inherited : request.inherited) inherited.foreign = true;
    if (request.owner.empty()) request.owner = versioned(request.model, request.created_ns);
    if (is_decided(request.model, through)) return prepare_decided(std::move(request));
    const State here = known(request.model);
    if (here.presence == Presence::gone && here.version >= request.created_ns) {
        retired_since(request.model);
    }
    return store_.prepare(std::move(request));
}

std::optional<PendingPut> Replica::prepare_decided(PutRequest request) {
    // Store and ledger change together while somebody holds the stripe.
    const auto look_up = [&] {
        const std::scoped_lock order(stripe(request.model));
        return known(request.model);
    };
    State here = look_up();
    while (!is_passed(here, request.created_ns)) {
        try {
            return store_.prepare(request);
        } catch (const Error& error) {
            if (error.code() != Errc::already_exists) throw;
            // What decided is to be done whatever there is, or has come since.
            const State now = look_up();
            const bool is_changed = now != std::exchange(here, now);
            if (!is_changed && here.presence != Presence::visible) throw;
        }
        if (here.presence == Presence::visible && here.version < request.created_ns) {
            bury(request.model, here.version);
            here = look_up();
        }
    }
    return std::nullopt;
}

Replica::Published Replica::commit(PendingPut put, std::string_view model, Version version,
                                   References references, const Chain& through) {
    const auto held = membership_.hold();
    if (is_decided(model, through)) {
        return commit_decided(std::move(put), model, version, std::move(references));
    }
    const std::scoped_lock order(stripe(model));
    const State here = known(model);
    if (here.presence == Presence::gone && here.version >= version) retired_since(model);
    return publish(std::move(put), model, version, std::move(references));
}

Replica::Published Replica::commit_decided(PendingPut put, std::string_view model, Version version,
                                           References references) {
    const std::scoped_lock order(stripe(model));
    const State here = known(model);
    if (is_passed(here, version)) return passed(model);
    if (here.presence == Presence::visible && !store_.is_same(put)) {
        bury_here(model, here.version, 0);
    }
    return publish(std::move(put), model, version, std::move(references));
}

Replica::Published Replica::publish(PendingPut put, std::string_view model, Version version,
                                    References references) {
    const std::uint64_t bytes = store_.commit(std::move(put));
    // The same content under a later version: a client that heard no answer tries again, and has
    // acquired what is inherited for this version.
    const State here = known(model);
    if (here.presence == Presence::visible && version > here.version) {
        store_.note({std::string(model), version, false, 0});
    }
    const std::scoped_lock lock(mutex_);
    if (version > here.version) ledger_.published(model, version, std::move(references));
    return {bytes, ledger_.find(model)->first == version, chain(model)};
}

Replica::Published Replica::passed(std::string_view model) const {
    return {0, false, chain(model)};
}

Replica::Retired Replica::retire(std::string_view model, Retirement token, Version version,
                                 Retirement by, const Chain& through) {
    const auto held = membership_.hold();
    const bool decided = is_decided(model, through);
    {
        const std::scoped_lock order(stripe(model));
        if (!decided) by = decide(model, token, version, by);
        bury_here(model, version, by);
    }
    doubt(model, version, true);
    return {by, chain(model)};
}

// Of a version that a server retired which takes no part any more, nobody else may know.
Retirement Replica::decide(std::string_view model, Retirement token, Version version,
                           Retirement by) const {
    const std::scoped_lock lock(mutex_);
    const Ledger::Entry* const entry = ledger_.find(model);
    if (!entry || entry->version < version || (entry->version == version && !entry->retired)) {
        return by != 0 ? by : token;
    }
    return entry->version == version && entry->by != 0 ? entry->by : by;
}

void Replica::bury(std::string_view model, Version version, Retirement by) {
    {
        const std::scoped_lock order(stripe(model));
        bury_here(model, version, by);
    }
    doubt(model, version, true);
}

void Replica::undo(std::string_view model, Version version) {
    {
        const std::scoped_lock order(stripe(model));
        const State here = known(model);
        if (here.presence != Presence::visible || here.version != version) return;
        bury_here(model, version, 0);
    }
    doubt(model, version, true);
}

bool Replica::refuse(std::string_view model, Version version) {
    {
        const std::scoped_lock order(stripe(model));
        const State here = known(model);
        if (here.presence == Presence::visible && here.version == version) return false;
        bury_here(model, version, 0);
    }
    doubt(model, version, true);
    return true;
}

void Replica::bury_here(std::string_view model, Version version, Retirement by) {
    const State here = known(model);
    if (here.version > version) return;
    Note note{std::string(model), version, true, 0};
    if (here.presence == Presence::visible) {
        // What it refers to elsewhere ends there, when it is out of use at all its servers.
        (void)store_.retire(model, std::move(note));
    } else if (version > here.version) {
        store_.note(std::move(note));
    }
    const std::scoped_lock lock(mutex_);
    const Ledger::Entry* const entry = ledger_.find(model);
    const bool is_known = entry && entry->retired && entry->version == version;
    if (!is_known || (entry->by == 0 && by != 0)) ledger_.retired(model, version, by);
}

void Replica::check_answers(std::string_view model) const {
    check_ready();
    const std::vector<std::size_t> servers = placement_.of(model);
    for (std::size_t i = servers.size(); i-- > 0 && servers[i] != self_;) {
        if (membership_.of(servers[i]) == 0) continue;
        look();
        throw Error(Errc::deadline, placement_.servers()[servers[i]] +
                                        " is to be asked about model '" + std::string(model) + "'");
    }
}

Chain Replica::chain(std::string_view model) const {
    return membership_.of(placement_.of(model));
}

// ------------------------------------------------------------------------------------ references

void Replica::acquire(std::string_view owner, std::span<const LayerKey> keys,
                      std::string_view holder) {
    const std::optional<Heir> heir = heir_of(holder);
    if (!heir) throw Error(Errc::invalid_argument, "a holder without a version");
    store_.acquire(owner, keys, holder);
    const std::scoped_lock lock(mutex_);
    held_[*heir].since = clock_();
}

void Replica::release(std::string_view owner, std::span<const LayerKey> keys,
                      std::string_view holder) {
    store_.release(owner, keys, holder);
}

void Replica::doubt(std::string_view model, Version version, bool retired) {
    const std::scoped_lock lock(mutex_);
    for (auto held = held_.lower_bound({std::string(model), 0});
         held != held_.end() && held->first.model == model; ++held) {
        if (held->first.version > version) break;
        held->second.heard_of = true;
        if (retired || held->first.version < version) ++held->second.doubts;
    }
}

void Replica::doubt_all_of(std::size_t server) {
    const std::scoped_lock lock(mutex_);
    for (auto& [heir, held] : held_) {
        if (placement_.keeps(server, heir.model)) held.doubts += held.heard_of ? 1 : 0;
    }
}

std::vector<std::pair<Heir, unsigned>> Replica::doubtful(Clock::time_point now,
                                                         Clock::duration age) {
    std::vector<std::pair<Heir, unsigned>> heirs;
    const std::scoped_lock lock(mutex_);
    for (const auto& [heir, held] : held_) {
        if (held.doubts > 0 || (!held.heard_of && now - held.since >= age)) {
            heirs.emplace_back(heir, held.doubts);
        }
    }
    return heirs;
}

void Replica::confirm(const Heir& heir, unsigned doubts) {
    const std::scoped_lock lock(mutex_);
    const auto held = held_.find(heir);
    if (held == held_.end() || held->second.doubts != doubts) return;
    held->second.heard_of = true;
    held->second.doubts = 0;
}

void Replica::end(const Heir& heir) {
    store_.release_holder(versioned(heir.model, heir.version));
    const std::scoped_lock lock(mutex_);
    held_.erase(heir);
}

// ------------------------------------------------------------------------------------ changes

void Replica::tick() noexcept {
    const Clock::rep now = clock_().time_since_epoch().count();
    const Clock::rep before = ticked_.exchange(now);
    const auto absence = Clock::duration(now - before);
    if (before != 0 && absence > longest_absence) suspect();
}

void Replica::check_ready() const {
    const Clock::rep ticked = ticked_;
    const bool is_awake =
        ticked == 0 || clock_() - Clock::time_point(Clock::duration(ticked)) <= longest_absence;
    if (ready_ && is_awake) return;
    throw Error(Errc::deadline, placement_.servers()[self_] +
                                    " was away and is being brought up to date by its peers");
}

std::size_t Replica::peers() const noexcept {
    std::size_t peers = 0;
    for (std::size_t i = 0; ready_ && i < peers_.size(); ++i) {
        if (i != self_ && membership_.of(i) != 0) ++peers;
    }
    return peers;
}

bool Replica::hears(std::size_t server) const noexcept {
    const std::scoped_lock lock(mutex_);
    return clock_() - peers_[server].heard <= longest_absence;
}

Replica::Changes Replica::changes(std::size_t asker, Incarnation asking, bool joining,
                                  Incarnation incarnation, std::uint64_t since) {
    if (asker >= peers_.size() || asker == self_) {
        throw Error(Errc::invalid_argument, "no other server of the list has number " +
                                                std::to_string(asker) + "; there are " +
                                                std::to_string(peers_.size()));
    }
    // What is decided while it is not said yet would pass the one that joins.
    const auto closed = joining ? membership_.close() : std::unique_lock<std::shared_mutex>{};
    Changes out{
        .since = incarnation == incarnation_ ? since : 0, .last = 0, .forgotten = 0, .changes = {}};
    const std::scoped_lock lock(mutex_);
    peers_.at(asker).heard = clock_();
    out.last = ledger_.last_change();
    out.forgotten = ledger_.forgotten();
    // Of an heir everybody may hold references, who hears only that it is retired.
    out.changes = ledger_.after(out.since, most_changes, [&](const Change& change) {
        if (change.retired || placement_.keeps(asker, change.model)) return true;
        return std::ranges::any_of(change.references, [&](const auto& layers) {
            return placement_.keeps(asker, id_of(layers.first));
        });
    });
    if (joining && out.since == out.last) membership_.join(asker, asking);
    return out;
}

std::uint64_t Replica::last_change() const {
    const std::scoped_lock lock(mutex_);
    return ledger_.last_change();
}

void Replica::note_followed(std::size_t server, Incarnation incarnation, std::uint64_t since) {
    const std::scoped_lock lock(mutex_);
    peers_.at(server).incarnation = incarnation;
    peers_.at(server).followed = since;
}

std::uint64_t Replica::followed(std::size_t server, Incarnation incarnation) const {
    const std::scoped_lock lock(mutex_);
    const Peer& peer = peers_.at(server);
    return peer.incarnation == incarnation ? peer.followed : 0;
}

bool Replica::wants(const Change& change) const {
    if (change.retired || !placement_.keeps(self_, change.model)) return false;
    const std::scoped_lock lock(mutex_);
    const Ledger::Entry* const here = ledger_.find(change.model);
    // What is not newer than a retirement that was forgotten may have been retired by it.
    return change.version > (here ? here->version : ledger_.forgotten());
}

void Replica::take_in(const Pulled& pulled) {
    PutRequest request = request_of(pulled);
    References references = references_of(request);
    std::optional<PendingPut> put = prepare_decided(std::move(request));
    if (!put) return;
    fill(*put, pulled.layers);
    (void)commit_decided(*std::move(put), pulled.info.model, pulled.version, std::move(references));
}

std::vector<LayerKey> Replica::missing(std::string_view owner,
                                       std::span<const LayerKey> keys) const {
    std::vector<LayerKey> missing;
    for (const LayerKey& key : keys) {
        try {
            (void)store_.layer_bytes(owner, {&key, 1});
        } catch (const Error&) {
            missing.push_back(key);
        }
    }
    return missing;
}

void Replica::adopt(std::string_view owner, const std::vector<LayerData>& layers,
                    std::string_view holder) {
    std::vector<OwnerlessLayer> described;
    for (const LayerData& layer : layers) described.push_back({layer.key, layer.specs});
    PendingPut put = store_.prepare_adoption(owner, std::move(described));
    fill(put, layers);
    store_.adopt(std::move(put), holder);
    if (const std::optional<Heir> heir = heir_of(holder)) {
        const std::scoped_lock lock(mutex_);
        held_[*heir].since = clock_();
    }
}

std::vector<std::string> Replica::visible_until(Version version) const {
    const std::scoped_lock lock(mutex_);
    return ledger_.visible_until(version);
}

}  // namespace cpp_store::replication
