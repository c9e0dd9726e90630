// Named places where a test makes the next step fail, or the process die. Compiled in by the CMake
// option CPP_STORE_FAILPOINTS; without it a failpoint is nothing at all.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace cpp_store::failpoints {

#ifdef CPP_STORE_FAILPOINTS

// What a system call is to do that stands behind a failpoint.
struct Outcome {
    int error = 0;          // errno to fail with; 0: none
    bool is_short = false;  // of a write: take half of the bytes only
};

// Counts a visit. Kills the process where that is what is armed. Thread-safe.
Outcome visit(std::string_view name);

// "name:nth:action[,...]": at the nth visit from now on (from 1) do what the action says: kill,
// enospc, eio, emfile, enfile, enomem or short. Name `*` counts the visits of all failpoints
// together; nth `*` is every visit. Empty: disarm. Throws Errc::invalid_argument. At first, what
// the environment variable CPP_STORE_FAILPOINTS says is armed.
void arm(std::string_view what);

// Visits since the last arm(), by name.
struct Visits {
    std::string name;
    std::uint64_t count = 0;
};
[[nodiscard]] std::vector<Visits> visits();

#else

struct Outcome {
    static constexpr int error = 0;
    static constexpr bool is_short = false;
};
inline constexpr Outcome visit(std::string_view) noexcept {
    return {};
}

#endif

}  // namespace cpp_store::failpoints
