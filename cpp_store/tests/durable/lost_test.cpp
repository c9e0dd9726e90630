// What becomes of a data directory a part of which is lost or damaged: nothing of it is taken for
// nothing, and nothing that might still be of use is removed.
#include <gmock/gmock.h>

#include <fstream>
#include <iterator>

#include "cpp_store/check.hpp"
#include "durable/durable_store.hpp"
#include "durable/redo_log.hpp"
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
    void crash(int models, std::uint64_t size, bool in_catalogue) {
        Store::Options unhurried = options();
        if (!in_catalogue) unhurried.lag = std::chrono::minutes(10);
        unhurried.data_dir = root / "open";
        fs::remove_all(root / "open");
        Store store(unhurried);
        for (int i = 0; i < models; ++i) {
            put(store, request_of("m" + std::to_string(i), {"a" + std::to_string(i)}, size));
            if (in_catalogue) store.flush();
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
        crash(3, 2 * MiB, true);
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
        EXPECT_THAT(report.damage, Contains(HasSubstr("there was no catalogue")));
        std::vector<std::string> left = names_in(data / "segments");
        std::ranges::copy(names_in(data / "aside"), std::back_inserter(left));
        EXPECT_THAT(left, testing::IsSupersetOf(segments));
        EXPECT_THAT(check_directory(data, false).damage, IsEmpty());
        std::string refusal;
        const bool has_log = GetParam() == Durability::sync;  // of all that was ever put
        EXPECT_THAT(open(&refusal), SizeIs(has_log ? 3 : 0));
        EXPECT_THAT(refusal, IsEmpty());
    }
}

TEST_P(LostPart, NoSegmentGoesWithAWalThatWasNotCopiedAlong) {
    crash(6, 2 * MiB, true);
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
    crash(models, 1'000, true);
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
    crash(4, 1'000, true);
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

class LostLog : public LostPart {};

INSTANTIATE_TEST_SUITE_P(Of, LostLog, testing::Values(Durability::sync),
                         [](const auto&) { return "Sync"; });

TEST_P(LostLog, AFlippedBitInTheRedoLogDropsNothingWithoutAWord) {
    constexpr int models = 20;
    crash(models, 100, false);
    const fs::path data = root / "data";
    const fs::path log = data / "log.0";
    const std::string whole = bytes_of(log);
    const fs::path untouched = root / "untouched";
    fs::copy(data, untouched, fs::copy_options::recursive);
    int refused = 0;
    for (std::size_t at = 3; at < whole.size(); at += whole.size() / 25) {
        fs::remove_all(data);
        fs::copy(untouched, data, fs::copy_options::recursive);
        std::string bytes = whole;
        bytes[at] = static_cast<char>(bytes[at] ^ 1);
        write(log, bytes);
        std::string refusal;
        const std::vector<std::string> found = open(&refusal);
        if (refusal.empty()) {
            EXPECT_GE(found.size(), models - 1U) << at;  // the last one looks torn
            continue;
        }
        ++refused;
        EXPECT_THAT(refusal, HasSubstr("cpp-store check --repair")) << at;
        EXPECT_THAT(check_directory(data, false).damage, SizeIs(1)) << at;
        EXPECT_EQ(bytes_of(log), bytes) << at;
        EXPECT_THAT(check_directory(data, true).damage, SizeIs(1)) << at;
        EXPECT_EQ(bytes_of(data / "aside" / "log.0"), bytes) << at;
        refusal.clear();
        EXPECT_LT(open(&refusal).size(), static_cast<std::size_t>(models));
        EXPECT_THAT(refusal, IsEmpty()) << at;
    }
    EXPECT_GT(refused, 20);
}

}  // namespace
}  // namespace cpp_store
