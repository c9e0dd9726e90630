// What the operations of the store (put.cpp, read.cpp, match.cpp, retire.cpp, foreign.cpp) share.
//
// Who keeps what: a stored layer is held by its Owner as long as somebody refers to it by name
// (models, leases through their model, models on other servers), and by whoever reads it as long as
// they hold its StoredLayerPtr. Its memory goes with the last of both.
#pragma once

#include <array>
#include <atomic>
#include <condition_variable>
#include <list>
#include <map>
#include <mutex>
#include <set>
#include <unordered_map>
#include <utility>

#include "core/call_times.hpp"
#include "cpp_store/store.hpp"
#include "durable/journal.hpp"
#include "durable/records.hpp"

namespace cpp_store {

// For maps by id that are asked with string_views.
struct StringHash {
    using is_transparent = void;
    std::size_t operator()(std::string_view text) const noexcept {
        return std::hash<std::string_view>{}(text);
    }
};
template <typename Value>
using ById = std::unordered_map<std::string, Value, StringHash, std::equal_to<>>;

// A stored layer and the part of an allocation that it gives back when nobody holds it any more.
struct LayerInArena : StoredLayer {
    std::shared_ptr<Arena> arena;
    Extent extent;
    mutable std::shared_ptr<const LayerInArena> next_garbage;  // of Garbage

    LayerInArena() = default;
    LayerInArena(const LayerInArena&) = delete;
    LayerInArena& operator=(const LayerInArena&) = delete;
    ~LayerInArena() {
        if (arena) arena->release(extent);
    }
};

[[nodiscard]] constexpr std::uint64_t padded(std::uint64_t bytes) noexcept {
    return (bytes + Arena::alignment - 1) / Arena::alignment * Arena::alignment;
}

struct Owner;

// What a store with a data directory knows of a layer, in memory or not.
struct Kept {
    durable::LayerRecord record;
    bool on_disk = false;      // else it must stay in memory
    std::uint64_t serial = 0;  // StoredLayer::serial
    bool loading = false;      // somebody is bringing it into memory
    // Place in Store::Impl::resident; end(): it is not there.
    std::list<std::pair<Owner*, std::size_t>>::iterator resident;

    [[nodiscard]] durable::LayerPlace place() const noexcept { return record.place(); }
};

// The layers that one put brought, while anybody refers to one of them.
struct Owner {
    struct Entry {
        // Null: nobody refers to it any more, or it is on disk only.
        std::shared_ptr<const LayerInArena> layer;
        std::uint32_t referrers = 0;
        std::unique_ptr<Kept> kept = nullptr;  // null without a data directory

        [[nodiscard]] std::uint64_t nbytes() const;
        [[nodiscard]] std::size_t tensors() const noexcept {
            return kept ? kept->record.tensors.size() : layer->tensors.size();
        }
    };
    std::string model;                  // as others call it
    std::vector<Entry> entries;         // never move, as others keep their positions
    std::vector<LayerKey> keys;         // of the entries, ascending
    std::vector<std::uint32_t> places;  // of the entry of each key; empty: as the keys
    std::size_t referred = 0;           // entries with referrers

    // Index of the entry of that key, or entries.size() if it is not here (any more).
    [[nodiscard]] std::size_t find(const LayerKey& key) const noexcept;
    // The same of one that nobody refers to any more, or yet.
    [[nodiscard]] std::size_t find_entry(const LayerKey& key) const noexcept;
    [[nodiscard]] const LayerKey& key_of(std::size_t entry) const noexcept;
    // Makes an entry for a layer that is not here, to be filled in; nobody refers to it yet. Cannot
    // fail for as many layers as there was made room for.
    std::size_t add(const LayerKey& key);
    void make_room(std::size_t layers);
};

// A layer with tensors, as a model refers to it.
struct Slot {
    std::uint32_t layer = 0;
    std::shared_ptr<Owner> owner;  // null: foreign
    std::size_t entry = 0;         // of owner->entries
    StoredLayerPtr stored;         // null with a data directory: the entry has it
    std::string foreign_owner;

