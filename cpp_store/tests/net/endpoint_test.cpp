// Endpoints: messages and RMA between two of them, and what happens when one is not there.
#include "net/endpoint.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <functional>
#include <random>

#include "cpp_store/error.hpp"
#include "net/libfabric.hpp"

namespace cpp_store::net {
namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

std::vector<std::byte> random_bytes(std::size_t size, unsigned seed) {
    std::mt19937_64 random(seed);
    std::vector<std::byte> bytes(size);
    for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
    return bytes;
}

struct Inbox : Endpoint::Listener {
    void received(std::span<std::byte> message) override {
        messages.emplace_back(message.begin(), message.end());
    }
    void send_failed(Peer, int error) override { errors.push_back(error); }
    std::vector<std::vector<std::byte>> messages;
    std::vector<int> errors;
};

struct Transfer : Rma {
    void completed(int error) override { result = error; }
    int result = -1;
};

// A server and a client endpoint, driven by turns in one thread.
struct Pair {
    explicit Pair(const std::string& address = "ofi+tcp://127.0.0.1:0")
        : server(Address::parse(address), Endpoint::Role::server, at_server),
          client(server.address(), Endpoint::Role::client, at_client),
          to_client(server.insert(client.name())) {}

    bool until(const std::function<bool()>& done, Clock::duration limit = 10s) {
        const auto deadline = Clock::now() + limit;
        while (!done()) {
            if (Clock::now() > deadline) return false;
            server.progress();
            client.progress();
        }
        return true;
    }

