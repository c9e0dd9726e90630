// hello, challenge, join and welcome, as each end says and checks them; the same over every way in.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "net/wire.hpp"
#include "security/handshake.hpp"
#include "security/seal.hpp"

namespace cpp_store::security {

// Whether messages are sealed once both ends have proven that they know the key: over a network.
// The socket of one host needs it not, where nobody but its two ends can write to it.
enum class Way : std::uint8_t { network, one_host };

// The client's end.
class Request {
  public:
    struct Options {
        std::string address;               // of the server, as the client was given it
        std::vector<std::byte> name;       // address of the client's endpoint; of one host: empty
        std::string client;                // "host/pid"
        std::vector<std::string> servers;  // as the client was given them
        std::optional<Secret> shared;      // the key, if there is one
        bool encrypt = false;              // wanted, where messages are sealed
        Way way = Way::network;
    };
    // Throws Errc::invalid_argument if encryption is wanted and there is no key.
    explicit Request(Options options);

    // Bodies to send, in this order.
    [[nodiscard]] const std::vector<std::byte>& hello() const noexcept { return hello_; }
    // Of the body of the challenge. Throws Errc::permission if the server knows no key while we do,
    // and Errc::protocol.
    [[nodiscard]] std::vector<std::byte> join(std::span<const std::byte> challenge);
    // After join(): for messages from join on, or null.
    [[nodiscard]] std::unique_ptr<Seals> take_seals() noexcept { return std::move(seals_); }
    [[nodiscard]] std::uint64_t session() const noexcept { return session_; }
    [[nodiscard]] std::uint64_t incarnation() const noexcept { return incarnation_; }
    [[nodiscard]] bool encrypts() const noexcept { return encrypts_; }
    // Throws Errc::permission if the server's proof is wrong.
    void check(const wire::Welcome& welcome) const;

  private:
    Options options_;
    std::optional<Contribution> mine_;
    std::vector<std::byte> hello_;
    std::optional<Bytes32> expected_;  // the server's proof
    std::unique_ptr<Seals> seals_;
    bool encrypts_ = false;
    std::uint64_t session_ = 0;
    std::uint64_t incarnation_ = 0;
};

// The server's end.
class Reception {
  public:
    struct Policy {
        std::string address;            // of the server
        std::uint64_t incarnation = 0;  // of the server
        std::optional<Secret> shared;   // the key, if there is one
        bool encrypt = false;           // whatever clients want
    };
    // Of the body of a hello. Throws Errc::protocol, and Errc::permission if the client has no key
    // and needs one.
    Reception(const Policy& policy, Way way, std::uint64_t session,
              std::span<const std::byte> hello);

    [[nodiscard]] const wire::Hello& hello() const noexcept { return hello_; }
    [[nodiscard]] const std::vector<std::byte>& challenge() const noexcept { return challenge_; }
    // For messages from join on, or null.
    [[nodiscard]] std::unique_ptr<Seals> take_seals() noexcept { return std::move(seals_); }
    [[nodiscard]] bool encrypts() const noexcept { return encrypts_; }
    // Of the body of a join: the client's list of servers. Throws Errc::permission if the client's
    // proof is wrong, and Errc::protocol.
    [[nodiscard]] std::vector<std::string> join(std::span<const std::byte> body) const;
    // What the welcome has to say.
    [[nodiscard]] const Bytes32& proof() const noexcept { return proof_; }

  private:
    wire::Hello hello_;
    std::vector<std::byte> challenge_;
    std::optional<Bytes32> expected_;  // the client's proof
    Bytes32 proof_{};
    std::unique_ptr<Seals> seals_;
    bool encrypts_ = false;
};

// What the client of a server is told that knows another key, or whose messages cannot be opened.
[[nodiscard]] std::string wrong_key(std::string_view address);

}  // namespace cpp_store::security
