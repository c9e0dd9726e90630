// A store with a data directory: what a restart finds.
#include <gmock/gmock.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <fstream>
#include <future>
#include <iterator>
#include <map>
#include <optional>
#include <random>
#include <thread>

#include "cpp_store/check.hpp"
#include "durable/durable_store.hpp"
#include "durable/files.hpp"

namespace cpp_store {
namespace {

namespace fs = std::filesystem;
using std::chrono::milliseconds;
using testing::AllOf;
using testing::AnyOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

INSTANTIATE_TEST_SUITE_P(Both, DurableStore, testing::Values(Durability::sync, Durability::lazy),
                         [](const auto& each) {
                             return each.param == Durability::sync ? "Sync" : "Lazy";
                         });

TEST_P(DurableStore, FindsAgainWhatWasPut) {
    PutRequest request = request_of("m", {"a", "b"}, 1'000);
    request.ns = "n";
    request.score = std::numeric_limits<double>::quiet_NaN();
    request.parent = "p";
    request.graph = "{\"graph\": 1}";
    request.metadata = "{\"x\": \"\\u0000\"}";
    request.created_ns = 12'345;
    {
        Store store(options());
        EXPECT_EQ(put(store, request), 2'000U);
        put(store, request_of("child", {"a", "c"}, 2 * MiB, 1, "m"));
        expect_intact(store, "child");
    }
    Store store(options());
    EXPECT_THAT(store.list(), ElementsAre("m", "child"));
    const ModelInfo info = store.lookup("m");
    EXPECT_EQ(info.ns, "n");
    EXPECT_TRUE(std::isnan(info.score));
    EXPECT_EQ(info.parent, "p");
    EXPECT_EQ(info.graph, request.graph);
    EXPECT_EQ(info.metadata, request.metadata);
    EXPECT_EQ(info.created_ns, 12'345U);
    EXPECT_EQ(info.bytes_own, 2'000U);
    EXPECT_EQ(*info.table, *request.table);
    EXPECT_EQ(store.lookup("child").bytes_inherited, 1'000U);
    EXPECT_EQ(store.stats().memory.used, 0U);
    expect_intact(store, "m");
    expect_intact(store, "child");
    EXPECT_THAT(store.verify(), IsEmpty());
    Query query;
    query.ns = "n";
    EXPECT_EQ(store.best_matches(*request.table, query, milliseconds(0)).at(0).match.model, "m");
    // The same content again is success, as it was before.
    EXPECT_EQ(put(store, request), 2'000U);
    EXPECT_EQ(code_of([&] { put(store, request_of("m", {"a", "b"}, 999)); }), Errc::already_exists);
}

TEST_P(DurableStore, ForgetsWhatWasRetiredAndKeepsWhatIsInherited) {
    {
        Store store(options());
        put(store, request_of("parent", {"a", "b"}, 2 * MiB));
        put(store, request_of("child", {"a", "c"}, 100, 1, "parent"));
        put(store, request_of("gone", {"x"}, 2 * MiB));
        store.retire("parent");
        store.retire("gone");
    }
    {
        Store store(options());
        EXPECT_THAT(store.list(), ElementsAre("child"));
        EXPECT_EQ(store.stats().layers, 2U);
        EXPECT_EQ(store.stats().bytes_stored, 2 * MiB + 100);
        expect_intact(store, "child");
        EXPECT_EQ(code_of([&] { put(store, request_of("parent", {"a"}, 10)); }),
                  Errc::already_exists);
        EXPECT_EQ(files(), 1U);
        store.retire("child");
        store.flush();
        EXPECT_EQ(store.stats().bytes_stored, 0U);
        EXPECT_EQ(files(), 0U);
        put(store, request_of("parent", {"a"}, 10));
    }
    Store store(options());
    EXPECT_THAT(store.list(), ElementsAre("parent"));
}

TEST_P(DurableStore, DropsWhatOnlyLeasesHeld) {
    std::optional<Store> store(std::in_place, options());
    put(*store, request_of("m", {"a"}, 100));
    const auto leased = store->best_matches(*chain({"a"}), {}, milliseconds(60'000));
    ASSERT_EQ(leased.size(), 1U);
    store->retire("m");
    const LayerKey key = layer_key("a");
    EXPECT_EQ(store->fetch("m", {&key, 1}).size(), 1U);
    store.reset();
    store.emplace(options());
    EXPECT_THAT(store->list(), IsEmpty());
    EXPECT_EQ(store->stats().layers, 0U);
    EXPECT_EQ(put(*store, request_of("m", {"a"}, 7)), 7U);
}

TEST_P(DurableStore, KeepsReferencesOfOtherServers) {
    const LayerKey key = layer_key("a");
    {
        Store store(options());
        put(store, request_of("m", {"a", "b"}, 100));
        store.acquire("m", {&key, 1}, "elsewhere");
        store.acquire("m", {&key, 1}, "other");
        store.release("m", {&key, 1}, "other");
        store.retire("m");
    }
    {
        Store store(options());
        EXPECT_THAT(store.holders(), ElementsAre("elsewhere"));
        EXPECT_EQ(store.stats().layers, 1U);
        EXPECT_EQ(store.fetch("m", {&key, 1}).at(0)->tensors.at(0).spec.nbytes(), 100U);
        store.release_holder("elsewhere");
        EXPECT_EQ(store.stats().layers, 0U);
    }
    Store store(options());
    EXPECT_THAT(store.holders(), IsEmpty());
    PutRequest foreign = request_of("child", {"a", "b"}, 100);
    foreign.own.erase(foreign.own.begin());
    foreign.inherited.push_back({.layer = 0, .owner = "far", .foreign = true, .bytes = 5});
    put(store, foreign);
    store.close();
    Store again(options());
    const ModelInfo info = again.lookup("child");
    EXPECT_EQ(info.layers.at(0).owner, "far");
    EXPECT_EQ(again.retire("child").by_owner.at("far").size(), 1U);
}

TEST_P(DurableStore, HoldsMoreThanItsMemory) {
    constexpr std::uint64_t size = 512 * 1024;
    constexpr int models = 40;  // 20 MiB in 8
    {
        Store store(options(8 * MiB));
        for (int i = 0; i < models; ++i) {
            put(store, request_of("m" + std::to_string(i), {"a" + std::to_string(i)}, size));
        }
        EXPECT_LE(store.stats().memory.used, 8 * MiB);
        EXPECT_EQ(store.stats().bytes_stored, models * size);
        // What somebody holds stays where it is.
        const auto held = store.read("m0", {});
        const Bytes before(held[0].stored->tensors[0].extent.data,
                           held[0].stored->tensors[0].extent.data + size);
        for (int round = 0; round < 2; ++round) {
            for (int i = 0; i < models; ++i) expect_intact(store, "m" + std::to_string(i));
        }
        EXPECT_EQ(std::memcmp(held[0].stored->tensors[0].extent.data, before.data(), size), 0);
        EXPECT_THAT(store.verify(), IsEmpty());
        EXPECT_LE(store.stats().memory.used, 8 * MiB);
    }
    Store store(options(8 * MiB));
    for (int i = 0; i < models; ++i) expect_intact(store, "m" + std::to_string(i));
    // Nothing can leave: the error that there always was.
    std::vector<std::vector<LayerLocation>> all;
    EXPECT_EQ(code_of([&] {
                  for (int i = 0; i < models; ++i)
                      all.push_back(store.read("m" + std::to_string(i), {}));
              }),
              Errc::out_of_memory);
    EXPECT_GE(all.size(), 15U);
}

// Small ones stay in the catalogue: there is never a file of them.
TEST_P(DurableStore, SmallModelsLeaveTheMemoryAndComeBack) {
    Store store(options(MiB));
    for (int i = 0; i < 400; ++i) {  // 2 MB in 1 MiB
        put(store, request_of("m" + std::to_string(i), {"a", "b" + std::to_string(i % 7)}, 2'500));
    }
    EXPECT_LE(store.stats().memory.used, MiB);
    for (int i = 0; i < 400; ++i) expect_intact(store, "m" + std::to_string(i));
    EXPECT_THAT(store.verify(), IsEmpty());
    for (int i = 0; i < 400; i += 2) store.retire("m" + std::to_string(i));
    store.flush();
    store.close();
    EXPECT_EQ(files(), 0U);
    Store again(options(MiB));
    EXPECT_EQ(again.stats().models, 200U);
    for (int i = 1; i < 400; i += 2) expect_intact(again, "m" + std::to_string(i));
}

// Readers of the catalogue beside its writer.
TEST_P(DurableStore, SmallModelsAreReadWhileOthersArePut) {
    Store store(options(MiB));
    for (int i = 0; i < 300; ++i) put(store, request_of("m" + std::to_string(i), {"a"}, 5'000));
    std::vector<std::thread> threads;
    for (unsigned t = 0; t < 3; ++t) {
        threads.emplace_back([&, t] {
            std::mt19937 random(t);
            for (int i = 0; i < 150; ++i) {
                expect_intact(store, "m" + std::to_string(random() % 300));
                put(store, request_of(std::to_string(t) + "." + std::to_string(i), {"b"}, 3'000));
            }
        });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(store.stats().models, 300U + 3U * 150U);
    EXPECT_THAT(store.verify(), IsEmpty());
}

TEST_P(DurableStore, WritesSegmentsAnewOfWhichMostIsDead) {
    Store store(options());
    put(store, request_of("big", {"a", "b", "c", "d"}, MiB));
    put(store, request_of("child", {"a", "x"}, MiB, 1, "big"));
    store.retire("big");
    store.flush();
    store.flush();
    std::uint64_t bytes = 0;
    for (const auto& entry : fs::directory_iterator(root / "data" / "segments")) {
        bytes += entry.file_size();
    }
    EXPECT_LT(bytes, 3 * MiB);
    expect_intact(store, "child");
    store.close();
    Store again(options());
    expect_intact(again, "child");
}

TEST_P(DurableStore, IsOpenOnce) {
    const Store store(options());
    std::string message;
    EXPECT_EQ(code_of([&] { const Store second(options()); }, &message), Errc::invalid_argument);
    EXPECT_THAT(message, HasSubstr("in use"));
}

// A program forks (to start another one) while the store is open, which is then closed and opened
// again before the child has become that other program.
TEST_P(DurableStore, CanBeOpenedAgainThoughAChildWasForked) {
    pid_t child = -1;
    {
        const Store store(options());
        child = ::fork();
        if (child == 0) {
            for (;;) ::pause();
        }
    }
    ASSERT_GT(child, 0);
    EXPECT_NO_THROW({ const Store store(options()); });
    ::kill(child, SIGKILL);
    ::waitpid(child, nullptr, 0);
}

TEST(LockedFile, StaysLockedWhenAChildClosesIt) {
    const fs::path path = fs::path(testing::TempDir()) / ("lock." + std::to_string(::getpid()));
    std::optional<durable::File> first(std::in_place, path, durable::File::Mode::lock);
    durable::File second(path, durable::File::Mode::lock);
    ASSERT_TRUE(first->lock());
    const pid_t child = ::fork();
    if (child == 0) {
        first.reset();
        ::_exit(0);
    }
    ASSERT_EQ(::waitpid(child, nullptr, 0), child);
    EXPECT_FALSE(second.lock());
    first.reset();
    EXPECT_TRUE(second.lock());
    fs::remove(path);
}

TEST_P(DurableStore, RefusesOtherDirectories) {
    std::string message;
    std::ofstream(root / "data") << "text";
    EXPECT_EQ(code_of([&] { const Store store(options()); }, &message), Errc::invalid_argument);
    EXPECT_THAT(message, HasSubstr("is not a directory"));
    fs::remove(root / "data");
    fs::create_directory_symlink(root, root / "data");
    EXPECT_EQ(code_of([&] { const Store store(options()); }, &message), Errc::invalid_argument);
    EXPECT_THAT(message, HasSubstr("symbolic link"));
    fs::remove(root / "data");
    fs::create_directory(root / "data");
    std::ofstream(root / "data" / "thesis.tex") << "text";
    EXPECT_EQ(code_of([&] { const Store store(options()); }, &message), Errc::invalid_argument);
    EXPECT_THAT(message, HasSubstr("thesis.tex"));
    fs::remove(root / "data" / "thesis.tex");
    std::ofstream(root / "data" / "catalogue.sqlite") << std::string(4096, 'x');
    EXPECT_EQ(code_of([&] { const Store store(options()); }, &message), Errc::invalid_argument);
    EXPECT_THAT(message, HasSubstr("is no catalogue"));
}

// Whoever may write to the directory cannot have the store write elsewhere, either.
TEST_P(DurableStore, FollowsNoLinksInItsDirectory) {
    { const Store store(options()); }
    fs::create_directory(root / "elsewhere");
    const fs::path victim = root / "elsewhere" / "000000000009.safetensors";
    std::ofstream(victim) << "text";
    for (const char* const name :
         {"segments", "lock", "catalogue.sqlite", "catalogue.sqlite-wal"}) {
        const fs::path link = root / "data" / name;
        fs::rename(root / "data", root / "kept");
        fs::copy(root / "kept", root / "data", fs::copy_options::recursive);
        fs::remove_all(link);
        fs::create_symlink(std::string_view(name) == "segments" ? root / "elsewhere" : victim,
                           link);
        std::string message;
        const auto open = [&] {
            Store store(options());
            put(store, request_of("m", {"a"}, 2 * MiB));
        };
        EXPECT_THAT(code_of(open, &message), AnyOf(Errc::invalid_argument, Errc::storage)) << name;
        EXPECT_THAT(message, HasSubstr(root.string())) << name;
        EXPECT_TRUE(fs::is_symlink(link)) << name;
        EXPECT_EQ(fs::file_size(victim), 4) << name;
        fs::remove_all(root / "data");
        fs::rename(root / "kept", root / "data");
    }
}

TEST_P(DurableStore, MayBeBehindALink) {
    fs::create_directory(root / "scratch");
    fs::create_directory_symlink(root / "scratch", root / "link");
    Store::Options behind = options();
    behind.data_dir = root / "link" / "data";
    {
        Store store(behind);
        put(store, request_of("m", {"a"}, 2 * MiB));
    }
    Store store(behind);
    expect_intact(store, "m");
}

TEST_P(DurableStore, RefusesChangesOnceItIsClosed) {
    Store store(options());
    put(store, request_of("m", {"a"}, 10));
    store.close();
    store.close();
    EXPECT_EQ(code_of([&] { put(store, request_of("n", {"a"}, 10)); }), Errc::storage);
    EXPECT_EQ(code_of([&] { store.retire("m"); }), Errc::storage);
    expect_intact(store, "m");
    const Store second(options());
    EXPECT_THAT(second.list(), ElementsAre("m"));
}

TEST_P(DurableStore, NoticesDamagedBytes) {
    fs::path segment;
    {
        Store store(options());
        put(store, request_of("m", {"a"}, 2 * MiB));
        put(store, request_of("n", {"b"}, 2 * MiB));
    }
    for (const auto& entry : fs::directory_iterator(root / "data" / "segments")) {
        segment = std::max(segment, entry.path());
    }
    {
        std::fstream file(segment, std::ios::in | std::ios::out | std::ios::binary);
        file.seekp(-5, std::ios::end);
        file.put('!');
    }
    {
        Store store(options());
        EXPECT_THAT(store.verify(), ElementsAre(HasSubstr("n/")));
        std::string message;
        EXPECT_EQ(code_of([&] { (void)store.read("n", {}); }, &message), Errc::storage);
        EXPECT_THAT(message, HasSubstr(segment.filename().string()));
        expect_intact(store, "m");
    }
    fs::remove(segment);
    std::string message;
    EXPECT_EQ(code_of([&] { const Store store(options()); }, &message), Errc::storage);
    EXPECT_THAT(message, HasSubstr("cpp-store check"));
}

// The words of the schema, and bytes of the header, that SQLite's own check takes for granted.
TEST_P(DurableStore, NoticesADamagedCatalogue) {
    {
        Store store(options());
        put(store, request_of("m", {"a"}, 1'000));
    }
    const fs::path catalogue = root / "data" / "catalogue.sqlite";
    std::ifstream in(catalogue, std::ios::binary);
    const std::string whole{std::istreambuf_iterator<char>(in), {}};
    const auto change = [&](std::size_t at, char byte) {
        std::string bytes = whole;
        bytes.at(at) = byte;
        std::ofstream(catalogue, std::ios::binary) << bytes;
    };

    change(whole.find("retired_by"), 'R' + 1);
    EXPECT_EQ(code_of([&] { const Store store(options()); }), Errc::storage);
    const CheckReport report = check_directory(root / "data", true);  // comes to an end
    ASSERT_THAT(report.damage, Not(IsEmpty()));
    EXPECT_THAT(report.damage[0], AllOf(HasSubstr("catalogue"), HasSubstr("nothing is repaired")));
    EXPECT_THAT(report.dropped, IsEmpty());

    constexpr std::size_t write_version = 18;  // of SQLite's header
    change(write_version, 64);
    std::string message;
    EXPECT_EQ(code_of([&] { const Store store(options()); }, &message), Errc::storage);
    EXPECT_THAT(message, HasSubstr("cannot write " + catalogue.string()));
    EXPECT_EQ(code_of([&] { (void)check_directory(root / "data", true); }), Errc::storage);

    std::ofstream(catalogue, std::ios::binary) << whole;
    Store::Options older = options();
    older.warn = [](std::string_view) {};  // of what came since into a segment
    Store store(older);
    expect_intact(store, "m");
}

TEST_P(DurableStore, SurvivesASegmentThatIsCutOffWhileItIsOpen) {
    Store store(options(4 * MiB));
    put(store, request_of("m", {"a"}, 3 * MiB));
    store.flush();
    const fs::path segment = fs::directory_iterator(root / "data" / "segments")->path();
    put(store, request_of("n", {"b"}, 3 * MiB));                // m leaves the memory
    for (const std::uint64_t size : {MiB, std::uint64_t{0}}) {  // within a piece, and all of it
        fs::resize_file(segment, size);
        std::string message;
        EXPECT_EQ(code_of([&] { (void)store.read("m", {}); }, &message), Errc::storage);
        EXPECT_THAT(message, HasSubstr(segment.string() + " ends early"));
    }
    expect_intact(store, "n");
}

TEST_P(DurableStore, TakesPutsOfManyThreads) {
    {
        Store store(options());
        std::vector<std::thread> threads;
        std::atomic<int> wins = 0;
        for (int t = 0; t < 8; ++t) {
            threads.emplace_back([&, t] {
                for (int i = 0; i < 20; ++i) {
                    const std::string id = std::to_string(t) + "." + std::to_string(i);
                    put(store, request_of(id, {"a" + id}, 300));
                    expect_intact(store, id);
                    try {  // one of them wins
                        put(store, request_of("same" + std::to_string(i), {"a"},
                                              100 + static_cast<std::uint64_t>(t)));
                        ++wins;
                    } catch (const Error& error) {
                        EXPECT_EQ(error.code(), Errc::already_exists);
                    }
                    if (i % 2 == 0) store.retire(id);
                }
            });
        }
        for (std::thread& thread : threads) thread.join();
        EXPECT_EQ(wins, 20);
        EXPECT_EQ(store.stats().models, 8U * 10U + 20U);
    }
    Store store(options());
    EXPECT_EQ(store.stats().models, 8U * 10U + 20U);
    EXPECT_THAT(store.verify(), IsEmpty());
}

// Histories of puts, inheriting puts, retirements, reads and restarts, against a plain model.
TEST_P(DurableStore, IsWhatAModelSaysAfterEveryRestart) {
    struct Model {
        std::vector<std::string> layers;
        std::uint64_t size = 0;
    };
    for (unsigned seed = 0; seed < 6; ++seed) {
        SCOPED_TRACE(seed);
        std::mt19937 random(seed);
        fs::remove_all(root / "data");
        std::map<std::string, Model> models;
        std::optional<Store> store(std::in_place, options(2 * MiB));
        for (int step = 0; step < 250; ++step) {
            const auto action = random() % 20;
            const auto any = [&] {
                auto chosen = models.begin();
                std::advance(chosen, random() % models.size());
                return chosen;
            };
            if (action < 10 || models.empty()) {
                const std::string id = "m" + std::to_string(step);
                Model made{{}, 1 + random() % (random() % 4 == 0 ? 300'000 : 3'000)};
                std::uint32_t inherited = 0;
                std::string owner;
                if (!models.empty() && random() % 2 == 0) {
                    // The first layer, from whoever owns it.
                    const auto parent = any();
                    owner = store->lookup(parent->first).layers.at(0).owner;
                    made.layers.push_back(parent->second.layers[0]);
                    inherited = 1;
                } else {
                    made.layers.push_back("root" + std::to_string(step));
                }
                for (auto i = random() % 3; i > 0; --i) {
                    made.layers.push_back("l" + std::to_string(step) + "." + std::to_string(i));
                }
                put(*store, request_of(id, made.layers, made.size, inherited, owner));
                models[id] = made;
            } else if (action < 15) {
                const auto chosen = any();
                store->retire(chosen->first);
                models.erase(chosen);
            } else if (action < 19) {
                expect_intact(*store, any()->first);
            } else {
                store.reset();
                store.emplace(options(2 * MiB));
                ASSERT_EQ(store->stats().models, models.size());
            }
        }
        store.reset();
        store.emplace(options(2 * MiB));
        ASSERT_EQ(store->stats().models, models.size());
        for (const auto& [id, model] : models) {
            expect_intact(*store, id);
            EXPECT_EQ(
                store->best_matches(*chain(model.layers), {}, milliseconds(0)).at(0).match.layers,
                model.layers.size());
            store->retire(id);
        }
        EXPECT_EQ(store->stats().layers, 0U);
        store->flush();
        EXPECT_EQ(files(), 0U);
    }
}

TEST_P(DurableStore, ReadsAndEvictsInManyThreads) {
    Store store(options(4 * MiB));
    constexpr int models = 24;
    for (int i = 0; i < models; ++i) {
        put(store, request_of("m" + std::to_string(i),
                              {"a" + std::to_string(i), "b" + std::to_string(i)}, 200'000));
    }
    std::vector<std::thread> threads;
    for (unsigned t = 0; t < 4; ++t) {
        threads.emplace_back([&, t] {
            std::mt19937 random(t);
            for (int i = 0; i < 60; ++i)
                expect_intact(store, "m" + std::to_string(random() % models));
        });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_LE(store.stats().memory.used, 4 * MiB);
}

}  // namespace
}  // namespace cpp_store
