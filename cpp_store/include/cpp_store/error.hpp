// One exception for everything that the store reports; the code says which Python class it becomes.
#pragma once

#include <cstddef>
#include <stdexcept>
#include <string>

namespace cpp_store {

enum class Errc : unsigned char {
    invalid_argument = 1,  // what the caller passed cannot be right, whatever the store holds
    not_found = 2,         // no such model, layer or lease
    already_exists = 3,    // a model of that id with other content
    out_of_memory = 4,     // the limit would be exceeded; names need, limit and use
    connection = 5,        // a server cannot be reached or is gone; names its address
    deadline = 6,          // a call took longer than it may
    protocol = 7,          // the peer speaks another version, or garbage
    internal = 8,          // a bug of ours
    permission = 9,        // the key is wrong or missing, at one end
    busy = 10,             // more than a server lets one client do; later it will
    storage = 11,          // a data directory cannot be read or written; names it and the cause
};
inline constexpr std::size_t errc_count = 12;  // 0 is none

// Messages say what was expected, what was found and, where it helps, what to do.
class Error : public std::runtime_error {
  public:
    Error(Errc code, const std::string& message) : std::runtime_error(message), code_(code) {}
    [[nodiscard]] Errc code() const noexcept { return code_; }

  private:
    Errc code_;
};

}  // namespace cpp_store
