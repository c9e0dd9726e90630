// The keys that servers share with their clients, as people keep them.
#pragma once

#include <string>

namespace cpp_store::security {

// The key in a file: one line. Throws Errc::invalid_argument, in one line, for a file that is not
// there, is a symbolic link, belongs to somebody else, can be used by others, or holds no key.
[[nodiscard]] std::string read_key_file(const std::string& path);

// A new key of 64 hexadecimal digits in a new file that only its owner can read. Throws
// Errc::invalid_argument if the file exists or cannot be made.
void make_key_file(const std::string& path);

// CPP_STORE_KEY, else the key in the file that CPP_STORE_KEY_FILE names, else an empty text. Throws
// like read_key_file(), and for a key of a few characters.
[[nodiscard]] std::string key_of_environment();

}  // namespace cpp_store::security
