// An operator new that fails when a test says so.
#pragma once

#include <cstdint>

namespace cpp_store::failing_new {

// Which allocations count, and how many of them fail.
enum class Where : std::uint8_t {
    here,      // of this thread
    elsewhere  // of all other threads
};
enum class Which : std::uint8_t {
    one,  // as where another process takes what there is for a moment
    rest  // as where nothing is left
};

// From now on the `number`-th allocation fails (the first is 1), or it and all that follow.
void arm(Where where, Which which, std::uint64_t number) noexcept;
// No more. Returns how many have failed.
std::uint64_t disarm() noexcept;

}  // namespace cpp_store::failing_new
