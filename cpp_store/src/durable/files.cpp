#include "durable/files.hpp"

#include <fcntl.h>
#include <sqlite3.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstring>
#include <limits>
#include <mutex>
#include <utility>

#include "cpp_store/error.hpp"
#include "durable/failpoints.hpp"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22  // since Linux 5.14; perhaps unknown to the C library's headers
#endif

#ifdef CPP_STORE_FAILPOINTS
// SQLite lets others have all of its system calls but these two, so the linker does (--wrap).
extern "C" {
int __real_fdatasync(int fd);
int __real_fsync(int fd);
int __wrap_fdatasync(int fd);
int __wrap_fsync(int fd);
}
#endif

namespace cpp_store::durable {
namespace {

#ifdef CPP_STORE_FAILPOINTS
constexpr auto real_fdatasync = &__real_fdatasync;
constexpr auto real_fsync = &__real_fsync;
#else
constexpr auto real_fdatasync = &::fdatasync;
constexpr auto real_fsync = &::fsync;
#endif

// Makes the call, unless its failpoint has it fail: -1 and errno.
template <typename Call>
auto guarded(std::string_view point, Call call) -> decltype(call()) {
    if (const auto outcome = failpoints::visit(point); outcome.error != 0) {
        errno = outcome.error;
        return -1;
    }
    return call();
}

std::string text_of(int error) {
    return std::generic_category().message(error);
}

constexpr std::uint64_t write_out_every = std::uint64_t{8} << 20;

std::uint64_t page_size() noexcept {
    static const auto size = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
    return size;
}

}  // namespace

File::File(std::filesystem::path path, Mode mode) : path_(std::move(path)) {
    int flags = O_CLOEXEC | O_NOFOLLOW;
    switch (mode) {
        case Mode::read:
            flags |= O_RDONLY;
            break;
        case Mode::create:
            flags |= O_WRONLY | O_CREAT | O_EXCL;
            break;
        case Mode::lock:
            flags |= O_RDWR | O_CREAT;
            break;
    }
    const std::string_view point = mode == Mode::read     ? "file.open"
                                   : mode == Mode::create ? "file.create"
                                                          : "file.lock";
    fd_ = guarded(point, [&] { return ::open(path_.c_str(), flags, 0600); });
    if (fd_ < 0 && errno == ELOOP) {
        throw Error(Errc::invalid_argument,
                    path_.string() + " is a symbolic link, which no store has made");
    }
    if (fd_ < 0) fail(mode == Mode::read ? "cannot open" : "cannot create", errno);
}

File::File(File&& other) noexcept
    : path_(std::move(other.path_)),
      fd_(std::exchange(other.fd_, -1)),
      locked_by_(std::exchange(other.locked_by_, 0)) {}

File& File::operator=(File&& other) noexcept {
    if (this != &other) {
        close();
        path_ = std::move(other.path_);
        fd_ = std::exchange(other.fd_, -1);
        locked_by_ = std::exchange(other.locked_by_, 0);
    }
    return *this;
}

File::~File() {
    close();
}

void File::close() noexcept {
    if (fd_ < 0) return;
    // A child process that was forked meanwhile, and has not yet become another program, has the
    // lock, too: closing alone would leave it locked. And a child's copy must not unlock it.
    if (locked_by_ == ::getpid()) ::flock(fd_, LOCK_UN);
    ::close(std::exchange(fd_, -1));
}

void File::fail(std::string_view what, int error) const {
    throw Error(Errc::storage, std::string(what) + " " + path_.string() + ": " + text_of(error));
}

void File::append(std::vector<iovec> pieces) {
    std::uint64_t since = 0;
    std::size_t next = 0;
    while (next < pieces.size()) {
        if (pieces[next].iov_len == 0) {
            ++next;
            continue;
        }
        // No more at a time than the kernel shall begin to write out meanwhile.
        std::size_t count = 0;
        std::uint64_t bytes = 0;
        iovec cut{};
        while (next + count < pieces.size() && count < IOV_MAX && bytes < write_out_every) {
            bytes += pieces[next + count++].iov_len;
        }
        iovec& last = pieces[next + count - 1];
        const std::uint64_t over = bytes > write_out_every ? bytes - write_out_every : 0;
        cut = last;
        last.iov_len -= over;
        const auto outcome = failpoints::visit("file.write");
        ssize_t written = -1;
        if (outcome.error != 0) {
            errno = outcome.error;
        } else if (outcome.is_short) {
            written = ::write(fd_, pieces[next].iov_base, (pieces[next].iov_len + 1) / 2);
        } else {
            written = ::writev(fd_, &pieces[next], static_cast<int>(count));
        }
        last = cut;
        if (written < 0 && errno == EINTR) continue;
        if (written < 0) fail("cannot write", errno);
        since += static_cast<std::uint64_t>(written);
        for (auto left = static_cast<std::size_t>(written); left > 0;) {
            iovec& piece = pieces[next];
            const std::size_t taken = std::min(left, piece.iov_len);
            piece.iov_base = static_cast<std::byte*>(piece.iov_base) + taken;
            piece.iov_len -= taken;
            left -= taken;
            if (piece.iov_len == 0) ++next;
        }
        if (since >= write_out_every) {
            // Of what the kernel has, so that sync() finds little left. It may refuse.
            ::sync_file_range(fd_, 0, 0, SYNC_FILE_RANGE_WRITE);
            since = 0;
        }
    }
    (void)failpoints::visit("file.write.done");
}

void File::read(std::span<std::byte> into, std::uint64_t offset) const {
    while (!into.empty()) {
        const ssize_t got = guarded("file.read", [&] {
            return ::pread(fd_, into.data(), into.size(), static_cast<off_t>(offset));
        });
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) fail("cannot read", errno);
        if (got == 0) throw Error(Errc::storage, path_.string() + " ends early");
        into = into.subspan(static_cast<std::size_t>(got));
        offset += static_cast<std::uint64_t>(got);
    }
}

