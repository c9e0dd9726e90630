#include "replication/replica.hpp"

#include <algorithm>
#include <utility>

namespace cpp_store::replication {
namespace {

std::size_t bucket_of(std::string_view owner) noexcept {
    return layer_key(id_of(owner)).high % bucket_count;
}

// What a put would have said of a model that another server has.
PutRequest request_of(const ModelInfo& info, const std::vector<LayerData>& layers) {
    PutRequest request{.model = info.model,
                       .ns = info.ns,
                       .table = info.table,
                       .own = {},
                       .inherited = {},
                       .score = info.score,
                       .parent = info.parent,
                       .graph = info.graph,
                       .metadata = info.metadata,
                       .created_ns = info.created_ns,
                       .owner = info.owner};
    auto data = layers.begin();
    for (const LayerLocation& location : info.layers) {
        if (location.owner == info.owner) {
            if (data == layers.end() || data->key != info.table->key(location.layer)) {
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

// Where an owner's name has no digest, of a data directory of an earlier version, nothing says what
// the content has to be.
void check_name(PendingPut& put) {
    const std::string name = owner_name(put.model(), put.content());
    if (put.owner().size() != name.size() || put.owner() == name) return;
    throw Error(Errc::connection, "model '" + put.model() +
                                      "' was changed on its way: its content is '" + name +
                                      "', expected '" + put.owner() + "'; nothing is stored");
}

}  // namespace

void Tombstones::add(std::string_view owner) {
    remove(owner);
    const auto added = names_.emplace(owner, ++last_).first;
    by_age_.emplace(last_, added->first);
    if (names_.size() > most_) remove(by_age_.begin()->second);
}

void Tombstones::remove(std::string_view owner) {
    const auto found = names_.find(owner);
    if (found == names_.end()) return;
    by_age_.erase(found->second);
    names_.erase(found);
}

bool Tombstones::knows(std::string_view model) const {
    const std::string first = std::string(model) + "@";
    for (auto name = names_.lower_bound(first); name != names_.end(); ++name) {
        if (!name->first.starts_with(first)) break;
        if (id_of(name->first) == model) return true;
    }
    return false;
}

Replica::Replica(Store& store, Placement placement, std::size_t self, std::size_t remembered,
                 std::size_t listed)
    : store_(store),
      placement_(std::move(placement)),
      self_(self),
      most_listed_(listed),
      tombstones_(remembered),
      peers_(placement_.servers().size()) {
    for (Peer& peer : peers_) peer.doubts.ours.set();
    for (const std::string& model : store_.list()) note_visible(store_.owner_of(model), true);
    for (const Note& note : store_.take_notes().notes) {
        const bool is_old = note.version != 0;
        if (!note.retired) continue;
        const std::string owner =
            is_old ? note.model + "@" + std::to_string(note.version) : note.model;
        if (!visible_.contains(owner)) tombstones_.add(owner);
    }
}

std::mutex& Replica::stripe(std::string_view model) const {
    return stripes_[std::hash<std::string_view>{}(model) % stripes];
}

std::vector<std::size_t> Replica::others(std::string_view owner) const {
    std::vector<std::size_t> servers = placement_.of_owner(owner);
    std::erase(servers, self_);
    return servers;
}

void Replica::note_visible(const std::string& owner, bool visible) {
    std::vector<std::size_t> servers = others(owner);
    const std::scoped_lock lock(mutex_);
    if (visible == visible_.contains(owner)) return;
    for (const std::size_t server : servers) {
        peers_[server].sums[bucket_of(owner)] ^= layer_key(owner).low;
    }
    if (visible) {
        visible_.emplace(owner, std::move(servers));
    } else {
        visible_.erase(owner);
    }
}

// ------------------------------------------------------------------------------------ clients

PendingPut Replica::prepare(PutRequest request) {
    if (id_of(request.owner) != request.model) {
        throw Error(Errc::invalid_argument,
                    "a put of model '" + request.model + "' with '" + request.owner +
                        "' as its owner; expected its id, '@' and the digest of its content");
    }
    for (Inherited& inherited : request.inherited) inherited.foreign = true;
    return store_.prepare(std::move(request));
}

Replica::Published Replica::publish(PendingPut put) {
    check_name(put);
    const std::string model = put.model();
    const std::string owner = put.owner();
    const std::scoped_lock order(stripe(model));
    bool was_retired = false;
    {
        const std::scoped_lock lock(mutex_);
        was_retired = tombstones_.contains(owner);
        tombstones_.remove(owner);
    }
    if (was_retired) store_.note({owner, 0, false, 0});
    const std::string before = store_.owner_of(model);
    const std::uint64_t bytes = store_.commit(std::move(put));
    note_visible(before.empty() ? owner : before, true);
    return {bytes, before.empty()};
}

ForeignReferences Replica::retire_here(std::string_view model, const std::string& owner) {
    ForeignReferences foreign = store_.retire(model, Note{owner, 0, true, 0});
    note_visible(owner, false);
    const std::scoped_lock lock(mutex_);
    tombstones_.add(owner);
    return foreign;
}

ForeignReferences Replica::retire(std::string_view model) {
    const std::scoped_lock order(stripe(model));
    {
        // What is on its way here does not come after this.
        const std::scoped_lock lock(mutex_);
        for (const std::string& owner : arriving_) {
            if (id_of(owner) == model) tombstones_.add(owner);
        }
    }
    return retire_here(model, store_.owner_of(model));
}

void Replica::undo(std::string_view owner) {
    const std::string_view model = id_of(owner);
    const std::scoped_lock order(stripe(model));
    if (store_.owner_of(model) != owner) return;
    (void)store_.retire(model);
    note_visible(std::string(owner), false);
}

Presence Replica::state(std::string_view name) const {
    const std::string_view model = id_of(name);
    const std::scoped_lock order(stripe(model));
    const std::string here = store_.owner_of(model);
    // Of a model that is retired and leased the store knows the id only; another content of it may
    // have become visible since.
    const bool is_leased = store_.is_retired_and_leased(model);
    const bool is_id = !store_.owner_of(name).empty() || (name != model && store_.is_alive(name));
    const std::scoped_lock lock(mutex_);
    if (here == name || is_leased || is_id || arriving_.contains(name) ||
        (name == model && !here.empty())) {
        return Presence::in_use;
    }
    return tombstones_.contains(name) || tombstones_.knows(name) ? Presence::retired
                                                                 : Presence::unknown;
}

void Replica::repair(std::string_view model, bool degraded) {
    std::vector<std::size_t> servers = placement_.of(model);
    std::erase(servers, self_);
    Doubts doubts;
    doubts.ours.set(layer_key(model).high % bucket_count);
    if (degraded) {
        const std::scoped_lock lock(mutex_);
        ++degraded_puts_;
    }
    for (const std::size_t server : servers) {
        doubt(server, doubts);
        wake(server, false);
    }
}

// ------------------------------------------------------------------------------------ peers

Sums Replica::compare(std::size_t asker, const Buckets& doubted) {
    if (asker >= peers_.size() || asker == self_) {
        throw Error(Errc::invalid_argument, "no other server of the list has number " +
                                                std::to_string(asker) + "; there are " +
                                                std::to_string(peers_.size()));
    }
    doubt(asker, {.ours = {}, .theirs = doubted});
    if (doubted.any() || !agrees_with(asker)) wake(asker, true);
    return sums(asker);
}

Sums Replica::sums(std::size_t peer) const {
    const std::scoped_lock lock(mutex_);
    return peers_.at(peer).sums;
}

Page Replica::shared(std::size_t asker, const Buckets& buckets, const Cursor& cursor) const {
    using Section = Cursor::Section;
    Page page;
    page.next = cursor;
    std::size_t left = most_listed_;
    const auto is_shared = [&](std::string_view owner) {
        if (!buckets.test(bucket_of(owner))) return false;
        const std::vector<std::size_t> servers = placement_.of_owner(owner);
        return std::ranges::find(servers, asker) != servers.end();
    };
    // At the end of a section, the next one begins with the next page.
    const auto go_on = [&](bool at_end) {
        if (!at_end) return;
        page.next = {static_cast<Section>(static_cast<std::uint8_t>(cursor.section) + 1), {}};
    };
    if (cursor.section == Section::held) {
        const std::vector<HeldLayers> held = store_.held_after(cursor.after, left);
        for (const HeldLayers& each : held) {
            page.next.after = each.holder;
            if (is_shared(each.owner)) page.held.push_back(each);
        }
        go_on(held.empty());
        return page;
    }
    const std::scoped_lock lock(mutex_);
    const auto list = [&](const auto& names, std::vector<std::string>& out, const auto& wanted) {
        auto entry = names.upper_bound(cursor.after);
        for (; entry != names.end() && left > 0; ++entry, --left) {
            page.next.after = entry->first;
            if (wanted(*entry)) out.push_back(entry->first);
        }
        go_on(entry == names.end());
    };
    if (cursor.section == Section::retired) {
        list(tombstones_.names(), page.retired,
             [&](const auto& each) { return is_shared(each.first); });
    } else if (cursor.section == Section::models) {
        list(visible_, page.models, [&](const auto& each) {
            return buckets.test(bucket_of(each.first)) &&
                   std::ranges::find(each.second, asker) != each.second.end();
        });
    }
    return page;
}

ModelInfo Replica::described(const std::string& owner) const {
    ModelInfo info = store_.lookup(id_of(owner));
    if (info.owner == owner) return info;
    throw Error(Errc::not_found, "there is no model '" + owner + "'");
}

// ------------------------------------------------------------------------------------ learning

Replica::Doubts Replica::take_doubts(std::size_t peer) {
    const std::scoped_lock lock(mutex_);
    return std::exchange(peers_.at(peer).doubts, {});
}

void Replica::doubt(std::size_t peer, const Doubts& doubts) {
    const std::scoped_lock lock(mutex_);
    Peer& there = peers_.at(peer);
    there.doubts.ours |= doubts.ours;
    there.doubts.theirs |= doubts.theirs;
    if (doubts.any()) there.agrees = false;
}

bool Replica::expect(const std::string& owner) {
    const std::string_view model = id_of(owner);
    const std::vector<std::size_t> servers = placement_.of_owner(owner);
    if (std::ranges::find(servers, self_) == servers.end()) return false;
    const std::scoped_lock order(stripe(model));
    const std::string here = store_.owner_of(model);
    // Of two contents the lower stays; the peer finds out by itself.
    if (!here.empty() && here <= owner) return false;
    const std::scoped_lock lock(mutex_);
    return !tombstones_.contains(owner) && arriving_.insert(owner).second;
}

void Replica::arrived(const std::string& owner) {
    const std::scoped_lock lock(mutex_);
    arriving_.erase(owner);
}

void Replica::take_in(const ModelInfo& info, const std::vector<LayerData>& layers) {
    const auto is_retired = [&] {
        const std::scoped_lock lock(mutex_);
        return tombstones_.contains(info.owner);
    };
    // Whether it is to come; if so, what it is to stand for goes. With the stripe held.
    const auto give_way = [&] {
        const std::string here = store_.owner_of(info.model);
        if (is_retired() || (!here.empty() && here <= info.owner)) return false;
        if (!here.empty()) (void)retire_here(info.model, here);
        return true;
    };
    {
        const std::scoped_lock order(stripe(info.model));
        if (!give_way()) return;
    }
    PendingPut put = store_.prepare(request_of(info, layers));
    fill(put, layers);
    check_name(put);
    const std::scoped_lock order(stripe(info.model));
    if (!give_way()) return;
    (void)store_.commit(std::move(put));
    note_visible(info.owner, true);
    const std::scoped_lock lock(mutex_);
    ++repaired_;
}

ForeignReferences Replica::bury(std::string_view owner) {
    const std::string_view model = id_of(owner);
    const std::scoped_lock order(stripe(model));
    if (store_.owner_of(model) == owner) {
        return retire_here(model, std::string(owner));
    }
    // Not on disk: the peer that says so has it there.
    const std::scoped_lock lock(mutex_);
    if (!tombstones_.contains(owner)) tombstones_.add(owner);
    return {};
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
    const std::scoped_lock lock(mutex_);
    ++repaired_;
}

// ------------------------------------------------------------------------------------ people

void Replica::note_pass(std::size_t peer, bool complete) {
    const std::scoped_lock lock(mutex_);
    Peer& there = peers_.at(peer);
    there.agrees = complete && !there.doubts.any();
}

bool Replica::agrees_with(std::size_t peer) const {
    const std::scoped_lock lock(mutex_);
    return peers_.at(peer).agrees;
}

void Replica::count_into(StoreStats& stats) const {
    const std::scoped_lock lock(mutex_);
    stats.peers = static_cast<std::uint64_t>(
        std::ranges::count_if(peers_, [](const Peer& peer) { return peer.agrees; }));
    stats.degraded_puts = degraded_puts_;
    stats.repaired = repaired_;
}

}  // namespace cpp_store::replication
