// Attacks on a server with a key, over its network: whatever is tried, honest clients are served,
// nothing is held, and the log says in a line what happened.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <optional>
#include <random>

#include "cpp_store/client.hpp"
#include "cpp_store/server.hpp"
#include "net/raw_client.hpp"

namespace cpp_store {
namespace {

using namespace std::chrono_literals;
using testing::HasSubstr;
using Bytes = std::vector<std::byte>;

const std::string key = "the key of this test";
// Long enough for honest clients where sanitizers and other work slow everything down.
constexpr auto silence = 1s;

class Attack : public testing::TestWithParam<bool> {
  protected:
    Attack() {
        Store::Options memory;
        memory.memory.limit = 64 << 20;
        memory.memory.region_size = 16 << 20;
        memory.memory.ahead = 0;
        Server::Options options;
        options.key = key;
        options.encrypt = GetParam();
        options.silence = silence;
        options.log_level = LogLevel::debug;
        options.log = [this](LogLevel, std::string_view line) {
            const std::scoped_lock lock(mutex_);
            log_ += std::string(line) + '\n';
        };
        server_.emplace(std::make_shared<Store>(memory), options);
        honest_.emplace(
            Cluster::Options{.servers = {server_->address()}, .key = key, .same_host = false});
        PutRequest request;
        request.model = "kept";
        request.table = std::make_shared<const LayerTable>(
            std::vector<LayerTable::Layer>{{"layer", {}, kept_.size()}});
        request.own = {{0, {{DType::uint8, {kept_.size()}}}}};
        honest_->put(request, std::vector<std::span<const std::byte>>{kept_});
        used_ = server_->store()->arena().stats().used;
    }

    void TearDown() override {
        Bytes found(kept_.size());
        honest_->read("kept", {}, [&](std::string_view, std::span<const TensorSpec>) {
            return std::vector{std::span<std::byte>(found)};
        });
        EXPECT_EQ(found, kept_);
        EXPECT_EQ(server_->store()->arena().stats().used, used_);
        EXPECT_THAT(honest_->list(), testing::ElementsAre("kept"));
    }

    [[nodiscard]] RawClient client() const { return RawClient(server_->address(), key); }
    bool logs(const std::string& text) {
        return wait_until([&] {
            const std::scoped_lock lock(mutex_);
            return log_.find(text) != std::string::npos;
        });
    }
    // The client is dropped with one line that says why, and its next call is not answered.
    void expect_dropped(RawClient& raw) {
        EXPECT_TRUE(
            logs("hostile/1 is dropped: a message that is forged, or comes twice or out of "
                 "turn"));
        EXPECT_FALSE(raw.call(wire::Operation::ping, {}, 200ms)) << "served though it was dropped";
    }
    static Bytes retire_kept() {
        wire::Writer out;
        out.id("kept");
        return out.take();
    }

