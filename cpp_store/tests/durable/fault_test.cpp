// Every system call on a data directory fails in turn, and the process dies before and after each.
#include "sanitizers.hpp"

#if CPP_STORE_TSAN  // it dislikes forks
#undef CPP_STORE_FAILPOINTS
#endif

#ifdef CPP_STORE_FAILPOINTS

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <map>
#include <optional>
#include <set>

#include "cpp_store/check.hpp"
#include "cpp_store/store.hpp"
#include "durable/failpoints.hpp"
#include "models.hpp"

namespace cpp_store {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr std::uint64_t KiB = 1024;

// Every place in `make soak`; in CI every so many-th, another one in each test.
unsigned step_of(unsigned usual) {
    if (sanitized) usual *= 5;
    return std::getenv("CPP_STORE_SOAK") ? 1 : usual;
}

// What a history does, one call a step. All models are of one layer of their own, and perhaps the
// first layer of `parent`. Holders adopt a layer from `model`, or acquire that of it.
struct Step {
    enum class Kind : std::uint8_t { put, retire, read, flush, adopt, acquire };
    Kind kind = Kind::put;
    std::string model;
    std::uint64_t size = 0;
    std::string parent = "";  // or holder
};

// Small puts, which go into the catalogue; one that makes a segment; one that writes ahead;
// inheritance from the living and the dead; enough dead bytes for a segment to be written anew.
const std::vector<Step>& history() {
    static const std::vector<Step> steps{
        {Step::Kind::put, "a", 1 * KiB, ""},
        {Step::Kind::put, "b", 1500 * KiB, ""},
        {Step::Kind::put, "child", 300 * KiB, "a"},
        {Step::Kind::retire, "a", 0, ""},
        {Step::Kind::put, "grandchild", 3, "child"},
        {Step::Kind::read, "child", 0, ""},
        {Step::Kind::retire, "b", 0, ""},
        {Step::Kind::put, "c", 1200 * KiB, ""},
        {Step::Kind::read, "c", 0, ""},
        {Step::Kind::put, "heir", 1, "c"},
        {Step::Kind::retire, "c", 0, ""},
        {Step::Kind::flush, "", 0, ""},
        {Step::Kind::put, "last", 90 * KiB, ""},
        {Step::Kind::read, "grandchild", 0, ""},
        {Step::Kind::adopt, "far", 2 * KiB, "h"},
        {Step::Kind::acquire, "last", 0, "h"},
        {Step::Kind::adopt, "further", 400 * KiB, "i"},
        {Step::Kind::retire, "last", 0, ""},
    };
    return steps;
}

std::byte pattern(std::string_view model, std::uint64_t i) {
    return static_cast<std::byte>(std::hash<std::string_view>{}(model) + i * 131 + (i >> 8));
}

class Faults : public testing::Test {
  public:
    Faults() {
        std::string name = (fs::temp_directory_path() / "cpp_store_XXXXXX").string();
        root = ::mkdtemp(name.data());
    }
    ~Faults() override {
        failpoints::arm("");
        fs::remove_all(root);
    }

    Store::Options options(Durability durability) const {
        Store::Options made;
        made.memory = {.limit = 4096 * KiB, .region_size = 4096 * KiB, .ahead = 0};
        made.data_dir = root / "data";
        made.durability = durability;
        made.lag = std::chrono::milliseconds(20);
        made.warn = [](std::string_view) {};
        return made;
    }

    // The layer of `model` that its children inherit: its own.
    static LayerTablePtr table_of(const std::string& model, const std::string& parent) {
        std::vector<LayerTable::Layer> layers;
        if (!parent.empty()) layers.push_back({"of " + parent, {}, 0});
        layers.push_back({"of " + model, {}, 0});
        return std::make_shared<LayerTable>(std::move(layers));
    }

