#include "durable/redo_log.hpp"

#include <algorithm>
#include <cstring>
#include <optional>
#include <string>

#include "core/checksum.hpp"
#include "cpp_store/error.hpp"

namespace cpp_store::durable {
namespace {

constexpr std::uint64_t part_size = std::uint64_t{16}
                                    << 20;  // from which on it is the other's turn
constexpr const char* names[] = {"log.0", "log.1"};

struct Header {
    std::uint64_t number = 0;
    std::uint64_t size = 0;  // of the content
    std::uint64_t high = 0;  // XXH3-128 of the content, each half XORed with the number
    std::uint64_t low = 0;
};
static_assert(sizeof(Header) == RedoLog::header_size);

Header header_of(std::uint64_t number, std::span<const std::byte> content) {
    const Checksum sum = checksum_of(content.data(), content.size());
    return {number, content.size(), sum.high ^ number, sum.low ^ number};
}

struct Entry {
    std::uint64_t number;
    std::span<const std::byte> content;
};

// The one that begins these bytes, if a whole one does and its number is above `last`, by less than
// a file has room for entries.
std::optional<Entry> entry_at(std::span<const std::byte> bytes, std::uint64_t last) {
    Header header;
    if (bytes.size() < sizeof header) return std::nullopt;
    std::memcpy(&header, bytes.data(), sizeof header);
    if (header.number <= last || header.size > bytes.size() - sizeof header) return std::nullopt;
    const auto content = bytes.subspan(sizeof header, header.size);
    const Header expected = header_of(header.number, content);
    if (header.high != expected.high || header.low != expected.low) return std::nullopt;
    return Entry{header.number, content};
}

// Those from the beginning of a file. What stands behind them was written before, or not to its
// end; but if a whole entry of a later number does, it comes with them, and with it the gap.
std::vector<Entry> entries_in(std::span<const std::byte> bytes, std::uint64_t applied) {
    std::vector<Entry> found;
    while (auto entry = entry_at(bytes, 0)) {
        if (!found.empty() && entry->number != found.back().number + 1) break;
        found.push_back(*entry);
        bytes = bytes.subspan(sizeof(Header) + entry->content.size());
    }
    const std::uint64_t last = std::max(applied, found.empty() ? 0 : found.back().number);
    for (std::size_t at = 0; at + sizeof(Header) <= bytes.size(); ++at) {
        std::uint64_t number = 0;
        std::memcpy(&number, bytes.data() + at, sizeof number);
        if (number <= last || number - last > part_size) continue;
        if (const auto later = entry_at(bytes.subspan(at), last)) {
            found.push_back(*later);
            break;
        }
    }
    return found;
}

}  // namespace

RedoLog::RedoLog(const std::filesystem::path& directory, std::uint64_t last) : last_(last) {
    for (std::size_t i = 0; i < parts_.size(); ++i) {
        parts_[i].file = File(directory / names[i], File::Mode::log);
    }
    sync_directory(directory);
}

std::uint64_t RedoLog::append(std::span<std::byte> entry, std::uint64_t applied) {
    Part& other = parts_[1 - current_];
    // One that failed is to be overwritten: there must be no two of a number.
    if (parts_[current_].end >= part_size && other.last <= applied && !failed_) {
        other.end = 0;
        current_ = 1 - current_;
    }
    Part& part = parts_[current_];
    const Header header = header_of(last_ + 1, entry.subspan(header_size));
    std::memcpy(entry.data(), &header, sizeof header);
    failed_ = true;
    part.file.write(entry, part.end);
    part.file.sync();
    failed_ = false;
    part.end += entry.size();
    part.last = ++last_;
    return last_;
}

std::uint64_t read_log(
    const std::filesystem::path& directory, std::uint64_t applied,
    const std::function<void(std::uint64_t number, std::span<const std::byte>)>& each) {
    std::vector<std::vector<std::byte>> contents;
    std::vector<Entry> entries;
    for (const char* const name : names) {
        std::error_code error;
        if (!std::filesystem::exists(std::filesystem::symlink_status(directory / name, error))) {
            continue;
        }
        const File file(directory / name, File::Mode::read);
        const std::vector<std::byte>& bytes = contents.emplace_back(file.read(0, file.size()));
        for (const Entry& entry : entries_in(bytes, applied)) {
            if (entry.number > applied) entries.push_back(entry);
        }
    }
    std::ranges::sort(entries, {}, &Entry::number);
    std::uint64_t last = applied;
    for (const Entry& entry : entries) {
        if (entry.number != last + 1) {
            throw Error(Errc::storage, "data directory " + directory.string() +
                                           " is damaged: its log lacks entry " +
                                           std::to_string(last + 1) +
                                           "; cpp-store check --repair goes on without what came "
                                           "after it");
        }
        each(entry.number, entry.content);
        last = entry.number;
    }
    return last;
}

bool has_log(const std::filesystem::path& directory) {
    std::error_code none;
    return std::ranges::any_of(names, [&](const char* const name) {
        return std::filesystem::exists(directory / name, none);
    });
}

void move_log_aside(const std::filesystem::path& directory) {
    std::error_code none;
    for (const char* const name : names) {
        if (std::filesystem::exists(directory / name, none)) {
            move_aside(directory, directory / name);
        }
    }
}

void remove_log(const std::filesystem::path& directory) noexcept {
    for (const char* const name : names) remove_file(directory / name);
}

}  // namespace cpp_store::durable
