#include "net/wire.hpp"

#include <algorithm>
#include <limits>
#include <utility>

namespace cpp_store::wire {
namespace {

[[noreturn]] void reject(const std::string& why) {
    throw Error(Errc::protocol, "malformed message: " + why);
}

constexpr std::array<std::string_view, operation_count> names = {
    "hello",     "ping",           "put",   "read",   "fetch",   "best_matches",
    "end_lease", "lookup",         "list",  "retire", "acquire", "release",
    "holders",   "release_holder", "alive", "stats",  "verify",  "bye",
    "shutdown",  "contains",       "join",  "bury",   "state",   "changes",
    "pull",      "retire_through", "chain", "undo",   "refuse"};

template <typename T>
T read_at(std::span<const std::byte> bytes, std::size_t offset) {
    T value;
    std::memcpy(&value, bytes.data() + offset, sizeof value);
    return value;
}

template <typename T>
void write_at(std::span<std::byte> bytes, std::size_t offset, T value) {
    std::memcpy(bytes.data() + offset, &value, sizeof value);
}

std::uint8_t decode_flag(Reader& in, const char* what) {
    const std::uint8_t flag = in.u8();
    if (flag > 1) reject(std::string(what) + " is " + std::to_string(flag) + ", not 0 or 1");
    return flag;
}

void encode(Writer& out, const Payload& payload) {
    out.spec(payload.spec);
    out.u8(payload.remote ? 1 : 0);
    if (payload.remote) {
        out.u64(payload.remote->address);
        out.u64(payload.remote->key);
    } else {
        out.raw(payload.data);
    }
}

Payload decode_payload(Reader& in) {
    Payload payload;
    payload.spec = in.spec();
    payload.nbytes = payload.spec.nbytes();
    if (decode_flag(in, "payload") == 1) {
        payload.remote = Remote{};
        payload.remote->address = in.u64();
        payload.remote->key = in.u64();
    } else {
        payload.data = in.raw(payload.nbytes);
    }
    return payload;
}

// Fields of StoreStats in the order in which they travel; append, never reorder.
template <typename Stats, typename Visit>
void visit_stats(Stats& stats, const Visit& visit) {
    visit(stats.memory.limit);
    visit(stats.memory.used);
    visit(stats.memory.high_water);
    visit(stats.memory.mapped);
    visit(stats.memory.touched);
    visit(stats.index.models);
    visit(stats.index.layers);
    visit(stats.index.bytes);
    visit(stats.index.namespaces);
    visit(stats.models);
    visit(stats.retired);
    visit(stats.layers);
    visit(stats.tensors);
    visit(stats.bytes_stored);
    visit(stats.bytes_referenced);
    visit(stats.leases);
    visit(stats.foreign_holders);
    visit(stats.puts);
    visit(stats.reads);
    visit(stats.matches);
    visit(stats.retires);
    visit(stats.bytes_put);
    visit(stats.bytes_read);
    visit(stats.layers_inherited);
    visit(stats.bytes_inherited);
    visit(stats.peers);
}

void encode_location(Writer& out, const LayerLocation& location) {
    out.u32(location.layer);
    out.id(location.owner);
}

LayerLocation decode_location(Reader& in) {
    LayerLocation location;
    location.layer = in.u32();
    location.owner = in.id();
    return location;
}

LayerTablePtr decode_table(Reader& in) {
    return std::make_shared<const LayerTable>(LayerTable::decode(in.bytes()));
}

}  // namespace

std::string_view operation_name(Operation operation) noexcept {
    const auto index = static_cast<std::size_t>(operation);
    return index < names.size() ? names[index] : "unknown";
}

// ---------------------------------------------------------------------------------- frames

std::array<std::byte, frame_header_size> encode(const Frame& frame) noexcept {
    std::array<std::byte, frame_header_size> bytes{};
    write_at(bytes, 0, magic);
    write_at(bytes, 4, version);
    write_at(bytes, 8, frame.session);
    write_at(bytes, 16, static_cast<std::uint8_t>(frame.kind));
    write_at(bytes, 18, frame.code);
    write_at(bytes, 20, frame.total);
    write_at(bytes, 24, frame.offset);
    write_at(bytes, 28, frame.call);
    return bytes;
}

std::uint64_t session_of(std::span<const std::byte> message) {
    if (message.size() < frame_header_size) {
        reject("a frame of " + std::to_string(message.size()) + " bytes");
    }
    if (read_at<std::uint32_t>(message, 0) != magic) reject("it does not start with 'CPPS'");
    if (const auto spoken = read_at<std::uint8_t>(message, 4); spoken != version) {
        reject("version " + std::to_string(spoken) + " of the wire format, expected " +
               std::to_string(version));
    }
    return read_at<std::uint64_t>(message, 8);
}

Frame decode_frame(std::span<const std::byte> message, std::span<const std::byte>& part) {
    Frame frame;
    frame.session = session_of(message);
    const auto kind = read_at<std::uint8_t>(message, 16);
    if (kind < 1 || kind > kind_count) reject("frame kind " + std::to_string(kind));
    for (const std::size_t reserved : {5u, 6u, 7u, 17u}) {
        if (message[reserved] != std::byte{0}) reject("a reserved byte that is not 0");
    }
    frame.kind = static_cast<Kind>(kind);
    frame.code = read_at<std::uint16_t>(message, 18);
    frame.total = read_at<std::uint32_t>(message, 20);
    frame.offset = read_at<std::uint32_t>(message, 24);
    frame.call = read_at<std::uint64_t>(message, 28);
    part = message.subspan(frame_header_size);
    if (frame.kind == Kind::request && frame.code >= operation_count) {
        reject("operation " + std::to_string(frame.code));
    }
    if (frame.total > max_body) reject("a body of " + std::to_string(frame.total) + " bytes");
    if (frame.offset > frame.total || part.size() > frame.total - frame.offset) {
        reject("a frame outside its body");
    }
    if (part.empty() && frame.total != 0) reject("a frame without a part of its body");
    return frame;
}

// ---------------------------------------------------------------------------------- primitives

void Writer::count(std::size_t value) {
    if (value > max_items) {
        throw Error(Errc::invalid_argument, std::to_string(value) +
                                                " items in one message, at most " +
                                                std::to_string(max_items) + " are allowed");
    }
    u32(static_cast<std::uint32_t>(value));
}

void Writer::id(std::string_view text) {
    if (text.size() > max_id) {
        throw Error(Errc::invalid_argument, "an id or name of " + std::to_string(text.size()) +
                                                " bytes; 1 to 65,535 bytes are possible");
    }
    string(text);
}

void Writer::bytes(std::span<const std::byte> data) {
    if (data.size() > max_string) {
        throw Error(Errc::invalid_argument, "a field of " + std::to_string(data.size()) +
                                                " bytes, at most " + std::to_string(max_string) +
                                                " are allowed");
    }
    u32(static_cast<std::uint32_t>(data.size()));
    raw(data);
}

void Writer::raw(std::span<const std::byte> data) {
    data_.insert(data_.end(), data.begin(), data.end());
}

void Writer::sums(std::span<const Checksum> values) {
    count(values.size());
    for (const Checksum& value : values) {
        u64(value.high);
        u64(value.low);
    }
}

void Writer::key(const LayerKey& value) {
    u64(value.high);
    u64(value.low);
}

void Writer::keys(std::span<const LayerKey> values) {
    count(values.size());
    for (const LayerKey& value : values) key(value);
}

void Writer::strings(std::span<const std::string> values) {
    count(values.size());
    for (const std::string& value : values) id(value);
}

void Writer::spec(const TensorSpec& value) {
    if (value.shape.size() > max_dimensions) {
        throw Error(Errc::invalid_argument, "a tensor of " + std::to_string(value.shape.size()) +
                                                " dimensions, at most " +
                                                std::to_string(max_dimensions) + " are allowed");
    }
    u8(static_cast<std::uint8_t>(value.dtype));
    u8(static_cast<std::uint8_t>(value.shape.size()));
    for (const std::uint64_t extent : value.shape) u64(extent);
}

std::uint32_t Reader::count(std::size_t item_bytes) {
    const std::uint32_t value = u32();
    if (value > max_items || value > rest_.size() / item_bytes) {
        reject(std::to_string(value) + " items in the " + std::to_string(rest_.size()) +
               " bytes that are left");
    }
    return value;
}

std::string Reader::string(std::uint32_t limit) {
    const auto text = bytes(limit);
    return {reinterpret_cast<const char*>(text.data()), text.size()};
}

std::span<const std::byte> Reader::bytes(std::uint32_t limit) {
    const std::uint32_t length = u32();
    if (length > limit) {
        reject("a field of " + std::to_string(length) + " bytes, limit " + std::to_string(limit));
    }
    return raw(length);
}

std::span<const std::byte> Reader::raw(std::uint64_t length) {
    if (length > rest_.size()) {
        reject("it ends " + std::to_string(length - rest_.size()) + " bytes early");
    }
    const auto part = rest_.first(static_cast<std::size_t>(length));
    rest_ = rest_.subspan(part.size());
    return part;
}

std::array<std::byte, 32> Reader::bytes32() {
    std::array<std::byte, 32> value;
    std::ranges::copy(raw(value.size()), value.begin());
    return value;
}

std::vector<Checksum> Reader::sums(std::size_t count) {
    if (this->count(sizeof(Checksum)) != count) reject("checksums of other tensors");
    std::vector<Checksum> values(count);
    for (Checksum& value : values) {
        value.high = u64();
        value.low = u64();
    }
    return values;
}

LayerKey Reader::key() {
    LayerKey value;
    value.high = u64();
    value.low = u64();
    return value;
}

std::vector<LayerKey> Reader::keys() {
    std::vector<LayerKey> values(count(sizeof(LayerKey)));
    for (LayerKey& value : values) value = key();
    return values;
}

std::vector<std::string> Reader::strings() {
    std::vector<std::string> values;
    const std::uint32_t size = count(4);
    values.reserve(size);
    for (std::uint32_t i = 0; i < size; ++i) values.push_back(id());
    return values;
}

TensorSpec Reader::spec() {
    TensorSpec value;
    const std::uint8_t dtype = u8();
    if (dtype >= dtype_count) reject("dtype " + std::to_string(dtype));
    value.dtype = static_cast<DType>(dtype);
    const std::uint8_t dimensions = u8();
    if (dimensions > max_dimensions) reject(std::to_string(dimensions) + " dimensions");
    value.shape.resize(dimensions);
    for (std::uint64_t& extent : value.shape) extent = u64();
    try {
        (void)value.nbytes();
    } catch (const Error& error) {
        reject(error.what());
    }
    return value;
}

void Reader::end() const {
    if (!rest_.empty()) reject(std::to_string(rest_.size()) + " bytes too many");
}

// ---------------------------------------------------------------------------------- messages

void encode(Writer& out, const Hello& hello) {
    out.bytes(hello.address);
    out.id(hello.client);
    out.id(hello.dialled);
    out.u8(hello.has_key ? 1 : 0);
    out.u8(hello.encrypt ? 1 : 0);
    out.u8(hello.ciphers);
    out.raw(hello.nonce);
    out.raw(hello.public_key);
    out.raw(hello.servers);
}

Hello decode_hello(Reader& in) {
    Hello hello;
    const auto address = in.bytes(max_hello);
    hello.address.assign(address.begin(), address.end());
    hello.client = in.string(max_hello);
    hello.dialled = in.string(max_hello);
    hello.has_key = decode_flag(in, "key") == 1;
    hello.encrypt = decode_flag(in, "encrypt") == 1;
    hello.ciphers = in.u8();
    hello.nonce = in.bytes32();
    hello.public_key = in.bytes32();
    hello.servers = in.bytes32();
    return hello;
}

void encode(Writer& out, const Challenge& challenge) {
    out.u64(challenge.session);
    out.u64(challenge.incarnation);
    out.u8(challenge.has_key ? 1 : 0);
    out.u8(challenge.encrypt ? 1 : 0);
    out.u8(challenge.cipher);
    out.raw(challenge.nonce);
    out.raw(challenge.public_key);
}

Challenge decode_challenge(Reader& in) {
    Challenge challenge;
    challenge.session = in.u64();
    challenge.incarnation = in.u64();
    challenge.has_key = decode_flag(in, "key") == 1;
    challenge.encrypt = decode_flag(in, "encrypt") == 1;
    challenge.cipher = in.u8();
    if (challenge.cipher > 7) reject("cipher " + std::to_string(challenge.cipher));
    challenge.nonce = in.bytes32();
    challenge.public_key = in.bytes32();
    return challenge;
}

void encode(Writer& out, const Join& join) {
    out.raw(join.proof);
    out.strings(join.servers);
}

Join decode_join(Reader& in) {
    Join join;
    join.proof = in.bytes32();
    join.servers = in.strings();
    return join;
}

void encode(Writer& out, const Welcome& welcome) {
    out.raw(welcome.proof);
    out.u64(welcome.memory_limit);
}

Welcome decode_welcome(Reader& in) {
    Welcome welcome;
    welcome.proof = in.bytes32();
    welcome.memory_limit = in.u64();
    return welcome;
}

void encode_chain(Writer& out, std::span<const std::uint64_t> chain) {
    out.count(chain.size());
    for (const std::uint64_t incarnation : chain) out.u64(incarnation);
}

std::vector<std::uint64_t> decode_chain(Reader& in) {
    std::vector<std::uint64_t> chain(in.count(8));
    for (std::uint64_t& incarnation : chain) incarnation = in.u64();
    return chain;
}

void encode(Writer& out, const Put& put) {
    const PutRequest& request = put.request;
    out.id(request.model);
    out.id(request.ns);
    out.id(request.parent);
    out.string(request.graph);
    out.string(request.metadata);
    out.f64(request.score);
    out.u64(request.created_ns);
    out.bytes(request.table->encode());
    out.count(request.inherited.size());
    for (const Inherited& inherited : request.inherited) {
        out.u32(inherited.layer);
        out.u8(inherited.foreign ? 1 : 0);
        out.u64(inherited.bytes);
        out.id(inherited.owner);
    }
    out.count(request.own.size());
    std::size_t tensor = 0;
    for (const Own& own : request.own) {
        out.u32(own.layer);
        out.count(own.tensors.size());
        for (std::size_t i = 0; i < own.tensors.size(); ++i) encode(out, put.tensors[tensor++]);
    }
    encode_chain(out, put.through);
}

Put decode_put(Reader& in) {
    Put put;
    PutRequest& request = put.request;
    request.model = in.id();
    request.ns = in.id();
    request.parent = in.id();
    request.graph = in.string();
    request.metadata = in.string();
    request.score = in.f64();
    request.created_ns = in.u64();
    request.table = decode_table(in);
    const std::uint32_t inherited = in.count(17);
    request.inherited.reserve(inherited);
    for (std::uint32_t i = 0; i < inherited; ++i) {
        Inherited layer;
        layer.layer = in.u32();
        layer.foreign = decode_flag(in, "foreign") == 1;
        layer.bytes = in.u64();
        layer.owner = in.id();
        request.inherited.push_back(std::move(layer));
    }
    const std::uint32_t own = in.count(8);
    request.own.reserve(own);
    std::uint64_t total = 0;
    for (std::uint32_t i = 0; i < own; ++i) {
        Own layer;
        layer.layer = in.u32();
        const std::uint32_t tensors = in.count(3);
        layer.tensors.reserve(tensors);
        for (std::uint32_t k = 0; k < tensors; ++k) {
            Payload payload = decode_payload(in);
            if (payload.nbytes > (std::uint64_t{1} << 62) - total) reject("more bytes than exist");
            total += payload.nbytes;
            layer.tensors.push_back(payload.spec);
            put.tensors.push_back(std::move(payload));
        }
        request.own.push_back(std::move(layer));
    }
    put.through = decode_chain(in);
    return put;
}

void encode(Writer& out, const Read& read) {
    out.id(read.model);
    out.strings(read.layers);
}

Read decode_read(Reader& in) {
    Read read;
    read.model = in.id();
    read.layers = in.strings();
    return read;
}

void encode(Writer& out, const Layer& layer) {
    out.id(layer.name);
    out.id(layer.owner);
    out.key(layer.key);
    out.u8(layer.here ? 1 : 0);
    if (!layer.here) return;
    out.u64(layer.serial);
    out.count(layer.specs.size());
    out.u8(layer.data.empty() ? 0 : 1);
    for (std::size_t i = 0; i < layer.specs.size(); ++i) {
        out.spec(layer.specs[i]);
        if (!layer.data.empty()) out.raw(layer.data[i]);
    }
}

Layer decode_layer(Reader& in) {
    Layer layer;
    layer.name = in.id();
    layer.owner = in.id();
    layer.key = in.key();
    layer.here = decode_flag(in, "here") == 1;
    if (!layer.here) return layer;
    layer.serial = in.u64();
    const std::uint32_t tensors = in.count(2);
    const bool data = decode_flag(in, "data") == 1;
    layer.specs.reserve(tensors);
    for (std::uint32_t i = 0; i < tensors; ++i) {
        layer.specs.push_back(in.spec());
        if (data) layer.data.push_back(in.raw(layer.specs.back().nbytes()));
    }
    return layer;
}

void encode(Writer& out, const Fetch& fetch) {
    out.count(fetch.groups.size());
    for (const Fetch::Group& group : fetch.groups) {
        out.id(group.owner);
        out.keys(group.keys);
    }
    out.u8(fetch.deliver ? 1 : 0);
    if (!fetch.deliver) return;
    out.count(fetch.serials.size());
    for (const std::uint64_t serial : fetch.serials) out.u64(serial);
    out.count(fetch.destinations.size());
    for (const Fetch::Destination& destination : fetch.destinations) {
        out.u64(destination.remote.address);
        out.u64(destination.remote.key);
        out.u64(destination.nbytes);
    }
}

Fetch decode_fetch(Reader& in) {
    Fetch fetch;
    const std::uint32_t groups = in.count(8);
    fetch.groups.reserve(groups);
    for (std::uint32_t i = 0; i < groups; ++i) {
        Fetch::Group group;
        group.owner = in.id();
        group.keys = in.keys();
        fetch.groups.push_back(std::move(group));
    }
    fetch.deliver = decode_flag(in, "deliver") == 1;
    if (!fetch.deliver) return fetch;
    fetch.serials.resize(in.count(8));
    for (std::uint64_t& serial : fetch.serials) serial = in.u64();
    fetch.destinations.resize(in.count(24));
    for (Fetch::Destination& destination : fetch.destinations) {
        destination.remote.address = in.u64();
        destination.remote.key = in.u64();
        destination.nbytes = in.u64();
    }
    return fetch;
}

void encode(Writer& out, const LayerTable& table, const Query& query, std::uint64_t lease_ms) {
    out.bytes(table.encode());
    out.id(query.ns);
    out.u8(static_cast<std::uint8_t>(query.weight));
    out.u32(query.count);
    out.u32(query.min_layers);
    out.strings(query.exclude);
    out.id(query.only);
    out.u64(lease_ms);
}

BestMatches decode_best_matches(Reader& in) {
    BestMatches request;
    request.table = decode_table(in);
    request.ns = in.id();
    request.query.weight = static_cast<Weight>(decode_flag(in, "weight"));
    request.query.count = in.u32();
    if (request.query.count > max_items) reject("too many matches asked for");
    request.query.min_layers = in.u32();
    request.query.exclude = in.strings();
    request.query.only = in.id();
    request.lease_ms = in.u64();
    return request;
}

void encode(Writer& out, const LeasedMatch& leased) {
    out.id(leased.match.model);
    out.f64(leased.match.score);
    out.u64(leased.match.sequence);
    out.u64(leased.match.layers);
    out.u64(leased.match.bytes);
    out.count(leased.match.positions.size());
    for (const std::uint32_t position : leased.match.positions) out.u32(position);
    out.u64(leased.lease);
    out.count(leased.layers.size());
    for (const LayerLocation& location : leased.layers) encode_location(out, location);
}

LeasedMatch decode_match(Reader& in) {
    LeasedMatch leased;
    leased.match.model = in.id();
    leased.match.score = in.f64();
    leased.match.sequence = in.u64();
    leased.match.layers = in.u64();
    leased.match.bytes = in.u64();
    leased.match.positions.resize(in.count(4));
    for (std::uint32_t& position : leased.match.positions) position = in.u32();
    leased.lease = in.u64();
    const std::uint32_t layers = in.count(8);
    leased.layers.reserve(layers);
    for (std::uint32_t i = 0; i < layers; ++i) leased.layers.push_back(decode_location(in));
    return leased;
}

void encode(Writer& out, const References& references) {
    out.id(references.owner);
    out.keys(references.keys);
    out.id(references.holder);
}

References decode_references(Reader& in) {
    References references;
    references.owner = in.id();
    references.keys = in.keys();
    references.holder = in.id();
    return references;
}

void encode(Writer& out, const ForeignReferences& references) {
    out.id(references.holder);
    out.count(references.by_owner.size());
    for (const auto& [owner, keys] : references.by_owner) {
        out.id(owner);
        out.keys(keys);
    }
}

ForeignReferences decode_foreign(Reader& in) {
    ForeignReferences references;
    references.holder = in.id();
    const std::uint32_t owners = in.count(8);
    for (std::uint32_t i = 0; i < owners; ++i) {
        std::string owner = in.id();
        references.by_owner[std::move(owner)] = in.keys();
    }
    return references;
}

void encode(Writer& out, const ModelInfo& info) {
    out.id(info.model);
    out.id(info.ns);
    out.bytes(info.table->encode());
    out.count(info.layers.size());
    for (const LayerLocation& location : info.layers) encode_location(out, location);
    out.f64(info.score);
    out.id(info.parent);
    out.string(info.graph);
    out.string(info.metadata);
    out.u64(info.created_ns);
    out.u64(info.bytes_own);
    out.u64(info.bytes_inherited);
}

ModelInfo decode_info(Reader& in) {
    ModelInfo info;
    info.model = in.id();
    info.ns = in.id();
    info.table = decode_table(in);
    const std::uint32_t layers = in.count(8);
    info.layers.reserve(layers);
    for (std::uint32_t i = 0; i < layers; ++i) info.layers.push_back(decode_location(in));
    info.score = in.f64();
    info.parent = in.id();
    info.graph = in.string();
    info.metadata = in.string();
    info.created_ns = in.u64();
    info.bytes_own = in.u64();
    info.bytes_inherited = in.u64();
    return info;
}

void encode(Writer& out, const StoreStats& stats) {
    std::size_t fields = 0;
    visit_stats(stats, [&](const std::uint64_t&) { ++fields; });
    out.count(fields);
    visit_stats(stats, [&](const std::uint64_t& value) { out.u64(value); });
}

StoreStats decode_stats(Reader& in) {
    StoreStats stats;
    std::uint32_t fields = in.count(8);
    visit_stats(stats, [&](std::uint64_t& value) {
        if (fields == 0) return;  // an older server knows fewer
        value = in.u64();
        --fields;
    });
    for (; fields > 0; --fields) (void)in.u64();
    return stats;
}

}  // namespace cpp_store::wire
