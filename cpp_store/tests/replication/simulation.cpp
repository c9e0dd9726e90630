#include "simulation.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <functional>
#include <map>
#include <queue>
#include <random>
#include <set>
#include <vector>

#include "replication/calls.hpp"
#include "replication/passes.hpp"

namespace cpp_store::replication {
namespace {

using Time = std::uint64_t;  // microseconds

constexpr std::size_t server_count = 3;
constexpr std::size_t client_count = 3;
constexpr std::size_t replicas = 2;
constexpr std::size_t listed = 3;  // names on a page, so that lists have several
constexpr Time longest_delay = 10'000;
constexpr Time timeout = 60'000;
constexpr Time down_for = 100'000;
constexpr Time pass_interval = 80'000;
constexpr Passes::Ages ages{.unknown = std::chrono::seconds(8), .retired = std::chrono::seconds(5)};
constexpr std::size_t value_count = 4;  // numbers in a tensor, all the same

using Content = std::map<std::string, std::int32_t>;  // layer -> what fills its tensor

struct Wrong {
    std::string what;
};
[[noreturn]] void wrong(const std::string& what) {
    throw Wrong{what};
}

LayerTablePtr chain(const std::vector<std::string>& names) {
    std::vector<LayerTable::Layer> layers;
    for (std::size_t i = 0; i < names.size(); ++i) {
        layers.push_back({names[i], {}, value_count * sizeof(std::int32_t)});
        if (i > 0) layers.back().requires_ = {static_cast<std::uint32_t>(i - 1)};
    }
    return std::make_shared<LayerTable>(std::move(layers));
}

std::int32_t value_of(std::span<const std::byte> tensor) {
    std::array<std::int32_t, value_count> values{};
    if (tensor.size() != sizeof values) wrong("a tensor has other bytes than were put");
    std::memcpy(values.data(), tensor.data(), sizeof values);
    if (std::ranges::count(values, values[0]) != value_count) wrong("a tensor is torn");
    return values[0];
}

std::int32_t value_of(const StoredLayer& layer) {
    const StoredLayer::Tensor& tensor = layer.tensors.front();
    return value_of({tensor.extent.data, tensor.spec.nbytes()});
}

// ------------------------------------------------------------------------------------ the world

class World;

// What an actor, a client or a server, sends, and what comes back.
class Wire : public Network {
  public:
    Wire(World& world, std::size_t actor) : world_(world), actor_(actor) {}
    std::shared_ptr<Exchange> start(std::vector<Call> calls) override;
    bool is_down(std::size_t server) const override;
    std::shared_ptr<Exchange> pause(std::chrono::milliseconds length) override;
    std::uint32_t random() override;

  private:
    friend class World;
    World& world_;
    const std::size_t actor_;  // servers first
    std::array<Time, server_count> down_until_{};
    std::uint64_t failures_ = 0;  // answers that did not come, and puts that were not undone
};

struct Server {
    Store* store = nullptr;
    bool up = true;
    bool hangs = false;
    bool slow = false;
    std::optional<Errc> refuses;  // everything, but where it is full: puts
    std::uint64_t life = 0;
    std::unique_ptr<Replica> replica;
    std::unique_ptr<Wire> wire;
    std::unique_ptr<Passes> passes;
    std::optional<Task<void>> round;
    std::vector<std::uint64_t> leases;
    Time lost_data = 0;    // the last time
    Time lost_memory = 0;  // of retirements, too
};

struct Client {
    std::unique_ptr<Wire> wire;
    std::optional<Task<void>> doing;
    Time next = 0;
};

// What happened to an id that is put once.
struct Known {
    std::int32_t value = 0;
    std::optional<Time> acknowledged;
    Time retirement_begun = ~Time{0};
    std::optional<Time> retired;
    std::vector<std::size_t> servers;                        // that had it when it was acknowledged
    std::map<std::string, std::vector<std::size_t>> owners;  // that had what it inherits
    std::vector<std::size_t> told;  // servers that knew when its retirement was acknowledged
};

class World {
  public:
    World(std::uint64_t seed, Bug bug, std::span<const std::unique_ptr<Store>> stores, Time& clock)
        : random_(seed), now_(clock), bug_(bug), placement_({"a", "b", "c"}, replicas) {
        now_ += 1'000'000;
        start_ = now_;
        stretch_ = chance(0.2) ? 40 : 1;  // so that references grow old
        end_ = start_ + 200'000 * stretch_;
        loss_ = pick({0.0, 0.0, 0.02, 0.15});
        repeat_ = pick({0.0, 0.05});
        for (std::size_t i = 0; i < server_count; ++i) {
            servers_[i].store = stores[i].get();
            servers_[i].lost_data = servers_[i].lost_memory = start_;
            boot(i);
        }
        for (std::size_t i = 0; i < client_count; ++i) {
            clients_[i].wire = std::make_unique<Wire>(*this, server_count + i);
        }
    }
    World(const World&) = delete;
    World& operator=(const World&) = delete;
    ~World() {
        for (Client& client : clients_) client.doing.reset();
        for (Server& server : servers_) {
            server.round.reset();
            server.replica.reset();
            wipe(server);
        }
    }

