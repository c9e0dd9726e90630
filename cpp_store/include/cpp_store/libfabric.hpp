// Where the network library comes from.
#pragma once

#include <string>
#include <vector>

namespace cpp_store {

// libfabric is opened when the first server or client is made: the copy that the process has
// already, else the one of an MPI wheel below one of these prefixes (such as Python's sys.prefix)
// or below the program's own, else the system's. CPP_STORE_LIBFABRIC overrules all of it.
// Thread-safe; later calls than that moment have no effect.
void add_library_prefixes(std::vector<std::string> prefixes);

}  // namespace cpp_store
