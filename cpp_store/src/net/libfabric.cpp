#include "net/libfabric.hpp"

#include <dlfcn.h>
#include <link.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <mutex>
#include <optional>
#include <string_view>

#include "cpp_store/error.hpp"
#include "cpp_store/libfabric.hpp"

namespace cpp_store::net {
namespace {

namespace fs = std::filesystem;

std::mutex prefixes_mutex;
std::vector<std::string> extra_prefixes;

// Wheels may rename what they bundle: libfabric-1a2b3c4d.so.1.30.0.
bool is_libfabric(const fs::path& path) {
    const std::string name = path.filename().string();
    return name.starts_with("libfabric") && name.find(".so") != std::string::npos;
}

std::optional<std::string> already_loaded() {
    std::optional<std::string> found;
    dl_iterate_phdr(
        [](dl_phdr_info* info, std::size_t, void* data) {
            if (info->dlpi_name == nullptr || !is_libfabric(info->dlpi_name)) return 0;
            *static_cast<std::optional<std::string>*>(data) = info->dlpi_name;
            return 1;
        },
        &found);
    return found;
}

// The folders of an MPI wheel below `prefix`: lib/mpich, lib/python3.*/site-packages/mpich.libs,
// ...
void add_wheel_folders(const fs::path& prefix, std::vector<fs::path>& folders) {
    std::error_code ignored;
    const fs::path lib = prefix / "lib";
    for (const char* name : {"mpich", "openmpi", ""}) folders.push_back(lib / name);
    for (const auto& entry : fs::directory_iterator(lib, ignored)) {
        if (!entry.path().filename().string().starts_with("python")) continue;
        for (const char* name : {"mpich.libs", "openmpi.libs", "mpi4py.libs"}) {
            folders.push_back(entry.path() / "site-packages" / name);
        }
    }
}

std::vector<fs::path> folders_beside_mpi() {
    std::vector<fs::path> folders;
    {
        const std::scoped_lock lock(prefixes_mutex);
        for (const std::string& prefix : extra_prefixes) add_wheel_folders(prefix, folders);
    }
    // <prefix>/bin/cpp-store-server or <prefix>/lib/python3.11/site-packages/cpp_store/_core.so
    Dl_info self{};
    std::error_code ignored;
    if (dladdr(reinterpret_cast<const void*>(&is_libfabric), &self) != 0 && self.dli_fname) {
        fs::path path = fs::canonical(self.dli_fname, ignored).parent_path();
        for (int up = 0; up < 4 && path.has_relative_path(); ++up) {
            path = path.parent_path();
            if (fs::exists(path / "pyvenv.cfg", ignored) || fs::exists(path / "lib", ignored)) {
                add_wheel_folders(path, folders);
            }
        }
    }
    return folders;
}

std::optional<std::string> beside_mpi() {
    std::error_code ignored;
    for (const fs::path& folder : folders_beside_mpi()) {
        std::vector<std::string> found;
        for (const auto& entry : fs::directory_iterator(folder, ignored)) {
            if (is_libfabric(entry.path()) && !entry.is_directory(ignored)) {
                found.push_back(entry.path().string());
            }
        }
        if (!found.empty()) return *std::min_element(found.begin(), found.end());
    }
    return std::nullopt;
}

// Structures only grew since, and the versioned symbol translates; a build against newer headers
// takes the library's default, which open_library() checks to be no older than the headers.
constexpr const char* info_version =
    FI_VERSION_LT(FI_VERSION(FI_MAJOR_VERSION, FI_MINOR_VERSION), FI_VERSION(1, 18)) ? "FABRIC_1.3"
                                                                                     : nullptr;

template <typename Function>
void resolve(void* handle, const std::string& path, const char* name, const char* version,
             Function& function) {
    void* symbol = version ? dlvsym(handle, name, version) : dlsym(handle, name);
    if (symbol == nullptr) {
        throw Error(Errc::connection, path + " is not a usable libfabric: no symbol " + name +
                                          (version ? std::string("@") + version : ""));
    }
    function = reinterpret_cast<Function>(symbol);
}

Libfabric open_library() {
    Libfabric library;
    std::vector<std::string> candidates;
    if (const char* chosen = std::getenv("CPP_STORE_LIBFABRIC")) {
        candidates = {chosen};
    } else if (auto loaded = already_loaded()) {
        candidates = {*loaded};
    } else {
        if (auto beside = beside_mpi()) candidates.push_back(*beside);
        candidates.emplace_back("libfabric.so.1");
    }
    std::string problems;
    void* handle = nullptr;
    for (const std::string& path : candidates) {
        handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
        if (handle != nullptr) {
            library.path = path;
            break;
        }
        problems += std::string(problems.empty() ? "" : "; ") + dlerror();
    }
    if (handle == nullptr) {
        throw Error(Errc::connection, "libfabric cannot be opened: " + problems +
                                          "; install libfabric1 (Debian) or an MPI wheel");
    }
    decltype(&::fi_version) version = nullptr;
    resolve(handle, library.path, "fi_version", nullptr, version);
    library.version = version();
    if (FI_VERSION_LT(library.version, FI_VERSION(FI_MAJOR_VERSION, FI_MINOR_VERSION))) {
        throw Error(Errc::connection,
                    library.path + " is libfabric " + std::to_string(FI_MAJOR(library.version)) +
                        "." + std::to_string(FI_MINOR(library.version)) +
                        ", older than the headers of this build (" +
                        std::to_string(FI_MAJOR_VERSION) + "." + std::to_string(FI_MINOR_VERSION) +
                        "); set CPP_STORE_LIBFABRIC to a newer one");
    }
    resolve(handle, library.path, "fi_getinfo", info_version, library.getinfo);
    resolve(handle, library.path, "fi_freeinfo", info_version, library.freeinfo);
    resolve(handle, library.path, "fi_dupinfo", info_version, library.dupinfo);
    resolve(handle, library.path, "fi_fabric", info_version ? "FABRIC_1.1" : nullptr,
            library.fabric);
    resolve(handle, library.path, "fi_strerror", nullptr, library.strerror);
    return library;  // never closed: libfabric keeps threads and handlers of its own
}

}  // namespace

const Libfabric& libfabric() {
    static const Libfabric library = open_library();
    return library;
}

std::string error_text(long error) {
    return libfabric().strerror(static_cast<int>(error < 0 ? -error : error));
}

}  // namespace cpp_store::net

namespace cpp_store {

void add_library_prefixes(std::vector<std::string> prefixes) {
    const std::scoped_lock lock(net::prefixes_mutex);
    for (std::string& prefix : prefixes) net::extra_prefixes.push_back(std::move(prefix));
}

}  // namespace cpp_store