    [[nodiscard]] const std::string& owner_name() const noexcept {
        return owner ? owner->model : foreign_owner;
    }
    [[nodiscard]] LayerLocation location(std::uint32_t position) const {
        return {position, owner_name(), stored, owner == nullptr};
    }
};

struct Model {
    std::string id;
    std::string owner;  // of its own layers, by name
    std::string ns;
    LayerTablePtr table;
    std::vector<Slot> slots;  // ascending by layer
    double score = 0;
    std::string parent;
    std::string graph;
    std::string metadata;
    std::uint64_t created_ns = 0;
    std::uint64_t bytes_own = 0;
    std::uint64_t bytes_inherited = 0;
    Checksum description;      // of all that the put said but the tensors' bytes
    Checksum content;          // of everything
    std::uint64_t serial = 0;  // in the data directory

    // Guarded by Store::Impl::mutex; all the rest is never changed once the model is visible.
    std::uint64_t sequence = 0;  // order of visibility in this store
    std::uint32_t leases = 0;
    bool retired = false;
    std::shared_ptr<Model> next_garbage;  // of Garbage

    // The slot of a layer, or null if it has no tensors.
    [[nodiscard]] const Slot* slot(std::uint32_t layer) const noexcept;
    [[nodiscard]] ForeignReferences foreign_references() const;
};
using ModelPtr = std::shared_ptr<Model>;

struct Lease {
    ModelPtr model;
    std::chrono::steady_clock::time_point expires;
};

// A model on another server, and what it refers to here.
struct Holder {
    struct Reference {
        std::shared_ptr<Owner> owner;
        std::size_t entry = 0;
        auto operator<=>(const Reference&) const = default;
    };
    std::set<Reference> references;
    std::chrono::steady_clock::time_point acquired;  // the last time
};

// What must be destroyed only after the mutex is free, since it may give back much memory. To throw
// something away takes none: each of it comes once only, and knows the next.
class Garbage {
  public:
    Garbage() = default;
    Garbage(const Garbage&) = delete;
    Garbage& operator=(const Garbage&) = delete;
    ~Garbage() {
        while (models_) models_ = ModelPtr(std::move(models_->next_garbage));
        while (layers_) layers_ = std::shared_ptr(std::move(layers_->next_garbage));
    }
    void add(ModelPtr model) noexcept {
        model->next_garbage = std::move(models_);
        models_ = std::move(model);
    }
    void add(std::shared_ptr<const LayerInArena> layer) noexcept {
        if (!layer) return;
        layer->next_garbage = std::move(layers_);
        layers_ = std::move(layer);
    }

  private:
    ModelPtr models_;
    std::shared_ptr<const LayerInArena> layers_;
};

struct Store::Impl {
    const Options options;
    const std::shared_ptr<Arena> arena;  // stored layers hold it, too
    // Has its own lock, which is taken after `mutex` where both are.
    PrefixIndex index;

    // Guards what follows, and that the index holds exactly the visible models. Never held while
    // tensor bytes are copied, summed or freed.
    mutable std::mutex mutex;
    ById<ModelPtr> models;                          // the visible ones
    std::set<std::string, std::less<>> committing;  // ids of puts that wait for the disk
    std::condition_variable committed;              // one of them has left
    // With a data directory: layers that are in memory and on disk, the longest unused first.
    std::list<std::pair<Owner*, std::size_t>> resident;
    mutable std::condition_variable loaded;  // a Kept::loading has become false
    ById<std::shared_ptr<Owner>> owners;
    std::set<std::string, std::less<>> retired;  // ids of retired models that leases hold
    std::unordered_map<std::uint64_t, Lease> leases;
    std::set<std::pair<std::chrono::steady_clock::time_point, std::uint64_t>> lease_ends;
    std::map<std::string, Holder, std::less<>> holders;
    Notes notes;  // that were in the data directory
    std::uint64_t next_lease;
    std::uint64_t last_sequence = 0;
    StoreStats counts;  // but for `memory`, `index`, `calls`, and the two below
    std::array<Histogram, StoreStats::operations> calls;  // by any thread, without the mutex

    std::atomic<std::uint64_t> last_serial = 0;
    std::atomic<std::uint64_t> reads = 0;
    std::atomic<std::uint64_t> bytes_read = 0;

