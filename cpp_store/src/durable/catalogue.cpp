#include "durable/catalogue.hpp"

#include <sqlite3.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "cpp_store/error.hpp"
#include "durable/files.hpp"

namespace cpp_store::durable {
namespace {

constexpr int application = 0x43505053;  // "CPPS"

constexpr const char* schema = R"(
    CREATE TABLE models(
        serial INTEGER PRIMARY KEY, id TEXT NOT NULL, namespace TEXT NOT NULL, score REAL,
        parent TEXT NOT NULL, created_ns INTEGER NOT NULL, graph TEXT NOT NULL,
        metadata TEXT NOT NULL, layer_table BLOB NOT NULL, description BLOB NOT NULL,
        content BLOB NOT NULL, retired INTEGER NOT NULL, owner TEXT NOT NULL);
    CREATE TABLE layers(
        model INTEGER NOT NULL, position INTEGER NOT NULL, segment INTEGER NOT NULL,
        nbytes INTEGER NOT NULL, tensors BLOB NOT NULL,
        PRIMARY KEY(model, position)) WITHOUT ROWID;
    CREATE INDEX layers_by_segment ON layers(segment);
    CREATE TABLE inherited(
        model INTEGER NOT NULL, position INTEGER NOT NULL, owner INTEGER NOT NULL,
        owner_position INTEGER NOT NULL, foreign_owner TEXT NOT NULL, nbytes INTEGER NOT NULL,
        PRIMARY KEY(model, position)) WITHOUT ROWID;
    CREATE TABLE holders(
        holder TEXT NOT NULL, owner INTEGER NOT NULL, position INTEGER NOT NULL,
        PRIMARY KEY(holder, owner, position)) WITHOUT ROWID;
    CREATE TABLE segments(serial INTEGER PRIMARY KEY, data_bytes INTEGER NOT NULL);
    CREATE TABLE packets(model INTEGER PRIMARY KEY, bytes BLOB NOT NULL);
)";

// The fields of tensors as they lie in a blob: docs/formats.md.
class Writer {
  public:
    void u8(std::size_t value) { bytes_.push_back(static_cast<std::byte>(value)); }
    void u32(std::uint32_t value) { raw(&value, sizeof value); }
    void u64(std::uint64_t value) { raw(&value, sizeof value); }
    [[nodiscard]] std::span<const std::byte> bytes() const noexcept { return bytes_; }

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

void encode_tensors(Writer& out, const std::vector<TensorRecord>& tensors) {
    out.u32(static_cast<std::uint32_t>(tensors.size()));
    for (const TensorRecord& tensor : tensors) {
        out.u8(static_cast<std::size_t>(tensor.spec.dtype));
        out.u8(tensor.spec.shape.size());
        for (const std::uint64_t extent : tensor.spec.shape) out.u64(extent);
        out.u64(tensor.offset);
        out.u64(tensor.checksum.high);
        out.u64(tensor.checksum.low);
    }
}

std::vector<TensorRecord> decode_tensors(std::span<const std::byte> bytes) {
    Reader in(bytes);
    const std::uint32_t count = in.u32();
    constexpr std::size_t least = 26;  // bytes of a tensor without dimensions
    if (count > in.left() / least) Reader::malformed();
    std::vector<TensorRecord> tensors(count);
    for (TensorRecord& tensor : tensors) {
        const std::uint8_t dtype = in.u8();
        if (dtype >= dtype_count) Reader::malformed();
        tensor.spec.dtype = static_cast<DType>(dtype);
        tensor.spec.shape.resize(in.u8());
        for (std::uint64_t& extent : tensor.spec.shape) extent = in.u64();
        tensor.offset = in.u64();
        tensor.checksum = in.checksum();
        (void)tensor.spec.nbytes();  // throws where they overflow
    }
    if (in.left() != 0) Reader::malformed();
    return tensors;
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
    try {
        model.table = std::make_shared<LayerTable>(LayerTable::decode(row.blob(8)));
    } catch (const Error& error) {
        throw Error(Errc::storage, "the catalogue is damaged: model '" + model.id +
                                       "' has no layer table: " + error.what());
    }
    model.description = Reader(row.blob(9)).checksum();
    model.content = Reader(row.blob(10)).checksum();
    model.retired = row.number(11) != 0;
    model.owner = row.text(12);
}

std::vector<std::byte> encode(const Checksum& checksum) {
    Writer out;
    out.u64(checksum.high);
    out.u64(checksum.low);
    return {out.bytes().begin(), out.bytes().end()};
}

}  // namespace

// One statement, used again and again. Bound values must live until it has run.
class Catalogue::Statement {
  public:
    Statement(Catalogue& catalogue, const char* sql) : catalogue_(catalogue) {
        if (sqlite3_prepare_v3(catalogue.database_, sql, -1, SQLITE_PREPARE_PERSISTENT, &statement_,
                               nullptr) != SQLITE_OK) {
            catalogue_.fail("cannot ask");
        }
    }
    Statement(const Statement&) = delete;
    Statement& operator=(const Statement&) = delete;
    ~Statement() { sqlite3_finalize(statement_); }

