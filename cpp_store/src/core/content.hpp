// What makes two models the same: a checksum of all that a put says and brings but the time.
#pragma once

#include <span>

#include "cpp_store/store.hpp"

namespace cpp_store {

// Of all that a put says but the tensors' bytes and the time.
[[nodiscard]] Checksum description_of(const PutRequest& request);
// With the tensors' checksums, in the order of request.own.
[[nodiscard]] Checksum content_of(const Checksum& description, std::span<const Checksum> tensors);

}  // namespace cpp_store
