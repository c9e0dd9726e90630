// The thread that syncs changes to the log, and tells those who wait for that.
#include <array>
#include <chrono>
#include <mutex>
#include <new>
#include <thread>
#include <utility>

#include "durable/batch.hpp"

namespace cpp_store::durable {
namespace {

constexpr std::chrono::milliseconds memory_interval{10};  // between two tries to have some

// What is in the log must come into the catalogue, though there be no memory for it now.
template <typename Step>
void persist(std::unique_lock<std::mutex>& lock, Step step) {
    while (true) {
        try {
            step();
            return;
        } catch (const std::bad_alloc&) {
            lock.unlock();
            std::this_thread::sleep_for(memory_interval);
            lock.lock();
        }
    }
}

}  // namespace

void Journal::run_log() {
    static constexpr std::array<std::byte, RedoLog::header_size> header{};
    Writer entry;
    std::vector<Change> batch;
    std::unique_lock lock(mutex_);
    while (true) {
        log_wake_.wait(lock, [this] { return closing_ || !unlogged_.empty(); });
        if (unlogged_.empty()) return;
        batch.clear();
        batch.swap(unlogged_);
        const std::uint64_t applied = in_catalogue_;
        lock.unlock();
        std::exception_ptr error;
        try {
            entry.clear();
            entry.raw(header);
            entry.u32(static_cast<std::uint32_t>(batch.size()));
            for (const Change& change : batch) encode(entry, change);
            batch.back().entry = log_->append(entry.data(), applied);
        } catch (const std::exception&) {
            error = std::current_exception();
        }
        const std::uint64_t forgotten = tell(batch, error);
        lock.lock();
        waiting_bytes_ -= forgotten;
        const bool was_empty = queue_.empty();
        const bool was_due = is_due();
        for (Change& change : batch) {
            persist(lock, [&] { queue_.push_back(std::move(change)); });
        }
        if (was_empty || (!was_due && is_due())) wake_.notify_one();
    }
}

// Tells whoever waits for them. Those that failed are forgotten: nothing, with no bytes, takes
// their place. Returns how many bytes they had.
std::uint64_t Journal::tell(std::vector<Change>& batch, const std::exception_ptr& error) {
    std::uint64_t forgotten = 0;
    for (Change& change : batch) {
        if (!change.logged) continue;
        std::exchange(change.logged, nullptr)(error);
        if (!error) continue;
        forgotten += change.bytes;
        if (const std::uint64_t segment = change.written_ahead(); segment != 0) abandon(segment);
        change = {.kind = Change::Kind::nothing};
    }
    if (!error) {
        // What was abandoned has been overwritten in the log.
        for (const std::uint64_t serial : abandoned_) remove_file(path_of(serial));
        abandoned_.clear();
    }
    return forgotten;
}

void Journal::abandon(std::uint64_t segment) noexcept {
    try {
        abandoned_.push_back(segment);
    } catch (const std::bad_alloc&) {
        // It goes when the directory is opened again.
    }
}

}  // namespace cpp_store::durable
