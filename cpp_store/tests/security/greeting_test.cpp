// Handshakes and seals without a network: who does not know the key gets nowhere.
#include "security/greeting.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <random>

namespace cpp_store::security {
namespace {

using Bytes = std::vector<std::byte>;

Errc code_of(const std::function<void()>& action) {
    try {
        action();
    } catch (const Error& error) {
        return error.code();
    }
    return Errc{};
}

struct Ends {
    explicit Ends(const std::string& client_key = "k", const std::string& server_key = "k",
                  bool encrypt = false, Way way = Way::network)
        : policy{.address = "server", .shared = {}, .encrypt = false},
          request({.address = "ofi+tcp://h:1",
                   .name = Bytes(28),
                   .client = "host/1\nroot logged in",
                   .servers = {"b", "a"},
                   .shared = secret(client_key),
                   .encrypt = encrypt,
                   .way = way}) {
        policy.shared = secret(server_key);
        reception.emplace(policy, way, 77, request.hello());
    }
    static std::optional<Secret> secret(const std::string& key) {
        return key.empty() ? std::nullopt : std::optional(secret_of(key));
    }
    std::vector<std::string> join() {
        return reception->join(request.join(reception->challenge()));
    }
    void check() const { request.check({.proof = reception->proof(), .memory_limit = 0}); }

    Reception::Policy policy;
    Request request;
    std::optional<Reception> reception;
};

TEST(Handshake, AgreesWithTheSameKey) {
    for (const Way way : {Way::network, Way::one_host}) {
        Ends ends("k", "k", false, way);
        EXPECT_THAT(ends.join(), testing::UnorderedElementsAre("a", "b"));
        EXPECT_NO_THROW(ends.check());
        EXPECT_EQ(ends.request.session(), 77u);
        EXPECT_EQ(ends.request.take_seals() != nullptr, way == Way::network);
        EXPECT_EQ(ends.reception->take_seals() != nullptr, way == Way::network);
    }
}

TEST(Handshake, OfNobodysKeySealsNothing) {
    Ends ends("", "");
    ends.join();
    EXPECT_NO_THROW(ends.check());
    EXPECT_EQ(ends.request.take_seals(), nullptr);
    EXPECT_EQ(ends.reception->take_seals(), nullptr);
}

TEST(Handshake, FailsAtBothEndsWithAnotherKey) {
    Ends ends("k", "other");
    EXPECT_EQ(code_of([&] { ends.join(); }), Errc::permission);
    EXPECT_EQ(code_of([&] { ends.check(); }), Errc::permission);
}

TEST(Handshake, FailsIfOneEndHasNoKey) {
    EXPECT_EQ(code_of([] { Ends("", "k"); }), Errc::permission);
    Ends open("k", "");
    EXPECT_EQ(code_of([&] { open.join(); }), Errc::permission);
    EXPECT_EQ(code_of([] { Ends("", "", true); }), Errc::invalid_argument)
        << "nothing to encrypt by";
}

TEST(Handshake, NeverTellsTheKeyAndNeverRepeatsItself) {
    const std::string key = "a key that must not be seen";
    Ends first(key, key);
    Ends second(key, key);
    const Bytes join = first.request.join(first.reception->challenge());
    for (const Bytes& said : {first.request.hello(), first.reception->challenge(), join}) {
        const std::string text(reinterpret_cast<const char*>(said.data()), said.size());
        EXPECT_EQ(text.find(key), std::string::npos);
    }
    // A join that was heard once is of no use with another challenge.
    EXPECT_EQ(code_of([&] { (void)second.reception->join(join); }), Errc::permission);
}

TEST(Handshake, NoticesEveryChangeOfWhatWasSaid) {
    const Ends pattern;
    for (std::size_t i = 0; i < pattern.request.hello().size(); ++i) {
        Ends ends;
        Bytes hello = ends.request.hello();
        hello[i] ^= std::byte{1};
        EXPECT_NE(code_of([&] {
                      const Reception changed(ends.policy, Way::network, 77, hello);
                      (void)changed.join(ends.request.join(changed.challenge()));
                  }),
                  Errc{})
            << "byte " << i << " of hello";
    }
    for (std::size_t i = 0; i < pattern.reception->challenge().size(); ++i) {
        Ends ends;
        Bytes challenge = ends.reception->challenge();
        challenge[i] ^= std::byte{1};
        EXPECT_NE(code_of([&] { (void)ends.reception->join(ends.request.join(challenge)); }),
                  Errc{})
            << "byte " << i << " of the challenge";
    }
}

TEST(Handshake, RefusesPublicKeysThatAreNone) {
    Ends ends;
    Bytes hello = ends.request.hello();
    std::fill_n(hello.end() - 64, 32, std::byte{0});  // the neutral point
    EXPECT_EQ(code_of([&] { Reception(ends.policy, Way::network, 1, hello); }), Errc::protocol);
}

TEST(Handshake, WritesNoClientsLinesIntoLogs) {
    EXPECT_EQ(Ends().reception->hello().client, "host/1?root logged in");
}

// ------------------------------------------------------------------------------------ seals

class Sealing : public testing::TestWithParam<std::tuple<Cipher, bool>> {
  protected:
    Sealing() {
        const auto [cipher, encrypt] = GetParam();
        if ((available_ciphers() & (1u << static_cast<unsigned>(cipher))) == 0) return;
        out_.emplace(cipher, key_, clear, encrypt);
        in_.emplace(cipher, key_, clear, encrypt);
    }
    void SetUp() override {
        if (!out_) GTEST_SKIP() << "this processor has no instructions for it";
    }
    [[nodiscard]] Bytes sealed(std::size_t size) {
        Bytes message(size + Seal::tag_size);
        for (std::size_t i = 0; i < size; ++i) message[i] = static_cast<std::byte>(i);
        out_->close(message);
        return message;
    }
    [[nodiscard]] bool opens(Bytes message) { return !in_->open(message).empty(); }

