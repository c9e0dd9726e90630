#include "durable/old_formats.hpp"

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "core/checksum.hpp"
#include "cpp_store/error.hpp"
#include "durable/batch.hpp"
#include "durable/fields.hpp"
#include "durable/files.hpp"
#include "durable/statement.hpp"

namespace cpp_store::durable {
namespace {

constexpr const char* logs[] = {"log.0", "log.1"};

struct EntryHeader {
    std::uint64_t number = 0;
    std::uint64_t size = 0;  // of the content
    std::uint64_t high = 0;  // XXH3-128 of the content, each half XORed with the number
    std::uint64_t low = 0;
};

// The entries of a log's file by number, wherever they stand: what is no whole entry is skipped, so
// that whoever looks for the next number sees that one is missing.
void collect(std::span<const std::byte> bytes, std::uint64_t applied,
             std::map<std::uint64_t, std::span<const std::byte>>& entries) {
    for (std::size_t at = 0; at + sizeof(EntryHeader) <= bytes.size();) {
        EntryHeader header;
        std::memcpy(&header, bytes.data() + at, sizeof header);
        const auto rest = bytes.subspan(at + sizeof header);
        ++at;
        if (header.number <= applied || header.number - applied > bytes.size() ||
            header.size > rest.size()) {
            continue;
        }
        const auto content = rest.first(header.size);
        const Checksum sum = checksum_of(content.data(), content.size());
        if (header.high != (sum.high ^ header.number) || header.low != (sum.low ^ header.number)) {
            continue;
        }
        entries[header.number] = content;
        at += sizeof header + content.size() - 1;
    }
}

// The part of a packet that is a layer's; its tensors are told where in it they are.
std::vector<std::byte> take_layer(LayerRecord& layer, std::span<const std::byte> packet) {
    std::vector<std::byte> bytes;
    for (TensorRecord& tensor : layer.tensors) {
        const auto part = tensor.within(packet);
        if (!part) Reader::malformed();
        tensor.offset = bytes.size();
        bytes.insert(bytes.end(), part->begin(), part->end());
    }
    return bytes;
}

}  // namespace

void OldFormat::convert(std::uint64_t format) {
    if (format == 1) catalogue_.execute("ALTER TABLE layers ADD COLUMN key BLOB");
    split_packets();
    catalogue_.execute("DROP TABLE packets");
    if (format < 3) return;
    replay_log();
    catalogue_.statements_.clear();  // a table that is being asked cannot go
    catalogue_.execute("DROP TABLE log");
}

void OldFormat::split_packets() {
    Catalogue::Statement packet(catalogue_, "SELECT bytes FROM packets WHERE model = ?");
    for (LayerRecord& layer : catalogue_.layers_in(0)) {
        packet.start().bind(layer.owner);
        const bool is_there = packet.step();
        const auto bytes =
            take_layer(layer, is_there ? packet.blob(0) : std::span<const std::byte>());
        catalogue_.put_small(layer.place(), bytes);
        catalogue_.move_layer(layer);
    }
}

void OldFormat::replay_log() {
    std::uint64_t applied = 0;
    {
        Catalogue::Statement found(catalogue_, "SELECT applied FROM log");
        if (found.start().step()) applied = found.number(0);
    }
    std::vector<std::vector<std::byte>> contents;
    std::map<std::uint64_t, std::span<const std::byte>> entries;
    for (const char* const name : logs) {
        std::error_code none;
        if (!std::filesystem::exists(directory_ / name, none)) continue;
        const File file(directory_ / name, File::Mode::read);
        contents.push_back(file.read(0, file.size()));
        collect(contents.back(), applied, entries);
    }
    for (const auto& [number, content] : entries) {
        if (number != ++applied) {
            throw Error(Errc::storage,
                        "data directory " + directory_.string() +
                            " is damaged: its log, of format "
                            "3, lacks entry " +
                            std::to_string(applied) +
                            "; move log.0 and log.1 out of it to go on without what they hold");
        }
        replay(content);
    }
}

void OldFormat::replay(std::span<const std::byte> entry) {
    Reader in(entry);
    for (std::uint32_t left = in.count(1); left > 0; --left) {
        Change change;
        const std::uint8_t kind = in.u8();
        if (kind > static_cast<std::uint8_t>(Change::Kind::replace_layer)) Reader::malformed();
        change.kind = static_cast<Change::Kind>(kind);
        std::map<LayerPlace, std::vector<std::byte>> small;
        switch (change.kind) {
            case Change::Kind::put: {
                change.record = std::make_shared<ModelRecord>(decode_model(in));
                const auto packet = in.blob();
                std::uint64_t offset = 0;
                if (const std::uint64_t segment = change.written_ahead(); segment != 0) {
                    catalogue_.add_segment({segment, change.record->nbytes()});
                    break;
                }
                for (LayerRecord& layer : change.record->layers) {
                    for (TensorRecord& tensor : layer.tensors) {
                        tensor.offset = offset;
                        offset += tensor.spec.nbytes();
                    }
                    small[layer.place()] = take_layer(layer, packet);
                }
                break;
            }
            case Change::Kind::retire:
                change.layer.model = in.u64();
                if (in.u8() == 0) break;
                [[fallthrough]];
            case Change::Kind::note: {
                Note& note = change.note.emplace();
                note.model = in.text();
                note.version = in.u64();
                note.retired = in.u8() != 0;
                note.by = in.u64();
                break;
            }
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
        }
        (void)apply(catalogue_, change, Journal::Options{}.most_retirements);
        for (const auto& [layer, bytes] : small) catalogue_.put_small(layer, bytes);
    }
    in.end();
}

void remove_old_log(const std::filesystem::path& directory) noexcept {
    std::error_code none;
    for (const char* const name : logs) {
        if (std::filesystem::exists(directory / name, none)) remove_file(directory / name);
    }
}

}  // namespace cpp_store::durable
