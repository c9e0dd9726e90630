#include "cpp_store/store.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <fstream>
#include <limits>
#include <map>
#include <optional>
#include <random>
#include <set>
#include <thread>

#include "core/checksum.hpp"
#include "models.hpp"
#include "sanitizers.hpp"

namespace cpp_store {
namespace {

using std::chrono::milliseconds;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::UnorderedElementsAre;

constexpr std::uint64_t MiB = std::uint64_t{1} << 20;

// Some tests are long and have one thread only: ThreadSanitizer has little to see there.
constexpr bool looks_for_races = CPP_STORE_TSAN;

Store::Options options(std::uint64_t limit = 64 * MiB) {
    Store::Options made;
    made.memory = {.limit = limit, .region_size = 4 * MiB, .ahead = 0};
    return made;
}

TensorSpec floats(std::vector<std::uint64_t> shape) {
    return {DType::float32, std::move(shape)};
}

std::uint64_t put(Store& store, PutRequest request, unsigned seed = 1) {
    PendingPut pending = store.prepare(std::move(request));
    for (std::size_t i = 0; i < pending.buffers().size(); ++i) {
        const Bytes source = pattern(pending.buffers()[i].size(), seed + static_cast<unsigned>(i));
        pending.fill(i, source.data());
    }
    return store.commit(std::move(pending));
}

// A model that brings tensors of 10 floats for all layers of its chain.
PutRequest whole(const std::string& model, const std::vector<std::string>& names) {
    PutRequest request;
    request.model = model;
    request.table = chain(names);
    for (std::uint32_t i = 0; i < names.size(); ++i) request.own.push_back({i, {floats({10})}});
    return request;
}

// A model that inherits the first `inherited` layers of its chain from `owner`.
PutRequest child(const std::string& model, const std::vector<std::string>& names,
                 std::uint32_t inherited, const std::string& owner) {
    PutRequest request = whole(model, names);
    request.own.erase(request.own.begin(), request.own.begin() + inherited);
    for (std::uint32_t i = 0; i < inherited; ++i) request.inherited.push_back({i, owner});
    return request;
}

Bytes bytes_of(const StoredLayer& layer, std::size_t tensor = 0) {
    const StoredLayer::Tensor& found = layer.tensors.at(tensor);
    return {found.extent.data, found.extent.data + found.spec.nbytes()};
}

// A clock that tests move.
struct Clock {
    std::shared_ptr<std::atomic<std::int64_t>> ms =
        std::make_shared<std::atomic<std::int64_t>>(1'000);
    void attach(Store::Options& to) const {
        to.clock = [now = ms] {
            return std::chrono::steady_clock::time_point(milliseconds(now->load()));
        };
    }
    void advance(std::int64_t by) const { *ms += by; }
};

TEST(Store, ReturnsWhatWasPut) {
    Store store(options());
    EXPECT_EQ(put(store, whole("m", {"a", "b"}), 5), 80U);
    const auto read = store.read("m", {});
    ASSERT_EQ(read.size(), 2U);
    EXPECT_EQ(read[0].layer, 0U);
    EXPECT_EQ(read[0].owner, "m");
    EXPECT_EQ(read[0].stored->key, layer_key("a"));
    EXPECT_EQ(read[0].stored->tensors[0].spec, floats({10}));
    EXPECT_EQ(bytes_of(*read[0].stored), pattern(40, 5));
    EXPECT_EQ(bytes_of(*read[1].stored), pattern(40, 6));
    const std::vector<std::uint32_t> second{1};
    EXPECT_EQ(store.read("m", second).at(0).layer, 1U);
    EXPECT_THAT(store.verify(), IsEmpty());
}

TEST(Store, KeepsEveryDtypeAndShape) {
    Store store(options());
    PutRequest request;
    request.model = "m";
    request.table = chain({"all"});
    request.own.push_back({0, {}});
    for (std::size_t i = 0; i < dtype_count; ++i) {
        for (const std::vector<std::uint64_t>& shape :
             {std::vector<std::uint64_t>{}, {0}, {3, 0, 2}, {1}, {3, 5}, {2, 3, 4, 5}}) {
            request.own[0].tensors.push_back({static_cast<DType>(i), shape});
        }
    }
    const std::vector<TensorSpec> specs = request.own[0].tensors;
    put(store, request, 3);
    const auto read = store.read("m", {});
    ASSERT_EQ(read.at(0).stored->tensors.size(), specs.size());
    for (std::size_t i = 0; i < specs.size(); ++i) {
        const StoredLayer::Tensor& tensor = read[0].stored->tensors[i];
        EXPECT_EQ(tensor.spec, specs[i]);
        EXPECT_EQ(reinterpret_cast<std::uintptr_t>(tensor.extent.data) % 64, 0U);
        EXPECT_EQ(bytes_of(*read[0].stored, i),
                  pattern(specs[i].nbytes(), 3 + static_cast<unsigned>(i)));
    }
}

std::uint64_t available_memory() {
    std::ifstream meminfo("/proc/meminfo");
    std::string name;
    std::uint64_t kib = 0;
    std::string unit;
    while (meminfo >> name >> kib >> unit) {
        if (name == "MemAvailable:") return kib * 1024;
    }
    return 0;
}

TEST(Store, KeepsTensorsOfMoreThanTwoGiB) {
    constexpr std::uint64_t size = (std::uint64_t{2} << 30) + 4'097;
    if (looks_for_races || available_memory() < 2 * size) {
        GTEST_SKIP() << "needs " << 2 * size << " bytes, and no race detector";
    }
    Store store(options(3'000 * MiB));
    PutRequest request = whole("m", {"a"});
    request.own[0].tensors = {{DType::uint8, {size}}, {DType::uint8, {3}}};
    PendingPut pending = store.prepare(request);
    pending.buffers()[0].back() = std::byte{5};  // what was never touched reads as zero
    pending.buffers()[1].back() = std::byte{6};
    EXPECT_EQ(store.commit(std::move(pending)), size + 3);
    const StoredLayerPtr layer = store.read("m", {}).at(0).stored;
    ASSERT_EQ(layer->tensors[0].spec.nbytes(), size);
    EXPECT_EQ(layer->tensors[0].extent.data[size - 1], std::byte{5});
    EXPECT_EQ(layer->tensors[1].extent.data[2], std::byte{6});
    EXPECT_THAT(store.verify(), IsEmpty());
}

TEST(Store, ChecksumsAreThoseOfTheBytesHoweverTheyCame) {
    // Sizes around those at which the copy changes its ways.
    for (const std::uint64_t size :
         {0, 1, 63, 64, 4095, 4096, 262'143, 262'144, 262'145, 5'000'001}) {
        const Bytes source = pattern(size + 1, 9);
        Bytes room(size + 64);
        std::byte* target = room.data();
        while (reinterpret_cast<std::uintptr_t>(target) % 64) ++target;
        const Checksum plain = checksum_of(source.data() + 1, size);
        EXPECT_EQ(copy_and_checksum(target, source.data() + 1, size), plain) << size;
        EXPECT_TRUE(std::equal(target, target + size, source.begin() + 1)) << size;
        // In pieces, of which every other one is in its place already.
        std::fill(room.begin(), room.end(), std::byte{0});
        CopySum sum(target, size);
        bool is_there = false;
        for (std::uint64_t done = 0, part = 64; done < size; done += part, part = part * 3) {
            part = std::min(part, size - done);
            if (is_there) std::copy_n(source.data() + 1 + done, part, target + done);
            is_there ? sum.add_in_place(part) : sum.add(source.data() + 1 + done, part);
            is_there = !is_there;
        }
        EXPECT_EQ(sum.value(), plain) << size;
        EXPECT_TRUE(std::equal(target, target + size, source.begin() + 1)) << size;
    }
}

TEST(Store, SumsAtCommitWhatWasFilledOtherwise) {
    Store store(options());
    PendingPut pending = store.prepare(whole("m", {"a"}));
    std::memset(pending.buffers()[0].data(), 3, 40);
    store.commit(std::move(pending));
    const auto read = store.read("m", {});
    EXPECT_EQ(read[0].stored->tensors[0].checksum, checksum_of(Bytes(40, std::byte{3}).data(), 40));
}

TEST(Store, VerifyNamesALayerWhoseBytesChanged) {
    Store store(options());
    put(store, whole("m", {"a", "b"}));
    store.read("m", {})[1].stored->tensors[0].extent.data[7] ^= std::byte{1};
    EXPECT_THAT(store.verify(), ElementsAre(testing::StartsWith("m/")));
}

TEST(Store, NothingIsVisibleBeforeCommitAndDroppingGivesAllBack) {
    Store store(options());
    put(store, whole("parent", {"a"}));
    const std::uint64_t used = store.stats().memory.used;
    {
        const PendingPut pending = store.prepare(child("m", {"a", "b"}, 1, "parent"));
        EXPECT_FALSE(store.contains("m"));
        EXPECT_GT(store.stats().memory.used, used);
        // The reference is taken already: the parent may go.
        store.retire("parent");
        EXPECT_EQ(store.fetch("parent", std::vector{layer_key("a")}).size(), 1U);
    }
    EXPECT_EQ(store.stats().memory.used, 0U);
    EXPECT_EQ(store.stats().layers, 0U);
}

TEST(Store, PutIsIdempotent) {
    Store store(options());
    EXPECT_EQ(put(store, whole("m", {"a"}), 1), 40U);
    EXPECT_EQ(put(store, whole("m", {"a"}), 1), 40U);
    EXPECT_EQ(store.stats().puts, 1U);
    EXPECT_EQ(store.stats().memory.used, 64U);
    std::string message;
    EXPECT_EQ(code_of([&] { put(store, whole("m", {"a"}), 2); }, &message), Errc::already_exists);
    EXPECT_THAT(message, HasSubstr("'m'"));
    // Another description is refused before any memory is taken.
    PutRequest other = whole("m", {"a"});
    other.score = 2;
    EXPECT_EQ(code_of([&] { (void)store.prepare(other); }), Errc::already_exists);
    EXPECT_EQ(bytes_of(*store.read("m", {})[0].stored), pattern(40, 1));
    EXPECT_EQ(store.stats().memory.used, 64U);
}

TEST(Store, InheritedLayersMoveNoBytesAndOutliveTheirOwner) {
    Store store(options());
    put(store, whole("p", {"a", "b", "c"}), 1);
    EXPECT_EQ(put(store, child("c", {"a", "b", "x"}, 2, "p"), 7), 40U);
    EXPECT_EQ(store.stats().bytes_stored, 160U);
    EXPECT_EQ(store.stats().bytes_referenced, 240U);
    {
        const ModelInfo info = store.lookup("c");
        EXPECT_EQ(info.bytes_own, 40U);
        EXPECT_EQ(info.bytes_inherited, 80U);
        EXPECT_EQ(info.layers[0].owner, "p");
        EXPECT_EQ(info.layers[2].owner, "c");
    }

    store.retire("p");
    EXPECT_FALSE(store.contains("p"));
    EXPECT_EQ(store.stats().bytes_stored, 120U);  // only the layer that nobody inherits went
    EXPECT_EQ(bytes_of(*store.read("c", {})[1].stored), pattern(40, 2));
    // A grandchild inherits from the owner, not from the child.
    put(store, child("g", {"a", "b"}, 2, "p"));
    store.retire("c");
    EXPECT_EQ(bytes_of(*store.read("g", {})[0].stored), pattern(40, 1));
    store.retire("g");
    EXPECT_EQ(store.stats().memory.used, 0U);
    EXPECT_EQ(store.stats().layers, 0U);
    EXPECT_EQ(store.stats().tensors, 0U);
    EXPECT_EQ(store.stats().bytes_stored, 0U);
    EXPECT_EQ(store.stats().bytes_referenced, 0U);
}

TEST(Store, AnOwnersIdStaysTakenWhileItsLayersAreReferredTo) {
    Store store(options());
    put(store, whole("p", {"a", "b"}));
    put(store, child("c", {"a", "x"}, 1, "p"));
    store.retire("p");
    std::string message;
    EXPECT_EQ(code_of([&] { put(store, whole("p", {"a", "b"})); }, &message), Errc::already_exists);
    EXPECT_THAT(message, HasSubstr("choose another id"));
    store.retire("c");
    EXPECT_EQ(put(store, whole("p", {"a", "b"})), 80U);
}

TEST(Store, ViewsOutliveRetirementAndTheStore) {
    std::optional<Store> store(options());
    put(*store, whole("m", {"a", "b"}), 4);
    StoredLayerPtr view = store->read("m", {})[0].stored;
    store->retire("m");
    EXPECT_EQ(store->stats().memory.used, 64U);
    EXPECT_EQ(store->stats().bytes_stored, 0U);
    EXPECT_EQ(code_of([&] { (void)store->fetch("m", std::vector{layer_key("a")}); }),
              Errc::not_found);
    EXPECT_EQ(bytes_of(*view), pattern(40, 4));
    store.reset();
    EXPECT_EQ(bytes_of(*view), pattern(40, 4));
    view.reset();
}

TEST(Store, WhoPinsAPendingLayerKeepsItsMemoryAlone) {
    Store store(options());
    StoredLayerPtr pinned;
    {
        const PendingPut pending = store.prepare(whole("m", {"a", "b"}));
        const std::vector<LayerLocation> layers = pending.layers();
        ASSERT_EQ(layers.size(), 2U);
        EXPECT_EQ(layers[1].owner, "m");
        pinned = layers[1].stored;
        EXPECT_EQ(pinned->tensors[0].extent.data, pending.buffers()[1].data());
    }
    std::memset(pinned->tensors[0].extent.data, 1, 40);
    EXPECT_EQ(store.stats().memory.used, 64U);
    pinned.reset();
    EXPECT_EQ(store.stats().memory.used, 0U);
}

TEST(Store, APendingPutOutlivesTheStore) {
    std::optional<Store> store(options());
    put(*store, whole("p", {"a"}));
    std::optional<PendingPut> pending(store->prepare(child("m", {"a", "b"}, 1, "p")));
    store.reset();
    std::memset(pending->buffers()[0].data(), 1, 40);
    pending.reset();
}

TEST(Store, WithoutMemoryNothingChanges) {
    Store store(options(MiB));
    put(store, whole("m", {"a"}));
    PutRequest large = child("large", {"a", "b"}, 1, "m");
    large.own[0].tensors = {floats({1024}), floats({1024, 1024})};
    std::string message;
    EXPECT_EQ(code_of([&] { (void)store.prepare(large); }, &message), Errc::out_of_memory);
    EXPECT_THAT(message, HasSubstr("limit 1048576, used 64"));
    EXPECT_FALSE(store.contains("large"));
    EXPECT_EQ(store.stats().memory.used, 64U);
    EXPECT_EQ(bytes_of(*store.read("m", {})[0].stored), pattern(40, 1));
    store.retire("m");
    EXPECT_EQ(store.stats().layers, 0U);  // the refused child had left no reference
}

TEST(Store, FillsUpToTheLimitAndRecovers) {
    Store store(options(MiB));
    int stored = 0;
    const auto name = [](int i) { return "m" + std::to_string(i); };
    try {
        for (;; ++stored) {
            PutRequest request = whole(name(stored), {"a"});
            request.own[0].tensors = {floats({5'000})};
            put(store, request, static_cast<unsigned>(stored));
        }
    } catch (const Error& error) {
        EXPECT_EQ(error.code(), Errc::out_of_memory);
    }
    EXPECT_EQ(stored, 52);
    for (int i = 0; i < stored; ++i) {
        EXPECT_EQ(bytes_of(*store.read(name(i), {})[0].stored),
                  pattern(20'000, static_cast<unsigned>(i)));
    }
    for (int i = 0; i < stored; ++i) store.retire(name(i));
    PutRequest request = whole("again", {"a"});
    request.own[0].tensors = {floats({250'000})};
    EXPECT_EQ(put(store, request), 1'000'000U);
}

TEST(Store, RefusesWhatCannotBeRight) {
    Store store(options());
    put(store, whole("p", {"a"}));
    const auto refused = [&](const PutRequest& request, Errc code, const char* says) {
        std::string message;
        EXPECT_EQ(code_of([&] { (void)store.prepare(request); }, &message), code);
        EXPECT_THAT(message, HasSubstr(says));
    };
    PutRequest request = whole("", {"a"});
    refused(request, Errc::invalid_argument, "1 to 65,535");
    request = whole("m", {"a"});
    request.table = nullptr;
    refused(request, Errc::invalid_argument, "no layer table");
    request = whole("m", {"a"});
    request.own.push_back({0, {}});
    refused(request, Errc::invalid_argument, "'a' comes twice");
    request = whole("m", {"a"});
    request.own[0].layer = 7;
    refused(request, Errc::invalid_argument, "no layer at position 7");
    request = whole("m", {"a"});
    request.inherited.push_back({0, "p"});
    refused(request, Errc::invalid_argument, "comes twice");
    refused(child("m", {"b"}, 1, "p"), Errc::not_found, "'p' owns no tensors");
    refused(child("m", {"a"}, 1, "nobody"), Errc::not_found, "'nobody' owns no tensors");
    refused(child("m", {"a"}, 1, ""), Errc::invalid_argument, "inherited from nobody");
    request = whole("m", {"a"});
    request.own[0].tensors = {floats({std::uint64_t{1} << 62, 4})};
    refused(request, Errc::invalid_argument, "");

    const auto sized = std::make_shared<LayerTable>(
        std::vector<LayerTable::Layer>{{"a", {}, 44}, {"flatten", {}, 0}});
    request = whole("m", {"a"});
    request.table = sized;
    refused(request, Errc::invalid_argument, "'a' has 44 bytes by its table");
    request.own.clear();
    refused(request, Errc::invalid_argument, "neither put nor inherited");
    request.inherited.push_back({0, "p"});
    refused(request, Errc::invalid_argument, "but 'p' owns 40");

    EXPECT_EQ(store.stats().models, 1U);
    EXPECT_EQ(store.stats().memory.used, 64U);
}

TEST(Store, UnknownModelsAndLayersAreNotFound) {
    Store store(options());
    put(store, whole("m", {"a"}));
    EXPECT_EQ(code_of([&] { (void)store.read("x", {}); }), Errc::not_found);
    EXPECT_EQ(code_of([&] { (void)store.lookup("x"); }), Errc::not_found);
    EXPECT_EQ(code_of([&] { store.retire("x"); }), Errc::not_found);
    EXPECT_EQ(code_of([&] { (void)store.fetch("x", std::vector{layer_key("a")}); }),
              Errc::not_found);
    EXPECT_EQ(code_of([&] { (void)store.fetch("m", std::vector{layer_key("b")}); }),
              Errc::not_found);
    const std::vector<std::uint32_t> beyond{1};
    EXPECT_EQ(code_of([&] { (void)store.read("m", beyond); }), Errc::invalid_argument);
}

TEST(Store, ListsTheOldestFirstByNamespace) {
    Store store(options());
    for (const char* id : {"z", "a", "m"}) {
        PutRequest request = whole(id, {"l"});
        request.ns = *id == 'a' ? "other" : "digits";
        put(store, request);
    }
    EXPECT_THAT(store.list(), ElementsAre("z", "a", "m"));
    const std::string ns = "digits";
    EXPECT_THAT(store.list(&ns), ElementsAre("z", "m"));
    store.retire("z");
    EXPECT_THAT(store.list(&ns), ElementsAre("m"));
}

TEST(Store, LooksUpWhatWasSaid) {
    Store store(options());
    PutRequest request = whole("m", {"a"});
    request.ns = "digits";
    request.score = 0.5;
    request.parent = "p";
    request.graph = "{}";
    request.metadata = R"({"x":1})";
    request.created_ns = 77;
    put(store, request);
    const ModelInfo info = store.lookup("m");
    EXPECT_EQ(info.ns, "digits");
    EXPECT_EQ(info.score, 0.5);
    EXPECT_EQ(info.parent, "p");
    EXPECT_EQ(info.graph, "{}");
    EXPECT_EQ(info.metadata, R"({"x":1})");
    EXPECT_EQ(info.created_ns, 77U);
    EXPECT_EQ(info.table->name(0), "a");
}

TEST(StoreMatch, FindsTheHeaviestPrefixWithItsLayers) {
    Store store(options());
    put(store, whole("short", {"a"}));
    put(store, whole("long", {"a", "b", "z"}));
    put(store, child("heir", {"a", "b", "y"}, 2, "long"));
    const auto query = chain({"a", "b", "c"});
    auto matches =
        store.best_matches(*query, {.ns = "", .count = 2, .exclude = {}}, milliseconds(0));
    ASSERT_EQ(matches.size(), 2U);
    EXPECT_EQ(matches[0].match.model, "heir");  // the newer of two equals
    EXPECT_THAT(matches[0].match.positions, ElementsAre(0, 1));
    EXPECT_EQ(matches[0].lease, 0U);
    EXPECT_EQ(matches[0].layers.at(1).owner, "long");
    EXPECT_EQ(matches[0].layers.at(1).layer, 1U);
    EXPECT_TRUE(matches[0].layers.at(1).stored);
    EXPECT_THAT(store.best_matches(*query, {.ns = "other", .exclude = {}}, milliseconds(0)),
                IsEmpty());
    store.retire("heir");
    store.retire("long");
    matches = store.best_matches(*query, {}, milliseconds(0));
    EXPECT_EQ(matches.at(0).match.model, "short");
    EXPECT_EQ(store.stats().leases, 0U);
}

TEST(StoreMatch, ALeaseKeepsWhatIsRetiredUntilItEnds) {
    Store store(options());
    put(store, whole("m", {"a", "b"}), 3);
    const auto query = chain({"a", "c"});
    const std::uint64_t lease = store.best_matches(*query, {}, milliseconds(-1)).at(0).lease;
    EXPECT_NE(lease, 0U);
    store.retire("m");
    EXPECT_THAT(store.best_matches(*query, {}, milliseconds(-1)), IsEmpty());
    EXPECT_THAT(store.list(), IsEmpty());
    EXPECT_EQ(store.stats().retired, 1U);
    EXPECT_TRUE(store.is_alive("m"));
    EXPECT_EQ(code_of([&] { put(store, whole("m", {"a"})); }), Errc::already_exists);
    EXPECT_EQ(bytes_of(*store.fetch("m", std::vector{layer_key("a")}).at(0)), pattern(40, 3));
    put(store, child("c", {"a", "c"}, 1, "m"));
    store.end_lease(lease);
    store.end_lease(lease);
    EXPECT_FALSE(store.is_alive("m"));
    EXPECT_EQ(store.stats().retired, 0U);
    EXPECT_EQ(store.stats().layers, 2U);
    EXPECT_EQ(bytes_of(*store.read("c", {})[0].stored), pattern(40, 3));
}

TEST(StoreMatch, LeasesExpire) {
    const Clock clock;
    Store::Options given = options();
    clock.attach(given);
    Store store(given);
    put(store, whole("m", {"a"}));
    const auto query = chain({"a"});
    (void)store.best_matches(*query, {}, milliseconds(100));
    (void)store.best_matches(*query, {}, milliseconds(300));
    (void)store.best_matches(*query, {}, milliseconds::max());
    store.retire("m");
    clock.advance(99);
    EXPECT_EQ(store.expire_leases(), 0U);
    clock.advance(1);
    EXPECT_EQ(store.expire_leases(), 1U);
    EXPECT_EQ(store.stats().layers, 1U);
    clock.advance(10'000'000);
    EXPECT_EQ(store.expire_leases(), 1U);
    EXPECT_EQ(store.stats().leases, 1U);
}

TEST(StoreMatch, APutReclaimsExpiredLeasesBeforeItRunsOutOfMemory) {
    const Clock clock;
    Store::Options given = options(128);
    clock.attach(given);
    Store store(given);
    put(store, whole("m", {"a", "b"}));
    (void)store.best_matches(*chain({"a"}), {}, milliseconds(100));
    store.retire("m");
    EXPECT_EQ(code_of([&] { put(store, whole("n", {"a"})); }), Errc::out_of_memory);
    clock.advance(100);
    EXPECT_EQ(put(store, whole("n", {"a"})), 40U);
}

TEST(StoreForeign, HoldersKeepLayersOfOtherServers) {
    Store store(options());
    put(store, whole("m", {"a", "b"}));
    const std::vector<LayerKey> a{layer_key("a")};
    store.acquire("m", a, "child");
    store.acquire("m", a, "child");
    store.acquire("m", a, "other");
    EXPECT_THAT(store.holders(), UnorderedElementsAre("child", "other"));
    store.retire("m");
    EXPECT_EQ(store.stats().layers, 1U);
    store.release("m", a, "child");
    store.release("m", a, "child");
    EXPECT_EQ(store.fetch("m", a).size(), 1U);
    store.release_holder("other");
    store.release_holder("other");
    EXPECT_THAT(store.holders(), IsEmpty());
    EXPECT_EQ(store.stats().memory.used, 0U);
}

TEST(StoreForeign, AcquireTakesAllOrNothing) {
    Store store(options());
    put(store, whole("m", {"a"}));
    const std::vector<LayerKey> keys{layer_key("a"), layer_key("nothing")};
    EXPECT_EQ(code_of([&] { store.acquire("m", keys, "child"); }), Errc::not_found);
    EXPECT_THAT(store.holders(), IsEmpty());
    store.retire("m");
    EXPECT_EQ(store.stats().layers, 0U);
}

TEST(StoreForeign, RetiringReportsReferencesElsewhere) {
    Store store(options());
    PutRequest request = whole("c", {"a", "b", "x"});
    request.own.erase(request.own.begin(), request.own.begin() + 2);
    request.inherited = {{0, "far", true}, {1, "farther", true}};
    put(store, request);
    const auto read = store.read("c", {});
    EXPECT_FALSE(read[0].stored);
    EXPECT_EQ(read[0].owner, "far");

    const auto leased = store.best_matches(*chain({"a"}), {}, milliseconds(-1));
    EXPECT_THAT(store.retire("c").by_owner, IsEmpty());  // the lease still needs them
    const ForeignReferences references = store.end_lease(leased.at(0).lease);
    EXPECT_EQ(references.holder, "c");
    EXPECT_THAT(references.by_owner.at("far"), ElementsAre(layer_key("a")));
    EXPECT_THAT(references.by_owner.at("farther"), ElementsAre(layer_key("b")));
}

TEST(StoreForeign, YoungHoldersAreLeftAlone) {
    const Clock clock;
    Store::Options given = options();
    clock.attach(given);
    Store store(given);
    put(store, whole("m", {"a"}));
    store.acquire("m", std::vector{layer_key("a")}, "child");
    clock.advance(50);
    EXPECT_THAT(store.holders(milliseconds(60)), IsEmpty());
    EXPECT_THAT(store.holders(milliseconds(50)), ElementsAre("child"));
}

// Random histories against a model of the store that is a few maps.
class RandomHistory : public testing::TestWithParam<unsigned> {};

TEST_P(RandomHistory, AgreesWithTheSequentialModel) {
    struct Expected {
        std::vector<std::string> names;
        std::vector<std::string> owners;  // of each layer
        std::vector<unsigned> seeds;      // of each layer's bytes
    };
    const Clock clock;
    Store::Options given = options(MiB);
    clock.attach(given);
    Store store(given);
    std::mt19937 random(GetParam());
    std::map<std::string, Expected> visible;
    std::map<std::uint64_t, std::pair<std::string, Expected>> leases;
    std::map<std::string, Expected> retired;  // that leases hold
    std::map<std::string, std::set<std::pair<std::string, std::string>>> holders;
    int next = 0;

    // Every (owner, layer) that somebody refers to.
    const auto referred = [&] {
        std::set<std::pair<std::string, std::string>> all;
        const auto add = [&](const Expected& model) {
            for (std::size_t i = 0; i < model.names.size(); ++i) {
                all.emplace(model.owners[i], model.names[i]);
            }
        };
        for (const auto& [id, model] : visible) add(model);
        for (const auto& [lease, entry] : leases) add(entry.second);
        for (const auto& [holder, references] : holders) {
            all.insert(references.begin(), references.end());
        }
        return all;
    };
    const auto any_visible = [&] {
        return std::next(visible.begin(), static_cast<long>(random() % visible.size()));
    };
    // Layer i of any model is "i/variant"; a variant is drawn anew with little chance per layer, so
    // that prefixes are shared.
    const auto new_names = [&] {
        std::vector<std::string> names;
        std::string path;
        const std::size_t layers = 1 + random() % 6;
        for (std::size_t i = 0; i < layers; ++i) {
            path += static_cast<char>('a' + (random() % 4 == 0 ? random() % 3 : 0));
            names.push_back(path);
        }
        return names;
    };

    for (int step = 0; step < 2'000; ++step) {
        const auto kind = static_cast<unsigned>(random() % 100);
        if (kind < 45 || visible.empty()) {  // match, then put the child of the match
            const auto names = new_names();
            const auto table = chain(names);
            const auto matches = store.best_matches(*table, {}, milliseconds(1'000));
            std::size_t longest = 0;
            for (const auto& [id, model] : visible) {
                std::size_t shared = 0;
                while (shared < std::min(names.size(), model.names.size()) &&
                       names[shared] == model.names[shared]) {
                    ++shared;
                }
                longest = std::max(longest, shared);
            }
            ASSERT_EQ(matches.empty() ? 0 : matches[0].match.layers, longest);
            const std::string id = "m" + std::to_string(next++);
            PutRequest request = whole(id, names);
            Expected expected{names, std::vector<std::string>(names.size(), id), {}};
            const auto seed = static_cast<unsigned>(random());
            std::size_t inherited = 0;
            if (!matches.empty()) {
                const LeasedMatch& match = matches[0];
                ASSERT_TRUE(visible.contains(match.match.model));
                const Expected parent = visible.at(match.match.model);
                leases[match.lease] = {match.match.model, parent};
                inherited = match.layers.size();
                ASSERT_EQ(inherited, longest);
                request.own.erase(request.own.begin(),
                                  request.own.begin() + static_cast<long>(inherited));
                for (std::size_t i = 0; i < inherited; ++i) {
                    ASSERT_EQ(match.layers[i].owner, parent.owners[i]);
                    request.inherited.push_back({match.layers[i].layer, match.layers[i].owner});
                    expected.owners[i] = parent.owners[i];
                    expected.seeds.push_back(parent.seeds[i]);
                }
            }
            for (std::size_t i = inherited; i < names.size(); ++i) {
                expected.seeds.push_back(seed + static_cast<unsigned>(i - inherited));
            }
            ASSERT_EQ(put(store, request, seed), 40 * (names.size() - inherited));
            visible[id] = expected;
        } else if (kind < 60) {  // read
            const auto& [id, expected] = *any_visible();
            const auto read = store.read(id, {});
            ASSERT_EQ(read.size(), expected.names.size());
            for (std::size_t i = 0; i < read.size(); ++i) {
                ASSERT_EQ(read[i].owner, expected.owners[i]);
                ASSERT_EQ(bytes_of(*read[i].stored), pattern(40, expected.seeds[i]));
            }
        } else if (kind < 80) {  // retire
            const auto found = any_visible();
            store.retire(found->first);
            retired.insert(*found);
            visible.erase(found);
        } else if (kind < 90 && !leases.empty()) {  // end a lease
            const auto found =
                std::next(leases.begin(), static_cast<long>(random() % leases.size()));
            store.end_lease(found->first);
            leases.erase(found);
        } else if (kind < 92) {  // let all leases expire
            clock.advance(1'000);
            ASSERT_EQ(store.expire_leases(), leases.size());
            leases.clear();
        } else if (kind < 96) {  // a model elsewhere refers to a layer
            const auto& [id, model] = *any_visible();
            const std::size_t layer = random() % model.names.size();
            const std::string holder = "h" + std::to_string(random() % 5);
            store.acquire(model.owners[layer], std::vector{layer_key(model.names[layer])}, holder);
            holders[holder].emplace(model.owners[layer], model.names[layer]);
        } else if (!holders.empty()) {
            const auto found =
                std::next(holders.begin(), static_cast<long>(random() % holders.size()));
            if (random() % 2) {
                store.release_holder(found->first);
                holders.erase(found);
            } else {
                const auto reference = *found->second.begin();
                store.release(reference.first, std::vector{layer_key(reference.second)},
                              found->first);
                found->second.erase(reference);
                if (found->second.empty()) holders.erase(found);
            }
        }
        const auto all = referred();
        const StoreStats stats = store.stats();
        ASSERT_EQ(stats.models, visible.size());
        ASSERT_EQ(stats.leases, leases.size());
        ASSERT_EQ(stats.foreign_holders, holders.size());
        ASSERT_EQ(stats.layers, all.size());
        ASSERT_EQ(stats.bytes_stored, 40 * all.size());
        ASSERT_EQ(stats.memory.used, 64 * all.size());
        if (step % 50 == 0) {
            for (const auto& [owner, name] : all) {
                ASSERT_EQ(store.fetch(owner, std::vector{layer_key(name)}).size(), 1U);
            }
            ASSERT_THAT(store.verify(), IsEmpty());
        }
    }
}

INSTANTIATE_TEST_SUITE_P(Seeds, RandomHistory, testing::Range(0U, looks_for_races ? 1U : 4U));

// Threads put, match, inherit, read and retire at once; every byte read must be its owner's.
TEST(StoreThreads, EveryReadIsWholeAndRight) {
    Store store(options(256 * MiB));
    constexpr int threads = 4;
    constexpr int steps = 400;
    // The content of a layer follows from its owner and its name.
    const auto seed_of = [](const std::string& owner, const LayerKey& key) {
        return static_cast<unsigned>(std::hash<std::string>{}(owner) ^ key.low);
    };
    const auto check = [&](const StoredLayer& layer) {
        EXPECT_EQ(bytes_of(layer), pattern(4'000, seed_of(layer.owner, layer.key)));
    };
    std::atomic<int> inherited = 0;
    std::vector<std::thread> running;
    for (int t = 0; t < threads; ++t) {
        running.emplace_back([&, t] {
            std::mt19937 random(static_cast<unsigned>(t));
            std::vector<std::string> mine;
            for (int step = 0; step < steps; ++step) {
                std::vector<std::string> names{"a"};
                while (names.size() < 4) {
                    names.push_back(names.back() + static_cast<char>('a' + random() % 2));
                }
                const auto table = chain(names);
                auto matches = store.best_matches(*table, {}, milliseconds(-1));
                PutRequest request;
                request.model = std::to_string(t) + "/" + std::to_string(step);
                request.table = table;
                std::set<std::uint32_t> taken;
                if (!matches.empty()) {
                    for (const LayerLocation& location : matches[0].layers) {
                        check(*location.stored);
                        request.inherited.push_back({location.layer, location.owner});
                        taken.insert(location.layer);
                        ++inherited;
                    }
                }
                for (std::uint32_t i = 0; i < names.size(); ++i) {
                    if (!taken.contains(i)) request.own.push_back({i, {floats({1'000})}});
                }
                const std::string model = request.model;
                const std::vector<Own> own = request.own;
                PendingPut pending = store.prepare(std::move(request));
                for (std::size_t i = 0; i < own.size(); ++i) {
                    const Bytes bytes = pattern(4'000, seed_of(model, table->key(own[i].layer)));
                    pending.fill(i, bytes.data());
                }
                store.commit(std::move(pending));
                if (!matches.empty()) store.end_lease(matches[0].lease);
                mine.push_back(model);

                const std::string other =
                    std::to_string(random() % threads) + "/" + std::to_string(random() % steps);
                try {
                    const auto read = store.read(other, {});
                    EXPECT_EQ(read.size(), 4U);
                    for (const LayerLocation& location : read) check(*location.stored);
                } catch (const Error& error) {
                    EXPECT_EQ(error.code(), Errc::not_found);
                }
                if (mine.size() > 5) {
                    std::swap(mine[random() % mine.size()], mine.back());
                    store.retire(mine.back());
                    mine.pop_back();
                }
            }
            for (const std::string& model : mine) store.retire(model);
        });
    }
    for (std::thread& thread : running) thread.join();
    EXPECT_GT(inherited, 0);
    const StoreStats stats = store.stats();
    EXPECT_EQ(stats.models, 0U);
    EXPECT_EQ(stats.leases, 0U);
    EXPECT_EQ(stats.layers, 0U);
    EXPECT_EQ(stats.memory.used, 0U);
    EXPECT_EQ(stats.index.models, 0U);
}

TEST(StoreThreads, OneOfManyPutsOfAnIdWins) {
    for (unsigned round = 0; round < 50; ++round) {
        Store store(options());
        std::atomic<int> succeeded = 0;
        std::atomic<unsigned> winner = 0;
        std::vector<std::thread> running;
        for (unsigned t = 0; t < 4; ++t) {
            running.emplace_back([&, t] {
                try {
                    put(store, whole("m", {"a", "b"}), 10 * (t / 2));  // two each of equal content
                    ++succeeded;
                    winner = 10 * (t / 2);
                } catch (const Error& error) {
                    EXPECT_EQ(error.code(), Errc::already_exists);
                }
            });
        }
        for (std::thread& thread : running) thread.join();
        EXPECT_EQ(succeeded, 2);
        EXPECT_EQ(bytes_of(*store.read("m", {})[0].stored), pattern(40, winner));
        EXPECT_EQ(store.stats().memory.used, 128U);
    }
}

}  // namespace
}  // namespace cpp_store
