#include "durable/wal.hpp"

#include <bit>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "durable/files.hpp"

namespace cpp_store::durable {
namespace {

// As https://www.sqlite.org/fileformat2.html#walformat has it.
constexpr std::size_t file_header = 32;
constexpr std::size_t frame_header = 24;
constexpr std::uint32_t magic = 0x377f0682;  // its lowest bit: sums are of big-endian words
constexpr std::uint32_t default_page = 4096;

using Bytes = std::span<const std::byte>;

std::uint32_t big(Bytes at) {
    std::uint32_t value = 0;
    for (std::size_t i = 0; i < sizeof value; ++i) {
        value = value << 8 | std::to_integer<std::uint32_t>(at[i]);
    }
    return value;
}

struct Pair {  // of salts, or of sums
    std::uint32_t first = 0;
    std::uint32_t second = 0;
    bool operator==(const Pair&) const = default;
    [[nodiscard]] static Pair at(Bytes bytes) { return {big(bytes), big(bytes.subspan(4))}; }
};

Pair sum(Pair from, Bytes bytes, bool is_big) {
    for (std::size_t i = 0; i + 8 <= bytes.size(); i += 8) {
        Pair words;
        std::memcpy(&words, bytes.data() + i, sizeof words);
        if (is_big) words = {__builtin_bswap32(words.first), __builtin_bswap32(words.second)};
        from.first += words.first + from.second;
        from.second += words.second + from.first;
    }
    return from;
}

static_assert(std::endian::native == std::endian::little);

}  // namespace

bool hides_transactions(const std::filesystem::path& log) {
    std::error_code none;
    if (!std::filesystem::exists(log, none)) return false;
    const File file(log, File::Mode::read);
    const std::vector<std::byte> whole = file.read(0, file.size());
    const Bytes bytes(whole);
    if (bytes.size() < file_header) return false;
    const bool is_big = (big(bytes) & 1) != 0;
    const Pair sum_of_header = Pair::at(bytes.subspan(24));
    const bool is_header_right =
        (big(bytes) & ~1u) == magic && sum({}, bytes.first(24), is_big) == sum_of_header;
    const std::uint32_t page = is_header_right ? big(bytes.subspan(8)) : default_page;

    bool is_right = is_header_right;  // so far
    bool has_ended = !is_right;       // the transaction of the first frame that is not right
    Pair salts = Pair::at(bytes.subspan(16));
    Pair before = sum_of_header;
    for (std::size_t at = file_header; at + frame_header + page <= bytes.size();
         at += frame_header + page) {
        const Bytes frame = bytes.subspan(at, frame_header + page);
        const Pair stored = Pair::at(frame.subspan(16));
        const Pair salt = Pair::at(frame.subspan(8));
        const bool follows =
            big(frame) != 0 && salt == salts &&
            stored == sum(sum(before, frame.first(8), is_big), frame.subspan(frame_header), is_big);
        if (!is_right && has_ended && follows) return true;
        if (!follows) is_right = false;
        if (!is_right && big(frame.subspan(4)) != 0) has_ended = true;  // a commit
        if (!is_header_right) salts = salt;
        before = stored;
    }
    return false;
}

}  // namespace cpp_store::durable
