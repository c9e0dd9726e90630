// Memory is given back where there is none to remember it by.
#include "cpp_store/arena.hpp"

#include <gtest/gtest.h>

#include <array>

#include "exhaustion/failing_new.hpp"

namespace cpp_store {
namespace {

TEST(Arena, TakesMemoryBackWithoutAny) {
    constexpr std::uint64_t bytes = 1 << 20;
    Arena arena({.limit = 8 * bytes, .region_size = 8 * bytes, .ahead = 0});
    std::array<Extent, 8> extents;
    for (Extent& extent : extents) extent = arena.allocate(bytes);

    failing_new::arm(failing_new::Where::here, failing_new::Which::rest, 1);
    for (const std::size_t i : {1u, 3u, 5u, 6u}) arena.release(extents[i]);
    EXPECT_GT(failing_new::disarm(), 0u);

    EXPECT_EQ(arena.stats().used, 4 * bytes);
    for (const std::size_t i : {0u, 2u, 4u, 7u}) arena.release(extents[i]);
    EXPECT_EQ(arena.stats().used, 0u);
    const Extent whole = arena.allocate(8 * bytes);  // all of it is there, in one piece
    EXPECT_EQ(whole.offset, 0u);
    EXPECT_EQ(arena.stats().mapped, 8 * bytes);
    arena.release(whole);
}

}  // namespace
}  // namespace cpp_store
