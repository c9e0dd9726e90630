// What travels in messages, field by field: docs/formats.md, "Wire". Everything is little-endian.
//
// Decoding trusts nothing: every length is checked against the bytes that are there and against the
// limits below before anything is allocated for it; what does not parse throws Errc::protocol.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "cpp_store/error.hpp"
#include "cpp_store/store.hpp"

namespace cpp_store::wire {

inline constexpr std::uint32_t magic = 0x53505043;  // "CPPS"
inline constexpr std::uint8_t version = 3;
inline constexpr std::size_t frame_header_size = 36;
// Of a header, what is never encrypted: who it is from, by which one knows how to decrypt it.
inline constexpr std::size_t clear_size = 16;
inline constexpr std::uint32_t max_hello = 4096;  // of who has not proven that he may say more

// Limits on what a message may say, whatever it claims.
inline constexpr std::uint32_t max_body = 64u << 20;    // of one request or response
inline constexpr std::uint32_t max_string = 32u << 20;  // graph, metadata
inline constexpr std::uint32_t max_id = 65535;          // model ids, namespaces, names
inline constexpr std::uint32_t max_items = 1u << 20;    // layers, tensors, ids in one message
inline constexpr std::uint32_t max_dimensions = 64;

// Which tensors of a put or a fetch are part of the message, in order: small ones, up to a sum. The
// others travel by RMA. Both sides apply the same rule.
class InlineBudget {
  public:
    static constexpr std::uint64_t largest = 4096;
    static constexpr std::uint64_t sum = 4u << 20;
    [[nodiscard]] bool take(std::uint64_t nbytes) noexcept {
        if (nbytes > largest || nbytes > sum - used_) return false;
        used_ += nbytes;
        return true;
    }

  private:
    std::uint64_t used_ = 0;
};
// A description of layers brings their tensors along if all of them are no more than this.
inline constexpr std::uint64_t described_with_data = 32u << 10;

enum class Kind : std::uint8_t {
    request = 1,
    response = 2,
    probe = 3,  // asks for an echo: "are you alive?"
    echo = 4,
    // Between processes of one host only (src/local):
    unpin = 5,    // client: layers that it has no views of any more
    region = 6,   // server: a memory file of the arena, or that one is no more
    staging = 7,  // server: memory to put tensors into; go ahead
    // Of connections that encrypt, where nothing travels by RMA:
    bulk = 8,    // the next bytes of a call's tensors
    credit = 9,  // how many of them the other end may have sent in all
};
inline constexpr std::uint8_t kind_count = 9;
// Bytes of one call that are on their way in messages; of a fetch, without being asked for.
inline constexpr std::uint64_t bulk_window = 4u << 20;

// Values are part of the format: append, never renumber.
enum class Operation : std::uint16_t {
    hello = 0,
    ping = 1,
    put = 2,
    read = 3,
    fetch = 4,
    best_matches = 5,
    end_lease = 6,
    lookup = 7,
    list = 8,
    retire = 9,
    acquire = 10,
    release = 11,
    holders = 12,
    release_holder = 13,
    alive = 14,
    stats = 15,
    verify = 16,
    bye = 17,
    shutdown = 18,
    contains = 19,
    join = 20,
    // Of stores of several replicas (replication/wire.hpp):
    bury = 21,
    state = 22,
    changes = 23,
    pull = 24,
    retire_through = 25,
    chain = 26,
    undo = 27,
    refuse = 28,
};
inline constexpr std::uint16_t operation_count = 29;
[[nodiscard]] std::string_view operation_name(Operation operation) noexcept;

// Every message is one frame: this header and a part of a request's or response's body.
struct Frame {
    Kind kind = Kind::request;
    std::uint16_t code = 0;     // a request's operation; a response's Errc, 0 for success
    std::uint64_t session = 0;  // given by the challenge; 0 in the hello request
    std::uint64_t call = 0;     // chosen by the client; the response repeats it
    std::uint32_t total = 0;    // bytes of the whole body
    std::uint32_t offset = 0;   // of this frame's part in it
};
[[nodiscard]] std::array<std::byte, frame_header_size> encode(const Frame& frame) noexcept;
// Of any message; checks magic and version.
[[nodiscard]] std::uint64_t session_of(std::span<const std::byte> message);
// Splits a message; checks magic, version, kind, operation and that the part lies within `total`.
[[nodiscard]] Frame decode_frame(std::span<const std::byte> message,
                                 std::span<const std::byte>& part);

class Writer {
  public:
    void u8(std::uint8_t value) { number(value); }
    void u16(std::uint16_t value) { number(value); }
    void u32(std::uint32_t value) { number(value); }
    void u64(std::uint64_t value) { number(value); }
    void f64(double value) { number(std::bit_cast<std::uint64_t>(value)); }
    void count(std::size_t value);  // u32; throws Errc::invalid_argument beyond max_items
    void string(std::string_view text) { bytes(std::as_bytes(std::span(text))); }
    void id(std::string_view text);               // throws Errc::invalid_argument beyond max_id
    void bytes(std::span<const std::byte> data);  // u32 length, then they
    void raw(std::span<const std::byte> data);    // they alone
    void sums(std::span<const Checksum> values);
    void key(const LayerKey& value);
    void keys(std::span<const LayerKey> values);
    void strings(std::span<const std::string> values);
    void spec(const TensorSpec& value);

