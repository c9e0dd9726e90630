#include "durable/fields.hpp"

#include <cstdint>
#include <utility>

#include "durable/bytes.hpp"

namespace cpp_store::durable {

std::vector<std::byte> encode(const std::vector<TensorRecord>& tensors) {
    Writer out;
    out.u32(static_cast<std::uint32_t>(tensors.size()));
    for (const TensorRecord& tensor : tensors) {
        out.u8(static_cast<std::size_t>(tensor.spec.dtype));
        out.u8(tensor.spec.shape.size());
        for (const std::uint64_t extent : tensor.spec.shape) out.u64(extent);
        out.u64(tensor.offset);
        out.checksum(tensor.checksum);
    }
    return out.take();
}

std::vector<TensorRecord> decode_tensors(std::span<const std::byte> bytes) {
    Reader in(bytes);
    constexpr std::size_t least = 26;  // bytes of a tensor without dimensions
    std::vector<TensorRecord> tensors(in.count(least));
    std::uint64_t room = std::uint64_t{1} << 62;  // in bytes: no sum of them overflows
    for (TensorRecord& tensor : tensors) {
        const std::uint8_t dtype = in.u8();
        if (dtype >= dtype_count) Reader::malformed();
        tensor.spec.dtype = static_cast<DType>(dtype);
        tensor.spec.shape.resize(in.u8());
        for (std::uint64_t& extent : tensor.spec.shape) extent = in.u64();
        tensor.offset = in.u64();
        tensor.checksum = in.checksum();
        std::uint64_t nbytes = 0;
        try {
            nbytes = tensor.spec.nbytes();
        } catch (const Error&) {  // beyond all numbers
            Reader::malformed();
        }
        if (nbytes > room) Reader::malformed();
        room -= nbytes;
    }
    in.end();
    return tensors;
}

std::vector<std::byte> encode(const Checksum& checksum) {
    Writer out;
    out.checksum(checksum);
    return out.take();
}

std::vector<std::byte> encode(const LayerKey& key) {
    return encode(Checksum{key.high, key.low});
}

Checksum decode_checksum(std::span<const std::byte> bytes) {
    return Reader(bytes).checksum();
}

LayerKey decode_key(std::span<const std::byte> bytes) {
    const Checksum halves = decode_checksum(bytes);
    return {halves.high, halves.low};
}

}  // namespace cpp_store::durable