    Inbox at_server;
    Inbox at_client;
    Endpoint server;
    Endpoint client;
    Peer to_client;
};

// All providers that need no hardware. `tcp` and `net` are two names of one where either is there.
class EveryProvider : public testing::TestWithParam<std::string> {
  protected:
    void SetUp() override {
        const std::string provider = GetParam().substr(4, GetParam().find("://") - 4);
        const auto there = available_providers();
        const bool xnet = provider == "tcp" || provider == "net";
        if (!there.contains(provider) &&
            !(xnet && (there.contains("tcp") || there.contains("net")))) {
            GTEST_SKIP() << libfabric().path << " has no provider " << provider;
        }
        if (provider == "shm" && FI_VERSION_GE(libfabric().version, FI_VERSION(2, 0))) {
            GTEST_SKIP() << libfabric().path << " crashes where both ends are in one process; see "
                         << "tests/cpp_store/test_providers.py";
        }
    }
};
std::string provider_name(const testing::TestParamInfo<std::string>& param) {
    std::string name = param.param.substr(4, param.param.find("://") - 4);
    std::replace(name.begin(), name.end(), ';', '_');
    return name;
}
INSTANTIATE_TEST_SUITE_P(Providers, EveryProvider,
                         testing::Values("ofi+tcp://127.0.0.1:0", "ofi+net://127.0.0.1:0",
                                         "ofi+tcp;ofi_rxm://127.0.0.1:0", "ofi+shm://"),
                         provider_name);

TEST_P(EveryProvider, CarriesMessagesBothWaysInOrder) {
    Pair pair(GetParam());
    std::vector<std::vector<std::byte>> sent;
    for (unsigned i = 0; i < 200; ++i) {
        sent.push_back(random_bytes(1 + (i * 977) % (pair.client.max_message() - 3), i));
        pair.client.send(pair.client.server(), std::span(sent.back()).first(1),
                         std::span(sent.back()).subspan(1));
        pair.server.send(pair.to_client, sent.back(), {});
    }
    ASSERT_TRUE(pair.until([&] {
        return pair.at_server.messages.size() == 200 && pair.at_client.messages.size() == 200;
    }));
    EXPECT_EQ(pair.at_server.messages, sent);
    EXPECT_EQ(pair.at_client.messages, sent);
}

TEST_P(EveryProvider, ReadsAndWritesExposedMemory) {
    Pair pair(GetParam());
    const auto original = random_bytes(5 << 20, 1);
    auto exposed = original;
    std::vector<std::byte> local(exposed.size());
    const MemoryRegion remote = pair.client.expose(exposed, false);
    const MemoryRegion descriptor = pair.server.register_local(local);

    Transfer read;
    read.peer = pair.to_client;
    read.local = local.data();
    read.length = local.size();
    read.descriptor = descriptor.descriptor();
    read.remote = remote.address();
    read.key = remote.key();
    pair.server.start(read);
    ASSERT_TRUE(pair.until([&] { return read.result >= 0; }));
    EXPECT_EQ(read.result, 0);
    EXPECT_EQ(local, original);

    const auto changed = random_bytes(exposed.size(), 2);
    local = changed;
    const MemoryRegion writable = pair.client.expose(exposed, true);
    Transfer write;
    write.write = true;
    write.peer = pair.to_client;
    write.local = local.data();
    write.length = local.size();
    write.descriptor = descriptor.descriptor();
    write.remote = writable.address();
    write.key = writable.key();
    pair.server.start(write);
    ASSERT_TRUE(pair.until([&] { return write.result >= 0; }));
    EXPECT_EQ(write.result, 0);
    // The order of messages after RMA: once this one is here, so are the bytes.
    pair.server.send(pair.to_client, std::span(changed).first(1), {});
    ASSERT_TRUE(pair.until([&] { return pair.at_client.messages.size() == 1; }));
    EXPECT_EQ(exposed, changed);
}

TEST_P(EveryProvider, SleepsUntilAMessageComes) {
    Pair pair(GetParam());
    const std::byte hello{7};
    pair.client.send(pair.client.server(), {&hello, 1}, {});
    ASSERT_TRUE(pair.until([&] { return pair.at_server.messages.size() == 1; }));
    if (pair.server.wait_fd() < 0) GTEST_SKIP() << "the provider has no file descriptor";
    pollfd waiting{.fd = pair.server.wait_fd(), .events = POLLIN, .revents = 0};
    int wakes = 0;  // a few for what is left of connecting
    for (; wakes < 10; ++wakes) {
        while (pair.server.progress() + pair.client.progress() > 0 ||
               pair.server.may_sleep() == 0us) {
        }
        if (poll(&waiting, 1, 50) == 0) break;
    }
    EXPECT_LT(wakes, 10) << "nothing was sent, yet it does not sleep";
    pair.client.send(pair.client.server(), {&hello, 1}, {});
    pair.client.progress();
    EXPECT_EQ(poll(&waiting, 1, 5000), 1);
    ASSERT_TRUE(pair.until([&] { return pair.at_server.messages.size() == 2; }));
}

TEST(Endpoint, FailsRmaOfAPeerThatIsGone) {
    Inbox at_server;
    Endpoint server(Address::parse("ofi+tcp://127.0.0.1:0"), Endpoint::Role::server, at_server);
    std::vector<std::byte> exposed(8 << 20);
    std::vector<std::byte> local(exposed.size());
    Transfer read;
    {
        Inbox at_client;
        Endpoint client(server.address(), Endpoint::Role::client, at_client);
        const MemoryRegion remote = client.expose(exposed, false);
        const std::byte hello{7};
        client.send(client.server(), {&hello, 1}, {});
        const auto start = Clock::now();
        while (at_server.messages.empty() && Clock::now() - start < 5s) {
            client.progress();
            server.progress();
        }
        read.peer = server.insert(client.name());
        read.local = local.data();
        read.length = local.size();
        read.remote = remote.address();
        read.key = remote.key();
        server.start(read);
        server.progress();
        client.progress();
    }
    const auto start = Clock::now();
    while (read.result < 0 && Clock::now() - start < 5s) server.progress();
    EXPECT_GT(read.result, 0);
}

TEST(Endpoint, RefusesAPortThatIsTaken) {
    Inbox inbox;
    const Endpoint first(Address::parse("ofi+tcp://127.0.0.1:0"), Endpoint::Role::server, inbox);
    try {
        const Endpoint second(first.address(), Endpoint::Role::server, inbox);
        FAIL() << "bound twice: " << second.address().text();
    } catch (const Error& error) {
        EXPECT_EQ(error.code(), Errc::invalid_argument);
        EXPECT_THAT(error.what(), testing::HasSubstr(first.address().text()));
        EXPECT_THAT(error.what(), testing::HasSubstr("in use"));
    }
}

TEST(Endpoint, NamesTheProvidersThatThereAre) {
    Inbox inbox;
    for (const std::string provider : {"teleport", "verbs", "cxi"}) {
        if (available_providers().contains(provider)) continue;  // there is such hardware here
        try {
            const Endpoint none(Address::parse("ofi+" + provider + "://127.0.0.1:0"),
                                Endpoint::Role::server, inbox);
            FAIL();
        } catch (const Error& error) {
            EXPECT_EQ(error.code(), Errc::invalid_argument);
            EXPECT_THAT(error.what(), testing::HasSubstr("no provider '" + provider + "'"));
            EXPECT_THAT(error.what(), testing::HasSubstr("tcp;ofi_rxm"));
            EXPECT_THAT(error.what(), testing::Not(testing::HasSubstr("\n")));
        }
    }
}

}  // namespace
}  // namespace cpp_store::net