    [[nodiscard]] std::span<const std::byte> data() const noexcept { return data_; }
    [[nodiscard]] std::vector<std::byte> take() noexcept { return std::move(data_); }

  private:
    template <typename T>
    void number(T value) {
        static_assert(std::endian::native == std::endian::little, "the format is little-endian");
        raw(std::as_bytes(std::span(&value, 1)));
    }
    std::vector<std::byte> data_;
};

// Reads what a Writer wrote; throws Errc::protocol where the bytes end early or break a limit.
class Reader {
  public:
    explicit Reader(std::span<const std::byte> data) : rest_(data) {}

    [[nodiscard]] std::uint8_t u8() { return number<std::uint8_t>(); }
    [[nodiscard]] std::uint16_t u16() { return number<std::uint16_t>(); }
    [[nodiscard]] std::uint32_t u32() { return number<std::uint32_t>(); }
    [[nodiscard]] std::uint64_t u64() { return number<std::uint64_t>(); }
    [[nodiscard]] double f64() { return std::bit_cast<double>(number<std::uint64_t>()); }
    // A number of items, each of at least `item_bytes` bytes: no more than can be in the rest.
    [[nodiscard]] std::uint32_t count(std::size_t item_bytes);
    [[nodiscard]] std::string id() { return string(max_id); }
    [[nodiscard]] std::string string(std::uint32_t limit = max_string);
    [[nodiscard]] std::span<const std::byte> bytes(std::uint32_t limit = max_string);
    [[nodiscard]] std::span<const std::byte> raw(std::uint64_t length);
    [[nodiscard]] std::array<std::byte, 32> bytes32();
    // Of exactly so many tensors.
    [[nodiscard]] std::vector<Checksum> sums(std::size_t count);
    [[nodiscard]] LayerKey key();
    [[nodiscard]] std::vector<LayerKey> keys();
    [[nodiscard]] std::vector<std::string> strings();
    [[nodiscard]] TensorSpec spec();
    // Throws unless everything was read.
    void end() const;

