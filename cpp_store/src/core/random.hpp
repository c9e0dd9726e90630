// Numbers that nobody can guess, and that nobody else has.
#pragma once

#include <sys/random.h>

#include <cstdint>

#include "cpp_store/error.hpp"

namespace cpp_store {

// Not 0.
[[nodiscard]] inline std::uint64_t random_number() {
    std::uint64_t number = 0;
    while (number == 0) {
        if (::getrandom(&number, sizeof number, 0) != sizeof number) {
            throw Error(Errc::internal, "no random numbers from the kernel");
        }
    }
    return number;
}

}  // namespace cpp_store
