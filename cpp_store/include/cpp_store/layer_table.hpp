// What the index and the store know of a model's layer graph: names, requirements and sizes.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "cpp_store/types.hpp"

namespace cpp_store {

// The layers of one model in topological order. Immutable once made, so it is shared freely.
//
// `requires_of(i)` are the layers without which layer i cannot be part of a prefix: its inputs
// (for most graphs exactly these). A prefix is closed under `requires_of`. Layers of equal key must
// have requirements of equal keys in every model; the prefix index relies on it.
class LayerTable {
  public:
    struct Layer {
        std::string name;                      // unique in the model
        std::vector<std::uint32_t> requires_;  // positions, each smaller than the layer's own
        std::uint64_t nbytes = 0;              // bytes of its weights
    };

    // Throws Errc::invalid_argument, naming the layer: a name that is empty, longer than 65,535
    // bytes, not UTF-8 or repeated; a requirement at or after the layer itself (a cycle, or not
    // sorted) or not in the table at all; more than 2^63 bytes of weights in all.
    explicit LayerTable(std::vector<Layer> layers);

    [[nodiscard]] std::size_t size() const noexcept { return keys_.size(); }
    [[nodiscard]] std::span<const LayerKey> keys() const noexcept { return keys_; }
    [[nodiscard]] const LayerKey& key(std::size_t layer) const noexcept { return keys_[layer]; }
    [[nodiscard]] std::string_view name(std::size_t layer) const noexcept;
    [[nodiscard]] std::span<const std::uint32_t> requires_of(std::size_t layer) const noexcept;
    [[nodiscard]] std::uint64_t nbytes(std::size_t layer) const noexcept { return nbytes_[layer]; }
    [[nodiscard]] std::uint64_t total_nbytes() const noexcept { return total_nbytes_; }
    // Position of the layer of that key, or size() if there is none. Constant time.
    [[nodiscard]] std::size_t find(const LayerKey& key) const noexcept;
    bool operator==(const LayerTable&) const;

    // Flat, versioned bytes (docs/formats.md), as they travel over the wire and over MPI.
    [[nodiscard]] std::vector<std::byte> encode() const;
    // Throws Errc::protocol for anything that encode() did not write. Never trusts a length.
    [[nodiscard]] static LayerTable decode(std::span<const std::byte> bytes);

  private:
    LayerTable() = default;
    // Checks everything that the constructor promises; fills in what follows from names and sizes.
    void complete();

    std::vector<LayerKey> keys_;
    std::vector<std::uint32_t> name_ends_;  // names_ is one string: no allocation per layer
    std::string names_;
    std::vector<std::uint32_t> requires_ends_;
    std::vector<std::uint32_t> requires_;
    std::vector<std::uint64_t> nbytes_;
    std::uint64_t total_nbytes_ = 0;
    std::vector<std::uint32_t> slots_;  // open addressing by key: position + 1, or 0 for none
};

using LayerTablePtr = std::shared_ptr<const LayerTable>;

}  // namespace cpp_store
