// Histograms of how long calls take.
#include "core/call_times.hpp"

#include <gtest/gtest.h>

#include <chrono>
#include <limits>
#include <thread>
#include <vector>

namespace cpp_store {
namespace {

using std::chrono::nanoseconds;

TEST(CallTimes, OfNoCallAreNothing) {
    const CallTimes times = Histogram().summary();
    EXPECT_EQ(times.count, 0u);
    EXPECT_EQ(times.p50, 0u);
    EXPECT_EQ(times.p99, 0u);
}

TEST(CallTimes, AreAnEighthOffAtMost) {
    for (std::int64_t value = 4; value < std::int64_t{1} << 39; value += value / 5 + 1) {
        Histogram times;
        times.add(nanoseconds(value));
        const auto found = static_cast<double>(times.summary().p50);
        EXPECT_NEAR(found, static_cast<double>(value), static_cast<double>(value) / 8 + 1);
        EXPECT_EQ(times.summary().p50, times.summary().p99);
    }
}

TEST(CallTimes, OfAnyLengthAreCounted) {
    Histogram times;
    times.add(nanoseconds(-1));
    times.add(nanoseconds(0));
    times.add(nanoseconds(std::numeric_limits<std::int64_t>::max()));
    const CallTimes found = times.summary();
    EXPECT_EQ(found.count, 3u);
    EXPECT_LE(found.p50, 5u);
    EXPECT_GE(found.p99, std::uint64_t{1} << 39);
}

TEST(CallTimes, OneInAHundredIsThe99thPercentileOnlyBeyondIt) {
    Histogram times;
    for (int i = 0; i < 99; ++i) times.add(nanoseconds(1'000));
    times.add(nanoseconds(1'000'000));
    EXPECT_NEAR(static_cast<double>(times.summary().p99), 1e3, 125);
    times.add(nanoseconds(1'000'000));
    times.add(nanoseconds(1'000'000));
    EXPECT_NEAR(static_cast<double>(times.summary().p99), 1e6, 125e3);
    EXPECT_NEAR(static_cast<double>(times.summary().p50), 1e3, 125);
}

TEST(CallTimes, AreLostToNoThread) {
    Histogram times;
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; ++i) {
        threads.emplace_back([&] {
            for (int j = 0; j < 10'000; ++j) times.add(nanoseconds(j));
        });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(times.summary().count, 40'000u);
}

}  // namespace
}  // namespace cpp_store