    void run() {
        for (unsigned i = below(5); i > 0; --i)
            at(start_ + below(end_ - start_), [this] { fault(); });
        for (std::size_t i = 0; i < server_count; ++i) follow(i);
        for (std::size_t i = 0; i < client_count; ++i) live(i);
        watch();
        until(end_);
        calm();
        check_at_rest();
        check_nothing_leaks();
        if (chance(0.25)) check_goes_on();
    }

    Simulated counts;

  private:
    friend class Wire;

    // ---- chance and time

    unsigned below(std::uint64_t limit) {
        return static_cast<unsigned>(
            std::uniform_int_distribution<std::uint64_t>(0, limit - 1)(random_));
    }
    bool chance(double share) { return std::uniform_real_distribution<>(0, 1)(random_) < share; }
    template <typename T>
    T pick(std::initializer_list<T> from) {
        return from.begin()[below(from.size())];
    }
    void at(Time when, std::function<void()> what) {
        events_.push({std::max(when, now_), ++last_event_, std::move(what)});
    }
    void until(Time end) {
        while (!events_.empty() && events_.top().when <= end) {
            now_ = std::max(now_, events_.top().when);
            // A priority queue does not let go of what it holds otherwise.
            const auto what = std::move(const_cast<Event&>(events_.top()).what);
            events_.pop();
            what();
        }
        now_ = std::max(now_, end);
    }
    Passes::Clock::time_point clock() const {
        return Passes::Clock::time_point(std::chrono::microseconds(now_));
    }

    // ---- messages

    struct Sent {
        Request request;
        PutRequest put;
        std::vector<std::vector<std::byte>> bytes;
        std::vector<std::span<const std::byte>> spans;
        explicit Sent(const Request& given) : request(given) {
            if (!given.put) return;
            put = *given.put;
            request.put = &put;
            for (const auto& tensor : given.tensors)
                bytes.emplace_back(tensor.begin(), tensor.end());
            for (const auto& tensor : bytes) spans.emplace_back(tensor);
            request.tensors = spans;
        }
    };

    using Reply = std::shared_ptr<const std::function<void(Answer)>>;

    void send(std::size_t actor, std::size_t server, const Request& request,
              std::function<void(Answer)> then) {
        const auto answered = std::make_shared<const std::function<void(Answer)>>(std::move(then));
        const auto sent = std::make_shared<Sent>(request);
        // A connection repeats nothing of this by itself.
        const bool once = request.kind == Request::Kind::put ||
                          request.kind == Request::Kind::retire ||
                          request.kind == Request::Kind::undo;
        const Time delay = servers_[server].slow ? below(3 * timeout) : below(longest_delay);
        if (!chance(loss_)) {
            at(now_ + 1 + delay,
               [this, actor, server, sent, answered] { arrive(actor, server, *sent, answered); });
        }
        if (!once && chance(repeat_)) {  // its answer finds nobody
            at(now_ + 1 + below(4 * longest_delay),
               [this, actor, server, sent] { arrive(actor, server, *sent, nullptr); });
        }
        at(now_ + timeout, [this, server, sent, answered] {
            Answer nothing;
            nothing.error = Errc::connection;
            nothing.why = "silent";
            hear(server, *sent, answered, std::move(nothing));
        });
    }

    void arrive(std::size_t actor, std::size_t number, const Sent& sent, const Reply& answered) {
        Server& server = servers_[number];
        if (server.hangs || cut_.contains({actor, number})) return;
        Answer said;
        const bool is_put = sent.request.kind == Request::Kind::put;
        if (!server.up) {
            said.error = Errc::connection;
            said.why = "gone";
        } else if (server.refuses && (is_put || server.refuses != Errc::out_of_memory)) {
            said.error = server.refuses;
            said.why = "refused";
        } else if (!lies(actor, number, sent.request, said)) {
            said = answer(*server.replica, sent.request);
            if (sent.request.kind == Request::Kind::acquire && !said.error) {
                acquired_.emplace(number, sent.request.model, sent.request.holder);
            }
        }
        if (!answered || chance(loss_)) return;
        const std::uint64_t life = server.up ? server.life : 0;
        at(now_ + 1 + below(longest_delay), [this, number, life, answered, sent = Sent(sent),
                                             said = std::make_shared<Answer>(std::move(said))] {
            const Server& then = servers_[number];
            const bool is_gone = !then.up || then.life != life;
            if (is_gone && chance(0.5)) {  // what it said last goes with its connections
                *said = Answer();
                said->error = Errc::connection;
                said->why = "gone";
            }
            hear(number, sent, answered, std::move(*said));
        });
    }

