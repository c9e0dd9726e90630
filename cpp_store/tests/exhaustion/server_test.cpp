// Every allocation that a server makes for a request fails in turn: its client gets one clean error
// or an end of the connection, and the server serves on.
#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "cpp_store/client.hpp"
#include "cpp_store/server.hpp"
#include "exhaustion/failing_new.hpp"
#include "random_models.hpp"
#include "sanitizers.hpp"

namespace cpp_store {
namespace {

using namespace std::chrono_literals;

// As a server of another process is to its clients: this thread's allocations are the client's.
struct Running {
    explicit Running(bool same_host)
        : store(std::make_shared<Store>(options())),
          server(std::make_unique<Server>(store, settings())),
          client(
              {.servers = {server->address()}, .timeout = 60s, .key = {}, .same_host = same_host}) {
    }

    static Store::Options options() {
        Store::Options made;
        made.memory = {.limit = 64 << 20, .region_size = 16 << 20, .ahead = 0, .linger = 1h};
        return made;
    }
    static Server::Options settings() {
        Server::Options made;
        made.log = [](LogLevel, std::string_view) {};
        made.silence = 1s;
        return made;
    }
    void empty() {
        for (const RemoteMatch& each : matches) client.end_lease(each);
        matches.clear();
        for (const std::string& id : store->list()) (void)store->retire(id);
        for (const std::string& name : store->holders()) store->release_holder(name);
    }
    // What clients have let go of, and connections that have ended, take a moment to be noticed.
    [[nodiscard]] bool is_empty() const {
        const StoreStats stats = store->stats();
        return stats.models == 0 && stats.retired == 0 && stats.layers == 0 && stats.leases == 0 &&
               stats.foreign_holders == 0 && stats.memory.used == 0 && stats.index.models == 0;
    }

