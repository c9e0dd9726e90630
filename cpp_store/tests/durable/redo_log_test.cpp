// The log of a sync store: its files, and what is made of them after a crash.
#include "durable/redo_log.hpp"

#include <gmock/gmock.h>

#include <fstream>
#include <map>

#include "cpp_store/check.hpp"
#include "durable/durable_store.hpp"
#include "durable/failpoints.hpp"

namespace cpp_store {
namespace {

namespace fs = std::filesystem;
using durable::RedoLog;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Pair;
using testing::SizeIs;

using Entries = std::map<std::uint64_t, std::string>;

class RedoLogFiles : public testing::Test {
  protected:
    RedoLogFiles() {
        std::string name = (fs::temp_directory_path() / "cpp_store_XXXXXX").string();
        root = ::mkdtemp(name.data());
    }
    ~RedoLogFiles() override { fs::remove_all(root); }

    static std::uint64_t append(RedoLog& log, std::string_view text, std::uint64_t applied = 0) {
        std::vector<std::byte> entry(RedoLog::header_size);
        const auto bytes = std::as_bytes(std::span(text));
        entry.insert(entry.end(), bytes.begin(), bytes.end());
        return log.append(entry, applied);
    }
    Entries read(std::uint64_t applied = 0) const {
        Entries found;
        durable::read_log(root, applied, [&](std::uint64_t number, auto content) {
            found[number] = {reinterpret_cast<const char*>(content.data()), content.size()};
        });
        return found;
    }