    // Null without a data directory. Has its own lock, which is taken after `mutex`. The last
    // member: its thread uses all others.
    std::unique_ptr<durable::Journal> journal;

    explicit Impl(const Options& given);

    // Throws Errc::not_found. Takes the mutex.
    [[nodiscard]] ModelPtr find(std::string_view model) const;
    void count_read(std::span<const StoredLayerPtr> layers) noexcept;
    [[nodiscard]] std::vector<LayerLocation> layers_of(const Model& model,
                                                       std::span<const std::uint32_t> positions);

    // Memory for a layer. With a data directory, others make room for it.
    [[nodiscard]] Extent allocate(std::uint64_t bytes);
    // Layers, brought into memory where they are not. Throws Errc::not_found for those that
    // nobody refers to any more.
    struct Place {
        std::shared_ptr<Owner> owner;
        std::size_t entry = 0;
    };
    [[nodiscard]] std::vector<StoredLayerPtr> pin(std::span<const Place> places);
    // A layer as it is on disk, its checksums compared.
    [[nodiscard]] std::shared_ptr<LayerInArena> load(const Owner& owner, std::size_t entry,
                                                     const durable::LayerRecord& record,
                                                     std::uint64_t layer_serial,
                                                     const durable::File& segment);
    // Whether a layer has the bytes that were put, wherever they are; one that is gone, too.
    [[nodiscard]] bool is_intact(const Place& place) const;
    void open_data_dir();  // and recover what is there
    void moved(std::span<const std::pair<std::string, durable::LayerRecord>> layers);

    // All of the following expect the mutex to be held.

    // The entry of an owner's layer; throws Errc::not_found.
    [[nodiscard]] std::pair<std::shared_ptr<Owner>, std::size_t> find_layer(
        std::string_view owner, const LayerKey& key) const;
    void refer(Owner& owner, std::size_t entry) noexcept;
    void log_release(const std::string& holder, const Holder::Reference& reference) noexcept;
    void log_release(const std::string& holder, const durable::LayerPlace& layer) noexcept;
    // Of an entry that has its layer in memory and on disk: used now.
    void touch(Owner& owner, std::size_t entry);
    // Where a layer's bytes are on disk: of an entry, of the layers of a put.
    void place(Owner& owner, std::size_t entry, const durable::LayerRecord& record) noexcept;
    void place(const durable::ModelRecord& record) noexcept;
    void list(Owner& owner, std::size_t entry) noexcept;
    // Lets go of layers that nobody uses, until so many bytes are free. Returns how many.
    std::uint64_t evict(std::uint64_t bytes, Garbage& garbage);
    // Adds what was recovered (see recover.cpp); throws Errc::storage if it cannot be.
    struct Recovered;
    void restore_layers(durable::ModelRecord& record, Recovered& recovered);
    void restore(durable::ModelRecord record, const Recovered& recovered);
    void drop(Owner& owner, std::size_t entry, Garbage& garbage) noexcept;
    // Entry of a layer of an owner, which is added if it is not here; nobody refers to it then.
    std::size_t find_or_add(Owner& owner, const std::shared_ptr<const LayerInArena>& layer);
    // Throws Errc::already_exists if the id cannot become a new model, or its layers have an owner.
    void check_is_free(std::string_view model, std::string_view owner) const;
    // Takes away what a model refers to here that is retired and without leases, or was never seen.
    void drop_references(const ModelPtr& model, Garbage& garbage) noexcept;

    std::uint64_t add_lease(const ModelPtr& model, std::chrono::milliseconds duration);
    ForeignReferences remove_lease(std::uint64_t lease, Garbage& garbage);
    void remove_lease(std::unordered_map<std::uint64_t, Lease>::iterator lease,
                      Garbage& garbage) noexcept;
    std::size_t expire_leases(Garbage& garbage) noexcept;
    // The matches with their layers and leases; false if one of them was retired since.
    bool add_leases(const LayerTable& table, std::vector<Match>& matches,
                    std::chrono::milliseconds lease, std::vector<LeasedMatch>& out);
};

// Bytes of a layer's tensors, without padding.
[[nodiscard]] std::uint64_t bytes_of(const StoredLayer& layer);

}  // namespace cpp_store