    std::shared_ptr<Store> store;
    std::unique_ptr<Server> server;
    Cluster client;
    std::vector<RemoteMatch> matches;  // that the client has leases of
};

bool eventually(const std::function<bool()>& holds) {
    const auto end = std::chrono::steady_clock::now() + 30s;
    while (!holds()) {
        if (std::chrono::steady_clock::now() > end) return false;
        std::this_thread::yield();
    }
    return true;
}

const std::vector<std::string> names = {"first", "second", "third"};

// Small tensors come with the request, large ones are staged or fetched.
RandomModel model(const std::string& id, std::size_t size) {
    return {id, names, {size, 100, size}};
}
PutRequest heir() {
    PutRequest request = model("heir", 100).request;
    request.own.pop_back();
    request.own.pop_back();
    request.inherited = {{1, "parent"}, {2, "parent"}};
    return request;
}

std::size_t read(Cluster& client, const std::string& id) {
    std::size_t layers = 0;
    std::vector<Bytes> memory;
    client.read(
        id, {},
        [&](std::string_view, std::span<const TensorSpec> specs) {
            std::vector<std::span<std::byte>> buffers;
            for (const TensorSpec& spec : specs) {
                buffers.emplace_back(memory.emplace_back(spec.nbytes()));
            }
            ++layers;
            return buffers;
        },
        [&](std::string_view, std::span<const TensorSpec>,
            std::span<const std::span<const std::byte>>,
            const std::shared_ptr<const void>&) { ++layers; });
    return layers;
}

struct Case {
    std::string name;
    std::function<void(Running&)> before;
    std::function<void(Running&)> request;
    std::function<bool(Running&)> is_done;
    // What a client may hear that asks again, where the first time was done, but not answered.
    Errc again = Errc{};
};

void PrintTo(const Case& each, std::ostream* out) {
    *out << each.name;
}

const auto nothing = [](Running&) {};
const auto always = [](Running&) { return true; };
constexpr std::size_t large = 200'000;

std::vector<Case> cases() {
    const auto put = [](std::size_t size) {
        return [size](Running& at) { model("new", size).put(at.client); };
    };
    const auto is_put = [](Running& at) { return at.store->read("new", {}).size() == 3; };
    const auto best_match = [](Running& at) {
        for (RemoteMatch& each :
             at.client.best_matches(*model("", 100).request.table, {.ns = "test"}, 1h)) {
            at.matches.push_back(std::move(each));
        }
    };
    return {
        {"put", nothing, put(100), is_put},
        {"large_put", nothing, put(large), is_put},
        {"put_of_an_heir", nothing,
         [](Running& at) {
             const RandomModel whole = model("heir", 100);
             at.client.put(heir(), std::vector<std::span<const std::byte>>{whole.tensors[0]});
         },
         [](Running& at) { return at.store->read("heir", {}).size() == 3; }},
        {"read", nothing, [](Running& at) { EXPECT_EQ(read(at.client, "parent"), 3u); }, always},
        {"large_read", [](Running& at) { model("new", large).put(at.client); },
         [](Running& at) { EXPECT_EQ(read(at.client, "new"), 3u); }, always},
        {"best_match", nothing, best_match,
         [](Running& at) {
             return eventually([&] { return at.store->stats().leases == at.matches.size(); });
         }},
        {"end_of_a_lease", best_match, [](Running& at) { at.client.end_lease(at.matches.at(0)); },
         [](Running& at) { return at.store->stats().leases == 0; }},
        {"lookup", nothing,
         [](Running& at) { EXPECT_EQ(at.client.lookup("parent").layers.size(), 3u); }, always},
        {"list", nothing, [](Running& at) { EXPECT_EQ(at.client.list().size(), 1u); }, always},
        {"stats", nothing, [](Running& at) { EXPECT_EQ(at.client.stats().at(0).models, 1u); },
         always},
        {"retire", nothing, [](Running& at) { at.client.retire("parent"); },
         [](Running& at) { return at.store->stats().models == 0; }, Errc::not_found},
    };
}

using Parameters = std::tuple<Case, failing_new::Which, bool>;

class ExhaustedServer : public testing::TestWithParam<Parameters> {};

TEST_P(ExhaustedServer, AnswersOrEndsTheConnection) {
    const auto& [each, which, same_host] = GetParam();
    Running at(same_host);
    std::uint64_t number = 0;
    for (bool is_over = false; !is_over; ++number) {
        ASSERT_LT(number, 1'000u);
        SCOPED_TRACE("allocation " + std::to_string(number));
        model("parent", 100).put(at.client);
        each.before(at);
        Errc code{};
        failing_new::arm(failing_new::Where::elsewhere, which, number + 1);
        try {
            each.request(at);
        } catch (const Error& error) {
            code = error.code();
        }
        is_over = failing_new::disarm() == 0;
        EXPECT_TRUE(code == Errc{} || code == Errc::out_of_memory || code == Errc::connection)
            << static_cast<int>(code);
        EXPECT_TRUE(at.store->verify().empty());
        if (code == Errc::out_of_memory) {
            each.request(at);
        } else if (code == Errc::connection) {
            try {
                each.request(at);
            } catch (const Error& error) {
                EXPECT_EQ(error.code(), each.again);
            }
        }
        EXPECT_TRUE(each.is_done(at));
        at.empty();
        ASSERT_TRUE(eventually([&] {
            (void)at.client.list();  // lets the server know of views that are no more
            return at.is_empty();
        }));
    }
    EXPECT_GT(number, 1u);
}

std::string name_of(const testing::TestParamInfo<Parameters>& info) {
    const auto& [each, which, same_host] = info.param;
    return each.name + (which == failing_new::Which::one ? "_once" : "_for_good") +
           (same_host ? "_on_its_host" : "_by_network");
}

INSTANTIATE_TEST_SUITE_P(ByARequest, ExhaustedServer,
                         testing::Combine(testing::ValuesIn(cases()),
                                          testing::Values(failing_new::Which::one,
                                                          failing_new::Which::rest),
                                          testing::Values(true, false)),
                         name_of);

}  // namespace
}  // namespace cpp_store
