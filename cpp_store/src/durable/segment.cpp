#include "durable/segment.hpp"

#include <algorithm>
#include <bit>
#include <charconv>
#include <cstring>
#include <set>
#include <string_view>

#include "cpp_store/error.hpp"

namespace cpp_store::durable {
namespace {

constexpr std::size_t data_alignment = 64;
constexpr std::string_view extension = ".safetensors";
constexpr std::uint64_t longest_header = std::uint64_t{100'000'000};  // as the format has it

static_assert(std::endian::native == std::endian::little, "safetensors files are little-endian");

// As the format calls it. complex128, which it lacks, is float64 with a last axis of two.
std::string_view format_dtype(DType dtype) {
    switch (dtype) {
        case DType::boolean:
            return "BOOL";
        case DType::int8:
            return "I8";
        case DType::uint8:
            return "U8";
        case DType::int16:
            return "I16";
        case DType::uint16:
            return "U16";
        case DType::int32:
            return "I32";
        case DType::uint32:
            return "U32";
        case DType::int64:
            return "I64";
        case DType::uint64:
            return "U64";
        case DType::float16:
            return "F16";
        case DType::bfloat16:
            return "BF16";
        case DType::float32:
            return "F32";
        case DType::float64:
        case DType::complex128:
            return "F64";
        case DType::float8_e4m3fn:
            return "F8_E4M3";
        case DType::float8_e5m2:
            return "F8_E5M2";
        case DType::complex64:
            return "C64";
    }
    throw Error(Errc::internal, "a dtype without a name in safetensors");
}

// Bytes of a sequence in UTF-8 that begins here; 0 if none does.
std::size_t utf8_length(std::string_view text) {
    const auto lead = static_cast<unsigned char>(text[0]);
    const std::size_t length = lead < 0x80                   ? 1
                               : lead >= 0xc2 && lead < 0xe0 ? 2
                               : lead >= 0xe0 && lead < 0xf0 ? 3
                               : lead >= 0xf0 && lead < 0xf5 ? 4
                                                             : 0;
    if (length == 0 || text.size() < length) return 0;
    for (std::size_t i = 1; i < length; ++i) {
        if ((static_cast<unsigned char>(text[i]) & 0xc0) != 0x80) return 0;
    }
    if (length >= 3) {
        const auto next = static_cast<unsigned char>(text[1]);
        if ((lead == 0xe0 && next < 0xa0) || (lead == 0xed && next >= 0xa0) ||
            (lead == 0xf0 && next < 0x90) || (lead == 0xf4 && next >= 0x90)) {
            return 0;
        }
    }
    return length;
}

// Ids may be any bytes, JSON may not: what is no UTF-8 becomes U+FFFD.
void append_json(std::string& out, std::string_view text) {
    static constexpr std::string_view hex = "0123456789abcdef";
    out += '"';
    while (!text.empty()) {
        const char c = text[0];
        const std::size_t length = utf8_length(text);
        if (length == 0) {
            out += "\\ufffd";
        } else if (c == '"' || c == '\\') {
            out += '\\';
            out += c;
        } else if (static_cast<unsigned char>(c) < 0x20) {
            out += "\\u00";
            out += hex[static_cast<unsigned char>(c) >> 4];
            out += hex[static_cast<unsigned char>(c) & 15];
        } else {
            out += text.substr(0, length);
        }
        text.remove_prefix(std::max<std::size_t>(length, 1));
    }
    out += '"';
}

std::string header_of(const std::vector<SegmentTensor>& tensors) {
    std::string header = R"({"__metadata__":{"format":"cpp_store segment 1"})";
    std::set<std::string> names;
    std::uint64_t offset = 0;
    for (const SegmentTensor& tensor : tensors) {
        const TensorSpec& spec = tensor.record->spec;
        std::string name;
        append_json(name, tensor.name);
        while (!names.insert(name).second) name.insert(name.size() - 1, 1, '\'');
        header += ',' + name;
        header += R"(:{"dtype":")";
        header += format_dtype(spec.dtype);
        header += R"(","shape":[)";
        bool is_first = true;
        const auto add_extent = [&](std::uint64_t extent) {
            if (!is_first) header += ',';
            is_first = false;
            header += std::to_string(extent);
        };
        for (const std::uint64_t extent : spec.shape) add_extent(extent);
        if (spec.dtype == DType::complex128) add_extent(2);
        header += R"(],"data_offsets":[)" + std::to_string(offset);
        offset += spec.nbytes();
        header += ',' + std::to_string(offset) + "]}";
    }
    header += '}';
    header.append((data_alignment - (8 + header.size()) % data_alignment) % data_alignment, ' ');
    return header;
}

}  // namespace

std::string segment_name(std::uint64_t serial) {
    std::string digits = std::to_string(serial);
    return std::string(12 - std::min<std::size_t>(12, digits.size()), '0') + digits +
           std::string(extension);
}

std::uint64_t segment_serial(const std::string& name) noexcept {
    std::uint64_t serial = 0;
    if (!name.ends_with(extension)) return 0;
    const char* const end = name.data() + name.size() - extension.size();
    const auto parsed = std::from_chars(name.data(), end, serial);
    return parsed.ec == std::errc() && parsed.ptr == end ? serial : 0;
}

void write_segment(const std::filesystem::path& path, std::vector<SegmentTensor> tensors) {
    std::stable_sort(tensors.begin(), tensors.end(),
                     [](const SegmentTensor& a, const SegmentTensor& b) {
                         return item_size(a.record->spec.dtype) > item_size(b.record->spec.dtype);
                     });
    std::string header = header_of(tensors);
    if (header.size() > longest_header) {
        throw Error(Errc::storage,
                    "too many tensors for one segment: " + std::to_string(tensors.size()));
    }
    std::uint64_t length = header.size();
    std::vector<iovec> pieces{{&length, sizeof length}, {header.data(), header.size()}};
    pieces.reserve(2 + tensors.size());
    std::uint64_t offset = sizeof length + header.size();
    for (const SegmentTensor& tensor : tensors) {
        const std::uint64_t bytes = tensor.record->spec.nbytes();
        tensor.record->offset = offset;
        offset += bytes;
        if (bytes > 0) pieces.push_back({const_cast<std::byte*>(tensor.data), bytes});
    }
    File file(path, File::Mode::create);
    file.append(std::move(pieces));
    file.sync();
}

std::uint64_t check_segment(const File& file) {
    const std::uint64_t size = file.size();
    std::uint64_t length = 0;
    const auto refuse = [&](const char* what) {
        throw Error(Errc::storage, file.path().string() + " " + what);
    };
    if (size < sizeof length) refuse("ends early");
    file.read(std::as_writable_bytes(std::span(&length, 1)), 0);
    if (length > longest_header || length > size - sizeof length) refuse("ends early");
    return size - sizeof length - length;
}

}  // namespace cpp_store::durable