  private:
    template <typename T>
    T number() {
        T value;
        std::memcpy(&value, raw(sizeof value).data(), sizeof value);
        return value;
    }
    std::span<const std::byte> rest_;
};

// Memory of a client that the server may read or write during one call.
struct Remote {
    std::uint64_t address = 0;
    std::uint64_t key = 0;
};

// A tensor that a message brings or describes.
struct Payload {
    TensorSpec spec;
    std::uint64_t nbytes = 0;
    std::optional<Remote> remote;     // else `data`, inline
    std::span<const std::byte> data;  // nbytes of the message
};

using Bytes32 = std::array<std::byte, 32>;

// The four messages that begin a connection: hello from the client, its answer, join, its answer.
struct Hello {
    std::vector<std::byte> address;  // of the client, as its provider says it
    std::string client;              // "host/pid", for people
    std::string dialled;             // the server's address, as the client was given it
    bool has_key = false;            // without: the next four mean nothing
    bool encrypt = false;
    std::uint8_t ciphers = 0;  // security::available_ciphers()
    Bytes32 nonce{};
    Bytes32 public_key{};
    Bytes32 servers{};  // security::digest_of() of Join::servers
};
struct Challenge {
    std::uint64_t session = 0;
    std::uint64_t incarnation = 0;  // which no other life of the server has
    bool has_key = false;           // without: the others mean nothing
    bool encrypt = false;
    std::uint8_t cipher = 0;  // security::Cipher; none on one host
    Bytes32 nonce{};
    Bytes32 public_key{};
};
struct Join {
    Bytes32 proof{};
    std::vector<std::string> servers;  // as the client was given them
};
struct Welcome {
    Bytes32 proof{};
    std::uint64_t memory_limit = 0;
};

struct Put {
    PutRequest request;
    std::vector<Payload> tensors;        // in the order of request.own
    std::vector<std::uint64_t> through;  // replication::Chain: who took it before
};

struct Read {
    std::string model;
    std::vector<std::string> layers;  // their names; empty: all
};

// One layer of a response: where it is, and if it is here, its tensors.
struct Layer {
    std::string name;  // empty in answers to a fetch, which is in order
    std::string owner;
    LayerKey key;
    bool here = false;
    std::uint64_t serial = 0;  // StoredLayer::serial
    std::vector<TensorSpec> specs;
    std::vector<std::span<const std::byte>> data;  // inline, one a tensor; empty: not sent
};

struct Fetch {
    struct Group {
        std::string owner;
        std::vector<LayerKey> keys;
    };
    std::vector<Group> groups;
    bool deliver = false;  // into `destinations`; else describe (and inline, if small)
    std::vector<std::uint64_t> serials;  // to deliver: one a key, as the layers were described
    struct Destination {
        Remote remote;
        std::uint64_t nbytes = 0;
    };
    std::vector<Destination> destinations;  // one a tensor that is not inline, in order
};

struct BestMatches {
    LayerTablePtr table;
    std::string ns;
    Query query;                 // its `ns` views the field above
    std::uint64_t lease_ms = 0;  // all bits set: the server's default
};

struct References {
    std::string owner;
    std::vector<LayerKey> keys;
    std::string holder;
};

// One pair a message: what one side encodes the other decodes.
void encode(Writer& out, const Hello& hello);
[[nodiscard]] Hello decode_hello(Reader& in);
void encode(Writer& out, const Challenge& challenge);
[[nodiscard]] Challenge decode_challenge(Reader& in);
void encode(Writer& out, const Join& join);
[[nodiscard]] Join decode_join(Reader& in);
void encode(Writer& out, const Welcome& welcome);
[[nodiscard]] Welcome decode_welcome(Reader& in);
void encode_chain(Writer& out, std::span<const std::uint64_t> chain);
[[nodiscard]] std::vector<std::uint64_t> decode_chain(Reader& in);
void encode(Writer& out, const Put& put);
[[nodiscard]] Put decode_put(Reader& in);
void encode(Writer& out, const Read& read);
[[nodiscard]] Read decode_read(Reader& in);
void encode(Writer& out, const Layer& layer);
[[nodiscard]] Layer decode_layer(Reader& in);
void encode(Writer& out, const Fetch& fetch);
[[nodiscard]] Fetch decode_fetch(Reader& in);
void encode(Writer& out, const LayerTable& table, const Query& query, std::uint64_t lease_ms);
[[nodiscard]] BestMatches decode_best_matches(Reader& in);
void encode(Writer& out, const LeasedMatch& match);
[[nodiscard]] LeasedMatch decode_match(Reader& in);
void encode(Writer& out, const References& references);
[[nodiscard]] References decode_references(Reader& in);
void encode(Writer& out, const ForeignReferences& references);
[[nodiscard]] ForeignReferences decode_foreign(Reader& in);
void encode(Writer& out, const ModelInfo& info);
[[nodiscard]] ModelInfo decode_info(Reader& in);
void encode(Writer& out, const StoreStats& stats);
[[nodiscard]] StoreStats decode_stats(Reader& in);

}  // namespace cpp_store::wire