    Statement& start() {
        sqlite3_reset(statement_);
        next_ = 1;
        return *this;
    }
    Statement& bind(std::uint64_t value) {
        return check(sqlite3_bind_int64(statement_, next_++, static_cast<std::int64_t>(value)));
    }
    Statement& bind(double value) {  // SQLite has no NaN: NULL
        return check(sqlite3_bind_double(statement_, next_++, value));
    }
    Statement& bind(std::string_view value) {
        return check(sqlite3_bind_text64(statement_, next_++, value.data() ? value.data() : "",
                                         value.size(), SQLITE_STATIC, SQLITE_UTF8));
    }
    Statement& bind(std::span<const std::byte> value) {
        return check(sqlite3_bind_blob64(statement_, next_++,
                                         value.empty() ? "" : (const void*)value.data(),
                                         value.size(), SQLITE_STATIC));
    }
    // Whether there is a row.
    bool step() {
        const int code = sqlite3_step(statement_);
        if (code == SQLITE_ROW) return true;
        if (code == SQLITE_DONE) {
            sqlite3_reset(statement_);
            return false;
        }
        sqlite3_reset(statement_);
        catalogue_.fail("cannot write");
    }
    void run() {
        while (step()) {
        }
    }
    [[nodiscard]] std::uint64_t number(int column) const {
        return static_cast<std::uint64_t>(sqlite3_column_int64(statement_, column));
    }
    [[nodiscard]] double real(int column) const {
        if (sqlite3_column_type(statement_, column) == SQLITE_NULL) return std::nan("");
        return sqlite3_column_double(statement_, column);
    }
    // Until the next step.
    [[nodiscard]] std::span<const std::byte> blob(int column) const {
        const void* const data = sqlite3_column_blob(statement_, column);
        const int size = sqlite3_column_bytes(statement_, column);
        return {static_cast<const std::byte*>(data), static_cast<std::size_t>(size)};
    }
    [[nodiscard]] std::string text(int column) const {
        const auto* const data = sqlite3_column_text(statement_, column);
        const int size = sqlite3_column_bytes(statement_, column);
        return data ? std::string(reinterpret_cast<const char*>(data),
                                  static_cast<std::size_t>(size))
                    : std::string();
    }

