// How long calls took: a histogram for each operation that any thread adds to without a lock.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <chrono>
#include <cstdint>
#include <numeric>

#include "cpp_store/store.hpp"

namespace cpp_store {

// Four buckets for each doubling of nanoseconds, so that a quantile is at most an eighth off.
class Histogram {
  public:
    void add(std::chrono::nanoseconds time) noexcept {
        buckets_[bucket_of(time)].fetch_add(1, std::memory_order_relaxed);
    }

    [[nodiscard]] CallTimes summary() const noexcept {
        std::array<std::uint64_t, size> counts{};
        std::transform(buckets_.begin(), buckets_.end(), counts.begin(),
                       [](const auto& bucket) { return bucket.load(std::memory_order_relaxed); });
        CallTimes times;
        times.count = std::accumulate(counts.begin(), counts.end(), std::uint64_t{0});
        if (times.count == 0) return times;
        times.p50 = quantile(counts, (times.count + 1) / 2);
        times.p99 = quantile(counts, times.count - times.count / 100);
        return times;
    }

  private:
    static constexpr std::size_t size = 4 * 40;  // up to 2^40 ns, a quarter of an hour

    static std::size_t bucket_of(std::chrono::nanoseconds time) noexcept {
        const auto value = static_cast<std::uint64_t>(std::max<std::int64_t>(time.count(), 4));
        const auto power = static_cast<std::size_t>(std::bit_width(value)) - 1;
        return std::min<std::size_t>(4 * power + ((value >> (power - 2)) & 3), size - 1);
    }

    // The middle of the bucket of the call that is so many-th by its time.
    static std::uint64_t quantile(const std::array<std::uint64_t, size>& counts,
                                  std::uint64_t rank) noexcept {
        std::size_t bucket = 0;
        for (std::uint64_t below = counts[0]; below < rank; below += counts[bucket]) ++bucket;
        const std::uint64_t quarter = (std::uint64_t{1} << (bucket / 4)) / 4;
        return (4 + bucket % 4) * quarter + quarter / 2;
    }

    std::array<std::atomic<std::uint64_t>, size> buckets_{};
};

}  // namespace cpp_store