    // Of planted bugs: answers that a server does not give.
    bool lies(std::size_t actor, std::size_t number, const Request& request, Answer& said) {
        using Kind = Request::Kind;
        if (bug_ == Bug::undo_is_lost && request.kind == Kind::undo) return true;
        if (bug_ == Bug::references_not_taken && request.kind == Kind::acquire) {
            said.sizes.assign(request.keys.size(), value_count * sizeof(std::int32_t));
            acquired_.emplace(number, request.model, request.holder);
            return true;
        }
        if (bug_ == Bug::all_compares_equal && request.kind == Kind::compare) {
            said.sums = servers_[actor].replica->sums(number);
            return true;
        }
        return false;
    }

    // And what is made of answers.
    void hear(std::size_t server, const Sent& sent, const Reply& answered, Answer said) {
        using Kind = Request::Kind;
        const Kind kind = sent.request.kind;
        if (kind == Kind::put && said.is_new) took_.emplace(server, sent.request.model);
        if (bug_ == Bug::retirements_stay) {
            said.page.retired.clear();
        } else if (bug_ == Bug::references_stay) {
            said.page.held.clear();
        } else if (bug_ == Bug::lists_end_early && kind == Kind::shared && !said.error) {
            said.page.next = {Cursor::Section::end, {}};
        } else if (bug_ == Bug::silence_is_no_use && kind == Kind::state && said.is_silent()) {
            said = {};
            said.states.assign(sent.request.names.size(), Presence::unknown);
        } else if (bug_ == Bug::one_not_found_is_enough && kind == Kind::read) {
            // The other server is not asked.
            const std::size_t first = placement_.of(sent.request.model).front();
            if (server != first && servers_[first].up &&
                !servers_[first].store->contains(sent.request.model)) {
                said = {};
                said.error = Errc::not_found;
            }
        }
        (*answered)(std::move(said));
    }

    // ---- servers

    void boot(std::size_t number) {
        Server& server = servers_[number];
        server.replica = std::make_unique<Replica>(*server.store, placement_, number,
                                                   Replica::most_tombstones, listed);
        server.wire = std::make_unique<Wire>(*this, number);
        server.passes = std::make_unique<Passes>(
            *server.replica, *server.wire, [](const std::string&) {}, ages);
        server.up = true;
        ++server.life;
    }

    Task<void> round(std::size_t number) {
        Server& server = servers_[number];
        for (std::size_t peer = 0; peer < server_count; ++peer) {
            if (peer == number) continue;
            const bool complete = co_await server.passes->with(peer);
            (void)complete;
        }
        const std::uint64_t before = server.store->stats().foreign_holders;
        const bool at_end = co_await server.passes->scrub(clock());
        (void)at_end;
        if (server.store->stats().foreign_holders < before) ++counts.scrubbed;
    }

    void follow(std::size_t number) {
        Server& server = servers_[number];
        if (server.up && !server.hangs) {
            if (server.round && server.round->done()) {
                server.round->get();
                server.round.reset();
            }
            if (!server.round) {
                server.round = round(number);
                server.round->start();
            }
        }
        const Time interval = pass_interval * (stretch_ > 1 ? 6 : 1);
        at(now_ + interval / 2 + below(interval), [this, number] { follow(number); });
    }

    void fault() {
        ++counts.faults;
        const std::size_t number = below(server_count);
        Server& server = servers_[number];
        const Time back = now_ + 1 + below(pick<Time>({40'000, 200'000}) * stretch_);
        const unsigned what = below(100);
        if (what < 10) {
            Client& client = clients_[below(client_count)];
            client.doing.reset();
            client.next = back;
        } else if (what < 40) {
            server.refuses = pick({Errc::out_of_memory, Errc::busy, Errc::busy, Errc::permission});
            at(back, [&server] { server.refuses.reset(); });
        } else if (what < 50) {
            server.slow = true;
            at(back, [&server] { server.slow = false; });
        } else if (what < 60) {  // from the other servers, and from some clients
            for (std::size_t i = 0; i < server_count + client_count; ++i) {
                if (i == number || (i >= server_count && chance(0.5))) continue;
                cut_.insert({i, number});
                if (i < server_count) cut_.insert({number, i});
            }
            at(back, [this] { cut_.clear(); });
        } else if (!server.up || server.hangs) {
            return;
        } else if (what < 70) {
            server.hangs = true;
            at(back, [&server] { server.hangs = false; });
        } else {
            crash(number, chance(0.6));
            at(back, [this, number] {
                if (!servers_[number].up) boot(number);
            });
        }
    }

