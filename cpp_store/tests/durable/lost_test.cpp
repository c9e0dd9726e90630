// What becomes of a data directory a part of which is lost or damaged: nothing of it is taken for
// nothing, and nothing that might still be of use is removed.
#include <gmock/gmock.h>

#include <cmath>
#include <fstream>
#include <iterator>

#include "cpp_store/check.hpp"
#include "durable/durable_store.hpp"
#include "durable/wal.hpp"

namespace cpp_store {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;
using testing::SizeIs;

std::string bytes_of(const fs::path& path) {
    std::ifstream in(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
}

void write(const fs::path& path, const std::string& bytes) {
    std::ofstream(path, std::ios::binary) << bytes;
}

std::vector<std::string> names_in(const fs::path& directory) {
    std::vector<std::string> names;
    if (!fs::exists(directory)) return names;
    for (const auto& entry : fs::directory_iterator(directory)) {
        names.push_back(entry.path().filename().string());
    }
    std::ranges::sort(names);
    return names;
}

class LostPart : public DurableStore {
  protected:
    Store::Options options() {
        Store::Options made = DurableStore::options();
        made.warn = [this](std::string_view line) { warnings.emplace_back(line); };
        return made;
    }
    // What a crash leaves: a copy of the directory of a store that is open.
    void crash(int models, std::uint64_t size) {
        Store::Options elsewhere = options();
        elsewhere.data_dir = root / "open";
        fs::remove_all(root / "open");
        Store store(elsewhere);
        for (int i = 0; i < models; ++i) {
            put(store, request_of("m" + std::to_string(i), {"a" + std::to_string(i)}, size));
            store.flush();
        }
        fs::remove_all(root / "data");
        fs::copy(root / "open", root / "data", fs::copy_options::recursive);
    }
    // Opens the directory as a store; its models, or the message of the refusal.
    std::vector<std::string> open(std::string* refusal = nullptr) {
        try {
            Store store(options());
            for (const std::string& model : store.list()) expect_intact(store, model);
            return store.list();
        } catch (const Error& error) {
            if (refusal) *refusal = error.what();
            return {};
        }
    }

    std::vector<std::string> warnings;
};

INSTANTIATE_TEST_SUITE_P(Both, LostPart, testing::Values(Durability::sync, Durability::lazy),
                         [](const auto& each) {
                             return each.param == Durability::sync ? "Sync" : "Lazy";
                         });

TEST_P(LostPart, SegmentsWithoutACatalogueAreRefusedAndNeverRemoved) {
    const auto losses = {+[](const fs::path& data) { fs::remove(data / "catalogue.sqlite"); },
                         +[](const fs::path& data) { write(data / "catalogue.sqlite", ""); },
                         +[](const fs::path& data) {
                             fs::remove(data / "catalogue.sqlite");
                             fs::remove(data / "catalogue.sqlite-wal");
                         }};
    for (const auto& lose : losses) {
        crash(3, 2 * MiB);
        const fs::path data = root / "data";
        const std::vector<std::string> segments = names_in(data / "segments");
        ASSERT_THAT(segments, SizeIs(3));
        lose(data);
        for (int i = 0; i < 2; ++i) {
            std::string refusal;
            EXPECT_THAT(open(&refusal), IsEmpty());
            EXPECT_THAT(refusal, AllOf(HasSubstr("catalogue.sqlite is missing or empty"),
                                       HasSubstr("cpp-store check --repair")));
            EXPECT_EQ(code_of([&] { (void)check_directory(data, false); }), Errc::storage);
            EXPECT_EQ(names_in(data / "segments"), segments);
        }
        const CheckReport report = check_directory(data, true);
        EXPECT_THAT(report.damage, ElementsAre(HasSubstr("there was no catalogue")));
        EXPECT_THAT(report.dropped, IsEmpty());
        EXPECT_EQ(names_in(data / "segments"), segments);
        EXPECT_THAT(check_directory(data, false).damage, IsEmpty());
        std::string refusal;
        EXPECT_THAT(open(&refusal), ElementsAre("m0", "m1", "m2"));
        EXPECT_THAT(refusal, IsEmpty());
    }
}

TEST_P(LostPart, NoSegmentGoesWithAWalThatWasNotCopiedAlong) {
    crash(6, 2 * MiB);
    const fs::path data = root / "data";
    std::vector<std::string> segments = names_in(data / "segments");
    ASSERT_THAT(segments, SizeIs(6));
    fs::remove(data / "catalogue.sqlite-wal");
    (void)open();
    std::vector<std::string> left = names_in(data / "segments");
    std::ranges::copy(names_in(data / "aside"), std::back_inserter(left));
    std::ranges::sort(left);
    EXPECT_EQ(left, segments);
}

TEST_P(LostPart, FilesThatTheCatalogueDoesNotKnowAreMovedAsideByName) {
    {
        Store store(options());
        put(store, request_of("m", {"a"}, 2 * MiB));
    }
    const fs::path segments = root / "data" / "segments";
    const std::string known = names_in(segments).at(0);
    for (const int round : {0, 1}) {
        write(segments / "000000000900.safetensors", "a segment " + std::to_string(round));
        write(segments / "notes.txt", "mine");
        warnings.clear();
        EXPECT_THAT(open(), ElementsAre("m"));
        EXPECT_THAT(warnings, ElementsAre(AllOf(HasSubstr("2 files"), HasSubstr("aside/"),
                                                HasSubstr("000000000900.safetensors"))));
        EXPECT_THAT(names_in(segments), ElementsAre(known));
    }
    EXPECT_THAT(names_in(root / "data" / "aside"),
                ElementsAre("000000000900.safetensors", "000000000900.safetensors.1", "notes.txt",
                            "notes.txt.1"));
    EXPECT_EQ(bytes_of(root / "data" / "aside" / "000000000900.safetensors.1"), "a segment 1");
    warnings.clear();
    EXPECT_THAT(open(), ElementsAre("m"));
    EXPECT_THAT(warnings, IsEmpty());
}

TEST_P(LostPart, SegmentsThatAreEmptyByTheCatalogueAreRemoved) {
    {
        Store store(options());
        put(store, request_of("m", {"a"}, 2 * MiB));
        (void)store.best_matches(*chain({"a"}), {}, std::chrono::minutes(10));  // a lease
        store.retire("m");
    }
    EXPECT_THAT(open(), IsEmpty());
    EXPECT_EQ(files(), 0U);
    EXPECT_THAT(names_in(root / "data" / "aside"), IsEmpty());
    EXPECT_THAT(warnings, IsEmpty());
}

// Of a flipped bit, the last transaction may look like one that was not written to its end; all
// others have others behind them.
TEST_P(LostPart, AFlippedBitInTheWalOfTheCatalogueHidesNoTransaction) {
    constexpr int models = 8;
    crash(models, 1'000);
    const fs::path data = root / "data";
    const fs::path wal = data / "catalogue.sqlite-wal";
    const std::string whole = bytes_of(wal);
    ASSERT_GT(whole.size(), 50'000U);
    EXPECT_FALSE(durable::hides_transactions(wal));
    const fs::path untouched = root / "untouched";
    fs::copy(data, untouched, fs::copy_options::recursive);
    int refused = 0;
    for (std::size_t at = 1; at < whole.size(); at += whole.size() / 20) {
        fs::remove_all(data);
        fs::copy(untouched, data, fs::copy_options::recursive);
        std::string bytes = whole;
        bytes[at] = static_cast<char>(bytes[at] ^ 0x10);
        write(wal, bytes);
        std::string refusal;
        const std::vector<std::string> found = open(&refusal);
        if (refusal.empty()) {
            EXPECT_GE(found.size(), models - 1U) << at;
            continue;
        }
        ++refused;
        EXPECT_THAT(refusal, HasSubstr("cpp-store check --repair")) << at;
        EXPECT_EQ(bytes_of(wal), bytes) << at;  // it was not touched
        EXPECT_EQ(code_of([&] { (void)check_directory(data, false); }), Errc::storage);
        EXPECT_THAT(check_directory(data, true).damage, Not(IsEmpty()));
        EXPECT_EQ(bytes_of(data / "aside" / "catalogue.sqlite-wal.damaged"), bytes) << at;
        refusal.clear();
        (void)open(&refusal);
        EXPECT_THAT(refusal, IsEmpty()) << at;
    }
    EXPECT_GT(refused, 10);
}

TEST_P(LostPart, AWalThatACrashCutShortIsNotDamaged) {
    crash(4, 1'000);
    const fs::path wal = root / "data" / "catalogue.sqlite-wal";
    const std::string whole = bytes_of(wal);
    for (std::size_t size = 0; size < whole.size(); size += 1999) {
        write(wal, whole.substr(0, size));
        EXPECT_FALSE(durable::hides_transactions(wal)) << size;
        // Pages of the last transaction may be written in any order.
        write(wal, whole.substr(0, size) + std::string(whole.size() - size, '\0'));
        EXPECT_FALSE(durable::hides_transactions(wal)) << size;
    }
}

TEST_P(LostPart, WhatAnotherServersModelInheritsIsOnDiskBeforeItIsPublished) {
    Store::Options unhurried = options();
    unhurried.lag = std::chrono::minutes(10);
    unhurried.data_dir = root / "open";
    Store store(unhurried);
    put(store, request_of("parent", {"a", "b"}, 1'000));
    const LayerKey key = layer_key("a");
    store.acquire("parent", {&key, 1}, "heir");
    fs::copy(root / "open", root / "data", fs::copy_options::recursive);  // and it is killed
    Store again(options());
    EXPECT_THAT(again.holders(), ElementsAre("heir"));
    EXPECT_EQ(again.fetch("parent", {&key, 1}).size(), 1U);
    again.retire("parent");
    EXPECT_EQ(again.fetch("parent", {&key, 1}).size(), 1U);
}

void lose_catalogue(const fs::path& data) {
    for (const std::string& name : names_in(data)) {
        if (name.starts_with("catalogue")) fs::remove(data / name);
    }
}

// All that a put said, lineage included; and what cannot be put together is named.
TEST_P(LostPart, RepairRebuildsWhatTheSegmentsHold) {
    PutRequest parent = request_of("parent", {"a", "b"}, MiB);
    parent.ns = "n";
    parent.score = std::numeric_limits<double>::quiet_NaN();
    parent.parent = "p";
    parent.graph = "{\"graph\": 1}";
    parent.metadata = "{\"x\": 2}";
    parent.created_ns = 12'345;
    {
        Store store(options());
        put(store, parent);
        put(store, request_of("child", {"a", "c"}, 2 * MiB, 1, "parent"));
        put(store, request_of("small", {"s"}, 100));
        put(store, request_of("heir of small", {"s", "t"}, MiB, 1, "small"));
        // Its own layers are of another put than those that it has from the one that is retired.
        put(store, request_of("twice", {"x"}, MiB));
        put(store, request_of("keeps", {"x", "y"}, MiB, 1, "twice"));
        store.retire("twice");
    }
    const fs::path data = root / "data";
    const Bytes untouched = pattern(MiB, "parent", "b");
    lose_catalogue(data);
    const CheckReport report = check_directory(data, true);
    EXPECT_THAT(report.damage,
                ElementsAre(HasSubstr("there was no catalogue"),
                            AllOf(HasSubstr("'heir of small'"), HasSubstr("not there"))));
    EXPECT_THAT(report.dropped, ElementsAre("heir of small"));
    EXPECT_THAT(check_directory(data, false).damage, IsEmpty());
    Store store(options());
    // Of those that were retired nothing says so but the catalogue.
    EXPECT_THAT(store.list(), ElementsAre("parent", "child", "twice", "keeps"));
    for (const std::string& model : store.list()) expect_intact(store, model);
    const ModelInfo info = store.lookup("parent");
    EXPECT_EQ(info.ns, "n");
    EXPECT_TRUE(std::isnan(info.score));
    EXPECT_EQ(info.parent, "p");
    EXPECT_EQ(info.graph, parent.graph);
    EXPECT_EQ(info.metadata, parent.metadata);
    EXPECT_EQ(info.created_ns, 12'345U);
    EXPECT_EQ(store.lookup("child").layers.at(0).owner, "parent");
    EXPECT_EQ(put(store, parent), 2 * MiB);  // its checksums are known: the same put is success
}

TEST_P(LostPart, RepairRebuildsSegmentsThatWereWrittenAnew) {
    {
        Store store(options());
        put(store, request_of("big", {"a", "b", "c", "d"}, MiB));
        put(store, request_of("child", {"a", "x"}, MiB, 1, "big"));
        store.retire("big");
        store.flush();
        store.flush();
        put(store, request_of("big two", {"a"}, MiB));
    }
    lose_catalogue(root / "data");
    EXPECT_THAT(check_directory(root / "data", true).dropped, IsEmpty());
    Store store(options());
    EXPECT_THAT(store.list(), ElementsAre("child", "big two"));  // it was retired when it was moved
    expect_intact(store, "child");
}

TEST_P(LostPart, RepairNamesWhatASegmentThatIsGoneTookAlong) {
    crash(3, 2 * MiB);
    const fs::path data = root / "data";
    lose_catalogue(data);
    const std::vector<std::string> segments = names_in(data / "segments");
    const fs::path damaged = data / "segments" / segments.at(1);
    std::string bytes = bytes_of(damaged);
    bytes[200] = bytes[200] == '0' ? '1' : '0';  // a digit of the records
    write(damaged, bytes);
    const CheckReport report = check_directory(data, true);
    EXPECT_THAT(report.damage, Contains(HasSubstr(segments[1] + " has damaged records of models")));
    EXPECT_THAT(names_in(data / "aside"), ElementsAre(segments[1]));
    EXPECT_THAT(open(), ElementsAre("m0", "m2"));
}

}  // namespace
}  // namespace cpp_store