    static void run(Store& store, const Step& step) {
        switch (step.kind) {
            case Step::Kind::put: {
                PutRequest request;
                request.model = step.model;
                request.table = table_of(step.model, step.parent);
                const auto own = static_cast<std::uint32_t>(request.table->size() - 1);
                request.own.push_back({own, {{DType::uint8, {step.size}}}});
                if (!step.parent.empty()) request.inherited.push_back({0, step.parent});
                PendingPut pending = store.prepare(std::move(request));
                for (std::uint64_t i = 0; i < step.size; ++i) {
                    pending.buffers()[0][i] = pattern(step.model, i);
                }
                store.commit(std::move(pending));
                break;
            }
            case Step::Kind::retire:
                store.retire(step.model, Note{step.model, 1, true, 0});
                break;
            case Step::Kind::adopt: {
                std::vector<OwnerlessLayer> layers{
                    {layer_key("of " + step.model), {{DType::uint8, {step.size}}}}};
                PendingPut pending = store.prepare_adoption(step.model, std::move(layers));
                for (std::uint64_t i = 0; i < step.size; ++i) {
                    pending.buffers()[0][i] = pattern(step.model, i);
                }
                store.adopt(std::move(pending), step.parent);
                break;
            }
            case Step::Kind::acquire: {
                const LayerKey key = layer_key("of " + step.model);
                store.acquire(step.model, {&key, 1}, step.parent);
                break;
            }
            case Step::Kind::read:
                expect_intact(store, step.model);
                break;
            case Step::Kind::flush:
                store.flush();
                break;
        }
    }

    static void expect_intact(Store& store, const std::string& model) {
        for (const LayerLocation& location : store.read(model, {})) {
            expect_intact(*location.stored, location.owner);
        }
    }
    static void expect_intact(const StoredLayer& layer, const std::string& owner) {
        const StoredLayer::Tensor& tensor = layer.tensors.at(0);
        for (std::uint64_t i = 0; i < tensor.spec.nbytes(); ++i) {
            if (tensor.extent.data[i] == pattern(owner, i)) continue;
            ADD_FAILURE() << "byte " << i << " of " << owner;
            break;
        }
    }

    // What there is to be seen of a store.
    static std::set<std::string> seen(Store& store) {
        std::set<std::string> found;
        for (const std::string& model : store.list()) found.insert(model);
        for (const std::string& holder : store.holders()) found.insert("holder " + holder);
        return found;
    }
    static void apply(const Step& step, std::set<std::string>& state) {
        if (step.kind == Step::Kind::put) state.insert(step.model);
        if (step.kind == Step::Kind::retire) state.erase(step.model);
        if (step.kind == Step::Kind::adopt) state.insert("holder " + step.parent);
    }

    // What a store says after a sync that failed, until its directory is opened again.
    static bool has_stopped(const Error& error) {
        return std::string_view(error.what()).find("when the directory is opened again") !=
               std::string_view::npos;
    }

    // Opens the directory and compares it with one of the states that it may be in.
    void expect_one_of(const std::vector<std::set<std::string>>& states) {
        failpoints::arm("");
        {
            Store store(options(Durability::sync));
            const std::set<std::string> found = seen(store);
            EXPECT_THAT(states, testing::Contains(found));
            const auto list = store.list();
            for (const std::string& model : list) expect_intact(store, model);
            for (const auto& [owner, holder] : {std::pair("far", "h"), std::pair("further", "i")}) {
                if (!found.contains(std::string("holder ") + holder)) continue;
                const LayerKey key = layer_key(std::string("of ") + owner);
                expect_intact(*store.fetch(owner, {&key, 1}).at(0), owner);
            }
            for (const Note& note : store.take_notes().notes) {
                EXPECT_FALSE(found.contains(note.model)) << note.model << " is retired";
            }
            EXPECT_THAT(store.verify(), IsEmpty());
        }
        const CheckReport report = check_directory(root / "data", false);
        EXPECT_THAT(report.damage, IsEmpty());
        EXPECT_THAT(report.leaks, IsEmpty());
    }