    void crash(std::size_t number, bool loses_data) {
        Server& server = servers_[number];
        server.up = false;
        server.round.reset();
        server.passes.reset();
        server.replica.reset();
        server.lost_memory = now_;
        if (!loses_data) {
            end_all_leases(server);
            return;
        }
        server.lost_data = now_;
        std::erase_if(acquired_, [&](const auto& at) { return std::get<0>(at) == number; });
        wipe(server);
    }

    static void end_all_leases(Server& server) {
        for (const std::uint64_t lease : std::exchange(server.leases, {})) {
            (void)server.store->end_lease(lease);
        }
    }

    static void wipe(Server& server) {
        for (const std::string& model : server.store->list()) (void)server.store->retire(model);
        end_all_leases(server);
        for (const std::string& holder : server.store->holders()) {
            server.store->release_holder(holder);
        }
    }

    // Whether a server took a reference for a visible heir, and still has what that inherits. Such
    // a reference ends with the heir only.
    void check_references() {
        for (const Server& server : servers_) {
            if (!server.up) continue;
            for (const std::string& id : server.store->list()) {
                const ModelInfo info = server.store->lookup(id);
                for (const LayerLocation& layer : info.layers) {
                    if (layer.owner == info.owner) continue;
                    const LayerKey key = info.table->key(layer.layer);
                    for (std::size_t i = 0; i < server_count; ++i) {
                        if (!acquired_.contains({i, layer.owner, info.owner})) continue;
                        try {
                            (void)servers_[i].store->layer_bytes(layer.owner, {&key, 1});
                        } catch (const Error&) {
                            wrong("model " + info.owner + " is visible without what it inherits");
                        }
                    }
                }
            }
        }
    }

