#include "durable/fields.hpp"

#include <cstdint>
#include <cstring>
#include <utility>

#include "cpp_store/error.hpp"

namespace cpp_store::durable {
namespace {

class Writer {
  public:
    void u8(std::size_t value) { bytes_.push_back(static_cast<std::byte>(value)); }
    void u32(std::uint32_t value) { raw(&value, sizeof value); }
    void u64(std::uint64_t value) { raw(&value, sizeof value); }
    [[nodiscard]] std::vector<std::byte> take() noexcept { return std::move(bytes_); }

  private:
    void raw(const void* from, std::size_t size) {
        const std::size_t at = bytes_.size();
        bytes_.resize(at + size);
        std::memcpy(bytes_.data() + at, from, size);
    }
    std::vector<std::byte> bytes_;
};

class Reader {
  public:
    explicit Reader(std::span<const std::byte> bytes) : left_(bytes) {}
    std::uint8_t u8() { return take<std::uint8_t>(); }
    std::uint32_t u32() { return take<std::uint32_t>(); }
    std::uint64_t u64() { return take<std::uint64_t>(); }
    Checksum checksum() {
        const std::uint64_t high = u64();
        return {high, u64()};
    }
    [[nodiscard]] std::size_t left() const noexcept { return left_.size(); }

    [[noreturn]] static void malformed() {
        throw Error(Errc::storage, "the catalogue is damaged: a field is not what it should be");
    }

  private:
    template <typename T>
    T take() {
        if (left_.size() < sizeof(T)) malformed();
        T value;
        std::memcpy(&value, left_.data(), sizeof value);
        left_ = left_.subspan(sizeof value);
        return value;
    }
    std::span<const std::byte> left_;
};

}  // namespace

std::vector<std::byte> encode(const std::vector<TensorRecord>& tensors) {
    Writer out;
    out.u32(static_cast<std::uint32_t>(tensors.size()));
    for (const TensorRecord& tensor : tensors) {
        out.u8(static_cast<std::size_t>(tensor.spec.dtype));
        out.u8(tensor.spec.shape.size());
        for (const std::uint64_t extent : tensor.spec.shape) out.u64(extent);
        out.u64(tensor.offset);
        out.u64(tensor.checksum.high);
        out.u64(tensor.checksum.low);
    }
    return out.take();
}

std::vector<TensorRecord> decode_tensors(std::span<const std::byte> bytes) {
    Reader in(bytes);
    const std::uint32_t count = in.u32();
    constexpr std::size_t least = 26;  // bytes of a tensor without dimensions
    if (count > in.left() / least) Reader::malformed();
    std::vector<TensorRecord> tensors(count);
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
    if (in.left() != 0) Reader::malformed();
    return tensors;
}

std::vector<std::byte> encode(const Checksum& checksum) {
    Writer out;
    out.u64(checksum.high);
    out.u64(checksum.low);
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
