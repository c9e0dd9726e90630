// What clients did to one model id at the same time, and whether one store could have done it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace cpp_store::replication {

struct Operation {
    enum class Kind : std::uint8_t { put, retire, read };
    Kind kind = Kind::read;
    std::int32_t value = 0;  // put: what; read: what was found, 0: nothing
    bool done = false;       // put, retire: that it was this call
    bool known = false;      // whether its caller heard what became of it
    std::uint64_t begun = 0;
    std::uint64_t ended = ~std::uint64_t{0};
};

// Whether there is an order of the operations that explains what they answered, in which none comes
// before one that had ended when it began; those of unknown outcome may be missing from it. At most
// 64. The search is that of Wing and Gong (JPDC 17, 1993) with Lowe's memory of what was tried; the
// same in Python, for real servers: tests/cpp_store/linearizability.py.
[[nodiscard]] bool is_linearizable(const std::vector<Operation>& operations);

[[nodiscard]] std::string describe(const std::vector<Operation>& operations);

}  // namespace cpp_store::replication