    void watch() {
        check_references();
        at(now_ + 20'000 * stretch_, [this] { watch(); });
    }

    // ---- clients

    void live(std::size_t number) {
        Client& client = clients_[number];
        if (client.doing && client.doing->done()) {
            client.doing->get();
            client.doing.reset();
        }
        if (!client.doing && now_ >= client.next && now_ < end_) {
            client.doing = act(*client.wire);
            client.doing->start();
        }
        at(now_ + 1 + below(12'000 * stretch_), [this, number] { live(number); });
    }

    Task<void> act(Wire& wire) {
        const unsigned what = below(100);
        if (what < 35 || known_.empty()) {
            co_await put_new(wire, chance(0.6));
        } else if (what < 45) {
            co_await put_shared(wire);
        } else if (what < 60) {
            const std::string id = some_id();
            co_await retire_one(wire, id);
        } else if (what < 70) {
            co_await lean_on_a_lease(wire);
        } else {
            co_await read_some(wire);
        }
    }

    // A chain t0, t1, … of layers, the last one the model's own.
    struct Planned {
        PutRequest request;
        std::vector<std::array<std::int32_t, value_count>> values;
        std::vector<std::span<const std::byte>> tensors;
        std::vector<Lease> leases;
        bool possible = true;
    };

    void plan(Planned& planned, const std::string& id, bool inherits) {
        const std::int32_t value = ++last_value_;
        std::vector<std::string> names;
        for (unsigned i = 1 + below(3); i > 0; --i)
            names.push_back("t" + std::to_string(names.size()));
        names.push_back("own-" + id);
        planned.request.model = id;
        planned.request.table = chain(names);
        planned.request.score = value;
        planned.request.created_ns = now_;
        std::set<std::uint32_t> inherited;
        if (inherits) {
            for (const Merged& merged : match(*planned.request.table)) {
                planned.leases.push_back({merged.server, merged.match.lease});
                std::ranges::copy(merged.others, std::back_inserter(planned.leases));
                for (const LayerLocation& layer : merged.match.layers) {
                    // Another model of this id may have it: it is to be told from this one.
                    if (layer.layer + 1 == names.size()) continue;
                    planned.request.inherited.push_back({layer.layer, layer.owner, true, 0});
                    inherited.insert(layer.layer);
                }
            }
        }
        for (std::uint32_t i = 0; i < names.size(); ++i) {
            if (inherited.contains(i)) continue;
            planned.request.own.push_back({i, {TensorSpec{DType::int32, {value_count}}}});
            planned.values.emplace_back().fill(value);
        }
        for (const auto& values : planned.values) {
            planned.tensors.push_back(std::as_bytes(std::span(values)));
        }
        Content& content = truth_[value];
        for (const Own& own : planned.request.own) content[names[own.layer]] = value;
        for (const Inherited& layer : planned.request.inherited) {
            const std::int32_t inherited_value = owner_value(layer.owner, names[layer.layer]);
            content[names[layer.layer]] = inherited_value;
            planned.possible = planned.possible && inherited_value != 0;
        }
        if (!planned.request.inherited.empty()) ++counts.heirs;
    }

    // What a layer of an owner holds, which is there as long as we have the lease.
    std::int32_t owner_value(const std::string& owner, const std::string& layer) {
        const LayerKey key = layer_key(layer);
        for (const Server& server : servers_) {
            if (!server.up) continue;
            try {
                return value_of(*server.store->find_layers(owner, {&key, 1}).front());
            } catch (const Error&) {
            }
        }
        return 0;  // nobody to be asked: the put is left
    }

    // At once, from all servers that answer: only the merging of the answers is of interest.
    std::vector<Merged> match(const LayerTable& table) {
        std::vector<Answered> answers;
        for (std::size_t i = 0; i < server_count; ++i) {
            Server& server = servers_[i];
            if (!server.up || server.hangs || chance(loss_)) continue;
            Answered& answered = answers.emplace_back();
            answered.server = i;
            answered.matches = server.store->best_matches(table, {}, std::chrono::hours(1));
            for (const LeasedMatch& found : answered.matches) server.leases.push_back(found.lease);
        }
        std::vector<Lease> spare;
        std::vector<Merged> merged = merge(std::move(answers), Weight::layers, 1, spare);
        end_leases(spare);
        return merged;
    }

    void end_leases(const std::vector<Lease>& leases) {
        for (const Lease& lease : leases) {
            Server& server = servers_[lease.server];
            if (std::erase(server.leases, lease.lease) > 0) {
                (void)server.store->end_lease(lease.lease);
            }
        }
    }

    Task<void> put_new(Wire& wire, bool inherits) {
        const std::string id = "m" + std::to_string(++last_id_);
        Planned planned;
        plan(planned, id, inherits);
        Known& known = known_[id];
        known.value = last_value_;
        const std::uint64_t failures = wire.failures_;
        const std::optional<Errc> error = co_await put_planned(wire, planned);
        if (!error && known.retirement_begun > now_) note_acknowledged(id, known);
        if (error != Errc::out_of_memory && error != Errc::permission && error != Errc::busy)
            co_return;
        ++counts.refused;
        if (wire.failures_ != failures) co_return;
        // A server that did not take it may have got it from one that did, in between.
        const std::vector<std::size_t> at = placement_.of(id);
        for (std::size_t i = 0; i < at.size(); ++i) {
            const bool is_left = has(servers_[at[i]], id) && took_.contains({at[i], id});
            if (is_left && !has(servers_[at[1 - i]], id)) {
                wrong("model " + id + " was refused, and is there");
            }
        }
    }

    // Of an id that others put, too; only that the servers agree in the end is checked of these.
    Task<void> put_shared(Wire& wire) {
        Planned planned;
        plan(planned, "shared" + std::to_string(below(2)), chance(0.5));
        const std::optional<Errc> error = co_await put_planned(wire, planned);
        (void)error;
    }

    // What went wrong.
    Task<std::optional<Errc>> put_planned(Wire& wire, Planned& planned) {
        ++counts.puts;
        std::optional<Errc> wrong = Errc::not_found;
        if (planned.possible) try {
                const std::uint64_t bytes =
                    co_await put(wire, placement_, planned.request, planned.tensors);
                (void)bytes;
                wrong.reset();
            } catch (const Error& error) {
                wrong = error.code();
                if (error.code() == Errc::internal || error.code() == Errc::protocol) throw;
            }
        end_leases(planned.leases);
        co_return wrong;
    }

    void note_acknowledged(const std::string& id, Known& known) {
        known.acknowledged = now_;
        std::string heir;
        for (const std::size_t i : placement_.of(id)) {
            if (!has(servers_[i], id)) continue;
            known.servers.push_back(i);
            heir = servers_[i].store->owner_of(id);
        }
        if (known.servers.empty()) return;
        const ModelInfo info = servers_[known.servers.front()].store->lookup(id);
        for (const LayerLocation& layer : info.layers) {
            if (layer.owner == info.owner) continue;
            std::vector<std::size_t>& at = known.owners[layer.owner];
            for (const std::size_t i : placement_.of_owner(layer.owner)) {
                if (acquired_.contains({i, layer.owner, heir})) at.push_back(i);
            }
        }
    }

    static bool has(const Server& server, const std::string& id) {
        return server.up && server.store->contains(id);
    }

    // Whether an acknowledged model must be there: a server that had it never lost it, and the same
    // holds of what it inherits.
    bool is_safe(const Known& known) const {
        if (!known.acknowledged) return false;
        const auto kept = [&](const std::vector<std::size_t>& at) {
            return std::ranges::any_of(
                at, [&](std::size_t i) { return servers_[i].lost_data < *known.acknowledged; });
        };
        return kept(known.servers) && std::ranges::all_of(known.owners, [&](const auto& owner) {
                   return kept(owner.second);
               });
    }

    std::string some_id() {
        if (chance(0.2)) return "shared" + std::to_string(below(2));
        auto known = known_.begin();
        std::advance(known, below(known_.size()));
        return known->first;
    }

    bool is_missing(const std::string& owner, const LayerKey& key, std::size_t server) const {
        if (!servers_[server].up) return true;
        return !servers_[server].replica->missing(owner, {&key, 1}).empty();
    }

    // Of a model and of what it inherits, which may both be retired meanwhile.
    Task<void> lean_on_a_lease(Wire& wire) {
        const std::vector<Merged> merged = match(*chain({"t0", "t1", "t2"}));
        if (merged.empty()) co_return;
        const LeasedMatch& match = merged.front().match;
        std::vector<Lease> leases = merged.front().others;
        leases.push_back({merged.front().server, match.lease});
        const auto table = servers_[merged.front().server].store->lookup(match.match.model).table;
        std::vector<std::pair<std::string, LayerKey>> layers;
        for (const LayerLocation& layer : match.layers) {
            const std::string name = "t" + std::to_string(layer.layer);
            layers.emplace_back(layer.owner, table->key(table->find(layer_key(name))));
        }
        const auto is_kept = [&](const auto& layer) {
            return std::ranges::any_of(placement_.of_owner(layer.first), [&](std::size_t i) {
                return !is_missing(layer.first, layer.second, i);
            });
        };
        std::erase_if(layers, [&](const auto& layer) { return !is_kept(layer); });
        const Time begun = now_;
        // Else a reference may have gone with the only server that had it, before the lease.
        const auto known = known_.find(match.match.model);
        const bool was_safe = known != known_.end() && is_safe(known->second);
        if (chance(0.7)) co_await retire_one(wire, match.match.model);
        if (chance(0.7) && !layers.empty()) {
            const std::string owner(id_of(layers.front().first));
            co_await retire_one(wire, owner);
        }
        co_await wire.rest(std::chrono::milliseconds(1 + below(500)));
        const bool undisturbed = std::ranges::all_of(servers_, [&](const Server& server) {
            return server.up && server.lost_memory < begun;
        });
        if (was_safe && undisturbed && !std::ranges::all_of(layers, is_kept)) {
            wrong("layers of a model that a client leases are gone");
        }
        end_leases(leases);
    }

    Task<void> retire_one(Wire& wire, std::string id) {
        ++counts.retirements;
        const auto known = known_.find(id);
        if (known != known_.end()) {
            known->second.retirement_begun = std::min(known->second.retirement_begun, now_);
        }
        try {
            co_await retire(wire, placement_, id);
        } catch (const Error& error) {
            if (error.code() == Errc::internal || error.code() == Errc::protocol) throw;
            co_return;
        }
        if (known == known_.end()) co_return;
        known->second.retired = now_;
        known->second.told.clear();
        for (const std::size_t i : placement_.of(id)) {
            if (servers_[i].up && servers_[i].replica->state(id) == Presence::retired) {
                known->second.told.push_back(i);
            }
        }
    }

    Task<void> read_some(Wire& wire) {
        ++counts.reads;
        const std::string id = some_id();
        const auto known = known_.find(id);
        const bool was_safe = known != known_.end() && is_safe(known->second);
        bool silent = false;
        std::optional<Content> content;
        try {
            const Found found = co_await find(wire, placement_, id);
            content = co_await read_found(wire, found, silent);
        } catch (const Error& error) {
            if (error.code() == Errc::internal || error.code() == Errc::protocol) throw;
            silent = error.code() != Errc::not_found;
        }
        if (content) {
            check_content(id, *content);
        } else if (!silent && was_safe && is_safe(known->second) &&
                   known->second.retirement_begun > now_) {
            wrong("model " + id + " was acknowledged, and is not found");
        }
    }

    Task<std::optional<Content>> read_found(Wire& wire, const Found& found, bool& silent) {
        Content content;
        for (const LayerLocation& layer : found.info.layers) {
            const std::string name(found.info.table->name(layer.layer));
            if (layer.stored) {
                content[name] = value_of(*layer.stored);
                continue;
            }
            for (const std::size_t server : placement_.of_owner(layer.owner)) {
                Request request(Request::Kind::fetch);
                request.model = layer.owner;
                request.keys.push_back(found.info.table->key(layer.layer));
                const Answer answer = co_await wire.ask(server, std::move(request));
                if (answer.error) silent = true;
                if (answer.error || answer.layers.empty()) continue;
                content[name] = value_of(answer.layers.front().tensors.front());
                break;
            }
            if (!content.contains(name)) co_return std::nullopt;
        }
        co_return content;
    }

    void check_content(const std::string& id, const Content& content) {
        const auto own = content.find("own-" + id);
        if (own == content.end()) wrong("model " + id + " has not its own layer");
        if (truth_.at(own->second) != content) wrong("model " + id + " has wrong bytes");
    }

    // ---- the end

    void calm() {
        loss_ = repeat_ = 0;
        cut_.clear();
        for (Client& client : clients_) client.next = ~Time{0};
        for (std::size_t i = 0; i < server_count; ++i) {
            servers_[i].hangs = servers_[i].slow = false;
            servers_[i].refuses.reset();
            if (!servers_[i].up) boot(i);
        }
        until(now_ + 4'000'000);
        for (Client& client : clients_) client.doing.reset();
        // Long enough for clients' leases, and for puts that nobody finished.
        for (Server& server : servers_) end_all_leases(server);
        rest_of_time();
    }

    void rest_of_time() {
        for (int i = 0; i < 2; ++i) {
            now_ += 10'000'000;
            until(now_ + 12 * pass_interval * (stretch_ > 1 ? 6 : 1));
        }
    }

    void check_at_rest() {
        check_references();
        std::set<std::string> ids{"shared0", "shared1"};
        for (const auto& [id, known] : known_) ids.insert(id);
        for (const std::string& id : ids) {
            const std::vector<std::size_t> at = placement_.of(id);
            const std::string owner = servers_[at[0]].store->owner_of(id);
            for (const std::size_t i : at) {
                if (servers_[i].store->owner_of(id) != owner) {
                    wrong("servers disagree about model " + id + " in the end");
                }
                if (!owner.empty()) check_at_rest(servers_[i], id);
            }
            const auto known = known_.find(id);
            if (known == known_.end()) continue;
            const Known& said = known->second;
            if (owner.empty() && is_safe(said) && said.retirement_begun == ~Time{0}) {
                wrong("model " + id + " was acknowledged, and is lost");
            }
            if (!owner.empty() && said.retired && std::ranges::any_of(said.told, [&](auto i) {
                    return servers_[i].lost_memory < *said.retired;
                })) {
                wrong("model " + id + " was retired, and is back");
            }
        }
    }

    // All of a model's bytes, at all servers that should have them.
    void check_at_rest(Server& server, const std::string& id) {
        const ModelInfo info = server.store->lookup(id);
        const auto known = known_.find(id);
        Content content;
        for (const LayerLocation& layer : info.layers) {
            const std::string name(info.table->name(layer.layer));
            const LayerKey key = info.table->key(layer.layer);
            if (layer.stored) {
                content[name] = value_of(*layer.stored);
                continue;
            }
            std::size_t copies = 0;
            for (const std::size_t i : placement_.of_owner(layer.owner)) {
                if (is_missing(layer.owner, key, i)) continue;
                ++copies;
                content[name] =
                    value_of(*servers_[i].store->find_layers(layer.owner, {&key, 1}).front());
            }
            if (known == known_.end() || !is_safe(known->second)) {
                if (copies == 0) return;  // lost with all servers that had it
                continue;
            }
            if (copies == 0) wrong("model " + id + " refers to layers that are gone");
            if (copies < replicas) wrong("layers that model " + id + " inherits have few replicas");
        }
        check_content(id, content);
    }

    // When all is retired, nothing is left.
    void check_nothing_leaks() {
        Task<void> all = retire_all(*clients_[0].wire);
        all.start();
        until(now_ + 100 * timeout);
        if (!all.done()) wrong("retirements do not come to an end");
        all.get();
        rest_of_time();
        for (const Server& server : servers_) {
            const StoreStats stats = server.store->stats();
            if (stats.models != 0 || stats.layers != 0 || stats.foreign_holders != 0 ||
                stats.memory.used != 0) {
                wrong("a server keeps " + std::to_string(stats.layers) + " layers for " +
                      std::to_string(stats.foreign_holders) + " holders that nobody needs");
            }
        }
    }

    Task<void> retire_all(Wire& wire) {
        std::set<std::string> ids;
        for (const Server& server : servers_) {
            const std::vector<std::string> here = server.store->list();
            ids.insert(here.begin(), here.end());
        }
        for (const std::string& id : ids) co_await retire(wire, placement_, id);
    }

    // One server is gone for good: calls come to a good end without it.
    void check_goes_on() {
        crash(below(server_count), true);
        Task<void> calls = go_on(*clients_[below(client_count)].wire);
        calls.start();
        until(now_ + 60 * timeout);
        if (!calls.done()) wrong("calls do not come to an end while a server is gone");
        calls.get();
    }

    Task<void> go_on(Wire& wire) {
        for (const std::string id : {"last0", "last1", "last2"}) {
            Planned planned;
            plan(planned, id, false);
            const std::optional<Errc> error = co_await put_planned(wire, planned);
            if (error) wrong(id + " cannot be put without a server");
            try {
                bool silent = false;
                const Found found = co_await find(wire, placement_, id);
                const auto content = co_await read_found(wire, found, silent);
                if (!content) wrong(id + " cannot be read without a server");
                check_content(id, *content);
                co_await retire(wire, placement_, id);
            } catch (const Error& caught) {
                wrong(id + " cannot be used without a server: " + caught.what());
            }
        }
    }

    struct Event {
        Time when;
        std::uint64_t number;
        std::function<void()> what;
        bool operator>(const Event& other) const {
            return std::tie(when, number) > std::tie(other.when, other.number);
        }
    };

    std::mt19937_64 random_;
    Time& now_;
    Time start_ = 0;
    Time end_ = 0;
    Time stretch_ = 1;
    const Bug bug_;
    const Placement placement_;
    double loss_ = 0;
    double repeat_ = 0;
    std::set<std::pair<std::size_t, std::size_t>> cut_;  // from whom, to which server
    std::priority_queue<Event, std::vector<Event>, std::greater<>> events_;
    std::uint64_t last_event_ = 0;
    // Servers where an heir's reference to an owner was acquired.
    std::set<std::tuple<std::size_t, std::string, std::string>> acquired_;
    std::set<std::pair<std::size_t, std::string>> took_;  // servers that said so of a put
    std::array<Server, server_count> servers_;
    std::array<Client, client_count> clients_;
    std::map<std::string, Known> known_;
    std::map<std::int32_t, Content> truth_;  // by the value of the model's own layer
    std::int32_t last_value_ = 0;
    unsigned last_id_ = 0;
};

std::shared_ptr<Network::Exchange> Wire::start(std::vector<Call> calls) {
    auto exchange = std::make_shared<Exchange>();
    exchange->answers.resize(calls.size());
    auto answered = std::make_shared<std::vector<bool>>(calls.size());
    auto left = std::make_shared<std::size_t>(calls.size());
    for (std::size_t i = 0; i < calls.size(); ++i) {
        const std::size_t server = calls[i].server;
        // Whoever asked may have crashed: then nobody but the call knows of the exchange.
        std::weak_ptr<Exchange> asked = exchange;
        const bool is_undo = calls[i].request.kind == Request::Kind::undo;
        world_.send(actor_, server, calls[i].request,
                    [this, asked, answered, left, i, server, is_undo](Answer answer) {
                        const auto waiting = asked.lock();
                        if (!waiting || (*answered)[i]) return;
                        (*answered)[i] = true;
                        if (answer.is_silent()) {
                            down_until_[server] = world_.now_ + down_for;
                        }
                        if (answer.is_silent() || (is_undo && answer.error)) ++failures_;
                        waiting->answers[i] = std::move(answer);
                        if (--*left > 0) return;
                        waiting->done = true;
                        waiting->waiting.resume();
                    });
    }
    return exchange;
}

bool Wire::is_down(std::size_t server) const {
    return world_.now_ < down_until_[server];
}

std::shared_ptr<Network::Exchange> Wire::pause(std::chrono::milliseconds length) {
    auto exchange = std::make_shared<Exchange>();
    std::weak_ptr<Exchange> paused = exchange;
    world_.at(world_.now_ + static_cast<Time>(length.count()) * 1000, [paused] {
        const auto waiting = paused.lock();
        if (!waiting) return;
        waiting->done = true;
        waiting->waiting.resume();
    });
    return exchange;
}

std::uint32_t Wire::random() {
    return world_.below(1u << 31);
}

}  // namespace

struct Simulator::Stores {
    Time clock = 0;
    std::vector<std::unique_ptr<Store>> stores;
};

Simulator::Simulator() : stores_(std::make_unique<Stores>()) {
    for (std::size_t i = 0; i < server_count; ++i) {
        Store::Options options;
        options.memory = {.limit = 4 << 20, .region_size = 1 << 20, .ahead = 0};
        options.clock = [&clock = stores_->clock] {
            return Passes::Clock::time_point(std::chrono::microseconds(clock));
        };
        stores_->stores.push_back(std::make_unique<Store>(options));
    }
}

Simulator::~Simulator() = default;

Simulated Simulator::run(std::uint64_t seed, Bug bug) {
    World world(seed, bug, stores_->stores, stores_->clock);
    try {
        world.run();
    } catch (const Wrong& found) {
        world.counts.wrong = found.what;
    } catch (const Error& error) {
        world.counts.wrong = std::string("an error that nobody expects: ") + error.what();
    }
    return world.counts;
}

}  // namespace cpp_store::replication
