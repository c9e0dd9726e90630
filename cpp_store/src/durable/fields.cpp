#include "durable/fields.hpp"

#include <cstdint>
#include <utility>

#include "durable/bytes.hpp"

namespace cpp_store::durable {
namespace {

void encode(Writer& out, const LayerPlace& place) {
    out.u64(place.model);
    out.u32(place.position);
}

LayerRecord decode_layer(Reader& in, std::uint64_t owner) {
    LayerRecord layer;
    layer.position = in.u32();
    layer.segment = in.u64();
    layer.owner = owner;
    if (in.u8() != 0) {
        const Checksum halves = in.checksum();
        layer.key = {halves.high, halves.low};
    }
    layer.tensors = decode_tensors(in.blob());
    return layer;
}

InheritedRecord decode_inherited(Reader& in) {
    InheritedRecord inherited;
    inherited.position = in.u32();
    const LayerPlace owner = decode_place(in);
    inherited.owner = owner.model;
    inherited.owner_position = owner.position;
    inherited.foreign_owner = in.text();
    inherited.nbytes = in.u64();
    return inherited;
}

}  // namespace

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

LayerPlace decode_place(Reader& in) {
    const std::uint64_t model = in.u64();
    return {model, in.u32()};
}

void encode(Writer& out, const ModelRecord& model) {
    out.u64(model.serial);
    out.text(model.id);
    out.text(model.owner);
    out.text(model.ns);
    out.blob(model.table->encode());
    out.f64(model.score);
    out.text(model.parent);
    out.text(model.graph);
    out.text(model.metadata);
    out.u64(model.created_ns);
    out.checksum(model.description);
    out.checksum(model.content);
    out.u8(model.retired);
    out.text(model.holder);
    out.u32(static_cast<std::uint32_t>(model.layers.size()));
    for (const LayerRecord& layer : model.layers) {
        out.u32(layer.position);
        out.u64(layer.segment);
        out.u8(layer.key.has_value());
        if (layer.key) out.checksum({layer.key->high, layer.key->low});
        out.blob(encode(layer.tensors));
    }
    out.u32(static_cast<std::uint32_t>(model.inherited.size()));
    for (const InheritedRecord& inherited : model.inherited) {
        out.u32(inherited.position);
        encode(out, LayerPlace{inherited.owner, inherited.owner_position});
        out.text(inherited.foreign_owner);
        out.u64(inherited.nbytes);
    }
}

ModelRecord decode_model(Reader& in) {
    ModelRecord model;
    model.serial = in.u64();
    model.id = in.text();
    model.owner = in.text();
    model.ns = in.text();
    const std::span<const std::byte> table = in.blob();
    try {
        model.table = std::make_shared<LayerTable>(LayerTable::decode(table));
    } catch (const Error& error) {
        throw Error(Errc::storage,
                    std::string("the record of a model is damaged: ") + error.what());
    }
    model.score = in.f64();
    model.parent = in.text();
    model.graph = in.text();
    model.metadata = in.text();
    model.created_ns = in.u64();
    model.description = in.checksum();
    model.content = in.checksum();
    model.retired = in.u8() != 0;
    model.holder = in.text();
    constexpr std::size_t least_layer = 25, least_inherited = 32;  // bytes
    for (std::uint32_t left = in.count(least_layer); left > 0; --left) {
        model.layers.push_back(decode_layer(in, model.serial));
    }
    for (std::uint32_t left = in.count(least_inherited); left > 0; --left) {
        model.inherited.push_back(decode_inherited(in));
    }
    return model;
}

}  // namespace cpp_store::durable