  private:
    Statement& check(int code) {
        if (code != SQLITE_OK) catalogue_.fail("cannot write");
        return *this;
    }
    Catalogue& catalogue_;
    sqlite3_stmt* statement_ = nullptr;
    int next_ = 1;
};

Catalogue::Catalogue(const std::filesystem::path& path) : path_(path) {
    route_sqlite_calls();
    // Only ever used by one thread at a time.
    const int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX |
                      SQLITE_OPEN_NOFOLLOW | SQLITE_OPEN_EXRESCODE;
    try {
        if (sqlite3_open_v2(path.c_str(), &database_, flags, nullptr) != SQLITE_OK) {
            fail("cannot open");
        }
        // Nobody else opens it (the directory is locked), so SQLite needs no memory to share.
        execute("PRAGMA locking_mode = EXCLUSIVE");
        const auto number = [this](const char* sql) {
            Statement statement(*this, sql);
            return statement.step() ? statement.number(0) : 0;
        };
        std::uint64_t tables = 0;
        try {
            tables = number("SELECT count(*) FROM sqlite_schema");
        } catch (const Error& error) {
            if ((sqlite3_errcode(database_) & 0xff) != SQLITE_NOTADB) throw;
            throw Error(Errc::invalid_argument, path.string() + " is no catalogue of a store");
        }
        const std::uint64_t version = number("PRAGMA user_version");
        if (tables > 0 && number("PRAGMA application_id") != application) {
            throw Error(Errc::invalid_argument, path.string() + " is no catalogue of a store");
        }
        if (version > format) {
            throw Error(Errc::invalid_argument,
                        path.string() + " has format " + std::to_string(version) +
                            ", this version knows up to " + std::to_string(format) +
                            "; open it with a newer one");
        }
        execute("PRAGMA journal_mode = WAL");
        execute("PRAGMA synchronous = FULL");  // a commit is on disk when it returns
        execute("PRAGMA wal_autocheckpoint = 4000");
        execute("PRAGMA temp_store = MEMORY");
        execute("PRAGMA cache_size = -16384");
        if (tables == 0) {
            begin();
            execute(schema);
            execute(("PRAGMA application_id = " + std::to_string(application)).c_str());
            execute(("PRAGMA user_version = " + std::to_string(format)).c_str());
            commit();
        }
    } catch (...) {
        statements_.clear();
        sqlite3_close(database_);
        throw;
    }
}

Catalogue::~Catalogue() {
    statements_.clear();
    sqlite3_close(database_);
}

void Catalogue::execute(const char* sql) {
    if (sqlite3_exec(database_, sql, nullptr, nullptr, nullptr) != SQLITE_OK) {
        fail("cannot write");
    }
}

void Catalogue::fail(const char* what) const {
    const int code = sqlite3_errcode(database_);
    const int system = sqlite3_system_errno(database_);
    std::string cause = sqlite3_errmsg(database_);
    if (system != 0 && (code & 0xff) == SQLITE_IOERR) {
        cause += " (" + std::generic_category().message(system) + ")";
    }
    throw Error(Errc::storage, std::string(what) + " " + path_.string() + ": " + cause);
}

Catalogue::Statement& Catalogue::prepare(const char* sql) {
    std::unique_ptr<Statement>& statement = statements_[sql];
    if (!statement) statement = std::make_unique<Statement>(*this, sql);
    return statement->start();
}

void Catalogue::begin() {
    execute("BEGIN IMMEDIATE");
}

void Catalogue::commit() {
    execute("COMMIT");
}

void Catalogue::rollback() noexcept {
    // After some errors SQLite has done it already.
    if (sqlite3_get_autocommit(database_) == 0) {
        sqlite3_exec(database_, "ROLLBACK", nullptr, nullptr, nullptr);
    }
}

// --------------------------------------------------------------------------------- changes

void Catalogue::put(const ModelRecord& model) {
    const std::vector<std::byte> table = model.table->encode();
    const std::vector<std::byte> description = encode(model.description);
    const std::vector<std::byte> content = encode(model.content);
    prepare("INSERT INTO models VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)")
        .bind(model.serial)
        .bind(std::string_view(model.id))
        .bind(std::string_view(model.ns))
        .bind(model.score)
        .bind(std::string_view(model.parent))
        .bind(model.created_ns)
        .bind(std::string_view(model.graph))
        .bind(std::string_view(model.metadata))
        .bind(std::span<const std::byte>(table))
        .bind(std::span<const std::byte>(description))
        .bind(std::span<const std::byte>(content))
        .bind(std::uint64_t{model.retired})
        .bind(std::string_view(model.owner))
        .run();
    for (const LayerRecord& layer : model.layers) {
        Writer tensors;
        encode_tensors(tensors, layer.tensors);
        prepare("INSERT INTO layers VALUES(?, ?, ?, ?, ?)")
            .bind(model.serial)
            .bind(std::uint64_t{layer.position})
            .bind(layer.segment)
            .bind(layer.nbytes())
            .bind(tensors.bytes())
            .run();
    }
    for (const InheritedRecord& inherited : model.inherited) {
        prepare("INSERT INTO inherited VALUES(?, ?, ?, ?, ?, ?)")
            .bind(model.serial)
            .bind(std::uint64_t{inherited.position})
            .bind(inherited.owner)
            .bind(std::uint64_t{inherited.owner_position})
            .bind(std::string_view(inherited.foreign_owner))
            .bind(inherited.nbytes)
            .run();
    }
}

void Catalogue::put_packet(std::uint64_t model, std::span<const std::byte> bytes) {
    prepare("INSERT INTO packets VALUES(?, ?)").bind(model).bind(bytes).run();
}

void Catalogue::retire(std::uint64_t model) {
    prepare("UPDATE models SET retired = 1 WHERE serial = ?").bind(model).run();
    prepare("DELETE FROM inherited WHERE model = ?").bind(model).run();
    prepare(
        "DELETE FROM models WHERE serial = ?1 AND NOT EXISTS(SELECT 1 FROM layers WHERE model = "
        "?1)")
        .bind(model)
        .run();
}

Catalogue::Dropped Catalogue::drop_layer(std::uint64_t model, std::uint32_t position) {
    Dropped dropped;
    Statement& removal =
        prepare("DELETE FROM layers WHERE model = ? AND position = ? RETURNING segment, nbytes");
    removal.bind(model).bind(std::uint64_t{position});
    if (removal.step()) {
        dropped = {removal.number(0), removal.number(1)};
        removal.run();
    }
    const char* const forget =
        "DELETE FROM models WHERE serial = ?1 AND retired = 1 AND NOT EXISTS(SELECT 1 FROM layers "
        "WHERE model = ?1)";
    prepare(forget).bind(model).run();
    prepare(
        "DELETE FROM packets WHERE model = ?1 AND NOT EXISTS(SELECT 1 FROM layers WHERE model = "
        "?1 AND segment = 0)")
        .bind(model)
        .run();
    return dropped;
}

void Catalogue::acquire(const HolderRecord& reference) {
    prepare("INSERT OR IGNORE INTO holders VALUES(?, ?, ?)")
        .bind(std::string_view(reference.holder))
        .bind(reference.owner)
        .bind(std::uint64_t{reference.position})
        .run();
}

void Catalogue::release(const HolderRecord& reference) {
    prepare("DELETE FROM holders WHERE holder = ? AND owner = ? AND position = ?")
        .bind(std::string_view(reference.holder))
        .bind(reference.owner)
        .bind(std::uint64_t{reference.position})
        .run();
}

void Catalogue::add_segment(const SegmentRecord& segment) {
    prepare("INSERT INTO segments VALUES(?, ?)")
        .bind(segment.serial)
        .bind(segment.data_bytes)
        .run();
}

void Catalogue::remove_segment(std::uint64_t serial) {
    prepare("DELETE FROM segments WHERE serial = ?").bind(serial).run();
}

void Catalogue::move_layer(const LayerRecord& layer) {
    Writer tensors;
    encode_tensors(tensors, layer.tensors);
    prepare("UPDATE layers SET segment = ?, tensors = ? WHERE model = ? AND position = ?")
        .bind(layer.segment)
        .bind(tensors.bytes())
        .bind(layer.owner)
        .bind(std::uint64_t{layer.position})
        .run();
}

void Catalogue::remove_unused_packets() {
    prepare("DELETE FROM packets WHERE model NOT IN (SELECT model FROM layers WHERE segment = 0)")
        .run();
}

void Catalogue::remove_model(std::uint64_t model) {
    for (const char* const sql :
         {"DELETE FROM models WHERE serial = ?", "DELETE FROM layers WHERE model = ?",
          "DELETE FROM inherited WHERE model = ?", "DELETE FROM packets WHERE model = ?"}) {
        prepare(sql).bind(model).run();
    }
}

// --------------------------------------------------------------------------------- questions

void Catalogue::models(const std::function<void(ModelRecord)>& each,
                       const std::function<void(std::uint64_t serial)>& broken) {
    Statement& models = prepare(
        "SELECT serial, id, namespace, score, parent, created_ns, graph, metadata, layer_table, "
        "description, content, retired, owner FROM models ORDER BY serial");
    Statement& layers =
        prepare("SELECT model, position, segment, tensors FROM layers ORDER BY model, position");
    Statement& inherited = prepare(
        "SELECT model, position, owner, owner_position, foreign_owner, nbytes FROM inherited "
        "ORDER BY model, position");
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
                                        .tensors = decode_tensors(layers.blob(3))});
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

