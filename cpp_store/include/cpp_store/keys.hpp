// The keys that servers share with their clients, as people keep them.
#pragma once

#include <string>
#include <vector>

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

// Where nobody gave a key: every user has one for each host, which keeps other users of the host
// out. It is in $XDG_RUNTIME_DIR/cpp_store/key if that directory is the user's alone, else in
// /tmp/cpp_store-<uid>/key. Only addresses that no other host reaches use it: other hosts do not
// have it.

// What a server at the address shall want: the key of the environment, else the user's, which is
// made if there is none yet (servers that start at once get the same); empty if the address is not
// of this host only. Throws Errc::invalid_argument, in one line, if the directory is not the user's
// alone.
[[nodiscard]] std::string default_server_key(const std::string& address);

// What a client of the addresses shall give: the key of the environment, else the user's if there
// is one and all addresses are of this host only, else an empty text. Throws as
// default_server_key().
[[nodiscard]] std::string default_client_key(const std::vector<std::string>& addresses);

}  // namespace cpp_store::security
