// Servers and their clients in one process, over real endpoints.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <thread>

#include "cpp_store/client.hpp"
#include "cpp_store/server.hpp"
#include "net/endpoint.hpp"
#include "random_models.hpp"

namespace cpp_store {
namespace {

using namespace std::chrono_literals;
using testing::HasSubstr;

using Layers = std::map<std::string, Bytes, std::less<>>;

// Makes a buffer for the one tensor of each layer.
Cluster::Buffers into(Layers& layers) {
    return [&layers](std::string_view layer, std::span<const TensorSpec> specs) {
        Bytes& bytes = layers[std::string(layer)] = Bytes(specs[0].nbytes());
        return std::vector{std::span<std::byte>(bytes)};
    };
}

Layers read(Cluster& cluster, std::string_view model, const std::vector<std::string>& names = {}) {
    Layers layers;
    cluster.read(model, names, into(layers));
    return layers;
}

class Servers {
  public:
    explicit Servers(std::size_t count, std::uint64_t limit = std::uint64_t{1} << 30) {
        for (std::size_t i = 0; i < count; ++i) {
            Store::Options options;
            options.memory.limit = limit;
            options.memory.region_size = 64 << 20;
            options.memory.ahead = 0;
            Server::Options server;
            server.log = [this](LogLevel, std::string_view line) {
                const std::scoped_lock lock(mutex_);
                log_.emplace_back(line);
            };
            servers_.push_back(std::make_unique<Server>(std::make_shared<Store>(options), server));
        }
    }
    [[nodiscard]] std::vector<std::string> addresses() const {
        std::vector<std::string> list;
        for (const auto& server : servers_) list.push_back(server->address());
        return list;
    }
    [[nodiscard]] Cluster connect(std::chrono::milliseconds timeout = 30s) const {
        return Cluster({.servers = addresses(), .timeout = timeout, .key = {}});
    }
    Server& operator[](std::size_t i) { return *servers_[i]; }
    void remove(std::size_t i) { servers_.erase(servers_.begin() + static_cast<long>(i)); }

