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
        options.silence = 400ms;
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

    const Bytes kept_ = Bytes(100'000, std::byte{7});
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

TEST_P(Attack, HellosThatNeverJoinAreBoundedAndRefusedInWords) {
    RawClient raw(server_->address(), key, true);
    bool is_refused = false;
    for (int i = 0; i < 400 && !is_refused; ++i) {
        security::Request request = raw.request();
        ASSERT_TRUE(raw.call(wire::Operation::hello, request.hello()));
        is_refused = raw.code() == Errc::busy;
    }
    EXPECT_TRUE(is_refused);
    EXPECT_TRUE(logs("too many clients connect at once"));
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
