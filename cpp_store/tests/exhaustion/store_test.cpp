// Every allocation of every request to a store fails in turn: one clean error, nothing changed,
// nothing lost.
#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "cpp_store/store.hpp"
#include "exhaustion/failing_new.hpp"
#include "models.hpp"

namespace cpp_store {
namespace {

using std::chrono::milliseconds;

constexpr std::uint64_t MiB = std::uint64_t{1} << 20;
constexpr milliseconds minute{60'000};

std::vector<LayerKey> keys_of(const LayerTable& table) {
    return {table.keys().begin(), table.keys().end()};
}

const LayerTablePtr three = chain({"a", "b", "c"});
const LayerTablePtr grown = chain({"a", "b", "d", "e"});
const std::string holder = "a model that another server keeps, with a long name";

// Tensors for the layers from `first` on.
PutRequest model(const std::string& id, const LayerTablePtr& table, std::uint32_t first = 0) {
    PutRequest request;
    request.model = id;
    request.ns = "a namespace of more bytes than a string keeps to itself";
    request.table = table;
    for (std::uint32_t i = first; i < table->size(); ++i) {
        request.own.push_back({i, {{DType::float32, {10, i + 1}}, {DType::float32, {7}}}});
    }
    return request;
}

PutRequest heir(const std::string& id, bool foreign = false) {
    PutRequest request = model(id, grown, 2);
    for (const std::uint32_t layer : {0u, 1u}) {
        request.inherited.push_back({layer, foreign ? "of another server" : "parent", foreign, 0});
    }
    return request;
}

void put(Store& store, const PutRequest& request) {
    PendingPut pending = store.prepare(request);
    for (std::size_t i = 0; i < pending.buffers().size(); ++i) {
        const std::vector<std::byte> bytes(pending.buffers()[i].size(), std::byte(i + 1));
        pending.fill(i, bytes.data());
    }
    store.commit(std::move(pending));
}

// A store with a model of three layers, and whatever a case puts beside it.
struct Fixture {
    Fixture() {
        Store::Options options;
        options.memory = {.limit = 64 * MiB, .region_size = 4 * MiB, .ahead = 0};
        options.clock = [now = now] { return *now; };
        store = std::make_unique<Store>(options);
        put(*store, model("parent", three));
    }
    // Everything goes, the ordinary way.
    void empty() {
        found.clear();
        *now += 2 * minute;
        store->expire_leases();
        for (const std::string& id : store->list()) (void)store->retire(id);
        for (const std::string& name : store->holders()) store->release_holder(name);
    }
    std::shared_ptr<std::chrono::steady_clock::time_point> now =
        std::make_shared<std::chrono::steady_clock::time_point>();
    std::unique_ptr<Store> store;
    std::vector<StoredLayerPtr> found;
    std::uint64_t lease = 0;
};

struct Case {
    std::string name;
    std::function<void(Fixture&)> before;   // what is there when the request comes
    std::function<void(Fixture&)> request;  // throws, or has done it
    std::function<bool(Fixture&)> is_done;  // whether it has taken effect, wholly
};

bool has(Fixture& at, const std::string& id, std::size_t layers) {
    return at.store->contains(id) && at.store->read(id, {}).size() == layers;
}

std::uint64_t best_match(Fixture& at) {
    const auto matches =
        at.store->best_matches(*grown, {.ns = model("", grown).ns, .count = 2}, minute);
    EXPECT_EQ(matches.at(0).match.layers, 2u);
    return matches.at(0).lease;
}

const auto nothing = [](Fixture&) {};
const auto always = [](Fixture&) { return true; };

std::vector<Case> cases() {
    return {
        {"put", nothing, [](Fixture& at) { put(*at.store, model("new", three)); },
         [](Fixture& at) { return has(at, "new", 3); }},
        {"put_of_an_heir", nothing, [](Fixture& at) { put(*at.store, heir("heir")); },
         [](Fixture& at) { return has(at, "heir", 4); }},
        {"put_of_an_heir_of_another_server", nothing,
         [](Fixture& at) { put(*at.store, heir("heir", true)); },
         [](Fixture& at) { return has(at, "heir", 4); }},
        {"put_where_layers_were_adopted",
         [](Fixture& at) {
             PendingPut layers = at.store->prepare_adoption(
                 "new@7", {{three->key(1), model("", three).own[1].tensors}});
             at.store->adopt(std::move(layers), holder);
         },
         [](Fixture& at) {
             PutRequest request = model("new", three);
             request.owner = "new@7";
             put(*at.store, request);
         },
         [](Fixture& at) { return has(at, "new", 3); }},
        {"put_again", nothing, [](Fixture& at) { put(*at.store, model("parent", three)); },
         [](Fixture& at) { return has(at, "parent", 3); }},
        {"adopt", nothing,
         [](Fixture& at) {
             PendingPut layers = at.store->prepare_adoption(
                 "gone@3", {{three->key(0), model("", three).own[0].tensors},
                            {three->key(1), model("", three).own[1].tensors}});
             at.store->adopt(std::move(layers), holder);
         },
         [](Fixture& at) {
             const std::vector<LayerKey> keys = {three->key(0), three->key(1)};
             return at.store->stats().layers == 5 && !at.store->find_layers("gone@3", keys).empty();
         }},
        {"read", nothing,
         [](Fixture& at) {
             at.found.clear();
             for (LayerLocation& each : at.store->read("parent", {})) {
                 at.found.push_back(std::move(each.stored));
             }
         },
         [](Fixture& at) { return at.found.size() == 3; }},
        {"fetch", nothing,
         [](Fixture& at) { at.found = at.store->fetch("parent", keys_of(*three)); },
         [](Fixture& at) { return at.found.size() == 3; }},
        {"lookup", nothing,
         [](Fixture& at) { EXPECT_EQ(at.store->lookup("parent").layers.size(), 3u); }, always},
        {"list", nothing, [](Fixture& at) { EXPECT_EQ(at.store->list().size(), 1u); }, always},
        {"stats", nothing, [](Fixture& at) { EXPECT_EQ(at.store->stats().models, 1u); }, always},
        {"verify", nothing, [](Fixture& at) { EXPECT_TRUE(at.store->verify().empty()); }, always},
        {"holders", nothing, [](Fixture& at) { EXPECT_TRUE(at.store->holders().empty()); }, always},
        {"best_match", [](Fixture& at) { put(*at.store, model("second", grown)); },
         [](Fixture& at) {
             const auto matches =
                 at.store->best_matches(*grown, {.ns = model("", grown).ns, .count = 2}, minute);
             at.lease = matches.at(0).lease;
             EXPECT_EQ(matches.at(0).match.layers, 4u);
             EXPECT_EQ(matches.at(1).match.layers, 2u);
         },
         [](Fixture& at) { return at.store->stats().leases == 2; }},
        {"end_of_a_lease",
         [](Fixture& at) {
             at.lease = best_match(at);
             (void)at.store->retire("parent");
         },
         [](Fixture& at) { (void)at.store->end_lease(at.lease); },
         [](Fixture& at) { return at.store->stats().layers == 0; }},
        {"end_of_a_lease_with_references_elsewhere",
         [](Fixture& at) {
             put(*at.store, heir("heir", true));
             (void)at.store->retire("parent");
             const auto matches =
                 at.store->best_matches(*grown, {.ns = model("", grown).ns}, minute);
             at.lease = matches.at(0).lease;
             (void)at.store->retire("heir");
         },
         [](Fixture& at) { EXPECT_EQ(at.store->end_lease(at.lease).by_owner.size(), 1u); },
         [](Fixture& at) { return at.store->stats().layers == 0; }},
        {"expiry_of_leases",
         [](Fixture& at) {
             (void)best_match(at);
             (void)at.store->retire("parent");
             *at.now += 2 * minute;
         },
         [](Fixture& at) { EXPECT_EQ(at.store->expire_leases(), 1u); },
         [](Fixture& at) { return at.store->stats().layers == 0; }},
        {"retire", nothing, [](Fixture& at) { (void)at.store->retire("parent"); },
         [](Fixture& at) { return at.store->stats().layers == 0; }},
        {"retire_of_what_is_leased", [](Fixture& at) { at.lease = best_match(at); },
         [](Fixture& at) { (void)at.store->retire("parent"); },
         [](Fixture& at) { return at.store->stats().retired == 1; }},
        {"retire_of_an_heir", [](Fixture& at) { put(*at.store, heir("heir", true)); },
         [](Fixture& at) { EXPECT_EQ(at.store->retire("heir").by_owner.size(), 1u); },
         [](Fixture& at) { return at.store->stats().layers == 3; }},
        {"acquire", nothing,
         [](Fixture& at) { at.store->acquire("parent", keys_of(*three), holder); },
         [](Fixture& at) { return at.store->stats().foreign_holders == 1; }},
        {"release",
         [](Fixture& at) {
             at.store->acquire("parent", keys_of(*three), holder);
             (void)at.store->retire("parent");
         },
         [](Fixture& at) { at.store->release("parent", keys_of(*three), holder); },
         [](Fixture& at) { return at.store->stats().layers == 0; }},
        {"release_of_a_holder",
         [](Fixture& at) {
             at.store->acquire("parent", keys_of(*three), holder);
             (void)at.store->retire("parent");
         },
         [](Fixture& at) { at.store->release_holder(holder); },
         [](Fixture& at) { return at.store->stats().layers == 0; }},
    };
}

void expect_empty(const StoreStats& stats) {
    EXPECT_EQ(stats.models, 0u);
    EXPECT_EQ(stats.retired, 0u);
    EXPECT_EQ(stats.layers, 0u);
    EXPECT_EQ(stats.tensors, 0u);
    EXPECT_EQ(stats.bytes_stored, 0u);
    EXPECT_EQ(stats.bytes_referenced, 0u);
    EXPECT_EQ(stats.leases, 0u);
    EXPECT_EQ(stats.foreign_holders, 0u);
    EXPECT_EQ(stats.memory.used, 0u);
    EXPECT_EQ(stats.index.models, 0u);
    EXPECT_EQ(stats.index.layers, 0u);
    EXPECT_EQ(stats.index.namespaces, 0u);
}

// Of what requests change, but for counts of calls.
auto contents(const StoreStats& stats) {
    return std::tuple(stats.models, stats.retired, stats.layers, stats.tensors, stats.bytes_stored,
                      stats.bytes_referenced, stats.leases, stats.foreign_holders,
                      stats.memory.used, stats.index.models, stats.index.layers);
}

void PrintTo(const Case& each, std::ostream* out) {
    *out << each.name;
}

class Exhaustion : public testing::TestWithParam<std::tuple<Case, failing_new::Which>> {};

TEST_P(Exhaustion, IsOneErrorAndChangesNothing) {
    const auto& [each, which] = GetParam();
    for (std::uint64_t number = 1;; ++number) {
        SCOPED_TRACE("allocation " + std::to_string(number));
        Fixture at;
        each.before(at);
        const auto before = contents(at.store->stats());
        bool is_refused = false;
        failing_new::arm(failing_new::Where::here, which, number);
        try {
            each.request(at);
        } catch (const std::bad_alloc&) {
            is_refused = true;
        }  // any other exception fails the test
        const bool is_over = failing_new::disarm() == 0;
        EXPECT_TRUE(at.store->verify().empty());
        if (is_refused) {
            EXPECT_EQ(contents(at.store->stats()), before);
            each.request(at);  // nothing stands in its way
        }
        EXPECT_TRUE(each.is_done(at));
        at.empty();
        expect_empty(at.store->stats());
        if (is_over || HasFailure()) break;
        ASSERT_LT(number, 2'000u);
    }
}

std::string name_of(const testing::TestParamInfo<Exhaustion::ParamType>& info) {
    const auto& [each, which] = info.param;
    return each.name + (which == failing_new::Which::one ? "_once" : "_for_good");
}

INSTANTIATE_TEST_SUITE_P(OfARequest, Exhaustion,
                         testing::Combine(testing::ValuesIn(cases()),
                                          testing::Values(failing_new::Which::one,
                                                          failing_new::Which::rest)),
                         name_of);

}  // namespace
}  // namespace cpp_store
