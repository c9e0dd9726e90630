#include "durable/segment.hpp"

#include <algorithm>
#include <bit>
#include <charconv>
#include <cstring>
#include <set>
#include <string_view>

#include "core/checksum.hpp"
#include "cpp_store/error.hpp"
#include "durable/fields.hpp"

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

// How a header begins; then, in hexadecimal digits, the checksum of the records and they, and a
// quotation mark.
constexpr std::string_view beginning =
    R"({"__metadata__":{"format":"cpp_store segment 2","models":")";
constexpr std::string_view digits = "0123456789abcdef";

std::string records_of(std::span<const ModelRecord* const> models) {
    Writer records;
    records.u32(static_cast<std::uint32_t>(models.size()));
    for (const ModelRecord* const model : models) encode(records, *model);
    Writer whole;
    whole.checksum(checksum_of(records.data().data(), records.data().size()));
    whole.raw(records.data());
    std::string text;
    text.reserve(2 * whole.data().size());
    for (const std::byte each : whole.data()) {
        text += digits[std::to_integer<std::size_t>(each) >> 4];
        text += digits[std::to_integer<std::size_t>(each) & 15];
    }
    return text;
}

std::string header_of(const std::vector<SegmentTensor>& tensors,
                      std::span<const ModelRecord* const> models) {
    std::string header = std::string(beginning) + records_of(models) + R"("})";
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

void write_segment(const std::filesystem::path& path, std::vector<SegmentTensor> tensors,
                   std::span<const ModelRecord* const> models) {
    std::stable_sort(tensors.begin(), tensors.end(),
                     [](const SegmentTensor& a, const SegmentTensor& b) {
                         return item_size(a.record->spec.dtype) > item_size(b.record->spec.dtype);
                     });
    std::uint64_t offset = 0;  // from the end of the header, as the records have it
    for (const SegmentTensor& tensor : tensors) {
        tensor.record->offset = offset;
        offset += tensor.record->spec.nbytes();
    }
    std::string header = header_of(tensors, models);
    if (header.size() > longest_header) {
        throw Error(Errc::storage,
                    "too many tensors for one segment: " + std::to_string(tensors.size()));
    }
    std::uint64_t length = header.size();
    std::vector<iovec> pieces{{&length, sizeof length}, {header.data(), header.size()}};
    pieces.reserve(2 + tensors.size());
    for (const SegmentTensor& tensor : tensors) {
        const std::uint64_t bytes = tensor.record->spec.nbytes();
        tensor.record->offset += sizeof length + header.size();
        if (bytes > 0) pieces.push_back({const_cast<std::byte*>(tensor.data), bytes});
    }
    File file(path, File::Mode::create);
    file.append(std::move(pieces));
    file.sync();
}

namespace {

[[noreturn]] void refuse(const File& file, const char* what) {
    throw Error(Errc::storage, file.path().string() + " " + what);
}

std::uint64_t header_bytes(const File& file) {
    const std::uint64_t size = file.size();
    std::uint64_t length = 0;
    if (size < sizeof length) refuse(file, "ends early");
    file.read(std::as_writable_bytes(std::span(&length, 1)), 0);
    if (length > longest_header || length > size - sizeof length) refuse(file, "ends early");
    return length;
}

}  // namespace

std::vector<ModelRecord> models_in(const File& file) {
    const std::uint64_t length = header_bytes(file);
    const std::vector<std::byte> bytes = file.read(sizeof length, length);
    std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    if (!text.starts_with(beginning)) refuse(file, "says nothing of models");
    text.remove_prefix(beginning.size());
    text = text.substr(0, text.find('"'));
    std::vector<std::byte> whole;
    for (std::size_t i = 0; i + 1 < text.size(); i += 2) {
        const std::size_t high = digits.find(text[i]);
        const std::size_t low = digits.find(text[i + 1]);
        if (std::max(high, low) >= digits.size()) refuse(file, "has damaged records of models");
        whole.push_back(static_cast<std::byte>(high << 4 | low));
    }
    Reader in(whole);
    const Checksum expected = in.checksum();
    const auto records = std::span(whole).subspan(sizeof expected);
    if (checksum_of(records.data(), records.size()) != expected) {
        refuse(file, "has damaged records of models");
    }
    constexpr std::size_t least_model = 100;  // bytes
    std::vector<ModelRecord> models;
    for (std::uint32_t left = in.count(least_model); left > 0; --left) {
        models.push_back(decode_model(in));
    }
    in.end();
    const std::uint64_t serial = segment_serial(file.path().filename().string());
    for (ModelRecord& model : models) {
        for (LayerRecord& layer : model.layers) {
            if (layer.segment != serial) continue;
            for (TensorRecord& tensor : layer.tensors) tensor.offset += sizeof length + length;
        }
    }
    return models;
}

std::uint64_t check_segment(const File& file) {
    return file.size() - sizeof(std::uint64_t) - header_bytes(file);
}

}  // namespace cpp_store::durable
