// libsodium, ready to be used.
#pragma once

namespace cpp_store::security {

// Throws Errc::internal if it has no random numbers. May be called again, from any thread.
void start_sodium();

}  // namespace cpp_store::security