    fs::path root;
};

TEST_F(RedoLogFiles, AreReadBackInOrder) {
    EXPECT_THAT(read(), IsEmpty());
    RedoLog log(root, 7);
    EXPECT_EQ(append(log, "first"), 8);
    EXPECT_EQ(append(log, "second"), 9);
    EXPECT_THAT(read(7), ElementsAre(Pair(8, "first"), Pair(9, "second")));
    EXPECT_THAT(read(8), ElementsAre(Pair(9, "second")));
    durable::remove_log(root);
    EXPECT_TRUE(fs::is_empty(root));
}

TEST_F(RedoLogFiles, EndWhereAnEntryIsTorn) {
    {
        RedoLog log(root, 0);
        append(log, "first");
        append(log, "second");
    }
    const std::uint64_t size = fs::file_size(root / "log.0");
    const std::uint64_t first = RedoLog::header_size + std::string_view("first").size();
    for (std::uint64_t left = size - 1; left > 0; --left) {
        fs::resize_file(root / "log.0", left);
        EXPECT_THAT(read(), SizeIs(left >= first ? 1 : 0)) << left;
    }
}

TEST_F(RedoLogFiles, EndWhereAnyByteIsAnother) {
    std::string whole;
    {
        RedoLog log(root, 0);
        append(log, "first");
        append(log, "second");
        std::ifstream in(root / "log.0", std::ios::binary);
        whole.assign(std::istreambuf_iterator<char>(in), {});
    }
    const std::uint64_t first = RedoLog::header_size + std::string_view("first").size();
    for (std::size_t at = 0; at < whole.size(); ++at) {
        std::string bytes = whole;
        bytes[at] = static_cast<char>(bytes[at] ^ 4);
        std::ofstream(root / "log.0", std::ios::binary) << bytes;
        if (at >= first) {  // as a crash may leave it
            EXPECT_THAT(read(), SizeIs(1)) << at;
            continue;
        }
        Entries before;
        EXPECT_EQ(code_of([&] { before = read(); }), Errc::storage) << at;
        EXPECT_THAT(before, IsEmpty());
        EXPECT_THAT(read(2), IsEmpty()) << at;  // the catalogue has both
    }
}

TEST_F(RedoLogFiles, WhatWasThereBeforeIsNoDamage) {
    RedoLog log(root, 0);
    const std::string large(1 << 20, 'x');
    for (int i = 0; i < 20; ++i) append(log, large, 0);  // 1 to 16 in log.0
    for (int i = 0; i < 12; ++i) append(log, large, 20);
    EXPECT_EQ(append(log, "the other's turn", 32), 33);  // over 1
    std::fstream file(root / "log.0", std::ios::binary | std::ios::in | std::ios::out);
    file.seekp(RedoLog::header_size);
    file.put('T');
    file.close();
    EXPECT_THAT(read(32), IsEmpty());  // torn, before older entries
}

TEST_F(RedoLogFiles, TakeTurnsWhenTheCatalogueHasWhatIsInTheOther) {
    RedoLog log(root, 0);
    const std::string large(1 << 20, 'x');
    std::uint64_t number = 0;
    for (int i = 0; i < 20; ++i) number = append(log, large, 0);
    EXPECT_EQ(fs::file_size(root / "log.1"), 4 * (RedoLog::header_size + large.size()));
    // Now both are full of what the catalogue lacks: the second one grows.
    for (int i = 0; i < 20; ++i) number = append(log, large, 3);
    EXPECT_GT(fs::file_size(root / "log.1"), 20 << 20);
    EXPECT_THAT(read(), SizeIs(40));
    const std::uint64_t size = fs::file_size(root / "log.0");
    for (int i = 0; i < 10; ++i) number = append(log, "small", 40);
    EXPECT_EQ(fs::file_size(root / "log.0"), size);
    EXPECT_EQ(number, 50);
    EXPECT_THAT(read(40), SizeIs(10));
    EXPECT_THAT(read(45), SizeIs(5));
}

TEST_F(RedoLogFiles, SayThatAnEntryIsMissing) {
    {
        RedoLog log(root, 0);
        for (int i = 0; i < 18; ++i) append(log, std::string(1 << 20, 'x'));
    }
    fs::resize_file(root / "log.0", 5 << 20);
    Entries found;
    std::string message;
    EXPECT_EQ(code_of(
                  [&] {
                      durable::read_log(root, 0,
                                        [&](std::uint64_t number, auto) { found[number] = ""; });
                  },
                  &message),
              Errc::storage);
    EXPECT_THAT(message, HasSubstr(root.string() + " is damaged: its log lacks entry 5"));
    EXPECT_THAT(found, SizeIs(4));
}

#ifdef CPP_STORE_FAILPOINTS
TEST_F(RedoLogFiles, OverwriteWhatFailed) {
    const std::string large(1 << 20, 'x');
    for (const char* const failpoint :
         {"log.write:1:enospc", "log.write:2:eio", "file.sync:1:eio"}) {
        RedoLog log(root, 0);
        for (int i = 0; i < 16; ++i) append(log, large, 0);  // the next one is the other file's
        failpoints::arm(failpoint);
        if (std::string_view(failpoint).starts_with("log.write:2")) {
            failpoints::arm("log.write:1:short,log.write:2:eio");
        }
        EXPECT_EQ(code_of([&] { append(log, "this fails, and is longer", 16); }), Errc::storage);
        failpoints::arm("");
        EXPECT_EQ(append(log, "this works", 16), 17) << failpoint;
        EXPECT_EQ(append(log, "so does this", 16), 18) << failpoint;
        EXPECT_THAT(read(16), ElementsAre(Pair(17, "this works"), Pair(18, "so does this")));
        durable::remove_log(root);
    }
}

class FailingLog : public DurableStore {};

INSTANTIATE_TEST_SUITE_P(Of, FailingLog, testing::Values(Durability::sync),
                         [](const auto&) { return "Sync"; });

TEST_P(FailingLog, AcknowledgesNoReferenceThatItLacks) {
    Store store(options());
    put(store, request_of("m", {"a", "b", "c"}, 10));
    const std::vector<LayerKey> keys{layer_key("a"), layer_key("b"), layer_key("c")};
    // Whichever of them the first entry has.
    for (int i = 0; i < 20; ++i) {
        const std::string holder = "heir" + std::to_string(i) + "@1";
        failpoints::arm("log.write:1:eio");
        EXPECT_EQ(code_of([&] { store.acquire("m", keys, holder); }), Errc::storage);
        failpoints::arm("");
        EXPECT_NO_THROW(store.acquire("m", keys, holder));
    }
}
#endif

// A sync store whose catalogue has nothing of what it was told yet: what a crash leaves is a copy
// of its directory.
class CrashedStore : public DurableStore {
  protected:
    CrashedStore() {
        Store::Options unhurried = options();
        unhurried.durability = Durability::sync;
        unhurried.lag = std::chrono::minutes(10);
        Store store(unhurried);
        put(store, request_of("parent", {"a", "b"}, 1'000));
        put(store, request_of("child", {"a", "c"}, 3 * MiB, 1, "parent"));  // written ahead
        put(store, request_of("gone", {"x"}, 100));
        store.retire("gone", Note{"gone", 5, true, 3});
        store.retire("parent");
        const LayerKey key = layer_key("c");
        store.acquire("child", {&key, 1}, "far@9");
        fs::copy(root / "data", root / "crashed", fs::copy_options::recursive);
    }
    Store::Options crashed() const {
        Store::Options made = options();
        made.data_dir = root / "crashed";
        return made;
    }
};

INSTANTIATE_TEST_SUITE_P(OpenedAs, CrashedStore,
                         testing::Values(Durability::sync, Durability::lazy), [](const auto& each) {
                             return each.param == Durability::sync ? "Sync" : "Lazy";
                         });

TEST_P(CrashedStore, IsWhatItSaidItWas) {
    EXPECT_GT(fs::file_size(root / "crashed" / "log.0"), 0);
    for (int restart = 0; restart < 2; ++restart) {
        Store store(crashed());
        EXPECT_THAT(store.list(), ElementsAre("child"));
        expect_intact(store, "child");
        EXPECT_THAT(store.holders(), ElementsAre("far@9"));
        EXPECT_THAT(store.take_notes().notes, SizeIs(1));
        EXPECT_EQ(store.stats().layers, 2);
        EXPECT_THAT(store.verify(), IsEmpty());
    }
    EXPECT_FALSE(fs::exists(root / "crashed" / "log.0"));
}

TEST_P(CrashedStore, IsCheckedWithItsLog) {
    const CheckReport report = check_directory(root / "crashed", false);
    EXPECT_THAT(report.damage, IsEmpty());
    EXPECT_EQ(report.models, 1);
    EXPECT_EQ(report.layers, 2);
    EXPECT_FALSE(fs::exists(root / "crashed" / "log.0"));
}

TEST_P(CrashedStore, HasADamagedLogRepaired) {
    fs::rename(root / "crashed" / "log.0", root / "crashed" / "log.1");
    {
        RedoLog later(root / "crashed", 50);
        std::vector<std::byte> entry(RedoLog::header_size);
        later.append(entry, 0);
    }
    std::string message;
    EXPECT_EQ(code_of([&] { const Store store(crashed()); }, &message), Errc::storage);
    EXPECT_THAT(message, HasSubstr("cpp-store check --repair"));
    EXPECT_THAT(check_directory(root / "crashed", false).damage, SizeIs(1));
    EXPECT_THAT(check_directory(root / "crashed", true).damage,
                ElementsAre(HasSubstr("lacks entry")));
    Store store(crashed());
    EXPECT_THAT(store.list(), ElementsAre("child"));
    expect_intact(store, "child");
}

}  // namespace
}  // namespace cpp_store
