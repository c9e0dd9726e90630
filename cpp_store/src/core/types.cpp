#include "cpp_store/types.hpp"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <array>
#include <limits>

#include "cpp_store/error.hpp"

namespace cpp_store {

namespace {

struct DTypeInfo {
    std::string_view name;
    std::size_t size;
};

// By value of DType.
constexpr std::array<DTypeInfo, dtype_count> dtypes{{
    {"bool", 1},
    {"int8", 1},
    {"uint8", 1},
    {"int16", 2},
    {"uint16", 2},
    {"int32", 4},
    {"uint32", 4},
    {"int64", 8},
    {"uint64", 8},
    {"float16", 2},
    {"bfloat16", 2},
    {"float32", 4},
    {"float64", 8},
    {"float8_e4m3fn", 1},
    {"float8_e5m2", 1},
    {"complex64", 8},
    {"complex128", 16},
}};

const DTypeInfo& info(DType dtype) noexcept {
    return dtypes[static_cast<std::size_t>(dtype)];
}

}  // namespace

LayerKey layer_key(std::string_view name) noexcept {
    const XXH128_hash_t hash = XXH3_128bits(name.data(), name.size());
    return {hash.high64, hash.low64};
}

std::string hex(const LayerKey& key) {
    static constexpr std::string_view digits = "0123456789abcdef";
    std::string out;
    for (const std::uint64_t half : {key.high, key.low}) {
        for (int shift = 60; shift >= 0; shift -= 4) out += digits[(half >> shift) & 15];
    }
    return out;
}

std::size_t item_size(DType dtype) noexcept {
    return info(dtype).size;
}

std::string_view dtype_name(DType dtype) noexcept {
    return info(dtype).name;
}

DType dtype_from_name(std::string_view name) {
    for (std::size_t i = 0; i < dtypes.size(); ++i) {
        if (dtypes[i].name == name) return static_cast<DType>(i);
    }
    std::string message = "unknown dtype '" + std::string(name) + "'; known are ";
    for (std::size_t i = 0; i < dtypes.size(); ++i) {
        if (i != 0) message += ", ";
        message += dtypes[i].name;
    }
    throw Error(Errc::invalid_argument, message);
}

std::uint64_t TensorSpec::nbytes() const {
    constexpr std::uint64_t limit = std::numeric_limits<std::int64_t>::max();
    // A zero anywhere makes the tensor empty, however large the other dimensions are.
    for (const std::uint64_t extent : shape) {
        if (extent == 0) return 0;
    }
    std::uint64_t bytes = item_size(dtype);
    for (const std::uint64_t extent : shape) {
        if (extent > limit / bytes) {
            std::string text;
            for (const std::uint64_t each : shape) {
                text += (text.empty() ? "" : ", ") + std::to_string(each);
            }
            throw Error(Errc::invalid_argument, "a tensor of shape (" + text + ") and dtype " +
                                                    std::string(dtype_name(dtype)) +
                                                    " would take more than 2^63 bytes");
        }
        bytes *= extent;
    }
    return bytes;
}

}  // namespace cpp_store
