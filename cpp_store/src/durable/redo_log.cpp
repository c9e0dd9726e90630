#include "durable/redo_log.hpp"

#include <algorithm>
#include <cstring>
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

// Those from the beginning of a file: what stands behind them was written before, or not to its
// end.
std::vector<Entry> entries_in(std::span<const std::byte> bytes) {
    std::vector<Entry> found;
    while (bytes.size() >= RedoLog::header_size) {
        Header header;
        std::memcpy(&header, bytes.data(), sizeof header);
        bytes = bytes.subspan(sizeof header);
        if (header.size > bytes.size()) break;
        const auto content = bytes.first(header.size);
        const Header expected = header_of(header.number, content);
        if (header.number == 0 || header.high != expected.high || header.low != expected.low) break;
        if (!found.empty() && header.number != found.back().number + 1) break;
        found.push_back({header.number, content});
        bytes = bytes.subspan(header.size);
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
        for (const Entry& entry : entries_in(bytes)) {
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

void remove_log(const std::filesystem::path& directory) noexcept {
    for (const char* const name : names) remove_file(directory / name);
}

}  // namespace cpp_store::durable
