// The wire format: what is encoded comes back, and nothing else is accepted.
#include "net/wire.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <random>

#include "net/address.hpp"
#include "net/assembler.hpp"

namespace cpp_store::wire {
namespace {

using Bytes = std::vector<std::byte>;

LayerTablePtr table() {
    return std::make_shared<const LayerTable>(
        std::vector<LayerTable::Layer>{{"a", {}, 8}, {"b", {0}, 4}, {"c", {0, 1}, 0}});
}

struct PutMessage {
    PutMessage() {
        PutRequest& request = put.request;
        request.model = "m";
        request.ns = "n";
        request.table = table();
        request.score = 0.5;
        request.parent = "p";
        request.graph = "{}";
        request.metadata = R"({"k": 1})";
        request.created_ns = 7;
        request.inherited = {{1, "owner", true, 99}};
        request.own = {{0, {{DType::float32, {2}}, {DType::uint8, {}}}}};
        put.tensors.resize(2);
        put.tensors[0].spec = request.own[0].tensors[0];
        put.tensors[0].nbytes = 8;
        put.tensors[0].remote = Remote{11, 12};
        put.tensors[1].spec = request.own[0].tensors[1];
        put.tensors[1].nbytes = 1;
        put.tensors[1].data = {&byte, 1};
    }
    std::byte byte{42};
    Put put;
};

TEST(Wire, PutRoundTrips) {
    const PutMessage message;
    Writer out;
    encode(out, message.put);
    Reader in(out.data());
    const Put put = decode_put(in);
    in.end();
    EXPECT_EQ(put.request.model, "m");
    EXPECT_EQ(put.request.ns, "n");
    EXPECT_EQ(*put.request.table, *table());
    EXPECT_EQ(put.request.score, 0.5);
    EXPECT_EQ(put.request.parent, "p");
    EXPECT_EQ(put.request.graph, "{}");
    EXPECT_EQ(put.request.metadata, R"({"k": 1})");
    EXPECT_EQ(put.request.created_ns, 7u);
    ASSERT_EQ(put.request.inherited.size(), 1u);
    EXPECT_EQ(put.request.inherited[0].layer, 1u);
    EXPECT_EQ(put.request.inherited[0].owner, "owner");
    EXPECT_TRUE(put.request.inherited[0].foreign);
    EXPECT_EQ(put.request.inherited[0].bytes, 99u);
    ASSERT_EQ(put.request.own.size(), 1u);
    EXPECT_EQ(put.request.own[0].tensors, message.put.request.own[0].tensors);
    ASSERT_EQ(put.tensors.size(), 2u);
    EXPECT_EQ(put.tensors[0].remote->address, 11u);
    EXPECT_EQ(put.tensors[0].remote->key, 12u);
    EXPECT_FALSE(put.tensors[1].remote);
    EXPECT_THAT(put.tensors[1].data, testing::ElementsAre(std::byte{42}));
}

TEST(Wire, OtherMessagesRoundTrip) {
    const TensorSpec spec{DType::bfloat16, {3}};
    const Bytes data(6, std::byte{5});
    Layer layer;
    layer.name = "a";
    layer.owner = "o";
    layer.key = {1, 2};
    layer.here = true;
    layer.serial = 77;
    layer.specs = {spec};
    layer.data = {data};
    LeasedMatch match;
    match.match = {"m", 0.25, 3, 2, 12, {0, 2}};
    match.lease = 9;
    match.layers = {{0, "o", nullptr}};
    Fetch fetch;
    fetch.groups = {{"o", {{1, 2}, {3, 4}}}};
    fetch.deliver = true;
    fetch.serials = {8, 9};
    fetch.destinations = {{{5, 6}, 7}};
    StoreStats stats;
    stats.memory.limit = 1;
    stats.bytes_inherited = 2;
    stats.calls[2] = {.count = 3, .p50 = 4, .p99 = 5};
    ForeignReferences foreign{"h", {{"o", {{1, 2}}}}};
    Hello hello{.address = data, .client = "h/1", .dialled = "d", .has_key = true, .encrypt = true};
    hello.ciphers = 6;
    hello.nonce.fill(std::byte{1});
    hello.public_key.fill(std::byte{2});
    hello.servers.fill(std::byte{3});
    Challenge challenge{.session = 5, .has_key = true, .encrypt = true, .cipher = 2};
    challenge.nonce.fill(std::byte{4});
    Join join{.proof = {}, .servers = {"a", "b"}};
    join.proof.fill(std::byte{5});

    Writer out;
    encode(out, layer);
    encode(out, match);
    encode(out, fetch);
    encode(out, stats);
    encode(out, foreign);
    encode(out, hello);
    encode(out, challenge);
    encode(out, join);
    encode(out, Welcome{.proof = join.proof, .memory_limit = 6});
    Reader in(out.data());

    const Layer layer2 = decode_layer(in);
    EXPECT_EQ(layer2.key, layer.key);
    EXPECT_EQ(layer2.serial, 77u);
    EXPECT_EQ(layer2.specs, layer.specs);
    ASSERT_EQ(layer2.data.size(), 1u);
    EXPECT_THAT(layer2.data[0], testing::ElementsAreArray(data));
    const LeasedMatch match2 = decode_match(in);
    EXPECT_EQ(match2.match.model, "m");
    EXPECT_EQ(match2.match.sequence, 3u);
    EXPECT_THAT(match2.match.positions, testing::ElementsAre(0, 2));
    EXPECT_EQ(match2.lease, 9u);
    EXPECT_EQ(match2.layers[0].owner, "o");
    const Fetch fetch2 = decode_fetch(in);
    EXPECT_EQ(fetch2.groups[0].keys, fetch.groups[0].keys);
    EXPECT_EQ(fetch2.serials, fetch.serials);
    EXPECT_EQ(fetch2.destinations[0].nbytes, 7u);
    const StoreStats stats2 = decode_stats(in);
    EXPECT_EQ(stats2.memory.limit, 1u);
    EXPECT_EQ(stats2.bytes_inherited, 2u);
    EXPECT_EQ(stats2.calls[2].count, 3u);
    EXPECT_EQ(stats2.calls[2].p50, 4u);
    EXPECT_EQ(stats2.calls[2].p99, 5u);
    EXPECT_EQ(decode_foreign(in).by_owner, foreign.by_owner);
    const Hello hello2 = decode_hello(in);
    EXPECT_EQ(
        std::tie(hello2.address, hello2.client, hello2.dialled, hello2.has_key, hello2.encrypt,
                 hello2.ciphers, hello2.nonce, hello2.public_key, hello2.servers),
        std::tie(hello.address, hello.client, hello.dialled, hello.has_key, hello.encrypt,
                 hello.ciphers, hello.nonce, hello.public_key, hello.servers));
    const Challenge challenge2 = decode_challenge(in);
    EXPECT_EQ(
        std::tie(challenge2.session, challenge2.incarnation, challenge2.has_key, challenge2.encrypt,
                 challenge2.cipher, challenge2.nonce, challenge2.public_key),
        std::tie(challenge.session, challenge.incarnation, challenge.has_key, challenge.encrypt,
                 challenge.cipher, challenge.nonce, challenge.public_key));
    const Join join2 = decode_join(in);
    EXPECT_EQ(std::tie(join2.proof, join2.servers), std::tie(join.proof, join.servers));
    const Welcome welcome = decode_welcome(in);
    EXPECT_EQ(welcome.proof, join.proof);
    EXPECT_EQ(welcome.memory_limit, 6u);
    in.end();
}

Errc code_of(const std::function<void()>& action) {
    try {
        action();
    } catch (const Error& error) {
        return error.code();
    }
    return Errc{};
}

TEST(Wire, EveryTruncationIsRejected) {
    const PutMessage message;
    Writer out;
    encode(out, message.put);
    for (std::size_t length = 0; length < out.data().size(); ++length) {
        EXPECT_EQ(code_of([&] {
                      Reader in(out.data().first(length));
                      (void)decode_put(in);
                  }),
                  Errc::protocol)
            << length;
    }
}

TEST(Wire, WrongBytesNeverDoMoreThanThrow) {
    const PutMessage message;
    Writer out;
    encode(out, message.put);
    std::mt19937 random(1);
    for (int round = 0; round < 20'000; ++round) {
        Bytes bytes(out.data().begin(), out.data().end());
        for (int change = 0; change < 1 + round % 4; ++change) {
            bytes[random() % bytes.size()] = static_cast<std::byte>(random());
        }
        const Errc code = code_of([&] {
            Reader in(bytes);
            (void)decode_put(in);
        });
        ASSERT_TRUE(code == Errc{} || code == Errc::protocol) << static_cast<int>(code);
    }
}

TEST(Wire, CountsBeyondTheBytesAllocateNothing) {
    Writer out;
    out.u32(0xffffffff);
    for (const auto& decode : std::vector<std::function<void(Reader&)>>{
             [](Reader& in) { (void)in.keys(); }, [](Reader& in) { (void)in.strings(); },
             [](Reader& in) { (void)in.string(); }, [](Reader& in) { (void)decode_stats(in); },
             [](Reader& in) { (void)decode_fetch(in); }}) {
        EXPECT_EQ(code_of([&] {
                      Reader in(out.data());
                      decode(in);
                  }),
                  Errc::protocol);
    }
}

TEST(Wire, SpecsThatOverflowAreRejected) {
    Writer out;
    out.spec({DType::float64, {std::uint64_t{1} << 40, std::uint64_t{1} << 40}});
    EXPECT_EQ(code_of([&] {
                  Reader in(out.data());
                  (void)in.spec();
              }),
              Errc::protocol);
}

TEST(Wire, FramesRoundTripAndAreChecked) {
    const Frame frame{
        .kind = Kind::request, .code = 2, .session = 3, .call = 4, .total = 10, .offset = 5};
    const auto header = encode(frame);
    Bytes message(header.begin(), header.end());
    message.resize(header.size() + 5);
    std::span<const std::byte> part;
    const Frame found = decode_frame(message, part);
    EXPECT_EQ(found.call, 4u);
    EXPECT_EQ(found.offset, 5u);
    EXPECT_EQ(part.size(), 5u);

    struct Change {
        std::size_t offset;
        std::uint8_t value;
    };
    for (const auto& [offset, value] :
         {Change{0, 0}, Change{4, 9}, Change{5, 1}, Change{16, 0}, Change{16, 200}, Change{17, 1},
          Change{18, 200}, Change{20, 9}, Change{23, 0xff}, Change{24, 6}}) {
        Bytes wrong = message;
        wrong[offset] = static_cast<std::byte>(value);
        EXPECT_EQ(code_of([&] { (void)decode_frame(wrong, part); }), Errc::protocol) << offset;
    }
    for (std::size_t length = 0; length < header.size(); ++length) {
        EXPECT_EQ(code_of([&] { (void)decode_frame(std::span(message).first(length), part); }),
                  Errc::protocol);
    }
}

TEST(Assembler, JoinsFramesOfInterleavedCalls) {
    net::Assembler assembler;
    const Bytes first(10, std::byte{1});
    const Bytes second(6, std::byte{2});
    const auto frame = [](std::uint64_t call, std::uint32_t total, std::uint32_t offset) {
        return Frame{.call = call, .total = total, .offset = offset};
    };
    EXPECT_FALSE(assembler.add(frame(1, 10, 0), std::span(first).first(4)));
    EXPECT_FALSE(assembler.add(frame(2, 6, 0), std::span(second).first(3)));
    EXPECT_EQ(assembler.add(frame(1, 10, 4), std::span(first).subspan(4)), first);
    EXPECT_EQ(assembler.add(frame(2, 6, 3), std::span(second).subspan(3)), second);
}

TEST(Assembler, RefusesWhatDoesNotFollow) {
    const Bytes part(4);
    for (const Frame& next :
         {Frame{.call = 1, .total = 10, .offset = 5}, Frame{.call = 1, .total = 11, .offset = 4},
          Frame{.code = 3, .call = 1, .total = 10, .offset = 4}}) {
        net::Assembler assembler;
        EXPECT_FALSE(assembler.add({.call = 1, .total = 10}, part));
        EXPECT_EQ(code_of([&] { (void)assembler.add(next, part); }), Errc::protocol);
    }
}

TEST(Assembler, BoundsWhatIsUnfinished) {
    net::Assembler assembler;
    const Bytes part(1);
    EXPECT_EQ(code_of([&] {
                  for (std::uint64_t call = 1; call < 10'000; ++call) {
                      (void)assembler.add({.call = call, .total = 2}, part);
                  }
              }),
              Errc::protocol);
}

TEST(Address, ParsesAndPrints) {
    for (const char* text : {"ofi+tcp://127.0.0.1:4711", "ofi+tcp;ofi_rxm://[::1]:0",
                             "ofi+verbs://node-7.cluster:65535", "ofi+shm://raw-66695f73686d"}) {
        EXPECT_EQ(net::Address::parse(text).text(), text);
    }
}

TEST(Address, NamesWhatIsMalformed) {
    for (const char* text :
         {"", "tcp://127.0.0.1:1", "ofi+tcp", "ofi+://127.0.0.1:1", "ofi+tcp://", "ofi+tcp://host",
          "ofi+tcp://host:", "ofi+tcp://host:65536", "ofi+tcp://host:-1", "ofi+tcp://host:1x",
          "ofi+tcp://:1", "ofi+tcp://::1:1", "ofi+t cp://host:1", "ofi+shm://raw-6",
          "ofi+tcp://a b:1"}) {
        try {
            (void)net::Address::parse(text);
            ADD_FAILURE() << text;
        } catch (const Error& error) {
            EXPECT_EQ(error.code(), Errc::invalid_argument);
            EXPECT_THAT(error.what(), testing::HasSubstr("'" + std::string(text) + "'"));
        }
    }
}

}  // namespace
}  // namespace cpp_store::wire
