// How messages are closed, where they have to be, so that who receives them knows who sent them.
#pragma once

#include <cstddef>
#include <span>

namespace cpp_store::net {

class Tagging {
  public:
    static constexpr std::size_t tag_size = 16;

    // A message about to be sent, with room for its tag at the end. May encrypt it.
    virtual void close(std::span<std::byte> message) = 0;

  protected:
    ~Tagging() = default;
};

}  // namespace cpp_store::net
