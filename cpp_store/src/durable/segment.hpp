// Segments: safetensors files of a data directory, each written once, with tensors of one or many
// models.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "durable/files.hpp"
#include "durable/records.hpp"

namespace cpp_store::durable {

// A tensor that is to be written; `record` is told where it went.
struct SegmentTensor {
    std::string name;
    const std::byte* data = nullptr;
    TensorRecord* record = nullptr;
};

[[nodiscard]] std::string segment_name(std::uint64_t serial);
// 0 if it is no name of a segment.
[[nodiscard]] std::uint64_t segment_serial(const std::string& name) noexcept;

// Writes and syncs a new file; the caller syncs the directory. Tensors are ordered by the size of
// their elements, largest first, so that each is aligned to them without a gap. Two tensors of one
// name get different ones. The records of the models that have the tensors go along, so that these
// can be found again without a catalogue. Throws Errc::storage, leaving a file that the caller
// removes.
void write_segment(const std::filesystem::path& path, std::vector<SegmentTensor> tensors,
                   std::span<const ModelRecord* const> models);

// The records that went along; layers of this segment say where in it they are. Throws
// Errc::storage for a file that has none, or is no segment.
[[nodiscard]] std::vector<ModelRecord> models_in(const File& file);

// How many bytes of tensors the header speaks of. Throws Errc::storage for a file whose header
// is not one, or that is shorter or longer than it says.
[[nodiscard]] std::uint64_t check_segment(const File& file);

}  // namespace cpp_store::durable