std::vector<std::byte> File::read(std::uint64_t offset, std::uint64_t size) const {
    const std::uint64_t there = this->size();
    if (offset > there || size > there - offset) {
        throw Error(Errc::storage, path_.string() + " ends early");
    }
    std::vector<std::byte> bytes(size);
    read(bytes, offset);
    return bytes;
}

void File::sync() {
    if (guarded("file.sync", [&] { return real_fdatasync(fd_); }) != 0) {
        throw SyncError("cannot sync " + path_.string() + ": " + text_of(errno));
    }
    (void)failpoints::visit("file.sync.done");
}

std::uint64_t File::size() const {
    struct stat found {};
    if (::fstat(fd_, &found) != 0) fail("cannot look at", errno);
    return static_cast<std::uint64_t>(found.st_size);
}

bool File::lock() {
    if (::flock(fd_, LOCK_EX | LOCK_NB) == 0) {
        locked_by_ = ::getpid();
        return true;
    }
    if (errno == EWOULDBLOCK) return false;
    fail("cannot lock", errno);
}

Mapping::Mapping(const File& file, std::uint64_t offset, std::uint64_t size) noexcept
    : skew_(offset % page_size()) {
    void* const pages = ::mmap(nullptr, size + skew_, PROT_READ, MAP_SHARED, file.fd_,
                               static_cast<off_t>(offset - skew_));
    if (pages == MAP_FAILED) return;
    pages_ = static_cast<std::byte*>(pages);
    mapped_ = size + skew_;
}

Mapping::~Mapping() {
    if (pages_) ::munmap(pages_, mapped_);
}

// A page that cannot be read would be a signal for whoever touches it, so the kernel is asked to
// touch them first, and reports it. They would have to leave the page cache again and the disk fail
// before the caller is through with a piece that was just read.
const std::byte* Mapping::bring(std::uint64_t at, std::uint64_t size) const noexcept {
    if (!pages_) return nullptr;
    const std::uint64_t begin = (skew_ + at) / page_size() * page_size();
    const int result = guarded("file.map", [&] {
        return ::madvise(pages_ + begin, skew_ + at + size - begin, MADV_POPULATE_READ);
    });
    return result == 0 ? pages_ + skew_ + at : nullptr;
}

void make_directory(const std::filesystem::path& path) {
    const auto refuse = [&](const std::string& why) {
        throw Error(Errc::invalid_argument, "data directory " + path.string() + ": " + why);
    };
    if (guarded("directory.make", [&] { return ::mkdir(path.c_str(), 0700); }) != 0 &&
        errno != EEXIST) {
        refuse("cannot be made: " + text_of(errno));
    }
    struct stat found {};
    if (::lstat(path.c_str(), &found) != 0) refuse(text_of(errno));
    if (S_ISLNK(found.st_mode)) refuse("is a symbolic link; name the directory itself");
    if (!S_ISDIR(found.st_mode)) refuse("is not a directory");
    if (::access(path.c_str(), R_OK | W_OK | X_OK) != 0) {
        refuse("cannot be written to: " + text_of(errno));
    }
}

void sync_directory(const std::filesystem::path& path) {
    const int fd = guarded(
        "directory.open", [&] { return ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); });
    if (fd < 0) {
        throw Error(Errc::storage, "cannot open " + path.string() + ": " + text_of(errno));
    }
    const int result = guarded("directory.sync", [&] { return real_fsync(fd); });
    const int error = errno;
    ::close(fd);
    if (result != 0) {
        throw SyncError("cannot sync directory " + path.string() + ": " + text_of(error));
    }
    (void)failpoints::visit("directory.sync.done");
}

