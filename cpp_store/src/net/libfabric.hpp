// libfabric, opened at run time: no program or module of ours links to it.
//
// A module that needed libfabric.so.1 at load time would bring in the system's copy, and an MPI
// wheel that bundles a newer one under the same name would then fail to load ("FABRIC_1.9 not
// found"). So: the copy that the process has already, else the one beside an MPI library of the
// same Python prefix (which `import mpi4py` would load later), else the system's.
#pragma once

#include <rdma/fabric.h>

#include <cstdint>
#include <string>
#include <vector>

namespace cpp_store::net {

// The few symbols that libfabric exports; everything else is inline in its headers. They are taken
// in the version that the headers of this build describe, so that structures have their layout
// whatever newer library answers.
struct Libfabric {
    std::string path;
    std::uint32_t version = 0;  // FI_VERSION(major, minor) of the library
    decltype(&::fi_getinfo) getinfo = nullptr;
    decltype(&::fi_freeinfo) freeinfo = nullptr;
    decltype(&::fi_dupinfo) dupinfo = nullptr;
    decltype(&::fi_fabric) fabric = nullptr;
    decltype(&::fi_strerror) strerror = nullptr;
};

// Opened at the first call. Throws Errc::connection, saying where it looked.
[[nodiscard]] const Libfabric& libfabric();

// "Connection refused" for a negative or positive error of libfabric.
[[nodiscard]] std::string error_text(long error);

}  // namespace cpp_store::net