    // Runs the history in a process that says over a pipe how far it is. Returns how many steps
    // were acknowledged; `died` says whether the failpoint killed it.
    std::size_t run_in_child(Durability durability, const std::string& failpoint, bool& died) {
        int ends[2];
        EXPECT_EQ(::pipe(ends), 0);
        const pid_t child = ::fork();
        if (child == 0) {
            ::close(ends[0]);
            failpoints::arm(failpoint);
            {
                Store store(options(durability));
                for (const Step& step : history()) {
                    run(store, step);
                    if (::write(ends[1], "x", 1) != 1) ::_exit(3);
                }
            }
            ::_exit(0);
        }
        ::close(ends[1]);
        std::size_t done = 0;
        char buffer[64];
        for (ssize_t got = 0; (got = ::read(ends[0], buffer, sizeof buffer)) > 0;) {
            done += static_cast<std::size_t>(got);
        }
        ::close(ends[0]);
        int status = 0;
        EXPECT_EQ(::waitpid(child, &status, 0), child);
        died = WIFSIGNALED(status);
        if (died) {
            EXPECT_EQ(WTERMSIG(status), SIGKILL);
        } else {
            EXPECT_EQ(WEXITSTATUS(status), 0);
        }
        return done;
    }

    fs::path root;
};

std::vector<std::set<std::string>> states() {
    std::vector<std::set<std::string>> out(1);
    for (const Step& step : history()) {
        out.push_back(out.back());
        Faults::apply(step, out.back());
    }
    return out;
}

TEST_F(Faults, DyingAnywhereLosesNothingThatWasAcknowledged) {
    const auto after = states();
    for (unsigned nth = 1;; nth += step_of(7)) {
        SCOPED_TRACE("*:" + std::to_string(nth) + ":kill");
        fs::remove_all(root / "data");
        bool died = false;
        const std::size_t done =
            run_in_child(Durability::sync, "*:" + std::to_string(nth) + ":kill", died);
        if (!died) {
            EXPECT_EQ(done, history().size());
            EXPECT_GT(nth, 100U);
            break;
        }
        expect_one_of({after[done], after[std::min(done + 1, after.size() - 1)]});
        if (HasFailure()) break;
    }
}

TEST_F(Faults, DyingAnywhereLeavesALazyStoreAtSomeMoment) {
    const auto after = states();
    for (unsigned nth = 2;; nth += step_of(11)) {
        SCOPED_TRACE("*:" + std::to_string(nth) + ":kill");
        fs::remove_all(root / "data");
        bool died = false;
        const std::size_t done =
            run_in_child(Durability::lazy, "*:" + std::to_string(nth) + ":kill", died);
        if (!died) break;
        // What was flushed explicitly is among what stays.
        const std::size_t least = done > 11 ? 12 : 0;
        const std::size_t most = std::min(done + 1, after.size() - 1);
        expect_one_of({after.begin() + static_cast<std::ptrdiff_t>(least),
                       after.begin() + static_cast<std::ptrdiff_t>(most) + 1});
        if (HasFailure()) break;
    }
}

class FailingCalls : public Faults, public testing::WithParamInterface<const char*> {};

INSTANTIATE_TEST_SUITE_P(Each, FailingCalls, testing::Values("enospc", "eio", "emfile", "short"),
                         [](const auto& each) { return std::string(each.param); });

// A call that fails changes nothing, and the next one works.
TEST_P(FailingCalls, ChangesNothingOrEverything) {
    for (unsigned nth = 1;; nth += step_of(13)) {
        const std::string failpoint = "*:" + std::to_string(nth) + ":" + GetParam();
        SCOPED_TRACE(failpoint);
        fs::remove_all(root / "data");
        std::set<std::string> models;
        std::uint64_t visits = 0;
        failpoints::arm(failpoint);
        {
            std::optional<Store> store;
            for (int tries = 0; !store && tries < 3; ++tries) {
                try {
                    store.emplace(options(Durability::sync));
                } catch (const Error& error) {
                    EXPECT_THAT(error.what(), HasSubstr((root / "data").string()));
                }
            }
            ASSERT_TRUE(store);
            for (const Step& step : history()) {
                for (int tries = 0;; ++tries) {
                    const std::uint64_t used = store->stats().bytes_stored;
                    try {
                        run(*store, step);
                        apply(step, models);
                        break;
                    } catch (const Error& error) {
                        if (error.code() ==
                            Errc::already_exists) {  // its sync failed, but it is there
                            apply(step, models);
                            break;
                        }
                        ASSERT_EQ(error.code(), Errc::storage) << error.what();
                        EXPECT_THAT(error.what(), HasSubstr(root.string()));
                        EXPECT_EQ(store->stats().bytes_stored, used);
                        EXPECT_EQ(seen(*store), models);
                    }
                    ASSERT_LT(tries, 4);
                    if (tries == 1) {  // the second one fails only after a failed sync
                        store.reset();
                        store.emplace(options(Durability::sync));
                        std::set<std::string> after = models;
                        apply(step, after);
                        if (seen(*store) == after) models = after;
                        EXPECT_EQ(seen(*store), models);
                        if (step.kind == Step::Kind::retire && !store->contains(step.model)) break;
                    }
                }
            }
            try {
                store->close();
            } catch (const Error& error) {
                EXPECT_EQ(error.code(), Errc::storage);
            }
            for (const auto& [name, count] : failpoints::visits()) visits += count;
        }
        expect_one_of({models});
        if (HasFailure()) break;
        if (nth > visits) {
            EXPECT_GT(nth, 100U);
            break;
        }
    }
}

TEST_F(Faults, ReadsWhatItCannotMap) {
    Store store(options(Durability::sync));
    run(store, {Step::Kind::put, "m", 3000 * KiB, ""});
    for (const char* const at : {"1", "2", "*"}) {  // from the first piece on, from the second
        run(store, {Step::Kind::put, "other", 3000 * KiB, ""});  // m leaves the memory
        failpoints::arm("file.map:" + std::string(at) + ":eio");
        expect_intact(store, "m");
        failpoints::arm("");
        run(store, {Step::Kind::retire, "other", 0, ""});
    }
    run(store, {Step::Kind::put, "other", 3000 * KiB, ""});
    failpoints::arm("file.map:2:eio,file.read:*:eio");
    std::string message;
    try {
        expect_intact(store, "m");
        ADD_FAILURE();
    } catch (const Error& error) {
        EXPECT_EQ(error.code(), Errc::storage);
        message = error.what();
    }
    EXPECT_THAT(message, HasSubstr((root / "data" / "segments").string()));
    failpoints::arm("");
    expect_intact(store, "m");
}

// Not sampled: each system call of each kind of put, in each way.
TEST_P(FailingCalls, EachOfAPutLeavesNothing) {
    const std::vector<Step> puts{{Step::Kind::put, "small", 1 * KiB},
                                 {Step::Kind::put, "large", 300 * KiB},
                                 {Step::Kind::put, "ahead", 1500 * KiB},
                                 {Step::Kind::adopt, "far", 2 * KiB, "h"}};
    for (const Step& step : puts) {
        std::optional<Store> store(std::in_place, options(Durability::sync));
        std::uint64_t visits = 0;
        for (unsigned nth = 1; nth == 1 || nth <= visits; ++nth) {
            const std::string failpoint = "*:" + std::to_string(nth) + ":" + GetParam();
            SCOPED_TRACE(step.model + " " + failpoint);
            const std::uint64_t used = store->stats().bytes_stored;
            failpoints::arm(failpoint);
            bool failed = false;
            bool stopped = false;
            try {
                run(*store, step);
            } catch (const Error& error) {
                failed = true;
                stopped = has_stopped(error);
                ASSERT_EQ(error.code(), Errc::storage) << error.what();
                EXPECT_THAT(error.what(), HasSubstr(root.string()));
                EXPECT_EQ(store->stats().bytes_stored, used);
                EXPECT_THAT(seen(*store), IsEmpty());
            }
            visits = 0;
            for (const auto& [name, count] : failpoints::visits()) visits += count;
            failpoints::arm("");
            if (stopped) {  // no other change is taken, and nothing it had is lost
                EXPECT_EQ(code_of([&] {
                              run(*store, {Step::Kind::put, "other", 10});
                          }),
                          Errc::storage);
                store.reset();
                store.emplace(options(Durability::sync));  // perhaps the put is there
            }
            if (failed) run(*store, step);
            if (step.kind == Step::Kind::put) {
                expect_intact(*store, step.model);
                store->retire(step.model);
            } else {
                store->release_holder(step.parent);
            }
        }
        store->close();
        expect_one_of({{}});
        if (HasFailure()) break;
    }
}

TEST_F(Faults, OnAFullDiskModelsCanBeRetiredAndNotPut) {
    for (const Durability durability : {Durability::sync, Durability::lazy}) {
        Store store(options(durability));
        run(store, {Step::Kind::put, "before", 10, ""});
        failpoints::arm("disk.space:*:enospc");
        std::string message;
        try {
            run(store, {Step::Kind::put, "refused", 10, ""});
            ADD_FAILURE();
        } catch (const Error& error) {
            EXPECT_EQ(error.code(), Errc::storage);
            message = error.what();
        }
        EXPECT_THAT(message, AllOf(HasSubstr((root / "data").string()), HasSubstr("full")));
        expect_intact(store, "before");
        store.retire("before");
        failpoints::arm("disk.space:*:eio");  // a disk that does not say is not full
        run(store, {Step::Kind::put, "after", 10, ""});
        store.retire("after");
        failpoints::arm("");
        store.close();
        expect_one_of({{}});
    }
}

TEST_F(Faults, LazyStoreRefusesPutsWhileItCannotWriteAndGoesOnLater) {
    Store store(options(Durability::lazy));
    run(store, {Step::Kind::put, "before", 10, ""});
    store.flush();
    failpoints::arm("catalogue.write:*:enospc");
    run(store, {Step::Kind::put, "during", 10, ""});  // acknowledged in memory
    std::string message;
    try {
        store.flush();
        ADD_FAILURE();
    } catch (const Error& error) {
        message = error.what();
    }
    EXPECT_THAT(message, HasSubstr("full"));
    try {
        run(store, {Step::Kind::put, "refused", 10, ""});
        ADD_FAILURE();
    } catch (const Error& error) {
        EXPECT_EQ(error.code(), Errc::storage);
        EXPECT_THAT(error.what(), HasSubstr((root / "data").string()));
    }
    EXPECT_FALSE(store.contains("refused"));
    expect_intact(store, "during");
    store.retire("before");
    failpoints::arm("");
    store.flush();
    run(store, {Step::Kind::put, "after", 10, ""});
    store.close();
    expect_one_of({{"during", "after"}});
}

TEST_F(Faults, AfterAFailedSyncNothingIsAcknowledgedUntilItIsOpenedAgain) {
    for (const Durability durability : {Durability::sync, Durability::lazy}) {
        fs::remove_all(root / "data");
        std::string told;
        Store::Options made = options(durability);
        made.warn = [&](std::string_view line) { told += line; };
        {
            Store store(made);
            run(store, {Step::Kind::put, "before", 10, ""});
            store.flush();
            failpoints::arm("catalogue.sync:1:eio");
            try {
                run(store, {Step::Kind::put, "during", 10, ""});
                store.flush();
                ADD_FAILURE();
            } catch (const Error& error) {
                EXPECT_TRUE(has_stopped(error)) << error.what();
            }
            failpoints::arm("");  // a later sync would succeed
            for (const Step& step : {Step{Step::Kind::put, "after", 10, ""},
                                     Step{Step::Kind::put, "large", 2000 * KiB, ""},
                                     Step{Step::Kind::retire, "before", 0, ""}}) {
                try {
                    run(store, step);
                    ADD_FAILURE() << step.model;
                } catch (const Error& error) {
                    EXPECT_TRUE(has_stopped(error)) << error.what();
                }
            }
            EXPECT_FALSE(store.contains("after"));
            expect_intact(store, "before");
        }
        EXPECT_THAT(told, HasSubstr("cannot sync"));
        expect_one_of({{"before"}, {"before", "during"}});
    }
}

TEST_F(Faults, AcknowledgesNoReferenceThatItLacks) {
    Store store(options(Durability::sync));
    run(store, {Step::Kind::put, "m", 10, ""});
    const LayerKey key = layer_key("of m");
    for (int i = 0; i < 20; ++i) {
        const std::string holder = "heir" + std::to_string(i) + "@1";
        failpoints::arm("catalogue.write:1:eio");
        EXPECT_EQ(code_of([&] { store.acquire("m", {&key, 1}, holder); }), Errc::storage);
        failpoints::arm("");
        EXPECT_NO_THROW(store.acquire("m", {&key, 1}, holder));
    }
}

}  // namespace
}  // namespace cpp_store

#endif
