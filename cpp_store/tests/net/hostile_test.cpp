// Clients that lie, stop in the middle or vanish: the server drops them and serves the others.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
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
