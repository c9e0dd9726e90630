// Clients that lie, stop in the middle or vanish: the server drops them and serves the others.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <functional>
#include <mutex>
#include <optional>
#include <thread>

#include "cpp_store/client.hpp"
#include "cpp_store/server.hpp"
#include "net/endpoint.hpp"
#include "net/raw_client.hpp"
#include "net/wire.hpp"
#include "server/lobby.hpp"

namespace cpp_store {
namespace {

using namespace std::chrono_literals;
using testing::HasSubstr;
using Bytes = std::vector<std::byte>;
using Clock = std::chrono::steady_clock;

constexpr auto silence = 400ms;
constexpr std::uint64_t limit = 64 << 20;

class Hostile : public testing::Test {
  protected:
    Hostile() {
        Store::Options memory;
        memory.memory.limit = limit;
        memory.memory.region_size = 16 << 20;
        memory.memory.ahead = 0;
        Server::Options options;
        options.silence = silence;
        options.log_level = LogLevel::debug;
        options.log = [this](LogLevel, std::string_view line) {
            const std::scoped_lock lock(mutex_);
            log_ += std::string(line) + '\n';
        };
        server_.emplace(std::make_shared<Store>(memory), options);
        honest_.emplace(Cluster::Options{.servers = {server_->address()}, .key = {}});
        PutRequest request;
        request.model = "kept";
        request.ns = "test";
        request.table = table({16});
        request.own = {{0, {{DType::uint8, {16}}}}};
        honest_->put(request, std::vector<std::span<const std::byte>>{kept_});
        used_ = used();
    }

    // Whatever was done: the honest client is served, the memory is there, and nothing is held.
    void TearDown() override {
        Bytes found(16);
        honest_->read("kept", {}, [&](std::string_view, std::span<const TensorSpec>) {
            return std::vector{std::span<std::byte>(found)};
        });
        EXPECT_EQ(found, kept_);
        EXPECT_TRUE(wait_until([&] { return used() == used_; })) << "memory of a put is held";
    }

    static LayerTablePtr table(const std::vector<std::uint64_t>& sizes) {
        std::vector<LayerTable::Layer> layers;
        for (const std::uint64_t size : sizes) {
            layers.push_back({"layer" + std::to_string(layers.size()), {}, size});
        }
        return std::make_shared<const LayerTable>(std::move(layers));
    }
    // A put of one tensor that is to be read from the client's memory.
    static Bytes put_body(std::uint64_t nbytes, const wire::Remote& remote) {
        wire::Put put;
        put.request.model = "hostile";
        put.request.ns = "test";
        put.request.table = table({nbytes});
        put.request.own = {{0, {{DType::uint8, {nbytes}}}}};
        put.tensors = {{{DType::uint8, {nbytes}}, nbytes, remote, {}}};
        wire::Writer out;
        wire::encode(out, put);
        return out.take();
    }
    static wire::Remote remote_of(const net::MemoryRegion& region) {
        return {region.address(), region.key()};
    }

    RawClient client() { return RawClient(server_->address()); }
    std::uint64_t used() { return server_->store()->arena().stats().used; }
    bool logs(const std::string& text) {
        return wait_until([&] {
            const std::scoped_lock lock(mutex_);
            return log_.find(text) != std::string::npos;
        });
    }

