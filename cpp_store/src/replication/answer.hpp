// A server's answers to requests of the protocol, for whoever carries them.
#pragma once

#include "replication/replica.hpp"

namespace cpp_store::replication {

// Does what a request asks for; what the store throws becomes the answer's error. Tensors are those
// of the store, pinned.
[[nodiscard]] Answer answer(Replica& replica, const Request& request);

}  // namespace cpp_store::replication