    const Bytes kept_ = Bytes(5'000'000, std::byte{7});
    std::mutex mutex_;
    std::string log_;
    std::uint64_t used_ = 0;
    std::optional<Server> server_;
    std::optional<Cluster> honest_;
};

TEST_P(Attack, AReplayedMessageDropsTheConnection) {
    RawClient raw = client();
    const Bytes ping = raw.message(wire::Operation::ping, {});
    raw.send(ping);
    raw.send(ping);
    expect_dropped(raw);
}

TEST_P(Attack, ReorderedMessagesDropTheConnection) {
    RawClient raw = client();
    const Bytes first = raw.message(wire::Operation::ping, {});
    const Bytes second = raw.message(wire::Operation::retire, retire_kept());
    raw.send(second);
    raw.send(first);
    expect_dropped(raw);
}

TEST_P(Attack, ATruncatedMessageDropsTheConnection) {
    RawClient raw = client();
    const Bytes message = raw.message(wire::Operation::retire, retire_kept());
    raw.send(std::span(message).first(message.size() - 1));
    expect_dropped(raw);
}

TEST_P(Attack, AForgedMessageDropsTheConnection) {
    RawClient raw = client();
    Bytes message = raw.message(wire::Operation::retire, retire_kept());
    message[wire::frame_header_size + 5] ^= std::byte{1};
    raw.send(message);
    expect_dropped(raw);
}

TEST_P(Attack, AMessageWithoutSealDropsTheConnection) {
    RawClient raw = client();
    const Bytes body = retire_kept();
    const auto header = wire::encode({.kind = wire::Kind::request,
                                      .code = static_cast<std::uint16_t>(wire::Operation::retire),
                                      .session = raw.session(),
                                      .call = 99,
                                      .total = static_cast<std::uint32_t>(body.size())});
    Bytes message(header.begin(), header.end());
    message.insert(message.end(), body.begin(), body.end());
    raw.send(message);
    expect_dropped(raw);
}

TEST_P(Attack, AMessageOfAnotherConnectionDropsThisOne) {
    RawClient raw = client();
    RawClient other = client();
    Bytes message = other.message(wire::Operation::retire, retire_kept());
    const std::uint64_t session = raw.session();
    std::memcpy(message.data() + 8, &session, sizeof session);
    raw.send(message);
    expect_dropped(raw);
}

TEST_P(Attack, GuessedSessionsReachNobody) {
    RawClient raw = client();
    RawClient stranger(server_->address(), key, true);
    ASSERT_TRUE(stranger.knock());
    std::mt19937_64 random(1);
    for (int i = 0; i < 200; ++i) {
        stranger.send(wire::encode({.kind = wire::Kind::request,
                                    .code = static_cast<std::uint16_t>(wire::Operation::shutdown),
                                    .session = random() | 1,
                                    .call = 1}));
    }
    EXPECT_TRUE(raw.call(wire::Operation::ping, {}));
}

TEST_P(Attack, WithoutTheKeyNothingIsServed) {
    for (const char* guess : {"", "another key of this test"}) {
        RawClient raw(server_->address(), guess, true);
        EXPECT_THROW(raw.connect(), std::runtime_error);
        EXPECT_FALSE(raw.call(wire::Operation::ping, {}, 100ms));
    }
    EXPECT_TRUE(logs("a client is refused: " + server_->address() + ": it wants a key"));
}

TEST_P(Attack, AWrongProofIsRefusedAndKeysCannotBeTriedQuickly) {
    // The honest client comes from the same address: it is connected, and stays so.
    bool is_slowed = false;
    for (int i = 0; i < 50 && !is_slowed; ++i) {
        RawClient raw(server_->address(), "guess number " + std::to_string(i), true);
        EXPECT_THROW(raw.connect(), std::runtime_error);
        is_slowed = raw.code() == Errc::busy;
        EXPECT_THAT(raw.code(), testing::AnyOf(Errc::permission, Errc::busy));
    }
    EXPECT_TRUE(is_slowed);
    EXPECT_TRUE(logs("hostile/1 is refused: the key is not the server's"));
}

TEST_P(Attack, AJoinThatWasHeardIsOfNoUseAgain) {
    RawClient raw(server_->address(), key, true);
    security::Request first = raw.request();
    const auto challenge = raw.call(wire::Operation::hello, first.hello());
    ASSERT_TRUE(challenge);
    const Bytes join = first.join(*challenge);
    const auto seals = first.take_seals();
    const auto header = wire::encode({.kind = wire::Kind::request,
                                      .code = static_cast<std::uint16_t>(wire::Operation::join),
                                      .session = first.session(),
                                      .call = 1,
                                      .total = static_cast<std::uint32_t>(join.size())});
    Bytes message(header.begin(), header.end());
    message.insert(message.end(), join.begin(), join.end());
    message.resize(message.size() + security::Seal::tag_size);
    seals->out.close(message);
    raw.send(message);
    EXPECT_TRUE(logs("hostile/1 connected"));
    raw.send(message);  // of a connection that has joined
    EXPECT_TRUE(logs("hostile/1 is dropped"));

    security::Request second = raw.request();
    ASSERT_TRUE(raw.call(wire::Operation::hello, second.hello()));
    raw.send(message);  // of one that is no more
    EXPECT_FALSE(raw.call(wire::Operation::ping, {}, 100ms));
}

TEST_P(Attack, WhoDoesNotJoinIsForgottenSoon) {
    RawClient raw(server_->address(), key, true);
    security::Request request = raw.request();
    ASSERT_TRUE(raw.call(wire::Operation::hello, request.hello()));
    EXPECT_TRUE(logs("it did not join after its hello"));
}

// The address of another client in a hello, which the server answers there and soon removes.
TEST_P(Attack, WhoeverSaysAnothersAddressTakesNothingFromIt) {
    RawClient raw = client();
    RawClient stranger(server_->address(), "guess", true);
    ASSERT_TRUE(stranger.knock());
    for (int i = 0; i < 3; ++i) {
        stranger.send(wire::Operation::hello, stranger.request(raw.name()).hello());
    }
    EXPECT_TRUE(logs("did not join after its hello"));
    std::this_thread::sleep_for(silence);  // the addresses of those who are gone go some time later
    EXPECT_TRUE(raw.call(wire::Operation::ping, {}));
}

TEST_P(Attack, BulkThatNobodyAskedForDropsTheConnection) {
    RawClient raw = client();
    const Bytes bytes(1000);
    raw.send({.kind = wire::Kind::bulk, .call = 1, .total = 1000}, bytes);
    EXPECT_TRUE(logs("hostile/1 is dropped: sent bytes that nobody asked for"));
}

// A put of which the client says one thing and lets another be read: nothing is stored.
TEST_P(Attack, ChangedBulkIsNotStored) {
    RawClient raw = client();
    const Bytes tensor(1 << 20, std::byte{9});
    const net::MemoryRegion region = raw.expose(tensor);
    wire::Put put;
    put.request.model = "changed";
    put.request.table = std::make_shared<const LayerTable>(
        std::vector<LayerTable::Layer>{{"layer", {}, tensor.size()}});
    put.request.own = {{0, {{DType::uint8, {tensor.size()}}}}};
    put.tensors = {{{DType::uint8, {tensor.size()}},
                    tensor.size(),
                    wire::Remote{region.address(), region.key()},
                    {}}};
    wire::Writer out;
    wire::encode(out, put);
    if (!GetParam()) out.sums(std::vector{Checksum{1, 2}});
    const auto answer = raw.call(wire::Operation::put, out.data(), GetParam() ? 300ms : 5s);
    EXPECT_EQ(answer.has_value(), !GetParam()) << "encrypted, it waits for bytes in messages";
    if (GetParam()) {
        EXPECT_TRUE(logs("hostile/1 is dropped: its bytes do not move any more"));
    } else {
        EXPECT_EQ(raw.code(), Errc::connection);
    }
}

// Whoever asks for other bytes than there are, or for more than it has room for, gets none.
TEST_P(Attack, ReadsBeyondWhatWasGrantedAreRefused) {
    RawClient raw = client();
    const Bytes memory(100);
    const net::MemoryRegion region = raw.expose(memory);
    wire::Fetch fetch;
    fetch.groups = {{"kept", {layer_key("layer")}}};
    fetch.deliver = true;
    fetch.serials = {
        server_->store()->find_layers("kept", std::vector{layer_key("layer")})[0]->serial};
    for (const std::uint64_t claimed : {std::uint64_t{100}, std::uint64_t{1} << 60}) {
        fetch.destinations = {{{region.address(), region.key()}, claimed}};
        wire::Writer out;
        wire::encode(out, fetch);
        ASSERT_TRUE(raw.call(wire::Operation::fetch, out.data()));
        EXPECT_EQ(raw.code(), Errc::invalid_argument);
    }
    fetch.serials = {12'345};
    wire::Writer out;
    wire::encode(out, fetch);
    ASSERT_TRUE(raw.call(wire::Operation::fetch, out.data()));
    EXPECT_EQ(raw.code(), Errc::not_found) << "a layer that it was not told of";
}

// Old clients are told what to do in words that they print.
TEST_P(Attack, ClientsOfOldVersionsGetALine) {
    std::vector<std::byte> name;
    struct Listener : net::Endpoint::Listener {
        void received(std::span<std::byte> message) override {
            text.assign(reinterpret_cast<const char*>(message.data()), message.size());
        }
        void send_failed(net::Peer, int) override {}
        std::string text;
    } listener;
    net::Endpoint endpoint(net::Address::parse(server_->address()), net::Endpoint::Role::client,
                           listener);
    const auto answer_to = [&](std::span<const std::byte> hello) {
        listener.text.clear();
        endpoint.send(endpoint.server(), hello, {});
        EXPECT_TRUE(wait_until([&] {
            endpoint.progress();
            return !listener.text.empty();
        }));
        return listener.text;
    };
    wire::Writer hello;
    hello.u32(wire::magic);
    hello.u8(1);   // version
    hello.u8(1);   // request
    hello.u16(0);  // hello
    hello.u64(0);
    hello.u64(42);
    hello.u32(static_cast<std::uint32_t>(4 + endpoint.name().size()));
    hello.u32(0);
    hello.bytes(endpoint.name());
    const std::string first = answer_to(hello.data());
    EXPECT_EQ(first[4], 1) << "in its own version";
    EXPECT_THAT(first, HasSubstr("speaks version 3 of the wire format, this client version 1"));

    wire::Writer body;
    body.bytes(endpoint.name());
    auto header = wire::encode({.kind = wire::Kind::request,
                                .call = 42,
                                .total = static_cast<std::uint32_t>(body.data().size())});
    header[4] = std::byte{2};
    wire::Writer later;
    later.raw(header);
    later.raw(body.data());
    const std::string second = answer_to(later.data());
    EXPECT_EQ(second[4], 2) << "in its own version";
    EXPECT_THAT(second, HasSubstr("speaks version 3 of the wire format, this client version 2"));
}

TEST_P(Attack, AHelloMayNotBeLong) {
    RawClient raw(server_->address(), key, true);
    ASSERT_TRUE(raw.knock());
    raw.send(wire::Operation::hello, Bytes(wire::max_hello + 1, std::byte{'x'}));
    EXPECT_TRUE(logs("a message is dropped: malformed message: no hello"));
}

// Files that somebody might send instead of messages, each tried by a stranger and inside a
// connection.
TEST_P(Attack, HostileFilesDoNoHarm) {
    std::size_t files = 0;
    for (const auto& entry : std::filesystem::directory_iterator(CPP_STORE_HOSTILE_MESSAGES)) {
        std::ifstream in(entry.path(), std::ios::binary);
        const std::string text((std::istreambuf_iterator<char>(in)), {});
        const auto bytes =
            std::as_bytes(std::span(text)).first(std::min<std::size_t>(text.size(), 65'000));
        RawClient stranger(server_->address(), key, true);
        ASSERT_TRUE(stranger.knock());
        stranger.send(bytes);
        RawClient raw = client();
        raw.send(wire::Operation::put, bytes);
        ++files;
    }
    EXPECT_GE(files, 5u);
}

INSTANTIATE_TEST_SUITE_P(Sealed, Attack, testing::Bool(),
                         [](const auto& tried) { return tried.param ? "encrypted" : "in_clear"; });

// ------------------------------------------------------------------------------------ limits

class Limited : public testing::Test {
  protected:
    Server& serve(const ServerLimits& limits) {
        Store::Options memory;
        memory.memory.limit = 256 << 20;
        memory.memory.ahead = 0;
        Server::Options options;
        options.limits = limits;
        options.log = [](LogLevel, std::string_view) {};
        return server_.emplace(std::make_shared<Store>(memory), options);
    }
    std::optional<Server> server_;
};

TEST_F(Limited, ClientsBeyondTheLimitAreRefusedUntilOthersGo) {
    for (const bool of_host : {false, true}) {
        ServerLimits limits;
        (of_host ? limits.clients_of_host : limits.clients) = 3;
        const Server& server = serve(limits);
        std::vector<std::unique_ptr<RawClient>> clients;
        for (int i = 0; i < 3; ++i) {
            clients.push_back(std::make_unique<RawClient>(server.address()));
        }
        RawClient more(server.address(), {}, true);
        EXPECT_THROW(more.connect(), std::runtime_error);
        EXPECT_EQ(more.code(), Errc::busy);
        clients.back()->send(wire::Operation::bye, {});
        EXPECT_TRUE(wait_until([&] {
            try {
                more.connect();
                return true;
            } catch (const std::runtime_error&) {
                return false;
            }
        }));
    }
}

TEST_F(Limited, HellosThatNeverJoinAreBoundedAndRefusedInWords) {
    const Server& server = serve({});
    RawClient raw(server.address(), {}, true);
    bool is_refused = false;
    for (int i = 0; i < 400 && !is_refused; ++i) {
        ASSERT_TRUE(raw.knock());
        is_refused = raw.code() == Errc::busy;
    }
    EXPECT_TRUE(is_refused);
}

TEST_F(Limited, RequestsBeyondTheRateAreRefusedAndLaterServed) {
    for (const bool same_host : {false, true}) {
        ServerLimits limits;
        limits.requests_per_second = 100;
        const Server& server = serve(limits);
        Cluster cluster(
            Cluster::Options{.servers = {server.address()}, .key = {}, .same_host = same_host});
        const auto is_served = [&] {
            try {
                cluster.ping(0);
                return true;
            } catch (const Error& error) {
                EXPECT_EQ(error.code(), Errc::busy);
                return false;
            }
        };
        int served = 0;
        while (served < 10'000 && is_served()) ++served;
        EXPECT_GE(served, 100);
        EXPECT_LT(served, 10'000);
        EXPECT_TRUE(wait_until(is_served));
    }
}

TEST_F(Limited, TransfersBeyondTheLimitWaitForEachOther) {
    ServerLimits limits;
    limits.bytes_in_flight = 1 << 20;
    const Server& server = serve(limits);
    Cluster cluster(Cluster::Options{.servers = {server.address()}, .key = {}, .same_host = false});
    const Bytes tensor(3 << 20, std::byte{5});
    std::vector<std::thread> threads;
    for (int i = 0; i < 6; ++i) {
        threads.emplace_back([&, i] {
            PutRequest request;
            request.model = "m" + std::to_string(i);
            request.table = std::make_shared<const LayerTable>(
                std::vector<LayerTable::Layer>{{"layer", {}, tensor.size()}});
            request.own = {{0, {{DType::uint8, {tensor.size()}}}}};
            cluster.put(request, std::vector<std::span<const std::byte>>{tensor});
        });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(cluster.list().size(), 6u);
}

TEST(Keyless, ServersAreOfOneHostOnly) {
    Server::Options options;
    options.log = [](LogLevel, std::string_view) {};
    const auto serve = [&](const std::string& address) {
        options.address = address;
        const Server server(std::make_shared<Store>(Store::Options{}), options);
    };
    for (const char* address :
         {"ofi+tcp://0.0.0.0:0", "ofi+tcp://[::]:0", "ofi+tcp://10.1.2.3:0"}) {
        try {
            serve(address);
            ADD_FAILURE() << address << " is served without a key";
        } catch (const Error& error) {
            EXPECT_EQ(error.code(), Errc::invalid_argument);
            EXPECT_THAT(error.what(), HasSubstr("cpp-store keygen"));
        }
    }
    EXPECT_NO_THROW(serve("ofi+tcp://127.0.0.1:0"));
    EXPECT_NO_THROW(serve("ofi+tcp://localhost:0"));
    options.insecure = true;
    EXPECT_NO_THROW(serve("ofi+tcp://0.0.0.0:0"));
    options.insecure = false;
    options.encrypt = true;
    EXPECT_THROW(serve("ofi+tcp://127.0.0.1:0"), Error) << "nothing to encrypt by";
}

}  // namespace
}  // namespace cpp_store
