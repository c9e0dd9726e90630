// The small value types that every part of the store shares.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace cpp_store {

// 128 bits that identify a layer: XXH3-128 of its stable name. Layers of equal key have equal
// ancestors, configuration and weight shapes; that is the promise of whoever names them.
struct LayerKey {
    std::uint64_t high = 0;
    std::uint64_t low = 0;
    auto operator<=>(const LayerKey&) const = default;
};

[[nodiscard]] LayerKey layer_key(std::string_view name) noexcept;
[[nodiscard]] std::string hex(const LayerKey& key);

// XXH3-128 of a tensor's bytes.
struct Checksum {
    std::uint64_t high = 0;
    std::uint64_t low = 0;
    auto operator<=>(const Checksum&) const = default;
};

// Values are part of the wire format: append, never renumber.
enum class DType : std::uint8_t {
    boolean = 0,
    int8 = 1,
    uint8 = 2,
    int16 = 3,
    uint16 = 4,
    int32 = 5,
    uint32 = 6,
    int64 = 7,
    uint64 = 8,
    float16 = 9,
    bfloat16 = 10,
    float32 = 11,
    float64 = 12,
    float8_e4m3fn = 13,
    float8_e5m2 = 14,
    complex64 = 15,
    complex128 = 16,
};
inline constexpr std::size_t dtype_count = 17;

[[nodiscard]] std::size_t item_size(DType dtype) noexcept;
// The name that NumPy and ml_dtypes use: "float32", "bfloat16", "bool", ...
[[nodiscard]] std::string_view dtype_name(DType dtype) noexcept;
// Throws Errc::invalid_argument, naming the dtypes that are known.
[[nodiscard]] DType dtype_from_name(std::string_view name);

// Element type and C-order shape. A 0-d tensor has an empty shape and one element.
struct TensorSpec {
    DType dtype = DType::float32;
    std::vector<std::uint64_t> shape;
    bool operator==(const TensorSpec&) const = default;
    // Bytes of the tensor; throws Errc::invalid_argument where the product overflows 2^63.
    [[nodiscard]] std::uint64_t nbytes() const;
};

}  // namespace cpp_store

template <>
struct std::hash<cpp_store::LayerKey> {
    // The key is a hash already.
    std::size_t operator()(const cpp_store::LayerKey& key) const noexcept {
        return static_cast<std::size_t>(key.low);
    }
};
