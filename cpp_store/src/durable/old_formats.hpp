// Data directories of formats 1 to 3, which are made directories of today's format as they are
// opened. What they had besides: `packets`, the tensors of small puts by model; and, format 3, the
// files log.0 and log.1, in which a store that did not end cleanly has what its catalogue lacks.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>

#include "durable/catalogue.hpp"

namespace cpp_store::durable {

class OldFormat {
  public:
    OldFormat(Catalogue& catalogue, std::filesystem::path directory)
        : catalogue_(catalogue), directory_(std::move(directory)) {}

    // Within a transaction. Throws Errc::storage if the log is damaged.
    void convert(std::uint64_t format);

  private:
    void split_packets();
    void replay_log();
    void replay(std::span<const std::byte> entry);

    Catalogue& catalogue_;
    std::filesystem::path directory_;
};

// Of which the catalogue has everything.
void remove_old_log(const std::filesystem::path& directory) noexcept;

}  // namespace cpp_store::durable