std::vector<LayerRecord> Catalogue::layers_in(std::uint64_t segment) {
    Statement& found = prepare(
        "SELECT model, position, tensors FROM layers WHERE segment = ? ORDER BY model, position");
    found.bind(segment);
    std::vector<LayerRecord> layers;
    while (found.step()) {
        layers.push_back({.position = static_cast<std::uint32_t>(found.number(1)),
                          .segment = segment,
                          .owner = found.number(0),
                          .tensors = decode_tensors(found.blob(2))});
    }
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

std::vector<SegmentRecord> Catalogue::segments() {
    Statement& found = prepare("SELECT serial, data_bytes FROM segments ORDER BY serial");
    std::vector<SegmentRecord> segments;
    while (found.step()) segments.push_back({found.number(0), found.number(1)});
    return segments;
}

std::vector<std::byte> Catalogue::packet(std::uint64_t model) {
    Statement& found = prepare("SELECT bytes FROM packets WHERE model = ?");
    found.bind(model);
    std::vector<std::byte> bytes;
    if (found.step()) {
        const auto blob = found.blob(0);
        bytes.assign(blob.begin(), blob.end());
    }
    found.start();
    return bytes;
}

std::uint64_t Catalogue::packet_bytes() {
    Statement& found = prepare("SELECT coalesce(sum(length(bytes)), 0) FROM packets");
    const std::uint64_t bytes = found.step() ? found.number(0) : 0;
    found.start();
    return bytes;
}

std::string Catalogue::owner_of(std::uint64_t model) {
    Statement& found = prepare("SELECT owner FROM models WHERE serial = ?");
    found.bind(model);
    std::string id = found.step() ? found.text(0) : std::string();
    found.start();
    return id;
}

LayerTablePtr Catalogue::table_of(std::uint64_t model) {
    Statement& found = prepare("SELECT layer_table FROM models WHERE serial = ?");
    found.bind(model);
    LayerTablePtr table;
    if (found.step()) table = std::make_shared<LayerTable>(LayerTable::decode(found.blob(0)));
    found.start();
    return table;
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
        {"packets without layers",
         "FROM packets WHERE model NOT IN (SELECT model FROM layers WHERE segment = 0)"},
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
    return found == "ok" ? std::string() : found;
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
