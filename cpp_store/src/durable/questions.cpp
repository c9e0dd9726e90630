// What the catalogue says.
#include <limits>
#include <memory>
#include <optional>
#include <utility>

#include "cpp_store/error.hpp"
#include "durable/fields.hpp"
#include "durable/statement.hpp"

namespace cpp_store::durable {
namespace {

template <typename Row>
std::optional<LayerKey> key_in(const Row& row, int column) {
    if (row.is_null(column)) return std::nullopt;
    return decode_key(row.blob(column));
}

template <typename Row>
LayerTablePtr table_in(const Row& row, int column, const std::string& whose) {
    try {
        return std::make_shared<LayerTable>(LayerTable::decode(row.blob(column)));
    } catch (const Error& error) {
        throw Error(Errc::storage,
                    "the catalogue is damaged: " + whose + " has no layer table: " + error.what());
    }
}

template <typename Row>
void decode(const Row& row, ModelRecord& model) {
    model.id = row.text(1);
    model.ns = row.text(2);
    model.score = row.real(3);
    model.parent = row.text(4);
    model.created_ns = row.number(5);
    model.graph = row.text(6);
    model.metadata = row.text(7);
    model.table = table_in(row, 8, "model '" + model.id + "'");
    model.description = decode_checksum(row.blob(9));
    model.content = decode_checksum(row.blob(10));
    model.retired = row.number(11) != 0;
    model.owner = row.text(12);
}

}  // namespace

void Catalogue::models_of(std::optional<std::uint64_t> serial,
                          const std::function<void(ModelRecord)>& each,
                          const std::function<void(std::uint64_t serial)>& broken) {
    const std::uint64_t first = serial.value_or(0);
    const std::uint64_t last = serial.value_or(std::numeric_limits<std::int64_t>::max());
    Statement& models = prepare(
        "SELECT serial, id, namespace, score, parent, created_ns, graph, metadata, layer_table, "
        "description, content, retired, owner FROM models WHERE serial BETWEEN ? AND ? "
        "ORDER BY serial");
    models.bind(first).bind(last);
    Statement& layers = prepare(
        "SELECT model, position, segment, tensors, key FROM layers WHERE model BETWEEN ? AND ? "
        "ORDER BY model, position");
    layers.bind(first).bind(last);
    Statement& inherited = prepare(
        "SELECT model, position, owner, owner_position, foreign_owner, nbytes FROM inherited "
        "WHERE model BETWEEN ? AND ? ORDER BY model, position");
    inherited.bind(first).bind(last);
    // All three go through their tables once, side by side.
    bool more_layers = layers.step();
    bool more_inherited = inherited.step();
    while (models.step()) {
        ModelRecord model;
        model.serial = models.number(0);
        while (more_layers && layers.number(0) < model.serial) more_layers = layers.step();
        while (more_inherited && inherited.number(0) < model.serial) {
            more_inherited = inherited.step();
        }
        try {
            decode(models, model);
            for (; more_layers && layers.number(0) == model.serial; more_layers = layers.step()) {
                model.layers.push_back({.position = static_cast<std::uint32_t>(layers.number(1)),
                                        .segment = layers.number(2),
                                        .owner = model.serial,
                                        .tensors = decode_tensors(layers.blob(3)),
                                        .key = key_in(layers, 4)});
            }
        } catch (const Error&) {
            if (!broken) {
                layers.start();
                inherited.start();
                models.start();
                throw;
            }
            broken(model.serial);
            continue;
        }
        for (; more_inherited && inherited.number(0) == model.serial;
             more_inherited = inherited.step()) {
            model.inherited.push_back(
                {.position = static_cast<std::uint32_t>(inherited.number(1)),
                 .owner = inherited.number(2),
                 .owner_position = static_cast<std::uint32_t>(inherited.number(3)),
                 .foreign_owner = inherited.text(4),
                 .nbytes = inherited.number(5)});
        }
        each(std::move(model));
    }
    layers.start();
    inherited.start();
}

std::optional<ModelRecord> Catalogue::model(std::uint64_t serial) {
    std::optional<ModelRecord> found;
    models_of(
        serial, [&](ModelRecord model) { found = std::move(model); }, nullptr);
    return found;
}

std::vector<LayerRecord> Catalogue::layers_in(std::uint64_t segment, std::uint64_t most_bytes) {
    Statement& found = prepare(
        "SELECT model, position, tensors, key FROM layers WHERE segment = ? ORDER BY model, "
        "position");
    found.bind(segment);
    std::vector<LayerRecord> layers;
    std::uint64_t bytes = 0;
    while (bytes < most_bytes && found.step()) {
        layers.push_back({.position = static_cast<std::uint32_t>(found.number(1)),
                          .segment = segment,
                          .owner = found.number(0),
                          .tensors = decode_tensors(found.blob(2)),
                          .key = key_in(found, 3)});
        bytes += layers.back().nbytes();
    }
    found.start();  // it may not be through
    return layers;
}

std::vector<HolderRecord> Catalogue::holders() {
    Statement& found = prepare("SELECT holder, owner, position FROM holders");
    std::vector<HolderRecord> holders;
    while (found.step()) {
        holders.push_back(
            {found.text(0), found.number(1), static_cast<std::uint32_t>(found.number(2))});
    }
    return holders;
}

Notes Catalogue::notes() {
    Notes notes;
    Statement& found =
        prepare("SELECT model, version, retired, retired_by FROM notes ORDER BY number");
    while (found.step()) {
        notes.notes.push_back(
            {found.text(0), found.number(1), found.number(2) != 0, found.number(3)});
    }
    Statement& forgotten = prepare("SELECT version FROM forgotten");
    if (forgotten.step()) notes.forgotten = forgotten.number(0);
    forgotten.start();
    return notes;
}

std::vector<SegmentRecord> Catalogue::segments() {
    Statement& found = prepare("SELECT serial, data_bytes FROM segments ORDER BY serial");
    std::vector<SegmentRecord> segments;
    while (found.step()) segments.push_back({found.number(0), found.number(1)});
    return segments;
}

std::vector<std::byte> Catalogue::small(const LayerPlace& layer) {
    Statement& found = prepare("SELECT bytes FROM small WHERE model = ? AND position = ?");
    found.bind(layer.model).bind(std::uint64_t{layer.position});
    std::vector<std::byte> bytes;
    if (found.step()) {
        const auto blob = found.blob(0);
        bytes.assign(blob.begin(), blob.end());
    }
    found.start();  // so that it holds no log back
    return bytes;
}

std::vector<std::string> Catalogue::leaks(bool repair) {
    struct Leak {
        const char* what;
        const char* rows;
    };
    static constexpr Leak all[] = {
        {"layers of no model", "FROM layers WHERE model NOT IN (SELECT serial FROM models)"},
        {"inherited layers of no visible model",
         "FROM inherited WHERE model NOT IN (SELECT serial FROM models WHERE retired = 0)"},
        {"references of models on other servers to no layer",
         "FROM holders WHERE (owner, position) NOT IN (SELECT model, position FROM layers)"},
        {"layers of retired models that nobody refers to",
         "FROM layers WHERE model IN (SELECT serial FROM models WHERE retired = 1) AND "
         "(model, position) NOT IN (SELECT owner, owner_position FROM inherited) AND "
         "(model, position) NOT IN (SELECT owner, position FROM holders)"},
        {"retired models without layers",
         "FROM models WHERE retired = 1 AND serial NOT IN (SELECT model FROM layers)"},
        {"tensors of small models without layers",
         "FROM small WHERE (model, position) NOT IN (SELECT model, position FROM layers WHERE "
         "segment = 0)"},
    };
    std::vector<std::string> found;
    for (const Leak& leak : all) {
        Statement count(*this, (std::string("SELECT count(*) ") + leak.rows).c_str());
        const std::uint64_t rows = count.start().step() ? count.number(0) : 0;
        count.start();
        if (rows == 0) continue;
        found.push_back(std::to_string(rows) + " " + leak.what);
        if (repair) execute((std::string("DELETE ") + leak.rows).c_str());
    }
    return found;
}

std::string Catalogue::integrity() {
    Statement& check = prepare("PRAGMA integrity_check(1)");
    std::string found = check.step() ? check.text(0) : std::string();
    check.start();
    if (found != "ok") return found;
    const bool is_ours = columns() == Catalogue(":memory:").columns();
    return is_ours ? std::string() : "its tables are not those of a store";
}

void Catalogue::rebuild_indexes() {
    execute("REINDEX");
}

std::string Catalogue::columns() {
    Statement& columns = prepare(
        "SELECT tables.name || '.' || columns.name || ' ' || columns.type || columns.pk "
        "FROM sqlite_schema AS tables JOIN pragma_table_info(tables.name) AS columns ORDER BY 1");
    std::string all;
    while (columns.step()) all += columns.text(0) + '\n';
    return all;
}

std::uint64_t Catalogue::last_serial() {
    Statement& found = prepare(
        "SELECT max(coalesce((SELECT max(serial) FROM models), 0), coalesce((SELECT max(serial) "
        "FROM segments), 0))");
    const std::uint64_t serial = found.step() ? found.number(0) : 0;
    found.start();
    return serial;
}

}  // namespace cpp_store::durable
