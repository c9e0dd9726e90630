// Clients on the server's host: what they share with it, and what they cannot do to it.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <random>
#include <thread>

#include "client/connection.hpp"
#include "cpp_store/client.hpp"
#include "cpp_store/server.hpp"
#include "local/names.hpp"
#include "local/socket.hpp"
#include "local/staging.hpp"
#include "random_models.hpp"
#include "security/greeting.hpp"

namespace cpp_store {
namespace {

using namespace std::chrono_literals;
using testing::HasSubstr;

// What a client of another program could do: frames over the socket, one after the other.
class Raw {
  public:
    explicit Raw(local::Socket socket) : socket_(std::move(socket)) {}

    struct Received {
        wire::Frame frame;
        std::vector<std::byte> part;
        local::Descriptor passed;
    };
    // Throws Errc::connection once the server has ended it.
    std::optional<Received> receive(std::chrono::milliseconds patience = 10s) {
        std::vector<std::byte> buffer(local::Socket::max_message);
        const auto end = std::chrono::steady_clock::now() + patience;
        while (std::chrono::steady_clock::now() < end) {
            if (auto message = socket_.receive(buffer)) {
                Received received;
                std::span<const std::byte> part;
                received.frame = wire::decode_frame(message->bytes, part);
                received.part.assign(part.begin(), part.end());
                received.passed = std::move(message->passed);
                return received;
            }
            pollfd waiting{socket_.fd(), POLLIN, 0};
            ::poll(&waiting, 1, 10);
        }
        return std::nullopt;
    }
    void send(wire::Frame frame, std::span<const std::byte> body) {
        frame.session = session;
        frame.total = static_cast<std::uint32_t>(body.size());
        socket_.send(wire::encode(frame), body);
    }
    [[nodiscard]] bool try_send(wire::Frame frame, std::span<const std::byte> body) {
        frame.session = session;
        frame.total = static_cast<std::uint32_t>(body.size());
        return socket_.try_send(wire::encode(frame), body);
    }
    [[nodiscard]] int fd() const { return socket_.fd(); }

    std::uint64_t session = 0;

  private:
    local::Socket socket_;
};

// A server in this process, as one of another process of this host is to its clients.
struct Running {
    explicit Running(std::string key = {}, std::uint64_t limit = std::uint64_t{1} << 28,
                     const std::filesystem::path& synced = {}) {
        Store::Options options;
        options.data_dir = synced;
        options.durability = Durability::sync;
        options.memory.limit = limit;
        options.memory.region_size = 16 << 20;
        options.memory.ahead = 0;
        options.memory.linger = 1ms;
        store = std::make_shared<Store>(options);
        Server::Options settings;
        settings.key = std::move(key);
        settings.log = [this](LogLevel, std::string_view line) {
            const std::scoped_lock lock(mutex);
            log.emplace_back(line);
        };
        server = std::make_unique<Server>(store, settings);
    }
    [[nodiscard]] Cluster connect(std::chrono::milliseconds timeout = 30s) const {
        return Cluster({.servers = {server->address()}, .timeout = timeout, .key = {}});
    }
    // One whose calls can be given up at any moment.
    [[nodiscard]] std::unique_ptr<client::Connection> link() const {
        return std::make_unique<client::Connection>(
            client::Connection::Options{.address = server->address(),
                                        .servers = {server->address()},
                                        .key = {},
                                        .check_signals = {}});
    }
    [[nodiscard]] Raw knock() const {
        const auto names = local::client_names(net::Address::parse(server->address()));
        return Raw(std::move(*local::Socket::connect(names.at(0), 5s)));
    }
    // Waits until the server has dropped all that it held for clients.
    [[nodiscard]] bool has_used(std::uint64_t bytes) const {
        for (int i = 0; i < 2000; ++i) {
            if (store->stats().memory.used == bytes) return true;
            std::this_thread::sleep_for(5ms);
        }
        return false;
    }
    [[nodiscard]] bool has_logged(const std::string& text) {
        for (int i = 0; i < 2000; ++i) {
            {
                const std::scoped_lock lock(mutex);
                for (const std::string& line : log) {
                    if (line.find(text) != std::string::npos) return true;
                }
            }
            std::this_thread::sleep_for(5ms);
        }
        return false;
    }

