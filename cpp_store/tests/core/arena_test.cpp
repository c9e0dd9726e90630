#include "cpp_store/arena.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include <cstring>
#include <fstream>
#include <map>
#include <random>
#include <thread>
#include <vector>

#include "cpp_store/error.hpp"
#include "sanitizers.hpp"

namespace cpp_store {
namespace {

using namespace std::chrono_literals;
using testing::HasSubstr;

constexpr std::uint64_t MiB = std::uint64_t{1} << 20;

Arena::Options small(std::uint64_t limit = 64 * MiB) {
    return {
        .limit = limit, .region_size = 4 * MiB, .ahead = 0, .linger = std::chrono::milliseconds{1}};
}

// Waits for the background thread; it signals nothing, so ask until it is done.
template <typename Condition>
[[nodiscard]] bool eventually(Condition condition) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds{20};
    while (!condition()) {
        if (std::chrono::steady_clock::now() > end) return false;
        std::this_thread::yield();
    }
    return true;
}

TEST(Arena, GivesAlignedBytesThatDoNotOverlap) {
    Arena arena(small());
    std::vector<Extent> extents;
    for (std::uint64_t bytes : {1, 63, 64, 65, 4095, 4097, 1'000'000}) {
        const Extent extent = arena.allocate(bytes);
        EXPECT_EQ(reinterpret_cast<std::uintptr_t>(extent.data) % Arena::alignment, 0U);
        EXPECT_GE(extent.size, bytes);
        EXPECT_EQ(extent.size % Arena::alignment, 0U);
        std::memset(extent.data, static_cast<int>(extents.size()), extent.size);
        extents.push_back(extent);
    }
    for (std::size_t i = 0; i < extents.size(); ++i) {
        for (std::uint64_t j = 0; j < extents[i].size; ++j) {
            ASSERT_EQ(extents[i].data[j], static_cast<std::byte>(i));
        }
        arena.release(extents[i]);
    }
    EXPECT_EQ(arena.stats().used, 0U);
}

TEST(Arena, ZeroBytesUseNothing) {
    Arena arena(small());
    const Extent nothing = arena.allocate(0);
    EXPECT_EQ(nothing.size, 0U);
    EXPECT_EQ(arena.stats().used, 0U);
    arena.release(nothing);
    EXPECT_EQ(arena.stats().used, 0U);
}

TEST(Arena, ReusesReleasedMemoryFirst) {
    Arena arena(
        {.limit = 64 * MiB, .region_size = 4 * MiB, .ahead = 0, .linger = std::chrono::hours{1}});
    const Extent first = arena.allocate(MiB);
    const Extent second = arena.allocate(MiB);
    arena.release(first);
    const Extent third = arena.allocate(MiB / 2);
    EXPECT_EQ(third.data, first.data);
    EXPECT_EQ(arena.stats().touched, 2 * MiB);
    arena.release(second);
    arena.release(third);
}

TEST(Arena, TakesTheBestFit) {
    Arena arena(
        {.limit = 64 * MiB, .region_size = 4 * MiB, .ahead = 0, .linger = std::chrono::hours{1}});
    const Extent large = arena.allocate(8192);
    const Extent wall = arena.allocate(64);
    const Extent fitting = arena.allocate(1024);
    const Extent end = arena.allocate(64);
    arena.release(large);
    arena.release(fitting);
    EXPECT_EQ(arena.allocate(1000).data, fitting.data);
    arena.release(wall);
    arena.release(end);
}

TEST(Arena, PartsCanBeReleasedAloneAndCoalesce) {
    Arena arena(small());
    const Extent whole = arena.allocate(4 * MiB);
    for (std::uint64_t offset : {2 * MiB, 0 * MiB, 3 * MiB, 1 * MiB}) {
        arena.release({whole.data + offset, MiB, whole.region, whole.offset + offset});
    }
    EXPECT_EQ(arena.stats().used, 0U);
    const Extent again = arena.allocate(4 * MiB);
    EXPECT_EQ(arena.stats().used, 4 * MiB);
    arena.release(again);
}

TEST(Arena, RefusesMoreThanTheLimitAndSaysWhy) {
    Arena arena(small(MiB));
    const Extent half = arena.allocate(MiB / 2);
    try {
        (void)arena.allocate(MiB / 2 + 1);
        FAIL() << "the limit was exceeded";
    } catch (const Error& error) {
        EXPECT_EQ(error.code(), Errc::out_of_memory);
        EXPECT_THAT(error.what(), HasSubstr("need 524352 bytes"));
        EXPECT_THAT(error.what(), HasSubstr("limit 1048576"));
        EXPECT_THAT(error.what(), HasSubstr("used 524288"));
    }
    EXPECT_EQ(arena.stats().used, MiB / 2);
    EXPECT_THROW((void)arena.allocate(~std::uint64_t{0}), Error);
    arena.release(half);
    arena.release(arena.allocate(MiB));
    EXPECT_EQ(arena.stats().high_water, MiB);
}

TEST(Arena, LargeRequestsGetTheirOwnRegion) {
    Arena arena(small());
    const Extent large = arena.allocate(20 * MiB);
    std::memset(large.data, 1, large.size);
    EXPECT_GE(arena.stats().mapped, 20 * MiB);
    arena.release(large);
}

TEST(Arena, TouchesMemoryAheadOfDemand) {
    Arena arena({.limit = 64 * MiB, .region_size = 8 * MiB, .ahead = 10 * MiB});
    ASSERT_TRUE(eventually([&] { return arena.stats().touched >= 10 * MiB; }));
    const Extent extent = arena.allocate(6 * MiB);
    ASSERT_TRUE(eventually([&] { return arena.stats().touched >= 16 * MiB; }));
    EXPECT_LE(arena.stats().touched, 24 * MiB);
    arena.release(extent);
}

// It would take a processor from those who allocate, each time.
TEST(Arena, AllocatingWakesNobodyWhileMuchIsTouched) {
    Arena arena({.limit = 64 * MiB, .region_size = 64 * MiB, .ahead = 32 * MiB});
    ASSERT_TRUE(eventually([&] { return arena.stats().touched >= 32 * MiB; }));
    const auto sleeps = [] {
        rusage use{};
        getrusage(RUSAGE_SELF, &use);
        return use.ru_nvcsw;
    };
    std::vector<Extent> extents;
    extents.reserve(2'000);
    const auto before = sleeps();
    for (int i = 0; i < 2'000; ++i) extents.push_back(arena.allocate(4'096));
    EXPECT_LT(sleeps() - before, 200);
    for (const Extent& extent : extents) arena.release(extent);
}

TEST(Arena, NeverTouchesMoreThanTheLimitAhead) {
    Arena arena({.limit = 3 * MiB, .region_size = 8 * MiB, .ahead = 100 * MiB});
    ASSERT_TRUE(eventually([&] { return arena.stats().touched >= 3 * MiB; }));
    arena.release(arena.allocate(3 * MiB));
    EXPECT_EQ(arena.stats().touched, 3 * MiB);
}

TEST(Arena, GivesSurplusBackToTheKernel) {
    Arena arena(small());
    std::vector<Extent> extents;
    for (int i = 0; i < 10; ++i) extents.push_back(arena.allocate(3 * MiB));
    EXPECT_GE(arena.stats().mapped, 40 * MiB);
    const Extent kept = extents.back();
    extents.pop_back();
    std::memset(kept.data, 7, kept.size);
    for (const Extent& extent : extents) arena.release(extent);
    EXPECT_TRUE(eventually([&] { return arena.stats().touched <= 4 * MiB; }));
    EXPECT_TRUE(eventually([&] { return arena.stats().mapped <= 8 * MiB; }));
    EXPECT_EQ(kept.data[kept.size - 1], std::byte{7});
    // What was given back can be had again.
    const Extent again = arena.allocate(8 * MiB);
    std::memset(again.data, 1, again.size);
    arena.release(again);
    arena.release(kept);
}

std::uint64_t shared_resident() {
    std::ifstream status("/proc/self/status");
    for (std::string line; std::getline(status, line);) {
        if (line.starts_with("RssShmem:")) return std::stoull(line.substr(9)) << 10;
    }
    return 0;
}

TEST(Arena, PiecesThatNothingFitsIntoAreGivenBack) {
    constexpr std::uint64_t limit = 64 << 20;
    const std::uint64_t before = shared_resident();
    Arena arena({.limit = limit, .region_size = 16 << 20, .ahead = 0, .linger = 1h});
    std::vector<Extent> kept;
    for (const std::uint64_t size : {64u << 10, 128u << 10, 256u << 10, 512u << 10, 2u << 20}) {
        std::vector<Extent> large;
        while (arena.stats().used + size + 128 <= limit) {
            kept.push_back(arena.allocate(64));
            std::memset(kept.back().data, static_cast<int>(kept.size() % 251), 64);
            large.push_back(arena.allocate(size));
            std::memset(large.back().data, 255, size);
            ASSERT_LE(arena.stats().touched, limit + limit / 16);
            ASSERT_LE(shared_resident() - before, limit + limit / 16);
        }
        for (const Extent& each : large) arena.release(each);
    }
    for (std::size_t i = 0; i < kept.size(); ++i) {
        for (std::size_t at = 0; at < 64; ++at) {
            ASSERT_EQ(kept[i].data[at], static_cast<std::byte>((i + 1) % 251));
        }
    }
}

// One small piece a page: nothing can be given back, and there is an end to it.
TEST(Arena, PiecesSmallerThanAPageDoNotGrowWithoutEnd) {
    constexpr std::uint64_t limit = 16 << 20;
    Arena arena({.limit = limit, .region_size = 16 << 20, .ahead = 0, .linger = 1h});
    std::vector<Extent> holes;
    try {
        while (true) {
            (void)arena.allocate(64);
            holes.push_back(arena.allocate(4096 - 64));
            if (holes.size() % 64 == 0) {
                for (const Extent& hole : holes) arena.release(hole);
                holes.clear();
            }
        }
    } catch (const Error& error) {
        EXPECT_EQ(error.code(), Errc::out_of_memory);
    }
    EXPECT_LE(arena.stats().touched, limit + std::max<std::uint64_t>(limit / 16, 2 << 20));
}

TEST(Arena, AnotherMappingSeesTheSameBytes) {
    Arena arena(small());
    const Extent padding = arena.allocate(4096);
    const Extent extent = arena.allocate(4096);
    std::memset(extent.data, 42, extent.size);
    void* const mapped =
        ::mmap(nullptr, 4 * MiB, PROT_READ, MAP_SHARED, arena.region_fd(extent.region), 0);
    ASSERT_NE(mapped, MAP_FAILED);
    EXPECT_EQ(static_cast<const std::byte*>(mapped)[extent.offset], std::byte{42});
    ::munmap(mapped, 4 * MiB);
    EXPECT_THROW((void)arena.region_fd(1000), Error);
    EXPECT_THROW((void)arena.region_fd(-1), Error);
    arena.release(padding);
    arena.release(extent);
}

// Random allocations and releases, whole and in parts, against the bytes that they should hold.
TEST(Arena, RandomHistoryKeepsEveryByte) {
    std::mt19937 random(20240701);
    Arena arena(small(32 * MiB));
    struct Held {
        Extent extent;
        unsigned char mark;
    };
    std::vector<Held> held;
    std::uint64_t used = 0;
    for (int step = 0; step < 20'000; ++step) {
        if (held.empty() || random() % 5 < 3) {
            const std::uint64_t bytes = 1 + random() % (random() % 50 == 0 ? 6 * MiB : 20'000);
            try {
                const Extent extent = arena.allocate(bytes);
                const auto mark = static_cast<unsigned char>(random());
                std::memset(extent.data, mark, extent.size);
                held.push_back({extent, mark});
                used += extent.size;
            } catch (const Error& error) {
                ASSERT_EQ(error.code(), Errc::out_of_memory);
                ASSERT_GT(used + bytes + Arena::alignment, 32 * MiB);
            }
        } else {
            const std::size_t i = random() % held.size();
            auto& [extent, mark] = held[i];
            for (std::uint64_t j : {std::uint64_t{0}, extent.size / 2, extent.size - 1}) {
                ASSERT_EQ(extent.data[j], static_cast<std::byte>(mark));
            }
            std::uint64_t part = extent.size;
            if (extent.size > 64 && random() % 2) part = extent.size / 128 * 64;
            arena.release({extent.data, part, extent.region, extent.offset});
            used -= part;
            extent.data += part;
            extent.offset += part;
            extent.size -= part;
            if (extent.size == 0) {
                std::swap(held[i], held.back());
                held.pop_back();
            }
        }
        ASSERT_EQ(arena.stats().used, used);
    }
    for (const Held& each : held) arena.release(each.extent);
    EXPECT_EQ(arena.stats().used, 0U);
}

TEST(Arena, ManyThreadsAtOnce) {
    Arena arena({.limit = 64 * MiB,
                 .region_size = 2 * MiB,
                 .ahead = MiB,
                 .linger = std::chrono::milliseconds{1}});
    std::vector<std::thread> threads;
    for (unsigned seed = 0; seed < 4; ++seed) {
        threads.emplace_back([&arena, seed] {
            std::mt19937 random(seed);
            std::vector<Extent> held;
            for (int step = 0; step < 2'000; ++step) {
                if (held.size() < 8) {
                    const Extent extent = arena.allocate(1 + random() % 300'000);
                    std::memset(extent.data, static_cast<int>(seed), extent.size);
                    held.push_back(extent);
                } else {
                    std::swap(held[random() % held.size()], held.back());
                    const Extent& extent = held.back();
                    EXPECT_EQ(extent.data[0], static_cast<std::byte>(seed));
                    EXPECT_EQ(extent.data[extent.size - 1], static_cast<std::byte>(seed));
                    arena.release(extent);
                    held.pop_back();
                }
            }
            for (const Extent& extent : held) arena.release(extent);
        });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(arena.stats().used, 0U);
}

#if CPP_STORE_ASAN
TEST(ArenaDeathTest, ReleasedMemoryIsPoisoned) {
    Arena arena(small());
    const Extent extent = arena.allocate(4096);
    arena.release(extent);
    EXPECT_DEATH(extent.data[0] = std::byte{1}, "use-after-poison");
}
#endif

}  // namespace
}  // namespace cpp_store
