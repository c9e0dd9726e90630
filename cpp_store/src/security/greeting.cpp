#include "security/greeting.hpp"

#include <algorithm>
#include <utility>

namespace cpp_store::security {
namespace {

constexpr std::size_t longest_name = 256;  // of a client, which is for people

// It is written to logs: nothing in it may look like another line.
std::string printable(std::string_view name) {
    std::string text(name.substr(0, longest_name));
    std::replace_if(
        text.begin(), text.end(), [](unsigned char byte) { return byte < 0x20 || byte >= 0x7f; },
        '?');
    return text;
}

std::unique_ptr<Seals> make_seals(Cipher cipher, const Secret& out, const Secret& in,
                                  bool encrypt) {
    return std::unique_ptr<Seals>(new Seals{.out = Seal(cipher, out, wire::clear_size, encrypt),
                                            .in = Seal(cipher, in, wire::clear_size, encrypt)});
}

}  // namespace

std::string wrong_key(std::string_view address) {
    return std::string(address) +
           ": the key is not the server's; give both the same one (--key_file, "
           "CPP_STORE_KEY_FILE, CPP_STORE_KEY or key=)";
}

// ------------------------------------------------------------------------------------ Request

Request::Request(Options options) : options_(std::move(options)) {
    if (options_.encrypt && !options_.shared) {
        throw Error(Errc::invalid_argument,
                    options_.address +
                        ": to encrypt takes a key; make one with: cpp-store keygen "
                        "FILE, and give it to the server and here");
    }
    wire::Hello hello{.address = options_.name,
                      .client = options_.client,
                      .dialled = options_.address,
                      .has_key = options_.shared.has_value(),
                      .encrypt = options_.encrypt && options_.way == Way::network,
                      .servers = digest_of(options_.servers)};
    if (hello.has_key) {
        mine_.emplace();
        hello.ciphers = available_ciphers();
        hello.nonce = mine_->nonce();
        hello.public_key = mine_->public_key();
    }
    wire::Writer out;
    encode(out, hello);
    hello_ = out.take();
}

std::vector<std::byte> Request::join(std::span<const std::byte> body) {
    wire::Reader in(body);
    const wire::Challenge challenge = wire::decode_challenge(in);
    in.end();
    session_ = challenge.session;
    incarnation_ = challenge.incarnation;
    wire::Join join{.proof = {}, .servers = options_.servers};
    if (options_.shared) {
        if (!challenge.has_key) {
            throw Error(Errc::permission,
                        options_.address +
                            ": the server has no key, so it could be anybody's; start it with this "
                            "client's key, or connect with --insecure or insecure=True");
        }
        const Agreement agreed(*mine_, challenge.public_key, *options_.shared, hello_, body);
        mine_.reset();
        options_.shared.reset();
        join.proof = agreed.proof_of_client;
        expected_ = agreed.proof_of_server;
        if (options_.way == Way::network) {
            const Cipher cipher = choose_cipher(available_ciphers(),
                                                static_cast<std::uint8_t>(1u << challenge.cipher));
            encrypts_ = challenge.encrypt || options_.encrypt;
            seals_ = make_seals(cipher, agreed.to_server, agreed.to_client, encrypts_);
        }
    }
    wire::Writer out;
    encode(out, join);
    return out.take();
}

void Request::check(const wire::Welcome& welcome) const {
    if (expected_ && !is_equal(*expected_, welcome.proof)) {
        throw Error(Errc::permission, wrong_key(options_.address));
    }
}

// ------------------------------------------------------------------------------------ Reception

Reception::Reception(const Policy& policy, Way way, std::uint64_t session,
                     std::span<const std::byte> body) {
    wire::Reader in(body);
    hello_ = wire::decode_hello(in);
    in.end();
    hello_.client = printable(hello_.client);
    if (policy.shared && !hello_.has_key) {
        throw Error(Errc::permission, policy.address +
                                          ": it wants a key, and the client has none; give it the "
                                          "server's: --key_file, CPP_STORE_KEY_FILE, "
                                          "CPP_STORE_KEY or key=");
    }
    wire::Challenge challenge{.session = session,
                              .incarnation = policy.incarnation,
                              .has_key = policy.shared.has_value()};
    const bool sealed = policy.shared && way == Way::network;
    std::optional<Contribution> mine;
    if (policy.shared) {
        mine.emplace();
        challenge.nonce = mine->nonce();
        challenge.public_key = mine->public_key();
    }
    if (sealed) {
        const Cipher cipher = choose_cipher(available_ciphers(), hello_.ciphers);
        challenge.cipher = static_cast<std::uint8_t>(cipher);
        challenge.encrypt = encrypts_ = policy.encrypt || hello_.encrypt;
    }
    wire::Writer out;
    encode(out, challenge);
    challenge_ = out.take();
    if (!policy.shared) return;
    const Agreement agreed(*mine, hello_.public_key, *policy.shared, body, challenge_);
    expected_ = agreed.proof_of_client;
    proof_ = agreed.proof_of_server;
    if (sealed) {
        seals_ = make_seals(static_cast<Cipher>(challenge.cipher), agreed.to_client,
                            agreed.to_server, encrypts_);
    }
}

std::vector<std::string> Reception::join(std::span<const std::byte> body) const {
    wire::Reader in(body);
    wire::Join join = wire::decode_join(in);
    in.end();
    if (expected_ && !is_equal(*expected_, join.proof)) {
        throw Error(Errc::permission, "the key is not the server's");
    }
    if (!is_equal(digest_of(join.servers), hello_.servers)) {
        throw Error(Errc::protocol, "malformed message: other servers than hello said");
    }
    return join.servers;
}

}  // namespace cpp_store::security
