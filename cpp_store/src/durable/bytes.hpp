// Numbers and texts as bytes, little-endian, as they lie in the catalogue's blobs and in the log.
#pragma once

#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "cpp_store/error.hpp"
#include "cpp_store/types.hpp"

namespace cpp_store::durable {

static_assert(std::endian::native == std::endian::little, "the formats are little-endian");

class Writer {
  public:
    void u8(std::size_t value) { bytes_.push_back(static_cast<std::byte>(value)); }
    void u32(std::uint32_t value) { raw(std::as_bytes(std::span(&value, 1))); }
    void u64(std::uint64_t value) { raw(std::as_bytes(std::span(&value, 1))); }
    void f64(double value) { u64(std::bit_cast<std::uint64_t>(value)); }
    void checksum(const Checksum& value) {
        u64(value.high);
        u64(value.low);
    }
    void blob(std::span<const std::byte> bytes) {  // u64 length, then they
        u64(bytes.size());
        raw(bytes);
    }
    void text(std::string_view text) { blob(std::as_bytes(std::span(text))); }
    void raw(std::span<const std::byte> bytes) {
        if (bytes.empty()) return;
        const std::size_t at = bytes_.size();
        bytes_.resize(at + bytes.size());
        std::memcpy(bytes_.data() + at, bytes.data(), bytes.size());
    }

    [[nodiscard]] std::span<std::byte> data() noexcept { return bytes_; }
    [[nodiscard]] std::vector<std::byte> take() noexcept { return std::move(bytes_); }
    void clear() noexcept { bytes_.clear(); }  // and keeps its memory

  private:
    std::vector<std::byte> bytes_;
};

// Throws Errc::storage where there is less than is asked for.
class Reader {
  public:
    explicit Reader(std::span<const std::byte> bytes) : left_(bytes) {}

    std::uint8_t u8() { return number<std::uint8_t>(); }
    std::uint32_t u32() { return number<std::uint32_t>(); }
    std::uint64_t u64() { return number<std::uint64_t>(); }
    double f64() { return std::bit_cast<double>(u64()); }
    Checksum checksum() {
        const std::uint64_t high = u64();
        return {high, u64()};
    }
    std::span<const std::byte> blob() { return raw(u64()); }
    std::string text() {
        const std::span<const std::byte> bytes = blob();
        return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
    }
    std::span<const std::byte> raw(std::uint64_t size) {
        if (left_.size() < size) malformed();
        const std::span<const std::byte> bytes = left_.first(size);
        left_ = left_.subspan(size);
        return bytes;
    }
    // A number of items, each of at least so many bytes: no more than can be in the rest.
    std::uint32_t count(std::size_t item_bytes) {
        const std::uint32_t count = u32();
        if (count > left_.size() / item_bytes) malformed();
        return count;
    }
    void end() const {
        if (!left_.empty()) malformed();
    }

    [[noreturn]] static void malformed() {
        throw Error(Errc::storage, "the catalogue is damaged: a field is not what it should be");
    }

  private:
    template <std::unsigned_integral T>
    T number() {
        T value;
        std::memcpy(&value, raw(sizeof value).data(), sizeof value);
        return value;
    }
    std::span<const std::byte> left_;
};

}  // namespace cpp_store::durable