  private:
    std::mutex mutex_;
    std::vector<std::string> log_;
    std::vector<std::unique_ptr<Server>> servers_;
};

Errc code_of(const std::function<void()>& action, std::string* message = nullptr) {
    try {
        action();
    } catch (const Error& error) {
        if (message) *message = error.what();
        return error.code();
    }
    return Errc{};
}

TEST(Cluster, PutsAndReadsTensorsOfAllSizes) {
    Servers servers(1);
    Cluster cluster = servers.connect();
    const RandomModel model("m", {"a", "b", "c", "d", "e", "f", "g"},
                            {0, 1, 4096, 4097, 100'000, (1 << 20) + 3, 20'000'001});
    EXPECT_EQ(model.put(cluster), 21'156'774u);
    const auto layers = read(cluster, "m");
    for (std::uint32_t i = 0; i < model.tensors.size(); ++i) {
        EXPECT_EQ(layers.at(std::string(model.request.table->name(i))), model.tensors[i])
            << "layer " << i;
    }
    EXPECT_THAT(read(cluster, "m", {"c", "g"}), testing::SizeIs(2));
    EXPECT_THAT(cluster.verify(), testing::IsEmpty());
    const ModelInfo info = cluster.lookup("m");
    EXPECT_EQ(*info.table, *model.request.table);
    EXPECT_EQ(info.bytes_own, 21'156'774u);
    const StoreStats stats = cluster.stats().at(0);
    EXPECT_EQ(stats.reads, 2u);
    EXPECT_EQ(stats.bytes_read, 21'156'774u + 4096 + 20'000'001);
}

// Not shm, with which libfabric 2.5 crashes where threads of one process are both ends: that is
// tested with processes, in tests/cpp_store/test_providers.py.
TEST(Cluster, WorksOverEveryProviderThatIsHere) {
    const auto there = net::available_providers();
    std::vector<std::string> addresses = {"ofi+tcp://127.0.0.1:0"};  // or else nothing works
    if (there.contains("tcp;ofi_rxm")) addresses.emplace_back("ofi+tcp;ofi_rxm://127.0.0.1:0");
    for (const std::string& address : addresses) {
        SCOPED_TRACE(address);
        Server::Options options;
        options.address = address;
        Server server(std::make_shared<Store>(Store::Options{}), options);
        Cluster cluster({.servers = {server.address()}, .key = {}});
        const RandomModel model("m", {"a", "b", "c"}, {100, 70'000, 3'000'001});
        model.put(cluster);
        EXPECT_EQ(read(cluster, "m").at("b"), model.tensors[1]);
        EXPECT_EQ(read(cluster, "m").at("c"), model.tensors[2]);
        EXPECT_THAT(cluster.verify(), testing::IsEmpty());
    }
}

TEST(Cluster, PutsManySmallTensorsInOneModel) {
    Servers servers(1);
    Cluster cluster = servers.connect();
    std::vector<std::string> names;
    for (int i = 0; i < 3000; ++i) names.push_back("layer_" + std::to_string(i));
    const RandomModel model("m", names, std::vector<std::size_t>(3000, 3000));
    EXPECT_EQ(model.put(cluster), 9'000'000u);  // beyond the inline budget
    const auto layers = read(cluster, "m");
    for (std::uint32_t i = 0; i < 3000; ++i)
        ASSERT_EQ(layers.at(std::string(model.request.table->name(i))), model.tensors[i]);
}

TEST(Cluster, AnswersLikeTheStoreInProcess) {
    Servers servers(1);
    Cluster cluster = servers.connect();
    const RandomModel model("m", {"a", "b"}, {10, 20});
    EXPECT_EQ(model.put(cluster), 30u);
    EXPECT_NO_THROW(model.put(cluster)) << "the same again is success";
    EXPECT_EQ(cluster.stats().at(0).bytes_stored, 30u);
    const RandomModel other("m", {"a", "b"}, {10, 20}, 2);
    EXPECT_EQ(code_of([&] { other.put(cluster); }), Errc::already_exists);
    EXPECT_EQ(code_of([&] { (void)read(cluster, "none"); }), Errc::not_found);
    EXPECT_EQ(code_of([&] { (void)read(cluster, "m", {"none"}); }), Errc::invalid_argument);
    EXPECT_EQ(code_of([&] { (void)cluster.lookup("none"); }), Errc::not_found);
    EXPECT_TRUE(cluster.contains("m"));
    EXPECT_THAT(cluster.list(), testing::ElementsAre("m"));
    const std::string elsewhere = "elsewhere";
    EXPECT_THAT(cluster.list(&elsewhere), testing::IsEmpty());
    cluster.retire("m");
    EXPECT_FALSE(cluster.contains("m"));
    EXPECT_EQ(code_of([&] { cluster.retire("m"); }), Errc::not_found);
    EXPECT_EQ(cluster.stats().at(0).bytes_stored, 0u);
}

TEST(Cluster, SaysWhenTheStoreIsFullAndKeepsWhatItHas) {
    Servers servers(1, 8 << 20);
    Cluster cluster = servers.connect();
    const RandomModel small("small", {"a"}, {1 << 20});
    small.put(cluster);
    const RandomModel large("large", {"a", "b"}, {1 << 20, 8 << 20});
    std::string message;
    EXPECT_EQ(code_of([&] { large.put(cluster); }, &message), Errc::out_of_memory);
    EXPECT_THAT(message, HasSubstr("limit"));
    EXPECT_EQ(read(cluster, "small").at("a"), small.tensors[0]);
    EXPECT_EQ(cluster.stats().at(0).models, 1u);
}

TEST(Cluster, LeasesAMatchThatIsRetired) {
    Servers servers(1);
    Cluster cluster = servers.connect();
    const RandomModel parent("parent", {"a", "b", "c"}, {5000, 100'000, 30});
    parent.put(cluster);
    RandomModel child("child", {"a", "b", "x"}, {5000, 100'000, 40});
    Query query;
    query.ns = "test";
    const auto matches = cluster.best_matches(*child.request.table, query, 60s);
    ASSERT_EQ(matches.size(), 1u);
    EXPECT_EQ(matches[0].leased.match.model, "parent");
    EXPECT_THAT(matches[0].leased.match.positions, testing::ElementsAre(0, 1));

    cluster.retire("parent");
    std::vector<OwnedLayer> wanted;
    for (const LayerLocation& layer : matches[0].leased.layers) {
        wanted.push_back({std::string(child.request.table->name(layer.layer)), layer.owner,
                          child.request.table->key(layer.layer)});
    }
    Layers layers;
    cluster.fetch(wanted, into(layers));
    EXPECT_EQ(layers.at("a"), parent.tensors[0]);
    EXPECT_EQ(layers.at("b"), parent.tensors[1]);

    child.request.own = {child.request.own[2]};
    child.request.inherited = {{0, "parent", false}, {1, "parent", false}};
    child.tensors = {child.tensors[2]};
    EXPECT_EQ(child.put(cluster), 40u);
    cluster.end_lease(matches[0]);
    EXPECT_EQ(read(cluster, "child").at("b"), parent.tensors[1]);
    EXPECT_EQ(cluster.stats().at(0).leases, 0u);
    cluster.retire("child");
    EXPECT_EQ(cluster.stats().at(0).bytes_stored, 0u);
}

// Ids whose models live at the given server.
std::vector<std::string> ids_at(const Cluster& cluster, std::size_t server, std::size_t count) {
    std::vector<std::string> ids;
    for (int i = 0; ids.size() < count; ++i) {
        std::string id = "model_" + std::to_string(i);
        if (cluster.home(id) == server) ids.push_back(std::move(id));
    }
    return ids;
}

TEST(Cluster, SharesLayersBetweenServers) {
    Servers servers(3);
    Cluster cluster = servers.connect();
    const std::string parent_id = ids_at(cluster, 0, 1)[0];
    const std::string child_id = ids_at(cluster, 1, 1)[0];
    const RandomModel parent(parent_id, {"a", "b", "c"}, {5000, 3'000'000, 30});
    parent.put(cluster);
    RandomModel child(child_id, {"a", "b", "x"}, {5000, 3'000'000, 40});
    child.request.own = {child.request.own[2]};
    child.request.inherited = {{0, parent_id, false}, {1, parent_id, false}};
    child.tensors = {child.tensors[2]};
    EXPECT_EQ(child.put(cluster), 40u);
    EXPECT_EQ(cluster.lookup(child_id).bytes_inherited, 3'005'000u);

    const auto layers = read(cluster, child_id);
    EXPECT_EQ(layers.at("a"), parent.tensors[0]);
    EXPECT_EQ(layers.at("b"), parent.tensors[1]);
    EXPECT_EQ(layers.at("x"), child.tensors[0]);

    Query query;
    query.ns = "test";
    query.count = 2;
    const auto matches = cluster.best_matches(*child.request.table, query, 0ms);
    ASSERT_EQ(matches.size(), 2u);
    EXPECT_EQ(matches[0].leased.match.model, child_id);
    EXPECT_EQ(matches[1].leased.match.model, parent_id);

    cluster.retire(parent_id);
    EXPECT_EQ(read(cluster, child_id).at("b"), parent.tensors[1]) << "the child still refers to it";
    EXPECT_EQ(cluster.scrub(0ms), 0u);
    cluster.retire(child_id);
    for (const StoreStats& stats : cluster.stats()) EXPECT_EQ(stats.bytes_stored, 0u);
}

TEST(Cluster, ScrubReleasesWhatADeadClientAcquired) {
    Servers servers(2);
    Cluster cluster = servers.connect();
    const std::string parent_id = ids_at(cluster, 0, 1)[0];
    const std::string child_id = ids_at(cluster, 1, 1)[0];
    const RandomModel parent(parent_id, {"a"}, {5000});
    parent.put(cluster);
    const LayerKey key = parent.request.table->key(0);
    servers[0].store()->acquire(parent_id, {&key, 1}, child_id);  // ... and then it died
    cluster.retire(parent_id);
    EXPECT_EQ(servers[0].store()->stats().bytes_stored, 5000u);
    EXPECT_EQ(cluster.scrub(1h), 0u) << "it may still be at it";
    EXPECT_EQ(cluster.scrub(0ms), 1u);
    EXPECT_EQ(servers[0].store()->stats().bytes_stored, 0u);
}

TEST(Cluster, GivesReferencesBackWhenThePutFails) {
    Servers servers(2, 8 << 20);
    Cluster cluster = servers.connect();
    const std::string parent_id = ids_at(cluster, 0, 1)[0];
    const std::string child_id = ids_at(cluster, 1, 1)[0];
    const RandomModel parent(parent_id, {"a", "b"}, {5000, 10});
    parent.put(cluster);
    RandomModel child(child_id, {"a", "x"}, {5000, 9 << 20});
    child.request.own = {child.request.own[1]};
    child.request.inherited = {{0, parent_id, false}};
    child.tensors = {child.tensors[1]};
    EXPECT_EQ(code_of([&] { child.put(cluster); }), Errc::out_of_memory);
    EXPECT_THAT(servers[0].store()->holders(), testing::IsEmpty());
}

TEST(Cluster, RefusesAnotherServerList) {
    Servers servers(2);
    Cluster cluster = servers.connect();
    RandomModel("m", {"a"}, {10}).put(cluster);
    RandomModel("n", {"a"}, {10}).put(cluster);
    RandomModel("o", {"a"}, {10}).put(cluster);
    const std::size_t used = cluster.stats().at(0).models > 0 ? 0 : 1;
    std::string message;
    EXPECT_EQ(
        code_of([&] { Cluster({.servers = {servers[used].address()}, .key = {}}); }, &message),
        Errc::invalid_argument);
    EXPECT_THAT(message, HasSubstr("same list"));
    auto reversed = servers.addresses();
    std::ranges::reverse(reversed);
    EXPECT_NO_THROW(Cluster({.servers = reversed, .key = {}})) << "order does not matter";
}

TEST(Cluster, NamesTheServerThatIsNotThere) {
    std::string address;
    {
        Servers servers(1);
        address = servers[0].address();
    }
    std::string message;
    EXPECT_EQ(code_of([&] { Cluster({.servers = {address}, .key = {}}); }, &message),
              Errc::connection);
    EXPECT_THAT(message, HasSubstr(address));
}

TEST(Cluster, FailsCallsOfAServerThatStopsAndConnectsAgain) {
    Servers servers(1);
    Cluster cluster = servers.connect();
    const std::string address = servers[0].address();
    cluster.ping(0);
    servers.remove(0);
    std::string message;
    EXPECT_EQ(code_of([&] { cluster.ping(0); }, &message), Errc::connection);
    EXPECT_THAT(message, HasSubstr(address));
    Server::Options options;
    options.address = address;
    options.log = [](LogLevel, std::string_view) {};
    const Server again(std::make_shared<Store>(Store::Options{}), options);
    EXPECT_NO_THROW(cluster.ping(0));
}

TEST(Cluster, WantsTheKeyOfTheServer) {
    Server::Options options;
    options.key = "secret";
    options.log = [](LogLevel, std::string_view) {};
    const Server server(std::make_shared<Store>(Store::Options{}), options);
    const auto connect = [&](std::string key) {
        Cluster cluster({.servers = {server.address()}, .key = std::move(key), .same_host = false});
        cluster.ping(0);
    };
    std::string message;
    EXPECT_EQ(code_of([&] { connect("guess"); }, &message), Errc::permission);
    EXPECT_THAT(message, HasSubstr("the key is not the server's"));
    EXPECT_EQ(code_of([&] { connect(""); }, &message), Errc::permission);
    EXPECT_THAT(message, HasSubstr("wants a key"));
    EXPECT_NO_THROW(connect("secret"));
    options.key.clear();
    const Server open(std::make_shared<Store>(Store::Options{}), options);
    for (const bool same_host : {false, true}) {
        EXPECT_EQ(
            code_of(
                [&] {
                    Cluster({.servers = {open.address()}, .key = "secret", .same_host = same_host});
                },
                &message),
            Errc::permission);
        EXPECT_THAT(message, HasSubstr("the server has no key"));
    }
}

TEST(Cluster, ServesManyThreadsAtOnce) {
    Servers servers(2);
    Cluster cluster = servers.connect();
    constexpr int threads = 4;
    constexpr int rounds = 12;
    std::vector<std::thread> running;
    std::atomic<int> wrong = 0;
    for (int t = 0; t < threads; ++t) {
        running.emplace_back([&, t] {
            try {
                for (int round = 0; round < rounds; ++round) {
                    const std::string id = std::to_string(t) + "/" + std::to_string(round);
                    const RandomModel model(id, {"a" + id, "b" + id}, {700'000, 300},
                                            static_cast<std::uint64_t>(t * 100 + round));
                    model.put(cluster);
                    const auto layers = read(cluster, id);
                    if (layers.at("a" + id) != model.tensors[0] ||
                        layers.at("b" + id) != model.tensors[1]) {
                        ++wrong;
                    }
                    if (round % 2) cluster.retire(id);
                }
            } catch (const std::exception& error) {
                ADD_FAILURE() << error.what();
            }
        });
    }
    for (std::thread& thread : running) thread.join();
    EXPECT_EQ(wrong, 0);
    EXPECT_EQ(cluster.list().size(), std::size_t{threads * rounds / 2});
}

}  // namespace
}  // namespace cpp_store
