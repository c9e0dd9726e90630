// Opening it, and what changes it.
#include "durable/catalogue.hpp"

#include <system_error>

#include "cpp_store/error.hpp"
#include "durable/fields.hpp"
#include "durable/files.hpp"
#include "durable/old_formats.hpp"
#include "durable/statement.hpp"

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
        nbytes INTEGER NOT NULL, tensors BLOB NOT NULL, key BLOB,
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
)";

constexpr const char* schema_of_notes = R"(
    CREATE TABLE notes(
        model TEXT PRIMARY KEY, version INTEGER NOT NULL, retired INTEGER NOT NULL,
        retired_by INTEGER NOT NULL, number INTEGER NOT NULL) WITHOUT ROWID;
    CREATE INDEX notes_of_retired ON notes(number) WHERE retired = 1;
    CREATE TABLE forgotten(version INTEGER NOT NULL);
    INSERT INTO forgotten VALUES(0);
)";

constexpr const char* schema_of_small = R"(
    CREATE TABLE small(
        model INTEGER NOT NULL, position INTEGER NOT NULL, bytes BLOB NOT NULL,
        PRIMARY KEY(model, position));
)";

constexpr int long_log = 4096;  // pages of 4 KiB

// SQLite refuses links anywhere in a path, such as many a cluster's /scratch. Those within the
// data directory shall be refused.
std::filesystem::path without_links_above(const std::filesystem::path& path) {
    if (!path.has_parent_path()) return path;  // in memory
    std::error_code error;
    const std::filesystem::path directory = std::filesystem::canonical(path.parent_path(), error);
    if (error) {
        throw Error(Errc::storage, "cannot open " + path.string() + ": " + error.message());
    }
    return directory / path.filename();
}

}  // namespace

