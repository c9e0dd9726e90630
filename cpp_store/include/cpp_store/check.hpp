// Whether a data directory is what it should be: every checksum, every reference.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace cpp_store {

struct CheckReport {
    std::uint64_t models = 0;   // that can be found
    std::uint64_t retired = 0;  // that others inherit from
    std::uint64_t layers = 0;
    std::uint64_t bytes = 0;  // of their tensors
    std::uint64_t segments = 0;
    std::uint64_t dead_bytes = 0;  // in segments, of tensors that nobody needs
    // In sentences. Damage takes models with it; leaks take room, and go when a store opens the
    // directory: files that the catalogue does not know are moved to its folder `aside`.
    std::vector<std::string> damage;
    std::vector<std::string> leaks;
    std::vector<std::string> dropped;  // ids of models that `repair` dropped
};

// Reads all of it. With `repair`, removes leaks, and drops what cannot be read and the models that
// need it. Throws Errc::invalid_argument if it is no data directory, or is in use; Errc::storage if
// the catalogue cannot be read at all, or to open it would lose what is there.
[[nodiscard]] CheckReport check_directory(const std::filesystem::path& directory, bool repair);

}  // namespace cpp_store