    std::mutex mutex;
    std::vector<std::string> log;
    std::shared_ptr<Store> store;
    std::unique_ptr<Server> server;
};

// A chain of as many layers as there are sizes, called layer_0, layer_1, ...
RandomModel model_of(std::string id, const std::vector<std::size_t>& sizes,
                     std::uint64_t seed = 1) {
    std::vector<std::string> names;
    for (std::size_t i = 0; i < sizes.size(); ++i) names.push_back("layer_" + std::to_string(i));
    return {std::move(id), names, sizes, seed};
}

struct View {
    std::span<const std::byte> bytes;
    std::shared_ptr<const void> pin;
};

std::vector<View> views(Cluster& cluster, std::string_view model) {
    std::vector<View> out;
    cluster.read(
        model, {},
        [](std::string_view, std::span<const TensorSpec>) -> std::vector<std::span<std::byte>> {
            throw Error(Errc::internal, "a copy, where a view was wanted");
        },
        [&](std::string_view, std::span<const TensorSpec>,
            std::span<const std::span<const std::byte>> tensors, std::shared_ptr<const void> pin) {
            for (const auto& tensor : tensors) out.push_back({tensor, pin});
        });
    return out;
}

bool same(std::span<const std::byte> a, const Bytes& b) {
    return std::ranges::equal(a, b);
}

Errc code_of(const std::function<void()>& action, std::string* message = nullptr) {
    try {
        action();
    } catch (const Error& error) {
        if (message) *message = error.what();
        return error.code();
    }
    return Errc{};
}

TEST(SameHost, IsFoundFromTheAddress) {
    Running running;
    {
        Cluster cluster = running.connect();
        EXPECT_THAT(cluster.transports(), testing::ElementsAre("shm"));
    }
    const std::string port = running.server->address().substr(running.server->address().rfind(':'));
    const std::vector<std::string> list{"ofi+tcp://localhost" + port};
    Cluster named({.servers = list, .timeout = 30s, .key = {}});  // nobody has the other any more
    EXPECT_THAT(named.transports(), testing::ElementsAre("shm"));
    Cluster other({.servers = list, .timeout = 30s, .key = {}, .same_host = false});
    EXPECT_THAT(other.transports(), testing::Not(testing::Contains("shm")));
}

TEST(SameHost, AListOfServersIsTheFirstClientsWhileThereIsOne) {
    Running running;
    const std::vector<std::string> alone{running.server->address()};
    const std::vector<std::string> two{running.server->address(), "ofi+tcp://127.0.0.1:1"};
    const auto connect = [](const std::vector<std::string>& list, bool same_host) {
        return std::make_unique<Cluster>(
            Cluster::Options{.servers = list, .timeout = 30s, .key = {}, .same_host = same_host});
    };
    for (const bool same_host : {true, false}) {
        auto first = connect(alone, same_host);
        for (const bool other : {true, false}) {
            std::string message;
            EXPECT_EQ(code_of([&] { (void)connect(two, other); }, &message),
                      Errc::invalid_argument);
            EXPECT_THAT(message, HasSubstr("same list"));
        }
        auto second = connect(alone, !same_host);
        first.reset();
        EXPECT_EQ(code_of([&] { (void)connect(two, true); }), Errc::invalid_argument);
        model_of("m", {8}).put(*second);
        second.reset();
        EXPECT_EQ(code_of([&] { (void)connect(two, true); }), Errc::invalid_argument);
        second = connect(alone, same_host);
        second->retire("m");
    }
}

TEST(SameHost, IsFoundWhereTheServerListensAtAllAddresses) {
    Server::Options options;
    options.address = "ofi+tcp://0.0.0.0:0";
    options.insecure = true;
    Server server(std::make_shared<Store>(Store::Options{}), options);
    const std::string port = server.address().substr(server.address().rfind(':'));
    for (const std::string& address : {server.address(), "ofi+tcp://127.0.0.1" + port}) {
        Cluster cluster({.servers = {address}, .timeout = 30s, .key = {}});
        EXPECT_THAT(cluster.transports(), testing::ElementsAre("shm")) << address;
    }
}

TEST(SameHost, AsksNobodyForAddressesOfOtherHosts) {
    EXPECT_THAT(local::client_names(net::Address::parse("ofi+tcp://192.0.2.1:4711")),
                testing::IsEmpty());
    EXPECT_NE(local::client_names(net::Address::parse("ofi+tcp://127.0.0.1:4711")),
              local::client_names(net::Address::parse("ofi+tcp://127.0.0.2:4711")));
}

TEST(SameHost, ReadsTensorsWhereTheyAre) {
    Running running;
    Cluster cluster = running.connect();
    // Empty, in the message, and through the staging memory: less than a slot of it, all slots many
    // times, and sizes that fit nowhere.
    const RandomModel model = model_of("m", {0, 1, 4096, 4097, 262'144, 262'145, 12'345'678, 64});
    const std::uint64_t bytes = 0 + 1 + 4096 + 4097 + 262'144 + 262'145 + 12'345'678 + 64;
    EXPECT_EQ(model.put(cluster), bytes);
    EXPECT_EQ(model.put(cluster), bytes);  // again
    EXPECT_THAT(running.store->verify(), testing::IsEmpty());
    const std::vector<View> found = views(cluster, "m");
    ASSERT_EQ(found.size(), model.tensors.size());
    for (std::size_t i = 0; i < found.size(); ++i) {
        EXPECT_TRUE(same(found[i].bytes, model.tensors[i])) << i;
    }
    EXPECT_EQ(running.store->stats().bytes_read, bytes);
}

TEST(SameHost, ManyTensorsOfOddSizesGoThroughStaging) {
    Running running;
    Cluster cluster = running.connect();
    std::mt19937_64 random(7);
    for (int round = 0; round < 3; ++round) {
        std::vector<std::size_t> sizes;
        for (int i = 0; i < 200; ++i) sizes.push_back(random() % 60'000);
        const RandomModel model =
            model_of("m" + std::to_string(round), sizes, static_cast<std::uint64_t>(round));
        model.put(cluster);
        const std::vector<View> found = views(cluster, model.request.model);
        for (std::size_t i = 0; i < sizes.size(); ++i) {
            ASSERT_TRUE(same(found[i].bytes, model.tensors[i])) << round << " " << i;
        }
    }
    EXPECT_THAT(running.store->verify(), testing::IsEmpty());
}

TEST(SameHost, PinsWhatIsRetired) {
    Running running;
    Cluster cluster = running.connect();
    const RandomModel model = model_of("m", {100'000});
    model.put(cluster);
    std::vector<View> first = views(cluster, "m");
    std::vector<View> second = views(cluster, "m");
    cluster.retire("m");
    EXPECT_EQ(running.store->stats().memory.used, 100'032u);
    first.clear();
    cluster.ping(0);  // tells the server
    EXPECT_TRUE(same(second.at(0).bytes, model.tensors[0]));
    EXPECT_EQ(running.store->stats().memory.used, 100'032u);
    second.clear();
    cluster.ping(0);
    EXPECT_EQ(running.store->stats().memory.used, 0u);
}

TEST(SameHost, TellsOfManyOrLargePinsAtOnce) {
    Running running;
    Cluster cluster = running.connect();
    model_of("large", {std::size_t{2} << 20}).put(cluster);
    model_of("many", std::vector<std::size_t>(70, 5000)).put(cluster);
    std::vector<View> large = views(cluster, "large");
    std::vector<View> many = views(cluster, "many");
    cluster.retire("large");
    cluster.retire("many");
    large.clear();
    EXPECT_TRUE(running.has_used(70 * 5056));
    many.clear();  // the first 64 of them
    EXPECT_TRUE(running.has_used(6 * 5056));
}

TEST(SameHost, ViewsOutliveTheClientAndTheServer) {
    const RandomModel model = model_of("m", {100'000});
    std::vector<View> found;
    {
        Running running;
        {
            Cluster cluster = running.connect();
            model.put(cluster);
            found = views(cluster, "m");
            cluster.retire("m");
        }
        EXPECT_EQ(running.store->stats().memory.used, 100'032u);
        EXPECT_TRUE(same(found.at(0).bytes, model.tensors[0]));
    }
    EXPECT_TRUE(same(found.at(0).bytes, model.tensors[0]));
}

TEST(SameHost, ViewsStayAsTheyAreWhenTheStoreGoesOnWithoutItsServer) {
    Running running;
    const RandomModel model = model_of("m", {100'000});
    std::vector<View> found;
    {
        Cluster cluster = running.connect();
        model.put(cluster);
        found = views(cluster, "m");
    }
    running.server->stop();
    running.store->retire("m");
    EXPECT_EQ(running.store->stats().memory.used, 100'032u);
    EXPECT_TRUE(same(found.at(0).bytes, model.tensors[0]));
    found.clear();
    EXPECT_TRUE(running.has_used(0));
}

client::PendingCallPtr start(client::Connection& link, wire::Operation operation,
                             const wire::Writer& body = {}) {
    return link.start(
        operation, [&](wire::Writer& out, std::span<const wire::Remote>) { out.raw(body.data()); });
}

wire::Reader wait(const client::PendingCallPtr& call) {
    client::Connection::wait({&call, 1});
    return call->response();
}

wire::Writer read_request(const std::string& model) {
    wire::Writer out;
    wire::encode(out, wire::Read{model, {}});
    return out;
}

std::vector<local::SharedLayer> read_through(client::Connection& link, const std::string& model) {
    const auto call = start(link, wire::Operation::read, read_request(model));
    wire::Reader in = wait(call);
    std::vector<local::SharedLayer> layers(in.count(1));
    for (local::SharedLayer& layer : layers) layer = call->decode_layer(in);
    return layers;
}

TEST(SameHost, ACallThatIsGivenUpTakesNoPinOfAnotherAlong) {
    Running running;
    Cluster other = running.connect();
    const RandomModel model = model_of("m", {100'000});
    model.put(other);
    const auto link = running.link();
    auto layers = read_through(*link, "m");
    for (const auto operation :
         {wire::Operation::ping, wire::Operation::verify, wire::Operation::stats}) {
        (void)start(*link, operation);
    }
    other.retire("m");
    for (int i = 0; i < 20; ++i) {
        (void)start(*link, wire::Operation::ping);
        model_of("n" + std::to_string(i), {100'000}, 7).put(other);
    }
    EXPECT_TRUE(same(layers.at(0).description.data.at(0), model.tensors[0]));
    EXPECT_EQ(running.store->stats().memory.used, 21 * 100'032u);
    layers.clear();
    (void)wait(start(*link, wire::Operation::ping));
    EXPECT_TRUE(running.has_used(20 * 100'032u));
}

TEST(SameHost, AnAnswerThatNobodyTookPinsNothing) {
    Running running;
    Cluster other = running.connect();
    model_of("m", {100'000}).put(other);
    const auto link = running.link();
    for (int i = 0; i < 50; ++i) {
        const auto call = start(*link, wire::Operation::read, read_request("m"));
        if (i % 2 == 0) (void)wait(call);  // it came, but nobody looked at it
    }
    other.retire("m");
    EXPECT_TRUE(running.has_used(0));
}

TEST(SameHost, ACallThatIsGivenUpEndsNoLease) {
    Running running;
    Cluster other = running.connect();
    const RandomModel model = model_of("m", {100'000});
    model.put(other);
    {
        const auto link = running.link();
        wire::Writer query;
        Query asked;
        asked.ns = model.request.ns;
        wire::encode(query, *model.request.table, asked, 600'000);
        const auto asked_for = start(*link, wire::Operation::best_matches, query);
        ASSERT_EQ(wait(asked_for).count(1), 1u);
        (void)start(*link, wire::Operation::ping);
        other.retire("m");
        for (int i = 0; i < 20; ++i) {
            (void)start(*link, wire::Operation::ping);
            other.ping(0);
        }
        EXPECT_EQ(running.store->stats().leases, 1u);
        EXPECT_EQ(running.store->stats().memory.used, 100'032u);
    }
    EXPECT_TRUE(running.has_used(0));  // the client is gone
}

TEST(SameHost, APutThatIsGivenUpLeavesAllElse) {
    Running running;
    const auto link = running.link();
    const RandomModel model = model_of("m", {100'000});
    {
        Cluster other = running.connect();
        model.put(other);
    }
    auto layers = read_through(*link, "m");
    const RandomModel large = model_of("large", {32 << 20});
    const auto put = [&] {
        wire::Put request;
        request.request = large.request;
        wire::Payload& payload = request.tensors.emplace_back();
        payload.spec = {DType::uint8, {large.tensors[0].size()}};
        payload.nbytes = large.tensors[0].size();
        payload.remote = wire::Remote{};
        const client::Exposure exposure{large.tensors[0], false};
        return link->start(
            wire::Operation::put,
            [&](wire::Writer& out, std::span<const wire::Remote>) { wire::encode(out, request); },
            {&exposure, 1});
    };
    for (int i = 0; i < 10; ++i) {  // more than can be staged at once
        const auto call = put();
        (void)wait(start(*link, wire::Operation::ping));  // it has begun
    }
    EXPECT_TRUE(running.has_used(100'032u));
    EXPECT_TRUE(same(layers.at(0).description.data.at(0), model.tensors[0]));
    EXPECT_GT(wait(put()).u64(), 0u);
    EXPECT_TRUE(running.store->contains("large"));
    EXPECT_THAT(running.store->verify(), testing::IsEmpty());
}

TEST(SameHost, ThreadsShareOneConnection) {
    Running running;
    Cluster cluster = running.connect();
    const auto descriptors = [] {
        return std::distance(std::filesystem::directory_iterator("/proc/self/fd"),
                             std::filesystem::directory_iterator{});
    };
    cluster.ping(0);
    const auto before = descriptors();
    std::atomic<int> ready = 0;
    std::vector<std::thread> threads;
    for (int t = 0; t < 8; ++t) {
        threads.emplace_back([&] {
            ++ready;
            for (int i = 0; i < 200; ++i) cluster.ping(0);
            --ready;
            while (ready > 0) std::this_thread::yield();
        });
    }
    for (std::thread& thread : threads) thread.join();
    // One for each thread to be woken by, while it is there.
    EXPECT_LE(descriptors(), before + 1);
    EXPECT_THAT(running.log, testing::IsEmpty());
}

// What a client of another program could send.
wire::Frame request(wire::Operation operation) {
    return {.kind = wire::Kind::request, .code = static_cast<std::uint16_t>(operation), .call = 1};
}

std::vector<std::byte> hello() {
    wire::Writer out;
    wire::Hello hello;
    hello.client = "hostile";
    hello.servers = security::digest_of({});
    wire::encode(out, hello);
    return out.take();
}

std::vector<std::byte> join() {
    wire::Writer out;
    wire::encode(out, wire::Join{});
    return out.take();
}

Raw introduced(const Running& running) {
    Raw socket = running.knock();
    socket.send(request(wire::Operation::hello), hello());
    const auto challenge = socket.receive();
    EXPECT_TRUE(challenge && challenge->frame.code == 0);
    socket.session = challenge->frame.session;
    socket.send(request(wire::Operation::join), join());
    const auto welcome = socket.receive();
    EXPECT_TRUE(welcome && welcome->frame.code == 0);
    return socket;
}

bool is_dropped(Raw& socket) {
    try {
        while (socket.receive()) {
        }
    } catch (const Error& error) {
        return error.code() == Errc::connection;
    }
    return false;
}

TEST(SameHost, NobodySpeaksForAnother) {
    Running running;
    Raw one = introduced(running);
    Raw other = introduced(running);
    other.session = one.session;
    other.send(request(wire::Operation::ping), {});
    EXPECT_TRUE(is_dropped(other));
    one.send(request(wire::Operation::ping), {});
    EXPECT_TRUE(one.receive());
}

TEST(SameHost, DropsClientsThatBreakTheRules) {
    Running running;
    Cluster cluster = running.connect();
    const auto breaks = [&](const wire::Frame& frame, const std::vector<std::byte>& body) {
        Raw socket = introduced(running);
        socket.send(frame, body);
        EXPECT_TRUE(is_dropped(socket)) << static_cast<int>(frame.kind) << " " << frame.code;
    };
    const std::vector<std::byte> nonsense(100, std::byte{0xab});
    breaks({.kind = wire::Kind::response}, {});
    breaks({.kind = wire::Kind::bulk}, {});
    breaks({.kind = wire::Kind::unpin}, nonsense);
    breaks(request(wire::Operation::hello), hello());
    breaks(request(wire::Operation::put), nonsense);
    breaks(request(wire::Operation::read), nonsense);
    breaks(request(wire::Operation::fetch), nonsense);
    breaks(request(wire::Operation::lookup), {});
    Raw silent = running.knock();
    silent.send(request(wire::Operation::ping), {});
    EXPECT_TRUE(is_dropped(silent));
    Raw garbage = running.knock();
    ::send(garbage.fd(), nonsense.data(), nonsense.size(), 0);
    EXPECT_TRUE(is_dropped(garbage));
    EXPECT_TRUE(running.has_logged("hostile is dropped"));
    cluster.ping(0);
}

TEST(SameHost, UnpinsOfWhatIsNotPinnedAreNoHarm) {
    Running running;
    Raw socket = introduced(running);
    wire::Writer out;
    out.count(3);
    for (const std::uint64_t call : {std::uint64_t{0}, std::uint64_t{7}, ~std::uint64_t{0}}) {
        local::encode(out, local::Unpin{call, 1});
    }
    socket.send({.kind = wire::Kind::unpin}, out.data());
    socket.send(request(wire::Operation::ping), {});
    const auto answer = socket.receive();
    EXPECT_TRUE(answer && answer->frame.kind == wire::Kind::response);
}

std::vector<std::byte> put_request(const RandomModel& model) {
    wire::Put put;
    put.request = model.request;
    for (const Bytes& tensor : model.tensors) {
        wire::Payload& payload = put.tensors.emplace_back();
        payload.spec = {DType::uint8, {tensor.size()}};
        payload.nbytes = tensor.size();
        payload.remote = wire::Remote{};
    }
    wire::Writer out;
    wire::encode(out, put);
    return out.take();
}

void fill(local::Staging& staging, Raw& socket) {
    staging.fill([](std::size_t, std::uint64_t, std::span<std::byte>) {}, [] {},
                 [&] { socket.send({.kind = wire::Kind::staging, .call = 1}, {}); });
}

TEST(SameHost, AClientThatGoesDuringAPutLeavesNothing) {
    Running running;
    for (const std::uint64_t announced : {0, 1, 8}) {  // chunks that it has filled
        EXPECT_TRUE(running.has_used(0));
        Raw socket = introduced(running);
        socket.send(request(wire::Operation::put), put_request(model_of("m", {4 << 20})));
        auto go = socket.receive();
        ASSERT_TRUE(go && go->frame.kind == wire::Kind::staging && go->passed);
        local::Staging staging(std::move(go->passed));
        staging.begin({announced * local::Staging::slot_size});
        if (announced > 0) fill(staging, socket);
        EXPECT_EQ(running.store->stats().memory.used, std::uint64_t{4} << 20);
    }
    EXPECT_TRUE(running.has_used(0));
    EXPECT_FALSE(running.store->contains("m"));
}

std::vector<std::byte> small_put_request(const std::string& model) {
    wire::Put put;
    put.request = model_of(model, {8}).request;
    wire::Payload& payload = put.tensors.emplace_back();
    payload.spec = {DType::uint8, {8}};
    payload.nbytes = 8;
    static constexpr std::array<std::byte, 8> bytes{};
    payload.data = bytes;
    wire::Writer out;
    wire::encode(out, put);
    return out.take();
}

struct Directory {
    Directory() {
        std::string name = std::filesystem::temp_directory_path() / "link_test_XXXXXX";
        path = mkdtemp(name.data());
    }
    ~Directory() { std::filesystem::remove_all(path); }
    std::filesystem::path path;
};

TEST(SameHost, ClientsThatAreKilledInSyncedPutsHarmNobody) {
    const Directory directory;
    Running running({}, std::uint64_t{1} << 28, directory.path / "data");
    Cluster other = running.connect();
    std::vector<std::thread> killed;
    for (int t = 0; t < 4; ++t) {
        killed.emplace_back([&running, t] {
            for (int i = 0; i < 50; ++i) {
                Raw socket = introduced(running);
                const std::string model = "m" + std::to_string(t) + "_" + std::to_string(i);
                socket.send(request(wire::Operation::put), small_put_request(model));
                if (i % 2 == 1) (void)socket.receive();
            }
        });
    }
    for (int i = 0; i < 20; ++i) model_of("n" + std::to_string(i), {8}).put(other);
    for (std::thread& thread : killed) thread.join();
    model_of("last", {8}).put(other);
    EXPECT_TRUE(running.store->contains("last"));
    EXPECT_TRUE(running.store->contains("m0_1"));  // it was answered
}

TEST(SameHost, NobodyWaitsForAClientThatReadsNoAnswers) {
    const Directory directory;
    Running running({}, std::uint64_t{1} << 28, directory.path / "data");
    Raw deaf = introduced(running);
    wire::Frame frame = request(wire::Operation::put);
    for (int i = 0; i < 20'000; ++i) {  // until the server has no room for another answer
        const auto body = small_put_request("m" + std::to_string(i));
        ++frame.call;
        const auto give_up = std::chrono::steady_clock::now() + 2s;
        bool is_sent = deaf.try_send(frame, body);
        while (!is_sent && std::chrono::steady_clock::now() < give_up) {
            std::this_thread::sleep_for(1ms);
            is_sent = deaf.try_send(frame, body);
        }
        if (!is_sent) break;
    }
    Cluster other = running.connect(10s);  // less than the server waits for the deaf one
    for (int i = 0; i < 10; ++i) model_of("n" + std::to_string(i), {8}).put(other);
    EXPECT_TRUE(running.store->contains("n9"));
}

TEST(SameHost, AStagingFileCannotBeResized) {
    Running running;
    Raw socket = introduced(running);
    socket.send(request(wire::Operation::put), put_request(model_of("m", {1 << 20})));
    const auto go = socket.receive();
    ASSERT_TRUE(go && go->passed);
    EXPECT_NE(ftruncate(go->passed.get(), 0), 0);
    EXPECT_EQ(errno, EPERM);
}

TEST(SameHost, AClientThatWritesToStagingMeanwhileHarmsOnlyItself) {
    Running running;
    Raw socket = introduced(running);
    socket.send(request(wire::Operation::put), put_request(model_of("m", {8 << 20})));
    auto go = socket.receive();
    ASSERT_TRUE(go && go->passed);
    void* const memory = mmap(nullptr, 8 * local::Staging::slot_size, PROT_READ | PROT_WRITE,
                              MAP_SHARED, go->passed.get(), 4096);
    ASSERT_NE(memory, MAP_FAILED);
    std::atomic<bool> done = false;
    std::thread scribbler([&] {
        auto* const words = static_cast<volatile std::uint64_t*>(memory);
        for (std::uint64_t i = 0; !done; ++i) {
            words[i * 1031 % (local::Staging::slot_size)] = i;
        }
    });
    local::Staging staging(std::move(go->passed));
    staging.begin({8 << 20});
    fill(staging, socket);
    const auto answer = socket.receive();
    done = true;
    scribbler.join();
    munmap(memory, 8 * local::Staging::slot_size);
    EXPECT_TRUE(answer && answer->frame.kind == wire::Kind::response && answer->frame.code == 0);
    // What was summed is what is stored, whatever it is.
    EXPECT_TRUE(running.store->contains("m"));
    EXPECT_THAT(running.store->verify(), testing::IsEmpty());
}

TEST(SameHost, GetsRegionsAsTheArenaGrowsAndForgetsThemAsItShrinks) {
    Running running;  // regions of 16 MiB
    Cluster cluster = running.connect();
    for (int round = 0; round < 4; ++round) {
        std::vector<View> kept;
        std::vector<RandomModel> models;
        for (int i = 0; i < 4; ++i) {
            models.push_back(model_of("m" + std::to_string(i), {10 << 20},
                                      static_cast<std::uint64_t>(round * 10 + i)));
            models.back().put(cluster);
            kept.push_back(views(cluster, models.back().request.model).at(0));
        }
        for (int i = 0; i < 4; ++i) {
            EXPECT_TRUE(same(kept[static_cast<std::size_t>(i)].bytes,
                             models[static_cast<std::size_t>(i)].tensors[0]));
            cluster.retire("m" + std::to_string(i));
        }
        kept.clear();
        EXPECT_TRUE(running.has_used(0));
        // The arena gives back all regions but one.
        for (int i = 0; i < 1000 && running.store->stats().memory.mapped > (16u << 20); ++i) {
            std::this_thread::sleep_for(5ms);
        }
    }
}

TEST(SameHost, CannotWriteToTheArena) {
    Running running;
    Cluster cluster = running.connect();
    model_of("m", {100'000}).put(cluster);
    const std::vector<View> found = views(cluster, "m");
    auto* const page = reinterpret_cast<void*>(
        reinterpret_cast<std::uintptr_t>(found.at(0).bytes.data()) / 4096 * 4096);
    EXPECT_NE(mprotect(page, 4096, PROT_READ | PROT_WRITE), 0);
    EXPECT_EQ(errno, EACCES);
    const pid_t child = fork();
    if (child == 0) {
        std::signal(SIGSEGV, SIG_DFL);
        const_cast<std::byte*>(found[0].bytes.data())[0] = std::byte{1};
        _exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    EXPECT_TRUE(WIFSIGNALED(status) || WEXITSTATUS(status) != 0);  // sanitizers exit
    EXPECT_THAT(running.store->verify(), testing::IsEmpty());
}

TEST(SameHost, SaysWhenTheStoreIsFull) {
    Running running({}, 1 << 20);
    Cluster cluster = running.connect();
    model_of("m", {700'000}).put(cluster);
    std::string message;
    EXPECT_EQ(code_of([&] { model_of("n", {700'000}).put(cluster); }, &message),
              Errc::out_of_memory);
    EXPECT_THAT(message, HasSubstr("limit 1048576"));
    EXPECT_EQ(views(cluster, "m").size(), 1u);
    cluster.retire("m");
    model_of("n", {700'000}).put(cluster);
}

TEST(SameHost, WantsTheKeyOfTheServer) {
    Running running("secret");
    std::string message;
    EXPECT_EQ(code_of([&] { (void)running.connect(); }, &message), Errc::permission);
    EXPECT_THAT(message, HasSubstr("wants a key"));
    EXPECT_EQ(code_of([&] { Cluster({.servers = {running.server->address()}, .key = "guess"}); },
                      &message),
              Errc::permission);
    EXPECT_THAT(message, HasSubstr("the key is not the server's"));
    Cluster cluster({.servers = {running.server->address()}, .timeout = 30s, .key = "secret"});
    EXPECT_THAT(cluster.transports(), testing::ElementsAre("shm"));
}

TEST(SameHost, NamesAServerThatIsGoneAndConnectsAgain) {
    auto running = std::make_unique<Running>();
    const std::string address = running->server->address();
    Cluster cluster = running->connect();
    running.reset();
    std::string message;
    EXPECT_EQ(code_of([&] { cluster.ping(0); }, &message), Errc::connection);
    EXPECT_THAT(message, HasSubstr(address));
    Server::Options options;
    options.address = address;
    Server again(std::make_shared<Store>(Store::Options{}), options);
    cluster.ping(0);
    EXPECT_THAT(cluster.transports(), testing::ElementsAre("shm"));
}

TEST(SameHost, ServesThreadsOfOneClientAtOnce) {
    Running running;
    Cluster cluster = running.connect();
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t) {
        threads.emplace_back([&cluster, t] {
            for (int i = 0; i < 20; ++i) {
                const RandomModel model =
                    model_of("m" + std::to_string(t) + "_" + std::to_string(i),
                             {100, 300'000, 9'000}, static_cast<std::uint64_t>(t * 100 + i));
                model.put(cluster);
                const std::vector<View> found = views(cluster, model.request.model);
                for (std::size_t j = 0; j < found.size(); ++j) {
                    EXPECT_TRUE(same(found[j].bytes, model.tensors[j]));
                }
                cluster.retire(model.request.model);
                EXPECT_TRUE(same(found[1].bytes, model.tensors[1]));
            }
        });
    }
    for (std::thread& thread : threads) thread.join();
    cluster.ping(0);
    EXPECT_TRUE(running.has_used(0));
}

TEST(SameHost, AForkConnectsForItselfAndReleasesNothing) {
    Running running;
    Cluster cluster = running.connect();
    const RandomModel model = model_of("m", {100'000});
    model.put(cluster);
    std::vector<View> found = views(cluster, "m");
    cluster.retire("m");
    model_of("n", {50'000}).put(cluster);
    const pid_t child = fork();
    if (child == 0) {
        bool right = same(found.at(0).bytes, model.tensors[0]);
        found.clear();
        try {
            right = right && views(cluster, "n").size() == 1;
        } catch (const Error&) {
            right = false;
        }
        _exit(right ? 0 : 1);
    }
    int status = 0;
    waitpid(child, &status, 0);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    cluster.ping(0);
    EXPECT_TRUE(same(found.at(0).bytes, model.tensors[0]));
    EXPECT_EQ(running.store->stats().memory.used, 100'032u + 50'048u);
}

}  // namespace
}  // namespace cpp_store
