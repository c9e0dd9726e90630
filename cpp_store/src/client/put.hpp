// A put's first message and its tensors, to one server.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "client/connection.hpp"
#include "cpp_store/store.hpp"

namespace cpp_store::client {

// `tensors` are the bytes of request.own, in order, and stay until the call is done.
[[nodiscard]] PendingCallPtr start_put(Connection& server, PutRequest request,
                                       std::span<const std::span<const std::byte>> tensors);

}  // namespace cpp_store::client
