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

#include "history.hpp"
#include "replication/answer.hpp"
#include "replication/calls.hpp"
#include "replication/follower.hpp"

namespace cpp_store::replication {
namespace {

using Time = std::uint64_t;  // microseconds

constexpr std::size_t server_count = 3;
constexpr std::size_t client_count = 3;
constexpr std::size_t replicas = 2;
constexpr Time longest_delay = 10'000;
constexpr Time timeout = 60'000;
constexpr Time down_for = 100'000;
constexpr Time follow_interval = 80'000;
constexpr Time faulty_time = 200'000;
constexpr std::size_t most_operations = 64;
constexpr std::size_t value_count = 4;  // numbers in a tensor, all the same

using Content = std::map<std::string, std::int32_t>;  // layer -> what fills its tensor

struct Wrong {
    std::string what;
};
[[noreturn]] void wrong(const std::string& what) {
    throw Wrong{what};
}

bool is_silence(const Error& error) {
    return error.code() == Errc::connection || error.code() == Errc::deadline;
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

// ------------------------------------------------------------------------------------ the world

class World;

// What an actor, a client or a server, sends, and what comes back.
class Wire : public Network {
  public:
    Wire(World& world, std::size_t actor) : world_(world), actor_(actor) {}
    std::shared_ptr<Exchange> start(std::vector<Call> calls) override;
    bool is_down(std::size_t server) const override;
    void forget_down(std::size_t server) override { down_until_[server] = 0; }
    Version now() const override;
    std::shared_ptr<Exchange> pause(std::chrono::milliseconds length) override;

  private:
    friend class World;
    World& world_;
    const std::size_t actor_;  // servers first
    std::array<Time, server_count> down_until_{};
};

struct Server {
    Store* store = nullptr;
    bool up = true;
    bool hangs = false;
    bool full = false;
    std::unique_ptr<Replica> replica;
    std::unique_ptr<Wire> wire;
    std::unique_ptr<Follower> follower;
    std::optional<Task<void>> round;
    std::vector<std::uint64_t> leases;
    Time lost_data = 0;    // the last time
    Time lost_memory = 0;  // of retirements, too
    Time lost_touch = 0;   // with others, which may have gone on without it
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
    World(std::uint64_t seed, std::span<const std::unique_ptr<Store>> stores, Time& clock)
        : random_(seed), now_(clock), placement_({"a", "b", "c"}, replicas) {
        now_ += 1'000'000;
        start_ = now_;
        contended_ = chance(0.5);
        loss_ = contended_ ? 0.0 : pick({0.0, 0.0, 0.02, 0.15});
        loses_ = loss_ > 0;
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
        for (Server& server : servers_) server.round.reset();
        clear();
    }

    void run() {
        for (unsigned i = below(4); i > 0; --i)
            at(start_ + below(faulty_time), [this] { fault(); });
        for (std::size_t i = 0; i < server_count; ++i) follow(i);
        for (std::size_t i = 0; i < client_count; ++i) live(i);
        until(start_ + faulty_time);
        calm();
        check_order();
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
    Replica::Clock::time_point clock() const {
        return Replica::Clock::time_point(std::chrono::microseconds(now_));
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

    void send(std::size_t server, const Request& request, std::function<void(Answer)> then) {
        const auto answered = std::make_shared<const std::function<void(Answer)>>(std::move(then));
        const auto sent = std::make_shared<Sent>(request);
        // What decides is sent once: a connection repeats nothing by itself.
        const bool decides =
            request.kind == Request::Kind::put || request.kind == Request::Kind::retire;
        const bool repeated = !decides && chance(repeat_);
        if (!chance(loss_)) {
            at(now_ + 1 + below(longest_delay),
               [this, server, sent, answered] { arrive(server, *sent, answered); });
        }
        if (repeated) {  // its answer finds nobody
            at(now_ + 1 + below(4 * longest_delay),
               [this, server, sent] { arrive(server, *sent, nullptr); });
        }
        at(now_ + timeout, [answered] {
            Answer nothing;
            nothing.error = Errc::connection;
            nothing.why = "silent";
            (*answered)(std::move(nothing));
        });
    }

    void arrive(std::size_t number, const Sent& sent, const Reply& answered) {
        Server& server = servers_[number];
        if (server.hangs) return;
        Answer said;
        if (!server.up) {
            said.error = Errc::connection;
            said.why = "gone";
        } else if (server.full && sent.request.kind == Request::Kind::put) {
            said.error = Errc::out_of_memory;
            said.why = "full";
        } else {
            said = answer(*server.replica, sent.request);
            if (sent.request.kind == Request::Kind::acquire && !said.error) {
                acquired_.emplace(number, sent.request.model, sent.request.holder);
            }
        }
        if (!answered || chance(loss_)) return;
        const Incarnation life = server.up ? server.replica->incarnation() : 0;
        at(now_ + 1 + below(longest_delay),
           [this, &server, life, answered, said = std::make_shared<Answer>(std::move(said))] {
               const bool is_gone = !server.up || server.replica->incarnation() != life;
               if (is_gone && chance(0.5)) {  // what it said last goes with its connections
                   *said = Answer();
                   said->error = Errc::connection;
                   said->why = "gone";
               }
               (*answered)(std::move(*said));
           });
    }

    // ---- servers

    void boot(std::size_t number) {
        Server& server = servers_[number];
        server.replica = std::make_unique<Replica>(*server.store, placement_, number,
                                                   ++last_incarnation_, [this] { return clock(); });
        server.wire = std::make_unique<Wire>(*this, number);
        server.follower =
            std::make_unique<Follower>(*server.replica, *server.wire, [](const std::string&) {});
        server.up = true;
    }

    void follow(std::size_t number) {
        Server& server = servers_[number];
        if (server.up && !server.hangs) {
            if (server.round && server.round->done()) {
                server.round->get();
                server.round.reset();
            }
            if (!server.round) {
                server.round = server.follower->round(clock());
                server.round->start();
            }
        }
        at(now_ + follow_interval / 2 + below(follow_interval), [this, number] { follow(number); });
    }

    void fault() {
        ++counts.faults;
        const std::size_t number = below(server_count);
        Server& server = servers_[number];
        const Time back = now_ + 1 + below(pick<Time>({40'000, 200'000}));
        if (chance(0.2)) {
            Client& client = clients_[below(client_count)];
            client.doing.reset();
            client.next = back;
        } else if (chance(0.1)) {
            server.full = true;
            at(back, [&server] { server.full = false; });
        } else if (!server.up || server.hangs || (contended_ && !are_others_there(number))) {
            return;
        } else if (chance(0.4)) {
            server.lost_touch = now_;
            server.hangs = true;  // and notices, when it goes on, that time has passed
            at(back, [&server] {
                server.hangs = false;
                if (server.up) server.replica->suspect();
            });
        } else {
            crash(number, contended_ || chance(0.7));
            at(back, [this, number] {
                if (!servers_[number].up) boot(number);
            });
        }
    }

    // Whether all that was acknowledged survives the loss of a server (of none, if there is no
    // such).
    bool are_others_there(std::size_t number) {
        for (std::size_t i = 0; i < server_count; ++i) {
            if (i == number) continue;
            Server& other = servers_[i];
            if (!other.up || other.hangs || !other.replica->is_ready()) return false;
        }
        return true;
    }

    void crash(std::size_t number, bool loses_data) {
        Server& server = servers_[number];
        server.up = false;
        server.round.reset();
        server.follower.reset();
        server.replica.reset();
        server.lost_memory = server.lost_touch = now_;
        if (!loses_data) {
            for (const std::uint64_t lease : std::exchange(server.leases, {})) {
                (void)server.store->end_lease(lease);
            }
            return;
        }
        server.lost_data = now_;
        std::erase_if(acquired_, [&](const auto& at) { return std::get<0>(at) == number; });
        wipe(server);
    }

    static void wipe(Server& server) {
        for (const std::string& model : server.store->list()) (void)server.store->retire(model);
        for (const std::uint64_t lease : std::exchange(server.leases, {})) {
            (void)server.store->end_lease(lease);
        }
        for (const std::string& holder : server.store->holders()) {
            server.store->release_holder(holder);
        }
    }

    void clear() {
        for (Server& server : servers_) {
            server.follower.reset();
            server.replica.reset();
            wipe(server);
        }
    }

    // ---- clients

    void live(std::size_t number) {
        Client& client = clients_[number];
        if (client.doing && client.doing->done()) {
            client.doing->get();
            client.doing.reset();
        }
        if (!client.doing && now_ >= client.next && now_ < start_ + faulty_time) {
            client.doing = act(*client.wire);
            client.doing->start();
        }
        at(now_ + 1 + below(12'000), [this, number] { live(number); });
    }

    Task<void> act(Wire& wire) {
        if (contended_ && chance(0.8)) {
            co_await contend(wire, "shared" + std::to_string(below(2)));
            co_return;
        }
        const unsigned what = below(100);
        if (what < 35 || known_.empty()) {
            co_await put_new(wire, chance(0.6));
        } else if (what < 45 && !contended_) {
            co_await put_again(wire);
        } else if (what < 60) {
            co_await retire_some(wire);
        } else if (what < 70) {
            co_await lean_on_a_lease(wire);
        } else {
            co_await read_some(wire);
        }
    }

    // One of several clients that change the same id.
    Task<void> contend(Wire& wire, const std::string& id) {
        std::vector<Operation>& history = histories_[id];
        if (history.size() == most_operations) co_return;
        const std::size_t at = history.size();
        history.emplace_back().begun = now_;
        const unsigned what = below(100);
        std::optional<Errc> error;
        bool silent = false;
        if (what < 40) {
            Planned planned;
            plan(planned, id, false);
            history[at].kind = Operation::Kind::put;
            history[at].value = last_value_;
            error = co_await put_planned(wire, planned);
        } else if (what < 70) {
            ++counts.retirements;
            history[at].kind = Operation::Kind::retire;
            error = co_await tried_to(retire(wire, placement_, id));
        } else {
            ++counts.reads;
            try {
                const Found found = co_await find(wire, placement_, id);
                const auto content = co_await read_found(wire, found, silent);
                // Retired since it was found.
                if (!content) co_return;
                check_content(id, *content);
                history[at].value = content->at("own-" + id);
            } catch (const Error& caught) {
                error = caught.code();
            }
        }
        Operation& operation = histories_[id][at];
        operation.done = !error;
        using enum Errc;
        operation.known = !error || error == already_exists || error == not_found;
        if (operation.known) operation.ended = now_;
    }

    static Task<std::optional<Errc>> tried_to(Task<void> task) {
        try {
            co_await task;
        } catch (const Error& error) {
            co_return error.code();
        }
        co_return std::nullopt;
    }

    void check_order() {
        for (const auto& [id, history] : histories_) {
            std::vector<Operation> checked;
            for (const Operation& operation : history) {
                // A question that nobody answered says nothing.
                if (operation.known || operation.kind != Operation::Kind::read) {
                    checked.push_back(operation);
                }
            }
            counts.contended += static_cast<unsigned>(checked.size());
            if (!is_linearizable(checked)) {
                wrong("no order explains what happened to " + id + describe(checked));
            }
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
        // Nobody leases a model that clients contend for: it would keep the id taken.
        for (unsigned i = contended_ && id.starts_with("s") ? 0 : 1 + below(3); i > 0; --i)
            names.push_back("t" + std::to_string(names.size()));
        names.push_back("own-" + id);
        planned.request.model = id;
        planned.request.table = chain(names);
        planned.request.score = value;
        std::set<std::uint32_t> inherited;
        if (inherits) {
            for (const Merged& merged : match(*planned.request.table)) {
                planned.leases.push_back({merged.server, merged.match.lease});
                std::ranges::copy(merged.others, std::back_inserter(planned.leases));
                for (const LayerLocation& layer : merged.match.layers) {
                    // An earlier model of this id may have it: it is to be told from this one.
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
        for (const Server& server : servers_) {
            if (!server.up) continue;
            try {
                const LayerKey key = layer_key(layer);
                const auto found = server.store->find_layers(owner, {&key, 1});
                const auto& tensor = found.front()->tensors.front();
                return value_of({tensor.extent.data, tensor.spec.nbytes()});
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
            if (!server.up || server.hangs || !server.replica->is_ready() || chance(loss_))
                continue;
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
        const bool done = !co_await put_planned(wire, planned);
        if (done && known.retirement_begun > now_) note_acknowledged(id, known);
    }

    // Of an id that others put, too; only that the servers agree in the end is checked of these.
    Task<void> put_again(Wire& wire) {
        Planned planned;
        plan(planned, "shared" + std::to_string(below(2)), chance(0.5));
        (void)co_await put_planned(wire, planned);
    }

    // What went wrong.
    Task<std::optional<Errc>> put_planned(Wire& wire, Planned& planned) {
        ++counts.puts;
        std::optional<Errc> wrong = Errc::not_found;
        if (planned.possible) try {
                PutRequest request = planned.request;
                std::vector<std::span<const std::byte>> tensors = planned.tensors;
                put_in_order(request, tensors);
                (void)co_await put(wire, placement_, std::move(request), tensors);
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
        for (const std::size_t i : placement_.of(id)) {
            if (has(servers_[i], id)) known.servers.push_back(i);
        }
        if (known.servers.empty()) return;
        const Replica& replica = *servers_[known.servers.front()].replica;
        const std::string heir = versioned(id, replica.state(id).version);
        for (const auto& [layer, value] : truth_.at(known.value)) {
            if (value == known.value) continue;
            const std::string owner = owner_of(id, layer);
            std::vector<std::size_t>& at = known.owners[owner];
            for (const std::size_t i : placement_.of(id_of(owner))) {
                if (acquired_.contains({i, owner, heir})) at.push_back(i);
            }
        }
    }

    static bool has(const Server& server, const std::string& id) {
        return server.up && server.store->contains(id);
    }

    std::string owner_of(const std::string& id, const std::string& layer) {
        for (Server& server : servers_) {
            if (!has(server, id)) continue;
            const ModelInfo info = server.store->lookup(id);
            for (const LayerLocation& location : info.layers) {
                if (info.table->name(location.layer) == layer) return location.owner;
            }
        }
        return id;
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

    // And whether one of the servers that kept it answers, or one that it told.
    bool is_answered(const Known& known) const {
        return is_safe(known) && std::ranges::any_of(known.servers, [&](std::size_t i) {
                   const Server& server = servers_[i];
                   return std::max(server.lost_data, server.lost_touch) < *known.acknowledged;
               });
    }

    std::string some_id() {
        auto known = known_.begin();
        std::advance(known, below(known_.size()));
        return known->first;
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
            return std::ranges::any_of(placement_.of(id_of(layer.first)), [&](std::size_t i) {
                const Server& server = servers_[i];
                return server.up &&
                       server.replica->missing(layer.first, {&layer.second, 1}).empty();
            });
        };
        std::erase_if(layers, [&](const auto& layer) { return !is_kept(layer); });
        const Time begun = now_;
        const bool all_there = are_others_there(server_count);
        if (chance(0.7)) co_await retire_one(wire, match.match.model);
        if (chance(0.7) && !layers.empty()) co_await retire_one(wire, id_of(layers.front().first));
        co_await wire.rest(std::chrono::milliseconds(1 + below(500)));
        const auto stayed = [&](const Server& server) {
            return std::max(server.lost_memory, server.lost_touch) < begun;
        };
        const bool undisturbed = !loses_ && all_there && std::ranges::all_of(servers_, stayed);
        if (undisturbed && !std::ranges::all_of(layers, is_kept)) {
            wrong("layers of a model that a client leases are gone");
        }
        end_leases(leases);
    }

    Task<void> retire_some(Wire& wire) {
        const std::string id =
            !contended_ && chance(0.2) ? "shared" + std::to_string(below(2)) : some_id();
        co_await retire_one(wire, id);
    }

    Task<void> retire_one(Wire& wire, std::string id) {
        ++counts.retirements;
        const auto known = known_.find(id);
        if (known != known_.end()) {
            known->second.retirement_begun = std::min(known->second.retirement_begun, now_);
        }
        try {
            co_await retire(wire, placement_, id);
            if (known == known_.end()) co_return;
            known->second.retired = now_;
            known->second.told.clear();
            for (const std::size_t i : placement_.of(id)) {
                if (servers_[i].up && servers_[i].replica->state(id).presence >= Presence::leased) {
                    known->second.told.push_back(i);
                }
            }
        } catch (const Error& error) {
            if (error.code() != Errc::not_found && !is_silence(error)) throw;
        }
    }

    Task<void> read_some(Wire& wire) {
        ++counts.reads;
        const std::string id =
            !contended_ && chance(0.2) ? "shared" + std::to_string(below(2)) : some_id();
        const auto known = known_.find(id);
        const Time begun = now_;
        const bool was_safe = known != known_.end() && is_answered(known->second) &&
                              *known->second.acknowledged < begun;
        const std::uint64_t losses = failures_;
        std::optional<Content> content;
        bool silent = false;
        try {
            const Found found = co_await find(wire, placement_, id);
            content = co_await read_found(wire, found, silent);
        } catch (const Error& error) {
            if (error.code() != Errc::not_found && !is_silence(error)) throw;
            silent = silent || is_silence(error);
        }
        // What nobody could be asked for is not missing.
        silent = silent || failures_ > losses;
        if (content) {
            check_content(id, *content);
        } else if (was_safe && !loses_ && !silent && is_answered(known->second) &&
                   known->second.retirement_begun > now_) {
            wrong("model " + id + " was acknowledged, and is not found");
        }
    }

    Task<std::optional<Content>> read_found(Wire& wire, const Found& found, bool& silent) {
        Content content;
        for (const LayerLocation& layer : found.info.layers) {
            const std::string name(found.info.table->name(layer.layer));
            if (layer.stored) {
                const auto& tensor = layer.stored->tensors.front();
                content[name] = value_of({tensor.extent.data, tensor.spec.nbytes()});
                continue;
            }
            for (const std::size_t server :
                 order_of_reading(wire, placement_, id_of(layer.owner))) {
                Request request(Request::Kind::fetch);
                request.model = layer.owner;
                request.keys = {found.info.table->key(layer.layer)};
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
        for (Client& client : clients_) client.next = ~Time{0};
        for (std::size_t i = 0; i < server_count; ++i) {
            servers_[i].full = servers_[i].hangs = false;
            if (!servers_[i].up) boot(i);
        }
        until(now_ + 3 * timeout + 8 * longest_delay);
        for (Client& client : clients_) client.doing.reset();
        // Long enough for clients' leases, and for puts that nobody finished.
        for (Server& server : servers_) {
            for (const std::uint64_t lease : std::exchange(server.leases, {})) {
                (void)server.store->end_lease(lease);
            }
        }
        now_ += 1'000'000 * 60 * 11;
        until(now_ + 6 * follow_interval);
    }

    void check_at_rest() {
        std::set<std::string> ids;
        for (const auto& [id, known] : known_) ids.insert(id);
        ids.insert({"shared0", "shared1"});
        for (const std::string& id : ids) {
            const std::vector<std::size_t> at = placement_.of(id);
            const bool visible = has(servers_[at[0]], id);
            for (const std::size_t i : at) {
                if (has(servers_[i], id) != visible) {
                    wrong("servers disagree about model " + id + " in the end");
                }
                if (visible) check_at_rest(servers_[i], id);
            }
            const auto known = known_.find(id);
            if (known == known_.end()) continue;
            const Known& said = known->second;
            if (!visible && is_safe(said) && said.retirement_begun == ~Time{0}) {
                wrong("model " + id + " was acknowledged, and is lost");
            }
            if (visible && said.retired && std::ranges::any_of(said.told, [&](std::size_t i) {
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
                const auto& tensor = layer.stored->tensors.front();
                content[name] = value_of({tensor.extent.data, tensor.spec.nbytes()});
                continue;
            }
            std::size_t copies = 0;
            for (const std::size_t i : placement_.of(id_of(layer.owner))) {
                if (!servers_[i].replica->missing(layer.owner, {&key, 1}).empty()) continue;
                ++copies;
                const auto found = servers_[i].store->find_layers(layer.owner, {&key, 1});
                const auto& tensor = found.front()->tensors.front();
                content[name] = value_of({tensor.extent.data, tensor.spec.nbytes()});
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
        for (Server& server : servers_) {
            for (const std::string& id : server.store->list()) {
                const Version version = server.replica->state(id).version;
                for (const std::size_t i : placement_.of(id))
                    servers_[i].replica->bury(id, version);
            }
        }
        until(now_ + 6 * follow_interval);
        for (const Server& server : servers_) {
            const StoreStats stats = server.store->stats();
            if (stats.models != 0 || stats.layers != 0 || stats.foreign_holders != 0 ||
                stats.memory.used != 0) {
                wrong("a server keeps " + std::to_string(stats.layers) + " layers for " +
                      std::to_string(stats.foreign_holders) + " holders that nobody needs");
            }
        }
    }

    // One server is gone for good: soon all calls come to a good end without it.
    void check_goes_on() {
        crash(below(server_count), true);
        until(now_ + 6 * follow_interval);
        Task<void> calls = go_on(*clients_[below(client_count)].wire);
        calls.start();
        until(now_ + 12 * timeout);
        if (!calls.done()) wrong("calls do not come to an end while a server is gone");
        calls.get();
    }

    Task<void> go_on(Wire& wire) {
        for (const std::string id : {"last0", "last1", "last2"}) {
            Planned planned;
            plan(planned, id, false);
            if (co_await put_planned(wire, planned)) wrong(id + " cannot be put without a server");
            try {
                bool silent = false;
                const auto content =
                    co_await read_found(wire, co_await find(wire, placement_, id), silent);
                if (!content) wrong(id + " cannot be read without a server");
                check_content(id, *content);
                co_await retire(wire, placement_, id);
            } catch (const Error& error) {
                wrong(id + " cannot be used without a server: " + error.what());
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
    const Placement placement_;
    bool contended_ = false;
    double loss_ = 0;
    bool loses_ = false;  // messages
    double repeat_ = 0;
    std::priority_queue<Event, std::vector<Event>, std::greater<>> events_;
    std::uint64_t last_event_ = 0;
    std::uint64_t last_incarnation_ = 0;
    // Servers where an heir's reference to an owner was acquired.
    std::set<std::tuple<std::size_t, std::string, std::string>> acquired_;
    std::uint64_t failures_ = 0;  // answers that clients did not get
    std::array<Server, server_count> servers_;
    std::array<Client, client_count> clients_;
    std::map<std::string, Known> known_;
    std::map<std::string, std::vector<Operation>> histories_;  // of ids that clients contend for
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
        world_.send(server, calls[i].request,
                    [this, asked, answered, left, i, server](Answer answer) {
                        const auto waiting = asked.lock();
                        if (!waiting || (*answered)[i]) return;
                        (*answered)[i] = true;
                        if (answer.is_unreachable()) {
                            down_until_[server] = world_.now_ + down_for;
                            ++world_.failures_;
                        }
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

Version Wire::now() const {
    // Clients' clocks differ.
    return (world_.now_ + 20'000 * (actor_ % client_count)) << 16 | actor_;
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
        stores_->stores.push_back(std::make_unique<Store>(options));
    }
}

Simulator::~Simulator() = default;

Simulated Simulator::run(std::uint64_t seed) {
    World world(seed, stores_->stores, stores_->clock);
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
