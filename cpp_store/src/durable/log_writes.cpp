#include "durable/log_writes.hpp"

#include <sqlite3.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>
#include <mutex>
#include <new>

namespace cpp_store::durable {
namespace {

// SQLite takes less than 128 KiB at a time.
constexpr std::size_t most_gathered = std::size_t{64} << 10;

// What SQLite holds of an open log: this, and its own file behind it.
struct Log {
    sqlite3_file base;  // first: SQLite sees nothing else
    sqlite3_file* real;
    sqlite3_int64 offset;  // of what was gathered
    std::size_t size;
    std::array<std::byte, most_gathered>* gathered;

    [[nodiscard]] int flush() {
        if (size == 0) return SQLITE_OK;
        const auto count = static_cast<int>(size);
        size = 0;  // if it fails, SQLite begins the transaction anew
        return real->pMethods->xWrite(real, gathered->data(), count, offset);
    }
};

Log& log_of(sqlite3_file* file) {
    return *reinterpret_cast<Log*>(file);
}

// After what was gathered is written, as SQLite's own file does it.
template <auto method, typename... Arguments>
int flushed(sqlite3_file* file, Arguments... arguments) {
    Log& log = log_of(file);
    if (const int result = log.flush(); result != SQLITE_OK) return result;
    return (log.real->pMethods->*method)(log.real, arguments...);
}

int write(sqlite3_file* file, const void* from, int count, sqlite3_int64 offset) {
    Log& log = log_of(file);
    const auto size = static_cast<std::size_t>(count);
    const bool goes_on = offset == log.offset + static_cast<sqlite3_int64>(log.size);
    if (!goes_on || log.size + size > most_gathered) {
        if (const int result = log.flush(); result != SQLITE_OK) return result;
        if (size > most_gathered) return log.real->pMethods->xWrite(log.real, from, count, offset);
    }
    if (log.size == 0) log.offset = offset;
    std::memcpy(log.gathered->data() + log.size, from, size);
    log.size += size;
    return SQLITE_OK;
}

int close(sqlite3_file* file) {
    Log& log = log_of(file);
    const int flush = log.flush();
    const int result = log.real->pMethods->xClose(log.real);
    delete log.gathered;
    return flush != SQLITE_OK ? flush : result;
}

constexpr sqlite3_io_methods make_methods() {
    sqlite3_io_methods made{};
    made.iVersion = 1;  // shared memory and maps are those of the database's own file
    made.xClose = &close;
    made.xRead = &flushed<&sqlite3_io_methods::xRead, void*, int, sqlite3_int64>;
    made.xWrite = &write;
    made.xTruncate = &flushed<&sqlite3_io_methods::xTruncate, sqlite3_int64>;
    made.xSync = &flushed<&sqlite3_io_methods::xSync, int>;
    made.xFileSize = &flushed<&sqlite3_io_methods::xFileSize, sqlite3_int64*>;
    made.xLock = &flushed<&sqlite3_io_methods::xLock, int>;
    made.xUnlock = &flushed<&sqlite3_io_methods::xUnlock, int>;
    made.xCheckReservedLock = &flushed<&sqlite3_io_methods::xCheckReservedLock, int*>;
    made.xFileControl = &flushed<&sqlite3_io_methods::xFileControl, int, void*>;
    made.xSectorSize = [](sqlite3_file* file) {
        sqlite3_file* const real = log_of(file).real;
        return real->pMethods->xSectorSize(real);
    };
    made.xDeviceCharacteristics = [](sqlite3_file* file) {
        sqlite3_file* const real = log_of(file).real;
        return real->pMethods->xDeviceCharacteristics(real);
    };
    return made;
}

constexpr sqlite3_io_methods methods = make_methods();

sqlite3_vfs* parent = nullptr;
sqlite3_vfs gathering;

int open(sqlite3_vfs*, sqlite3_filename name, sqlite3_file* file, int flags, int* found) {
    if ((flags & SQLITE_OPEN_WAL) == 0) return parent->xOpen(parent, name, file, flags, found);
    file->pMethods = nullptr;  // nothing to close yet
    auto* const gathered = new (std::nothrow) std::array<std::byte, most_gathered>;
    if (!gathered) return SQLITE_NOMEM;
    auto* const log = ::new (static_cast<void*>(file)) Log{};
    log->real = reinterpret_cast<sqlite3_file*>(log + 1);
    log->gathered = gathered;
    const int result = parent->xOpen(parent, name, log->real, flags, found);
    if (result != SQLITE_OK) {
        if (log->real->pMethods) log->real->pMethods->xClose(log->real);
        delete gathered;
        return result;
    }
    log->base.pMethods = &methods;
    return SQLITE_OK;
}

}  // namespace

const char* gathering_vfs() {
    static constexpr const char* name = "cpp_store";
    static std::once_flag once;
    std::call_once(once, [] {
        sqlite3_initialize();
        parent = sqlite3_vfs_find(nullptr);
        gathering = *parent;
        gathering.zName = name;
        gathering.pNext = nullptr;
        gathering.szOsFile += static_cast<int>(sizeof(Log));
        gathering.xOpen = &open;
        sqlite3_vfs_register(&gathering, 0);
    });
    return name;
}

}  // namespace cpp_store::durable
