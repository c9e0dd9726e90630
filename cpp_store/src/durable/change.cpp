#include "durable/change.hpp"

#include <utility>

#include "cpp_store/error.hpp"
#include "durable/fields.hpp"

namespace cpp_store::durable {
namespace {

void encode(Writer& out, const LayerPlace& place) {
    out.u64(place.model);
    out.u32(place.position);
}

LayerPlace decode_place(Reader& in) {
    const std::uint64_t model = in.u64();
    return {model, in.u32()};
}

void encode(Writer& out, const Note& note) {
    out.text(note.model);
    out.u64(note.version);
    out.u8(note.retired);
    out.u64(note.by);
}

Note decode_note(Reader& in) {
    Note note;
    note.model = in.text();
    note.version = in.u64();
    note.retired = in.u8() != 0;
    note.by = in.u64();
    return note;
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
        throw Error(Errc::storage, std::string("the log is damaged: ") + error.what());
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

// Those in no segment, one after the other.
void encode_tensors(Writer& out, const Change& put) {
    out.u64(put.bytes);
    if (put.bytes == 0) return;
    for (const StoredLayerPtr& layer : put.layers) {
        for (const StoredLayer::Tensor& tensor : layer->tensors) {
            out.raw({tensor.extent.data, tensor.spec.nbytes()});
        }
    }
}

void decode_packet(Reader& in, Change& put) {
    const std::span<const std::byte> bytes = in.blob();
    put.bytes = bytes.size();
    if (bytes.empty()) return;
    put.packet.assign(bytes.begin(), bytes.end());
    std::uint64_t offset = 0;
    for (LayerRecord& layer : put.record->layers) {
        for (TensorRecord& tensor : layer.tensors) {
            const std::uint64_t size = tensor.spec.nbytes();
            if (size > bytes.size() - offset) Reader::malformed();
            tensor.offset = offset;
            offset += size;
        }
    }
    if (offset != bytes.size()) Reader::malformed();
}

}  // namespace

void encode(Writer& out, const Change& change) {
    out.u8(static_cast<std::size_t>(change.kind));
    switch (change.kind) {
        case Change::Kind::put:
            encode(out, *change.record);
            encode_tensors(out, change);
            break;
        case Change::Kind::retire:
            out.u64(change.layer.model);
            out.u8(change.note.has_value());
            if (change.note) encode(out, *change.note);
            break;
        case Change::Kind::note:
            encode(out, *change.note);
            break;
        case Change::Kind::acquire:
        case Change::Kind::release:
            out.text(change.holder);
            encode(out, change.layer);
            break;
        case Change::Kind::drop_layer:
            encode(out, change.layer);
            break;
        case Change::Kind::replace_layer:
            encode(out, change.layer);
            encode(out, change.by);
            break;
        case Change::Kind::nothing:
            break;
    }
}

Change decode_change(Reader& in) {
    Change change;
    const std::uint8_t kind = in.u8();
    if (kind > static_cast<std::uint8_t>(Change::Kind::replace_layer)) Reader::malformed();
    change.kind = static_cast<Change::Kind>(kind);
    switch (change.kind) {
        case Change::Kind::put:
            change.record = std::make_shared<ModelRecord>(decode_model(in));
            decode_packet(in, change);
            break;
        case Change::Kind::retire:
            change.layer.model = in.u64();
            if (in.u8() != 0) change.note = decode_note(in);
            break;
        case Change::Kind::note:
            change.note = decode_note(in);
            break;
        case Change::Kind::acquire:
        case Change::Kind::release:
            change.holder = in.text();
            change.layer = decode_place(in);
            break;
        case Change::Kind::drop_layer:
            change.layer = decode_place(in);
            break;
        case Change::Kind::replace_layer:
            change.layer = decode_place(in);
            change.by = decode_place(in);
            break;
        case Change::Kind::nothing:
            break;
    }
    return change;
}

}  // namespace cpp_store::durable
