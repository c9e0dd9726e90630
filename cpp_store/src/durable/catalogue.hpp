// The catalogue of a data directory: an SQLite database in WAL mode (docs/formats.md has its
// tables).
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "cpp_store/store.hpp"
#include "durable/records.hpp"

struct sqlite3;
struct sqlite3_stmt;

namespace cpp_store::durable {

// For one thread at a time; another thread may read by one of its own meanwhile. Throws
// Errc::storage for whatever SQLite reports, a SyncError if that is a failed sync.
class Catalogue {
  public:
    static constexpr int format = 4;

    // Opens or makes it; one of an older format becomes one of this format. Throws
    // Errc::invalid_argument for a file that is no catalogue, or is one of a newer format, and
    // Errc::storage for one that is not there or is empty, if it may not be made.
    explicit Catalogue(const std::filesystem::path& path, bool may_make = true);
    ~Catalogue();
    Catalogue(const Catalogue&) = delete;
    Catalogue& operator=(const Catalogue&) = delete;

    [[nodiscard]] bool is_new() const noexcept { return is_new_; }  // just made

    // What changes between begin() and commit() becomes durable at once, or not at all.
    void begin();
    void commit();
    void rollback() noexcept;
    // Copies what is in its log into the database, if that has become long.
    void checkpoint();

    void put(const ModelRecord& model);
    void put_small(const LayerPlace& layer, std::span<const std::byte> bytes);
    // It matches no more; it inherits nothing more. Forgotten with its last layer.
    void retire(std::uint64_t model);
    // Returns the segment that the layer's bytes are in (0: none) and how many they are; two
    // zeros if there is none.
    struct Dropped {
        std::uint64_t segment = 0;
        std::uint64_t nbytes = 0;
    };
    Dropped drop_layer(std::uint64_t model, std::uint32_t position);
    void acquire(const HolderRecord& reference);
    void release(const HolderRecord& reference);
    // Whoever refers to a layer refers to another one from now on, which is the same; it goes.
    Dropped replace_layer(const LayerPlace& layer, const LayerPlace& by);
    // Instead of what was noted of the id before. Of retirements, beyond so many the oldest are
    // forgotten.
    void note(const Note& note, std::uint64_t most_retirements);
    void add_segment(const SegmentRecord& segment);
    void remove_segment(std::uint64_t serial);
    // After its bytes were copied elsewhere.
    void move_layer(const LayerRecord& layer);

    // Ascending by serial. Those that cannot be decoded: Errc::storage, or given to `broken`.
    void models(const std::function<void(ModelRecord)>& each,
                const std::function<void(std::uint64_t serial)>& broken = nullptr) {
        models_of({}, each, broken);
    }
    [[nodiscard]] std::optional<ModelRecord> model(std::uint64_t serial);
    // Of a segment, or of small puts (0), until they have so many bytes together.
    [[nodiscard]] std::vector<LayerRecord> layers_in(
        std::uint64_t segment,
        std::uint64_t most_bytes = std::numeric_limits<std::uint64_t>::max());
    [[nodiscard]] std::vector<HolderRecord> holders();
    [[nodiscard]] Notes notes();
    [[nodiscard]] std::vector<SegmentRecord> segments();
    // The bytes of a layer of a small put; none if there are none.
    [[nodiscard]] std::vector<std::byte> small(const LayerPlace& layer);
    // What is of no use: layers of no model, references to no layer, bytes of no layer, and so on.
    // As sentences; `repair` removes it.
    [[nodiscard]] std::vector<std::string> leaks(bool repair);
    void remove_model(std::uint64_t model);
    // SQLite's own check of the file, and whether it has the tables of a store; empty if all is
    // well.
    [[nodiscard]] std::string integrity();
    void rebuild_indexes();
    [[nodiscard]] std::uint64_t last_serial();

  private:
    class Statement;
    friend class OldFormat;

    // Of the model of that serial, or of all.
    void models_of(std::optional<std::uint64_t> serial,
                   const std::function<void(ModelRecord)>& each,
                   const std::function<void(std::uint64_t serial)>& broken);
    void execute(const char* sql);
    [[noreturn]] void fail(const char* what) const;
    Statement& prepare(const char* sql);
    [[nodiscard]] std::string columns();  // of all tables, a line each

    std::filesystem::path path_;
    sqlite3* database_ = nullptr;
    bool is_new_ = false;
    std::map<std::string_view, std::unique_ptr<Statement>> statements_;  // by their SQL
    std::optional<std::uint64_t> retirements_;                           // noted; null: not counted
    int log_pages_ = 0;
};

}  // namespace cpp_store::durable
