#include "local/staging.hpp"

#include <fcntl.h>
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <climits>
#include <ctime>
#include <new>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace cpp_store::local {
namespace {

// How long a side looks before it sleeps: less than the other one takes for a chunk.
constexpr std::chrono::microseconds spin{20};

// The numbers lie in memory of two processes: no private futex.
long futex(std::atomic<std::uint32_t>& word, int operation, std::uint32_t value,
           const timespec* limit = nullptr) noexcept {
    return ::syscall(SYS_futex, reinterpret_cast<std::uint32_t*>(&word), operation, value, limit,
                     nullptr, 0);
}

void relax() noexcept {
#if defined(__x86_64__)
    _mm_pause();
#endif
}

}  // namespace

Staging::Staging() : file_(::memfd_create("cpp_store_staging", MFD_CLOEXEC | MFD_ALLOW_SEALING)) {
    constexpr int seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
    // Allocated at once, since a page that cannot be had later would be a SIGBUS.
    if (!file_ || ::ftruncate(fd(), size) != 0 || ::fallocate(fd(), 0, 0, size) != 0 ||
        ::fcntl(fd(), F_ADD_SEALS, seals) != 0) {
        throw Error(Errc::out_of_memory, "no memory for staging: need " + std::to_string(size) +
                                             " bytes beside the store's own");
    }
    map();
    ::new (base_) Head{};
}

Staging::Staging(Descriptor file) : file_(std::move(file)) {
    struct stat found {};
    if (!file_ || ::fstat(fd(), &found) != 0 || found.st_size != static_cast<off_t>(size)) {
        throw Error(Errc::protocol,
                    "malformed message: no staging memory of " + std::to_string(size) + " bytes");
    }
    map();
}

Staging::~Staging() {
    if (base_) ::munmap(base_, size);
}

void Staging::map() {
    void* const mapped =
        ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd(), 0);
    if (mapped == MAP_FAILED) throw Error(Errc::out_of_memory, "no memory for staging");
    base_ = static_cast<std::byte*>(mapped);
}

void Staging::Apart::from(int processor) noexcept {
    if (moved_ || processor != current_processor()) return;
    if (::sched_getaffinity(0, sizeof allowed_, &allowed_) != 0) return;
    cpu_set_t others = allowed_;
    CPU_CLR(processor, &others);
    moved_ = CPU_COUNT(&others) > 0 && ::sched_setaffinity(0, sizeof others, &others) == 0;
}

Staging::Apart::~Apart() {
    if (moved_) ::sched_setaffinity(0, sizeof allowed_, &allowed_);
}

void Staging::begin(std::vector<std::uint64_t> sizes) {
    sizes_ = std::move(sizes);
    tensor_ = 0;
    offset_ = 0;
    std::uint64_t bytes = 0;
    for (const std::uint64_t each : sizes_) bytes += round_up(each);
    end_ = chunks_ + static_cast<std::uint32_t>((bytes + slot_size - 1) / slot_size);
}

bool Staging::sleep() noexcept {
    Counter& filled = head().filled;
    filled.wanted = chunks_ + std::min(end_ - chunks_, slots / 2);
    filled.sleepers = 1;
    if (!filled.has_reached(filled.wanted)) return true;
    filled.sleepers = 0;
    return false;
}

bool Staging::Counter::increment() noexcept {
    value.fetch_add(1);
    return sleepers.load() != 0 && has_reached(wanted.load()) && sleepers.exchange(0) != 0;
}

void Staging::Counter::increment_and_wake() noexcept {
    value.fetch_add(1);
    if (sleepers.load() != 0 && has_reached(wanted.load())) futex(value, FUTEX_WAKE, INT_MAX);
}

bool Staging::Counter::look(std::uint32_t count) const noexcept {
    if (has_reached(count)) return true;
    using Clock = std::chrono::steady_clock;
    for (const auto start = Clock::now(); Clock::now() - start < spin;) {
        for (int i = 0; i < 16; ++i) relax();
        if (has_reached(count)) return true;
    }
    return false;
}

bool Staging::Counter::wait(std::uint32_t count, std::chrono::milliseconds limit) noexcept {
    using Clock = std::chrono::steady_clock;
    const auto start = Clock::now();
    if (look(count)) return true;
    wanted = count;
    sleepers = 1;
    bool done = false;
    while (true) {
        const std::uint32_t now = value.load();
        done = has_reached(count);
        const auto left = limit - (Clock::now() - start);
        if (done || left <= left.zero()) break;
        const timespec time{.tv_sec = left / std::chrono::seconds(1),
                            .tv_nsec = (left % std::chrono::seconds(1)).count()};
        futex(value, FUTEX_WAIT, now, &time);
    }
    sleepers = 0;
    return done;
}

}  // namespace cpp_store::local
