#include "cpp_store/layer_table.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>

#include "cpp_store/error.hpp"

namespace cpp_store {

namespace {

static_assert(std::endian::native == std::endian::little,
              "the encoding is little-endian and is copied as it lies in memory");

constexpr std::size_t name_limit = 65'535;
constexpr std::uint32_t magic = 0x4c42'544c;  // "LTBL"
constexpr std::uint32_t version = 1;

// docs/formats.md, "Layer table": this header, then name_ends, requires_ends, nbytes, requires,
// names.
struct Header {
    std::uint32_t magic;
    std::uint32_t version;
    std::uint32_t layers;
    std::uint32_t requirements;
    std::uint32_t name_bytes;
    std::uint32_t reserved;  // zero
};
static_assert(sizeof(Header) == 24);

[[noreturn]] void reject(const std::string& message) {
    throw Error(Errc::invalid_argument, message);
}

// Well-formed UTF-8 as Unicode's table 3-7 has it: no overlong forms, no surrogates.
bool is_utf8(std::string_view text) noexcept {
    const auto* at = reinterpret_cast<const unsigned char*>(text.data());
    const auto* const end = at + text.size();
    while (at != end) {
        const unsigned char lead = *at++;
        if (lead < 0x80) continue;
        int more = 0;
        unsigned char low = 0x80;
        unsigned char high = 0xbf;
        if (lead >= 0xc2 && lead <= 0xdf) {
            more = 1;
        } else if ((lead & 0xf0) == 0xe0) {
            more = 2;
            if (lead == 0xe0) low = 0xa0;
            if (lead == 0xed) high = 0x9f;
        } else if (lead >= 0xf0 && lead <= 0xf4) {
            more = 3;
            if (lead == 0xf0) low = 0x90;
            if (lead == 0xf4) high = 0x8f;
        } else {
            return false;
        }
        for (; more != 0; --more) {
            if (at == end || *at < low || *at > high) return false;
            ++at;
            low = 0x80;
            high = 0xbf;
        }
    }
    return true;
}

template <typename T>
void append(std::vector<std::byte>& out, const T* data, std::size_t count) {
    if (count == 0) return;
    const std::size_t at = out.size();
    out.resize(at + count * sizeof(T));
    std::memcpy(out.data() + at, data, count * sizeof(T));
}

template <typename T>
std::vector<T> take(std::span<const std::byte>& bytes, std::size_t count) {
    std::vector<T> values(count);
    if (count != 0) std::memcpy(values.data(), bytes.data(), count * sizeof(T));
    bytes = bytes.subspan(count * sizeof(T));
    return values;
}

// Ends of consecutive runs: never decreasing, the last one the total.
void check_ends(const std::vector<std::uint32_t>& ends, std::uint32_t total, const char* what) {
    if (!std::is_sorted(ends.begin(), ends.end()) || (ends.empty() ? 0 : ends.back()) != total) {
        reject(std::string(what) + " do not add up to " + std::to_string(total));
    }
}

}  // namespace

LayerTable::LayerTable(std::vector<Layer> layers) {
    constexpr std::size_t limit = std::numeric_limits<std::uint32_t>::max();
    std::size_t name_bytes = 0;
    std::size_t requirements = 0;
    for (const Layer& layer : layers) {
        name_bytes += layer.name.size();
        requirements += layer.requires_.size();
    }
    if (layers.size() >= limit / 2 || name_bytes > limit || requirements > limit) {
        reject("a layer table of " + std::to_string(layers.size()) + " layers, " +
               std::to_string(requirements) + " requirements and " + std::to_string(name_bytes) +
               " bytes of names; none of them may exceed 2^32");
    }
    names_.reserve(name_bytes);
    name_ends_.reserve(layers.size());
    requires_.reserve(requirements);
    requires_ends_.reserve(layers.size());
    nbytes_.reserve(layers.size());
    for (const Layer& layer : layers) {
        names_ += layer.name;
        name_ends_.push_back(static_cast<std::uint32_t>(names_.size()));
        requires_.insert(requires_.end(), layer.requires_.begin(), layer.requires_.end());
        requires_ends_.push_back(static_cast<std::uint32_t>(requires_.size()));
        nbytes_.push_back(layer.nbytes);
    }
    complete();
}

void LayerTable::complete() {
    const std::size_t count = name_ends_.size();
    const auto described = [this](std::size_t layer) {
        return "layer '" + std::string(name(layer)) + "' (position " + std::to_string(layer) + ")";
    };
    keys_.reserve(count);
    slots_.assign(std::bit_ceil(count + count / 2 + 1), 0);
    const std::size_t mask = slots_.size() - 1;
    for (std::size_t i = 0; i < count; ++i) {
        const std::string_view text = name(i);
        if (text.empty()) reject("the layer at position " + std::to_string(i) + " has no name");
        if (text.size() > name_limit) {
            reject("the name of the layer at position " + std::to_string(i) + " takes " +
                   std::to_string(text.size()) + " bytes; at most 65,535 are allowed");
        }
        if (!is_utf8(text)) {
            reject("the name of the layer at position " + std::to_string(i) + " is not UTF-8");
        }
        const LayerKey key = layer_key(text);
        std::size_t slot = static_cast<std::size_t>(key.low) & mask;
        for (; slots_[slot] != 0; slot = (slot + 1) & mask) {
            if (keys_[slots_[slot] - 1] == key) {
                reject(described(i) + " has the name of the layer at position " +
                       std::to_string(slots_[slot] - 1) + "; names are unique in a model");
            }
        }
        keys_.push_back(key);
        slots_[slot] = static_cast<std::uint32_t>(i + 1);
        for (const std::uint32_t required : requires_of(i)) {
            if (required >= count) {
                reject(described(i) + " requires position " + std::to_string(required) +
                       "; there are only " + std::to_string(count) + " layers");
            }
            if (required >= i) {
                reject(described(i) + " requires position " + std::to_string(required) +
                       ", which does not come before it; layers stand in topological order");
            }
        }
        constexpr std::uint64_t limit = std::numeric_limits<std::int64_t>::max();
        if (nbytes_[i] > limit - total_nbytes_) {
            reject(described(i) + " has " + std::to_string(nbytes_[i]) +
                   " bytes; all layers together may have at most 2^63 - 1");
        }
        total_nbytes_ += nbytes_[i];
    }
}

std::string_view LayerTable::name(std::size_t layer) const noexcept {
    const std::uint32_t begin = layer == 0 ? 0 : name_ends_[layer - 1];
    return std::string_view(names_).substr(begin, name_ends_[layer] - begin);
}

std::span<const std::uint32_t> LayerTable::requires_of(std::size_t layer) const noexcept {
    const std::uint32_t begin = layer == 0 ? 0 : requires_ends_[layer - 1];
    return std::span(requires_).subspan(begin, requires_ends_[layer] - begin);
}

std::size_t LayerTable::find(const LayerKey& key) const noexcept {
    const std::size_t mask = slots_.size() - 1;
    for (std::size_t slot = static_cast<std::size_t>(key.low) & mask; slots_[slot] != 0;
         slot = (slot + 1) & mask) {
        if (keys_[slots_[slot] - 1] == key) return slots_[slot] - 1;
    }
    return size();
}

bool LayerTable::operator==(const LayerTable& other) const {
    return names_ == other.names_ && name_ends_ == other.name_ends_ &&
           requires_ == other.requires_ && requires_ends_ == other.requires_ends_ &&
           nbytes_ == other.nbytes_;
}

std::vector<std::byte> LayerTable::encode() const {
    const Header header{magic,
                        version,
                        static_cast<std::uint32_t>(size()),
                        static_cast<std::uint32_t>(requires_.size()),
                        static_cast<std::uint32_t>(names_.size()),
                        0};
    std::vector<std::byte> out;
    out.reserve(sizeof header + size() * 16 + requires_.size() * 4 + names_.size());
    append(out, &header, 1);
    append(out, name_ends_.data(), name_ends_.size());
    append(out, requires_ends_.data(), requires_ends_.size());
    append(out, nbytes_.data(), nbytes_.size());
    append(out, requires_.data(), requires_.size());
    append(out, names_.data(), names_.size());
    return out;
}

LayerTable LayerTable::decode(std::span<const std::byte> bytes) {
    Header header{};
    if (bytes.size() < sizeof header) {
        throw Error(Errc::protocol, "a layer table of " + std::to_string(bytes.size()) +
                                        " bytes, less than its header");
    }
    std::memcpy(&header, bytes.data(), sizeof header);
    bytes = bytes.subspan(sizeof header);
    if (header.magic != magic) throw Error(Errc::protocol, "these bytes are not a layer table");
    if (header.version != version || header.reserved != 0) {
        throw Error(Errc::protocol, "layer table of format version " +
                                        std::to_string(header.version) + "; version " +
                                        std::to_string(version) + " is understood");
    }
    // 64-bit sums of 32-bit numbers cannot overflow; nothing is allocated before they agree.
    const std::uint64_t expected = std::uint64_t{header.layers} * 16 +
                                   std::uint64_t{header.requirements} * 4 + header.name_bytes;
    if (bytes.size() != expected) {
        throw Error(Errc::protocol, "a layer table's header announces " + std::to_string(expected) +
                                        " bytes, " + std::to_string(bytes.size()) + " follow");
    }
    LayerTable table;
    table.name_ends_ = take<std::uint32_t>(bytes, header.layers);
    table.requires_ends_ = take<std::uint32_t>(bytes, header.layers);
    table.nbytes_ = take<std::uint64_t>(bytes, header.layers);
    table.requires_ = take<std::uint32_t>(bytes, header.requirements);
    table.names_.assign(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    try {
        check_ends(table.name_ends_, header.name_bytes, "the lengths of a layer table's names");
        check_ends(table.requires_ends_, header.requirements,
                   "the numbers of a layer table's requirements");
        table.complete();
    } catch (const Error& error) {
        throw Error(Errc::protocol, error.what());
    }
    return table;
}

}  // namespace cpp_store
