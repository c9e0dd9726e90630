// Every system call on a data directory's files, so that each of them can be made to fail. Those of
// SQLite go through the same failpoints (see route_sqlite_calls).
#pragma once

#include <sys/types.h>
#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "cpp_store/error.hpp"

namespace cpp_store::durable {

// That what was written may be lost though a later sync succeeds: the kernel has forgotten it.
struct SyncError : Error {
    explicit SyncError(const std::string& message) : Error(Errc::storage, message) {}
};

// An open file. All calls throw Errc::storage, naming the path and what the system said; those that
// sync a SyncError.
class File {
  public:
    enum class Mode : std::uint8_t { read, create, lock };

    File() = default;
    // Never follows a symbolic link. `create` fails if there is such a file.
    File(std::filesystem::path path, Mode mode);
    File(File&& other) noexcept;
    File& operator=(File&& other) noexcept;
    ~File();

    [[nodiscard]] bool is_open() const noexcept { return fd_ >= 0; }
    [[nodiscard]] const std::filesystem::path& path() const noexcept { return path_; }

    // Appends all pieces, and has the kernel begin to write them out.
    void append(std::vector<iovec> pieces);
    // All bytes from `offset` on; fewer than asked for are an error ("ends early").
    void read(std::span<std::byte> into, std::uint64_t offset) const;
    // The same, as whoever says how many there are may be wrong: no memory is taken for more.
    [[nodiscard]] std::vector<std::byte> read(std::uint64_t offset, std::uint64_t size) const;
    void sync();
    [[nodiscard]] std::uint64_t size() const;
    // Keeps others from doing the same until it is closed or this process ends. False if one has.
    [[nodiscard]] bool lock();

  private:
    friend class Mapping;
    [[noreturn]] void fail(std::string_view what, int error) const;
    void close() noexcept;

    std::filesystem::path path_;
    int fd_ = -1;
    pid_t locked_by_ = 0;  // the process that has locked it; 0: none
};

// A part of a file, readable where the kernel has it: no bytes are moved before the caller does.
class Mapping {
  public:
    // Of a file that nobody changes. Null where it cannot be mapped.
    Mapping(const File& file, std::uint64_t offset, std::uint64_t size) noexcept;
    Mapping(const Mapping&) = delete;
    Mapping& operator=(const Mapping&) = delete;
    ~Mapping();

    // Some bytes of it, to be read at once. Null, and no signal, if they cannot be had: the disk
    // fails, the file ends early, the kernel cannot tell (before Linux 5.14).
    [[nodiscard]] const std::byte* bring(std::uint64_t at, std::uint64_t size) const noexcept;

  private:
    std::byte* pages_ = nullptr;
    std::uint64_t mapped_ = 0;
    std::uint64_t skew_ = 0;  // of the part in its first page
};

// Makes a directory (and none above it) that only its owner may look into, where there is none.
// Throws Errc::invalid_argument if it cannot be made, is something else, or cannot be written to.
void make_directory(const std::filesystem::path& path);
// Makes the names in a directory durable.
void sync_directory(const std::filesystem::path& path);
// Bytes that may still be written to a directory; the largest number if its disk does not say.
[[nodiscard]] std::uint64_t free_space(const std::filesystem::path& path) noexcept;
// False if there is no such file, or it cannot be removed.
bool remove_file(const std::filesystem::path& path) noexcept;
// Into the folder `aside` of a data directory, under a name that nothing has there: what nobody
// here knows the meaning of is not ours to remove. Nothing if there is no such file. Throws
// Errc::storage.
void move_aside(const std::filesystem::path& directory, const std::filesystem::path& file);
[[nodiscard]] std::vector<std::string> list_directory(const std::filesystem::path& path);

// Sends the system calls of SQLite through failpoints named `catalogue.*`, where there are any.
void route_sqlite_calls();

}  // namespace cpp_store::durable