    std::mutex mutex_;
    std::string log_;
    Bytes kept_ = Bytes(16, std::byte{7});
    std::uint64_t used_ = 0;
    std::optional<Server> server_;
    std::optional<Cluster> honest_;
};

TEST_F(Hostile, MessagesThatAreNoFramesAreDropped) {
    RawClient raw = client();
    const auto good = wire::encode({.kind = wire::Kind::request, .code = 1, .total = 4});
    raw.send(std::span(good).first(wire::frame_header_size - 1));
    // magic, version, reserved, kind, code, total
    for (const std::size_t byte : {0u, 4u, 5u, 16u, 19u, 23u}) {
        auto bad = good;
        bad[byte] = std::byte{0xee};
        raw.send(bad);
    }
    EXPECT_TRUE(logs("a message is dropped"));
}

TEST_F(Hostile, AHelloWithAnAddressThatIsNoneIsDroppedAndOthersConnect) {
    RawClient stranger(server_->address(), {}, true);
    const Bytes own = stranger.name();
    std::vector<Bytes> names(6, own);
    for (const std::uint16_t family : std::to_array<std::uint16_t>({0, 1, 10, 38, 0xffff})) {
        std::memcpy(names.emplace_back(own).data(), &family, sizeof family);
    }
    names[0].resize(1);
    names[1].resize(own.size() - 1);
    names[2].resize(own.size() + 12);
    names[3].resize(4000);
    std::memset(names[4].data() + 2, 0, 2);  // port 0
    std::memset(names[5].data() + 4, 0, 4);  // 0.0.0.0
    for (const Bytes& name : names) {
        stranger.send(wire::Operation::hello, stranger.request(name).hello());
        RawClient fresh(server_->address());  // throws if it cannot connect
        Cluster other({.servers = {server_->address()}, .key = {}, .same_host = false});
        other.ping(0);
    }
}

TEST(Lobby, AGuestThatDoesNotJoinMakesRoomForOthers) {
    using server::Lobby;
    const security::Reception::Policy policy{
        .address = "here", .incarnation = 1, .shared = {}, .encrypt = false};
    const security::Request request(
        {.address = "here", .name = Bytes(16), .client = "guest", .servers = {}, .shared = {}});
    Lobby lobby(5s);
    const auto begin = Lobby::Clock::now();
    std::uint64_t last = 0;
    const auto enter = [&](const std::string& origin, Clock::time_point now) {
        const auto left = lobby.admit(origin, now);
        ++last;
        lobby.enter({.session = std::make_shared<server::Session>(last, server::Place{}, "guest"),
                     .reception =
                         security::Reception(policy, security::Way::network, last, request.hello()),
                     .call = 1,
                     .origin = origin,
                     .since = now});
        return left ? left->session->id : 0;
    };
    for (int i = 0; i < 256; ++i) EXPECT_EQ(enter("one", begin + i * 1ms), 0u);
    EXPECT_THROW((void)enter("one", begin + 900ms), Error);  // any of them may still join
    for (int i = 0; i < 768; ++i) {
        EXPECT_EQ(enter("other" + std::to_string(i), begin + 900ms), 0u);
    }
    EXPECT_EQ(enter("one", begin + 1001ms), 1u);
    EXPECT_EQ(enter("newcomer", begin + 1002ms), 2u);
    EXPECT_EQ(lobby.size(), 1024u);
    for (int i = 0; i < 4096; ++i) ASSERT_TRUE(lobby.hears(begin));
    EXPECT_FALSE(lobby.hears(begin));
    EXPECT_TRUE(lobby.hears(begin + 10ms));
}

// Where a connection is neither made nor refused.
struct BlackHole {
    BlackHole() {
        listener = ::socket(AF_INET, SOCK_STREAM, 0);
        address.sin_family = AF_INET;
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        socklen_t length = sizeof address;
        auto* const any = reinterpret_cast<sockaddr*>(&address);
        EXPECT_EQ(::bind(listener, any, length), 0);
        EXPECT_EQ(::listen(listener, 0), 0);
        EXPECT_EQ(::getsockname(listener, any, &length), 0);
        for (int& each : filling) {
            each = ::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
            (void)::connect(each, any, sizeof address);
        }
    }
    ~BlackHole() {
        for (const int each : filling) ::close(each);
        ::close(listener);
    }
    int listener = -1;
    std::array<int, 4> filling{};
    sockaddr_in address{};
};

TEST_F(Hostile, AnAddressThatAnswersNothingIsTriedLessAndLess) {
    const BlackHole hole;
    struct Deaf : net::Endpoint::Listener {
        void received(std::span<std::byte>) override {}
        void send_failed(net::Peer, int) override {}
    } deaf;
    net::Endpoint endpoint(net::Address::parse("ofi+tcp://127.0.0.1:0"),
                           net::Endpoint::Role::server, deaf, 60s);
    const net::Peer peer =
        endpoint.insert(std::as_bytes(std::span(&hole.address, 1)).first(endpoint.name().size()));
    endpoint.send(peer, Bytes(8), {});
    auto longest = 0us;
    EXPECT_TRUE(wait_until([&] {
        endpoint.progress();
        const auto sleeps = endpoint.may_sleep();
        if (sleeps < net::Endpoint::forever) longest = std::max(longest, sleeps);
        return longest > 50ms;
    }));
}

TEST_F(Hostile, AMalformedBodyDropsItsClient) {
    RawClient raw = client();
    const Bytes garbage(100, std::byte{0xff});
    ASSERT_TRUE(raw.call(wire::Operation::put, garbage));
    EXPECT_EQ(raw.code(), Errc::protocol);
    EXPECT_TRUE(logs("hostile/1 is dropped: put: malformed request"));
    EXPECT_FALSE(raw.call(wire::Operation::ping, {}, 200ms)) << "served though it was dropped";
}

TEST_F(Hostile, AFrameThatDoesNotFollowDropsItsClient) {
    RawClient raw = client();
    const Bytes part(10);
    raw.send({.kind = wire::Kind::request, .code = 2, .call = 1, .total = 100, .offset = 50}, part);
    EXPECT_TRUE(logs("hostile/1 is dropped"));
}

TEST_F(Hostile, MoreMemoryThanThereIsIsRefused) {
    RawClient raw = client();
    const auto answer =
        raw.call(wire::Operation::put, put_body(std::uint64_t{1} << 50, {.address = 0, .key = 1}));
    ASSERT_TRUE(answer);
    EXPECT_EQ(raw.code(), Errc::out_of_memory);
    EXPECT_TRUE(raw.call(wire::Operation::ping, {})) << "to be too large is no offence";
}

TEST_F(Hostile, LayersOutOfRangeAreRefused) {
    RawClient raw = client();
    wire::Put put;
    put.request.model = "hostile";
    put.request.table = table({1});
    put.request.own = {{7, {{DType::uint8, {1}}}}};
    const Bytes one(1);
    put.tensors = {{{DType::uint8, {1}}, 1, std::nullopt, one}};
    wire::Writer out;
    wire::encode(out, put);
    ASSERT_TRUE(raw.call(wire::Operation::put, out.data()));
    EXPECT_EQ(raw.code(), Errc::invalid_argument);
}

TEST_F(Hostile, MemoryThatIsNotThereDropsItsClient) {
    RawClient raw = client();
    const Bytes memory(1 << 20);
    const net::MemoryRegion region = raw.expose(memory);
    wire::Remote wrong = remote_of(region);
    wrong.key ^= 0x5555;
    EXPECT_FALSE(raw.call(wire::Operation::put, put_body(1 << 20, wrong), 2s));
    EXPECT_TRUE(logs("hostile/1 is dropped"));
}

TEST_F(Hostile, AMessageWithoutEndDropsItsClient) {
    RawClient raw = client();
    const Bytes part(1000);
    raw.send({.kind = wire::Kind::request, .code = 2, .call = 1, .total = 5000}, part);
    EXPECT_TRUE(logs("hostile/1 is dropped: a message that it began has no end"));
}

TEST_F(Hostile, APutWhoseClientStopsDropsIt) {
    RawClient raw = client();
    {
        const Bytes memory(32 << 20);
        const net::MemoryRegion region = raw.expose(memory);
        raw.send(wire::Operation::put, put_body(memory.size(), remote_of(region)));
        EXPECT_TRUE(logs("hostile/1 is dropped: its bytes do not move"));
        EXPECT_FALSE(raw.call(wire::Operation::ping, {}, 200ms)) << "served though it was dropped";
    }
    raw.vanish();  // what it could still have written to is free now, not before
}

TEST_F(Hostile, APutWhoseClientVanishesGivesItsMemoryBack) {
    RawClient raw = client();
    {
        const Bytes memory(32 << 20);
        const net::MemoryRegion region = raw.expose(memory);
        raw.send(wire::Operation::put, put_body(memory.size(), remote_of(region)));
        ASSERT_TRUE(wait_until([&] { return used() > used_; }));
    }
    raw.vanish();
    EXPECT_TRUE(wait_until([&] { return used() == used_; }));
}

TEST_F(Hostile, TheLeasesOfAClientThatVanishesEnd) {
    RawClient raw = client();
    wire::Writer out;
    Query query;
    query.ns = "test";
    wire::encode(out, *table({16}), query, 3'600'000);
    ASSERT_TRUE(raw.call(wire::Operation::best_matches, out.data()));
    EXPECT_EQ(honest_->stats().at(0).leases, 1u);
    raw.vanish();
    EXPECT_TRUE(wait_until([&] { return honest_->stats().at(0).leases == 0; }));
}

}  // namespace
}  // namespace cpp_store