Catalogue::Catalogue(const std::filesystem::path& path, bool may_make) : path_(path) {
    const auto check_is_there = [&](bool is_there) {
        if (is_there || may_make) return;
        throw Error(Errc::storage,
                    path.string() +
                        " is missing or empty, though the data directory has segments: "
                        "expected the catalogue and its -wal; put them back, or cpp-store check "
                        "--repair makes one anew of what the segments say");
    };
    std::error_code missing;
    const std::uintmax_t size = std::filesystem::file_size(path, missing);
    check_is_there(!missing && size > 0);  // else SQLite would remove its log
    route_sqlite_calls();
    // Only ever used by one thread at a time. By this one of SQLite's own VFSs no other process
    // opens it (the directory is locked, too), several of this process may, and their index of the
    // log is in memory: there is no file for it.
    const int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX |
                      SQLITE_OPEN_NOFOLLOW | SQLITE_OPEN_EXRESCODE;
    try {
        if (sqlite3_open_v2(without_links_above(path).c_str(), &database_, flags, "unix-excl") !=
            SQLITE_OK) {
            if (sqlite3_extended_errcode(database_) == SQLITE_CANTOPEN_SYMLINK) {
                throw Error(Errc::invalid_argument,
                            path.string() + " is a symbolic link, which no store has made");
            }
            fail("cannot open");
        }
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
        is_new_ = tables == 0;
        check_is_there(!is_new_);
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
        if (sqlite3_db_readonly(database_, "main") != 0) {
            throw Error(Errc::storage, "cannot write " + path.string() +
                                           ": its permissions, or a header that is damaged");
        }
        execute("PRAGMA journal_mode = WAL");
        execute("PRAGMA synchronous = FULL");  // a commit is on disk when it returns
        sqlite3_wal_hook(  // instead of checkpoints in commits, which would not report an error
            database_,
            [](void* self, sqlite3*, const char*, int pages) {
                static_cast<Catalogue*>(self)->log_pages_ = pages;
                return SQLITE_OK;
            },
            this);
        execute("PRAGMA temp_store = MEMORY");
        execute("PRAGMA cache_size = -4096");
        if (tables == 0 || version < format) {
            begin();
            if (tables == 0) execute(schema);
            if (version < 2) execute(schema_of_notes);
            execute(schema_of_small);
            if (tables > 0) OldFormat(*this, path.parent_path()).convert(version);
            execute(("PRAGMA application_id = " + std::to_string(application)).c_str());
            execute(("PRAGMA user_version = " + std::to_string(format)).c_str());
            commit();
        }
        if (tables > 0) remove_old_log(path.parent_path());
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
    if ((code & 0xff) == SQLITE_CORRUPT) {
        cause +=
            "; put a copy of the catalogue back, or move it out of the directory: cpp-store check "
            "--repair then makes one anew of what the segments say";
    }
    if (code == SQLITE_IOERR_FSYNC || code == SQLITE_IOERR_DIR_FSYNC) {
        throw SyncError("cannot sync " + path_.string() + ": " + cause);
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
    retirements_.reset();
    // After some errors SQLite has done it already.
    if (sqlite3_get_autocommit(database_) == 0) {
        sqlite3_exec(database_, "ROLLBACK", nullptr, nullptr, nullptr);
    }
}

void Catalogue::checkpoint() {
    if (log_pages_ < long_log) return;
    if (sqlite3_wal_checkpoint_v2(database_, nullptr, SQLITE_CHECKPOINT_PASSIVE, nullptr,
                                  nullptr) != SQLITE_OK) {
        fail("cannot write");
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
        const std::vector<std::byte> tensors = encode(layer.tensors);
        const std::vector<std::byte> key =
            layer.key ? encode(*layer.key) : std::vector<std::byte>();
        Statement& insertion = prepare("INSERT INTO layers VALUES(?, ?, ?, ?, ?, ?)")
                                   .bind(model.serial)
                                   .bind(std::uint64_t{layer.position})
                                   .bind(layer.segment)
                                   .bind(layer.nbytes())
                                   .bind(std::span<const std::byte>(tensors));
        (key.empty() ? insertion.bind_null() : insertion.bind(std::span<const std::byte>(key)))
            .run();
        if (!model.holder.empty()) acquire({model.holder, model.serial, layer.position});
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

void Catalogue::put_small(const LayerPlace& layer, std::span<const std::byte> bytes) {
    prepare("INSERT INTO small VALUES(?, ?, ?)")
        .bind(layer.model)
        .bind(std::uint64_t{layer.position})
        .bind(bytes)
        .run();
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
    if (dropped.segment == 0) {
        prepare("DELETE FROM small WHERE model = ? AND position = ?")
            .bind(model)
            .bind(std::uint64_t{position})
            .run();
    }
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

Catalogue::Dropped Catalogue::replace_layer(const LayerPlace& layer, const LayerPlace& by) {
    for (const char* const update :
         {"UPDATE OR REPLACE holders SET owner = ?, position = ? WHERE owner = ? AND position = ?",
          "UPDATE inherited SET owner = ?, owner_position = ? "
          "WHERE owner = ? AND owner_position = ?"}) {
        prepare(update)
            .bind(by.model)
            .bind(std::uint64_t{by.position})
            .bind(layer.model)
            .bind(std::uint64_t{layer.position})
            .run();
    }
    return drop_layer(layer.model, layer.position);
}

void Catalogue::note(const Note& note, std::uint64_t most_retirements) {
    const auto count = [](Statement& found) {
        const std::uint64_t number = found.step() ? found.number(0) : 0;
        found.start();
        return number;
    };
    if (!retirements_)
        retirements_ = count(prepare("SELECT count(*) FROM notes WHERE retired = 1"));
    std::uint64_t retirements = *retirements_;
    retirements -= count(
        prepare("SELECT retired FROM notes WHERE model = ?").bind(std::string_view(note.model)));
    retirements += note.retired;
    prepare(
        "INSERT OR REPLACE INTO notes VALUES(?, ?, ?, ?, "
        "1 + (SELECT coalesce(max(number), 0) FROM notes WHERE retired = 1))")
        .bind(std::string_view(note.model))
        .bind(note.version)
        .bind(std::uint64_t{note.retired})
        .bind(note.by)
        .run();
    for (; retirements > most_retirements; --retirements) {
        prepare(
            "UPDATE forgotten SET version = max(version, (SELECT version FROM notes WHERE "
            "retired = 1 ORDER BY number LIMIT 1))")
            .run();
        prepare(
            "DELETE FROM notes WHERE model = (SELECT model FROM notes WHERE retired = 1 ORDER BY "
            "number LIMIT 1)")
            .run();
    }
    retirements_ = retirements;
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
    const std::vector<std::byte> tensors = encode(layer.tensors);
    prepare("UPDATE layers SET segment = ?, tensors = ? WHERE model = ? AND position = ?")
        .bind(layer.segment)
        .bind(std::span<const std::byte>(tensors))
        .bind(layer.owner)
        .bind(std::uint64_t{layer.position})
        .run();
}

void Catalogue::remove_model(std::uint64_t model) {
    for (const char* const sql :
         {"DELETE FROM models WHERE serial = ?", "DELETE FROM layers WHERE model = ?",
          "DELETE FROM inherited WHERE model = ?", "DELETE FROM small WHERE model = ?"}) {
        prepare(sql).bind(model).run();
    }
}

}  // namespace cpp_store::durable