std::uint64_t free_space(const std::filesystem::path& path) noexcept {
    struct statvfs found {};
    if (guarded("disk.space", [&] { return ::statvfs(path.c_str(), &found); }) != 0) {
        return errno == ENOSPC ? 0 : std::numeric_limits<std::uint64_t>::max();
    }
    return std::uint64_t{found.f_bavail} * found.f_frsize;
}

bool remove_file(const std::filesystem::path& path) noexcept {
    if (guarded("file.remove", [&] { return ::unlink(path.c_str()); }) != 0) return false;
    (void)failpoints::visit("file.remove.done");
    return true;
}

void move_aside(const std::filesystem::path& directory, const std::filesystem::path& file) {
    const std::filesystem::path aside = directory / "aside";
    make_directory(aside);
    const std::string name = file.filename().string();
    for (unsigned number = 0;; ++number) {
        const std::string suffix = number == 0 ? "" : "." + std::to_string(number);
        const int moved = guarded("file.move", [&] {
            return ::renameat2(AT_FDCWD, file.c_str(), AT_FDCWD, (aside / (name + suffix)).c_str(),
                               RENAME_NOREPLACE);
        });
        if (moved == 0) break;
        if (errno == ENOENT) return;
        if (errno == EEXIST) continue;
        throw Error(Errc::storage, "cannot move " + file.string() + " to " + aside.string() + ": " +
                                       text_of(errno));
    }
    sync_directory(aside);
    sync_directory(file.parent_path());
}

std::vector<std::string> list_directory(const std::filesystem::path& path) {
    std::error_code error;
    std::vector<std::string> names;
    for (std::filesystem::directory_iterator entry(path, error), end; !error && entry != end;
         entry.increment(error)) {
        names.push_back(entry->path().filename().string());
    }
    if (error) {
        throw Error(Errc::storage, "cannot list " + path.string() + ": " + error.message());
    }
    std::sort(names.begin(), names.end());
    return names;
}

#ifdef CPP_STORE_FAILPOINTS
namespace {

int sqlite_open(const char* path, int flags, int mode) {
    return guarded("catalogue.open", [&] { return ::open(path, flags, mode); });
}
ssize_t sqlite_read(int fd, void* into, std::size_t size, off_t offset) {
    return guarded("catalogue.read", [&] { return ::pread(fd, into, size, offset); });
}
ssize_t sqlite_write(int fd, const void* from, std::size_t size, off_t offset) {
    const auto outcome = failpoints::visit("catalogue.write");
    if (outcome.error != 0) {
        errno = outcome.error;
        return -1;
    }
    const ssize_t written = ::pwrite(fd, from, outcome.is_short ? (size + 1) / 2 : size, offset);
    (void)failpoints::visit("catalogue.write.done");
    return written;
}
int sqlite_truncate(int fd, off_t size) {
    return guarded("catalogue.truncate", [&] { return ::ftruncate(fd, size); });
}
int sqlite_remove(const char* path) {
    return guarded("catalogue.remove", [&] { return ::unlink(path); });
}

}  // namespace

void route_sqlite_calls() {
    static std::once_flag once;
    std::call_once(once, [] {
        sqlite3_initialize();
        sqlite3_vfs* const vfs = sqlite3_vfs_find("unix");
        const auto route = [vfs](const char* name, auto* call) {
            vfs->xSetSystemCall(vfs, name, reinterpret_cast<sqlite3_syscall_ptr>(call));
        };
        route("open", &sqlite_open);
        route("pread", &sqlite_read);
        route("pread64", &sqlite_read);
        route("pwrite", &sqlite_write);
        route("pwrite64", &sqlite_write);
        route("ftruncate", &sqlite_truncate);
        route("unlink", &sqlite_remove);
    });
}
#else
void route_sqlite_calls() {}
#endif

}  // namespace cpp_store::durable

#ifdef CPP_STORE_FAILPOINTS
namespace {

int sqlite_sync(int (*real)(int), int fd) {
    if (const auto outcome = cpp_store::failpoints::visit("catalogue.sync"); outcome.error != 0) {
        errno = outcome.error;
        return -1;
    }
    const int result = real(fd);
    (void)cpp_store::failpoints::visit("catalogue.sync.done");
    return result;
}

}  // namespace

int __wrap_fdatasync(int fd) {
    return sqlite_sync(&__real_fdatasync, fd);
}
int __wrap_fsync(int fd) {
    return sqlite_sync(&__real_fsync, fd);
}
#endif