    static constexpr std::size_t clear = 16;
    const Secret key_ = secret_of("key");
    std::optional<Seal> out_;
    std::optional<Seal> in_;
};

TEST_P(Sealing, RoundTripsInOrder) {
    for (const std::size_t size : {16u, 17u, 36u, 100u, 4096u, 65536u - 16u}) {
        Bytes message = sealed(size);
        const auto body = in_->open(message);
        ASSERT_EQ(body.size(), size);
        for (std::size_t i = 0; i < size; ++i) ASSERT_EQ(body[i], static_cast<std::byte>(i));
    }
}

TEST_P(Sealing, EncryptsAllButTheClearPart) {
    const Bytes message = sealed(200);
    for (std::size_t i = 0; i < clear; ++i) EXPECT_EQ(message[i], static_cast<std::byte>(i));
    std::size_t same = 0;
    for (std::size_t i = clear; i < 200; ++i) same += message[i] == static_cast<std::byte>(i);
    if (std::get<1>(GetParam())) {
        EXPECT_LT(same, 20u);
    } else {
        EXPECT_EQ(same, 200 - clear);
    }
}

TEST_P(Sealing, NoticesEveryChangedByte) {
    for (std::size_t i = 0; i < 60 + Seal::tag_size; ++i) {
        out_.emplace(std::get<0>(GetParam()), key_, clear, std::get<1>(GetParam()));
        in_.emplace(std::get<0>(GetParam()), key_, clear, std::get<1>(GetParam()));
        Bytes message = sealed(60);
        message[i] ^= std::byte{0x40};
        EXPECT_FALSE(opens(message)) << i;
    }
}

TEST_P(Sealing, NoticesRepetitionReorderingAndGaps) {
    const Bytes first = sealed(40);
    const Bytes second = sealed(40);
    const Bytes third = sealed(40);
    EXPECT_FALSE(opens(second));
    in_.emplace(std::get<0>(GetParam()), key_, clear, std::get<1>(GetParam()));
    EXPECT_TRUE(opens(first));
    EXPECT_FALSE(opens(first));
    in_.emplace(std::get<0>(GetParam()), key_, clear, std::get<1>(GetParam()));
    EXPECT_TRUE(opens(first));
    EXPECT_FALSE(opens(third));
}

TEST_P(Sealing, NoticesTruncation) {
    for (std::size_t size = 0; size < 56; ++size) {
        out_.emplace(std::get<0>(GetParam()), key_, clear, std::get<1>(GetParam()));
        in_.emplace(std::get<0>(GetParam()), key_, clear, std::get<1>(GetParam()));
        Bytes message = sealed(40);
        message.resize(size);
        EXPECT_EQ(opens(message), size == 56) << size;
    }
}

INSTANTIATE_TEST_SUITE_P(All, Sealing,
                         testing::Combine(testing::Values(Cipher::chacha20_poly1305,
                                                          Cipher::aes256_gcm),
                                          testing::Bool()));

TEST(Seals, OfDirectionsAndConnectionsDiffer) {
    Ends ends;
    Ends others;
    ends.join();
    others.join();
    const auto client = ends.request.take_seals();
    const auto server = ends.reception->take_seals();
    const auto other = others.reception->take_seals();
    Bytes message(64);
    client->out.close(message);
    Bytes copy = message;
    EXPECT_FALSE(other->in.open(copy).size());
    copy = message;
    EXPECT_FALSE(client->in.open(copy).size()) << "reflected";
    EXPECT_TRUE(server->in.open(message).size());
}

TEST(Seals, AreOfTheQuickestCipherThatBothHave) {
    EXPECT_EQ(choose_cipher(0b110, 0b110), Cipher::aes256_gcm);
    EXPECT_EQ(choose_cipher(0b110, 0b010), Cipher::chacha20_poly1305);
    EXPECT_EQ(code_of([] { (void)choose_cipher(0b110, 0b001); }), Errc::protocol);
}

}  // namespace
}  // namespace cpp_store::security
