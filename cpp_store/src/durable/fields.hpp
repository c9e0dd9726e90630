// The fields of the catalogue that are blobs, and records of models (docs/formats.md).
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "cpp_store/types.hpp"
#include "durable/bytes.hpp"
#include "durable/records.hpp"

namespace cpp_store::durable {

[[nodiscard]] std::vector<std::byte> encode(const std::vector<TensorRecord>& tensors);
[[nodiscard]] std::vector<std::byte> encode(const Checksum& checksum);
[[nodiscard]] std::vector<std::byte> encode(const LayerKey& key);

// Throw Errc::storage for what is none.
[[nodiscard]] std::vector<TensorRecord> decode_tensors(std::span<const std::byte> bytes);
[[nodiscard]] Checksum decode_checksum(std::span<const std::byte> bytes);
[[nodiscard]] LayerKey decode_key(std::span<const std::byte> bytes);

// A model's record, as it lies in segments. Throws Errc::storage for what is none.
void encode(Writer& out, const ModelRecord& model);
[[nodiscard]] ModelRecord decode_model(Reader& in);
[[nodiscard]] LayerPlace decode_place(Reader& in);

}  // namespace cpp_store::durable
