// The log of a store that acknowledges what is on disk: changes are synced to it at once, many at a
// time, and come into the catalogue later, where many more share a transaction.
//
// Two files are written in turn: when one has grown, and the other holds nothing any more that the
// catalogue lacks, the other one is written from its beginning. So a sync need not wait for the
// file system to make room, which takes longer than the bytes.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <vector>

#include "durable/files.hpp"

namespace cpp_store::durable {

// One thread writes; numbers of entries ascend by one.
class RedoLog {
  public:
    // Of a directory whose log has been read, and removed. `last`: number of its last entry.
    RedoLog(const std::filesystem::path& directory, std::uint64_t last);

    // Room before the content of an entry, for append() to fill in.
    static constexpr std::size_t header_size = 32;
    // Writes an entry, which begins with such room, and syncs it. Returns its number. Throws
    // Errc::storage: it is as if it had not been called, unless the process ends before the next
    // entry. `applied`: number up to which the catalogue has all entries.
    std::uint64_t append(std::span<std::byte> entry, std::uint64_t applied);

  private:
    struct Part {
        File file;
        std::uint64_t end = 0;
        std::uint64_t last = 0;  // entry in it
    };
    std::array<Part, 2> parts_;
    std::size_t current_ = 0;
    std::uint64_t last_;
    bool failed_ = false;  // the last entry, which may be there all the same
};

// Calls `each` with the content of every entry that the catalogue lacks, in their order. Returns
// the last one's number. Throws Errc::storage if there is a gap (also where an entry is damaged:
// whole ones of later numbers follow it), after those before it, or if the files cannot be read.
std::uint64_t read_log(
    const std::filesystem::path& directory, std::uint64_t applied,
    const std::function<void(std::uint64_t number, std::span<const std::byte>)>& each);

[[nodiscard]] bool has_log(const std::filesystem::path& directory);
// Once the catalogue has all of it.
void remove_log(const std::filesystem::path& directory) noexcept;
// Where it has not. Throws Errc::storage.
void move_log_aside(const std::filesystem::path& directory);

}  // namespace cpp_store::durable
