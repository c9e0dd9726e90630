// Models and their tensors, each shared tensor once. One process, many threads; no network.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "cpp_store/arena.hpp"
#include "cpp_store/error.hpp"
#include "cpp_store/layer_table.hpp"
#include "cpp_store/prefix_index.hpp"
#include "cpp_store/types.hpp"

namespace cpp_store {

// A layer that a model references in another model instead of storing it again.
struct Inherited {
    std::uint32_t layer = 0;  // position in the child's table
    std::string owner;        // the model that put the tensors; never itself an heir of them
    bool foreign = false;  // the owner lives on another server, where `acquire` was called before
    std::uint64_t bytes = 0;  // of a foreign layer, where the table does not say
};

// A layer that a model brings along.
struct Own {
    std::uint32_t layer = 0;
    std::vector<TensorSpec> tensors;
};

struct PutRequest {
    std::string model;
    std::string ns;
    LayerTablePtr table;
    std::vector<Own> own;  // a layer in neither list has no tensors (and nbytes == 0)
    std::vector<Inherited> inherited;
    double score = 0;
    std::string parent;            // evolutionary parent; may be empty
    std::string graph;             // layer graph as JSON; opaque here
    std::string metadata;          // the user's JSON; opaque here
    std::uint64_t created_ns = 0;  // since the epoch; 0: now
    // What others call the owner of its layers by. Empty: its id; else a name that no other content
    // has, so that the id of a retired model is free though others still refer to its layers.
    std::string owner;
};

// A layer whose model is not here: what its key and its tensors are.
struct OwnerlessLayer {
    LayerKey key;
    std::vector<TensorSpec> tensors;
};

// The tensors of one layer, immutable and complete. Holding the pointer keeps the bytes.
struct StoredLayer {
    struct Tensor {
        TensorSpec spec;
        Extent extent;      // 64-byte aligned; extent.data for spec.nbytes() bytes
        Checksum checksum;  // taken when the bytes arrived
    };
    std::string owner;
    LayerKey key;
    std::uint64_t serial = 0;  // no other layer that this store ever held has the same
    std::vector<Tensor> tensors;
};
using StoredLayerPtr = std::shared_ptr<const StoredLayer>;

// Where a layer of a model is: here (`stored`), or at the server of `owner`.
struct LayerLocation {
    std::uint32_t layer = 0;
    std::string owner;
    // Null if the owner is foreign, or if the layer has no tensors; and, where no tensors are asked
    // for (lookup, best matches), of a store with a data directory.
    StoredLayerPtr stored;
    bool foreign = false;  // the owner is on another server
};

struct ModelInfo {
    std::string model;
    std::string owner;  // what its own layers are found by
    std::string ns;
    LayerTablePtr table;
    std::vector<LayerLocation> layers;  // those with tensors, ascending by position
    double score = 0;
    std::string parent;
    std::string graph;
    std::string metadata;
    std::uint64_t created_ns = 0;
    std::uint64_t bytes_own = 0;
    std::uint64_t bytes_inherited = 0;
};

// References that a retired model, or the last lease of one, held on other servers. The caller
// releases them there (`Store::release`); if it dies before, `scrub` does.
struct ForeignReferences {
    std::string holder;
    std::map<std::string, std::vector<LayerKey>> by_owner;
};

struct LeasedMatch {
    Match match;
    std::uint64_t lease = 0;  // 0 if none was asked for
    // Of match.positions that have tensors; `layer` is the position in the query's table.
    std::vector<LayerLocation> layers;
};

// Of calls that a server answered, whatever the answer: from the moment at which the request was
// there, the waiting for a thread and for bytes to move included. Nanoseconds.
struct CallTimes {
    std::uint64_t count = 0, p50 = 0, p99 = 0;
};

struct StoreStats {
    static constexpr std::size_t operations = 40;  // room for more than there are
    Arena::Stats memory;
    PrefixIndex::Stats index;
    std::uint64_t models = 0;   // visible ones
    std::uint64_t retired = 0;  // retired ones that leases still hold
    std::uint64_t layers = 0;   // stored layers
    std::uint64_t tensors = 0;
    std::uint64_t bytes_stored = 0;      // of all tensors now held, each once
    std::uint64_t bytes_referenced = 0;  // what whole copies of the visible models would take
    std::uint64_t leases = 0;
    std::uint64_t foreign_holders = 0;
    std::uint64_t puts = 0, reads = 0, matches = 0, retires = 0;  // calls that succeeded
    std::uint64_t bytes_put = 0, bytes_read = 0;
    std::uint64_t layers_inherited = 0, bytes_inherited = 0;  // by puts, over the lifetime
    // Of a server among replicas: the others with which it has compared all that both keep, the
    // puts of which one replica is missing, as clients said, and models that it took over.
    std::uint64_t peers = 0, degraded_puts = 0, repaired = 0;
    std::array<CallTimes, operations> calls{};  // of servers; by the number of the operation
};

// What servers that keep replicas must not forget: that a model was retired, by the name of its
// owner, or that it was put again. (Before version 3 of the wire format, by its id and a version;
// `by` is no longer used.)
struct Note {
    std::string model;
    std::uint64_t version = 0;
    bool retired = false;
    std::uint64_t by = 0;
};
struct Notes {
    std::vector<Note> notes;      // the latest of each name, in the order in which they were made
    std::uint64_t forgotten = 0;  // no longer used
};

// What a model on another server refers to here, of one owner.
struct HeldLayers {
    std::string holder;
    std::string owner;
    std::vector<LayerKey> keys;
    std::chrono::steady_clock::time_point acquired{};  // the last time
};

// A put whose tensors are being filled in. Dropping it gives the memory back.
class PendingPut {
  public:
    PendingPut(PendingPut&&) noexcept;
    PendingPut& operator=(PendingPut&&) noexcept;
    ~PendingPut();

    // Checksum of all that it brings and says but the time; takes the sums that are still missing.
    [[nodiscard]] Checksum content();
    [[nodiscard]] const std::string& model() const noexcept;
    [[nodiscard]] const std::string& owner() const noexcept;

    // Where each tensor's bytes belong: one span a tensor, in the order of request.own.
    [[nodiscard]] std::span<const std::span<std::byte>> buffers() const noexcept;

    // The layers that the put brings, in the order of request.own: to pin the memory that
    // is being filled, for whoever may hold on to it longer than the put lasts.
    [[nodiscard]] std::vector<LayerLocation> layers() const;

    // Copies one tensor in and takes its checksum in the same pass. A buffer that was filled
    // otherwise (RMA) gets its checksum at commit. Different tensors may be filled by different
    // threads.
    void fill(std::size_t tensor, const std::byte* source);
    // The same for bytes that come in pieces, in order, all but the last of multiples of 64 bytes.
    // What is summed is what is stored, though somebody writes to the source meanwhile.
    void append(std::size_t tensor, std::span<const std::byte> piece);
    // Of a buffer that was filled otherwise: whether it holds bytes of that checksum, which is then
    // not taken again.
    [[nodiscard]] bool check(std::size_t tensor, const Checksum& expected);

  private:
    friend class Store;
    struct Impl;
    explicit PendingPut(std::unique_ptr<Impl> impl);
    std::unique_ptr<Impl> impl_;
};

// When a put (and whatever else changes the store) is acknowledged, with a data directory.
enum class Durability : std::uint8_t {
    lazy = 0,  // when it is in memory; it is on disk within Options::lag
    sync = 1,  // when it is on disk
};

// Thread-safe. No lock is held while tensor bytes are copied, summed, or on their way to disk.
//
// With a data directory, tensors that were not used for a while leave the memory when it is needed
// for others, and come back when they are read (Options::memory limits what is there at a time).
class Store {
  public:
    struct Options {
        Arena::Options memory;
        std::chrono::milliseconds lease{600'000};  // for leases whose taker says nothing
        std::function<std::chrono::steady_clock::time_point()> clock{
            &std::chrono::steady_clock::now};  // what leases expire by

        // Where everything is kept; made if it is not there. Empty: nowhere, it ends with the
        // store.
        std::filesystem::path data_dir = {};
        Durability durability = Durability::lazy;
        // If lazy: of what was acknowledged longer ago than this before the last
        // acknowledgement, a crash loses nothing. Where the disk cannot follow, puts wait.
        std::chrono::milliseconds lag{1'000};
        // Told in one line what went wrong where nobody waits for an answer; null: stderr.
        std::function<void(std::string_view)> warn = nullptr;
    };

    // With a data directory, recovers what is there. Throws Errc::invalid_argument if it cannot be
    // one (in use by another store, not a directory, of a newer format, ...), Errc::storage if it
    // cannot be read or written, or is damaged.
    explicit Store(const Options& options);
    ~Store();
    Store(const Store&) = delete;
    Store& operator=(const Store&) = delete;

    // First half of a put: checks the request, reserves memory, takes the references to inherited
    // layers. Nothing is visible yet. Throws invalid_argument (among others: a layer whose tensors
    // have other bytes than its table says, where it says), not_found (an inherited layer that is
    // not here), out_of_memory; already_exists early if the id is taken by other content for sure.
    //
    // The id of a retired model stays taken while anybody refers to its layers (other models, here
    // or on other servers, and leases): layers are found by their owner's id.
    [[nodiscard]] PendingPut prepare(PutRequest request);

    // Second half: the model becomes visible, whole. A model of the same id and content is success
    // (the new copy is dropped); of other content, already_exists.
    // Returns the bytes that the model added to the store. Errc::storage: the data directory cannot
    // be written; nothing has changed.
    std::uint64_t commit(PendingPut put);
    // The same without waiting for the disk: `done` is called once, by this thread or another, with
    // what commit() would have thrown or returned.
    using Committed = std::function<void(std::exception_ptr, std::uint64_t)>;
    void commit(PendingPut put, Committed done);

    // Tensors of the layers at `positions` of the model's table (empty: all). not_found if there is
    // no such model; invalid_argument for a position out of range.
    [[nodiscard]] std::vector<LayerLocation> read(std::string_view model,
                                                  std::span<const std::uint32_t> positions);

    // Tensors of layers by owner, which may be retired as long as somebody refers to them.
    [[nodiscard]] std::vector<StoredLayerPtr> fetch(std::string_view owner,
                                                    std::span<const LayerKey> keys);
    // The same, for a server that moves the bytes itself, or none: not a read in the statistics,
    // unless it is counted as one. Null pointers are allowed there.
    [[nodiscard]] std::vector<StoredLayerPtr> find_layers(std::string_view owner,
                                                          std::span<const LayerKey> keys) const;
    void count_read(std::span<const StoredLayerPtr> layers) noexcept;
    // The tensors of a model's layers, as read() does, also not counted.
    [[nodiscard]] std::vector<LayerLocation> find_layers(
        std::string_view model, std::span<const std::uint32_t> positions) const;
    // Bytes of layers by owner.
    [[nodiscard]] std::vector<std::uint64_t> layer_bytes(std::string_view owner,
                                                         std::span<const LayerKey> keys) const;

    // Best matches; each is leased for `lease` (0: no lease, negative: Options::lease) so that its
    // tensors can be read and inherited though it is retired meanwhile. The match and its lease are
    // taken atomically. An expired lease frees what it held at the next call that changes the
    // store.
    [[nodiscard]] std::vector<LeasedMatch> best_matches(const LayerTable& table, const Query& query,
                                                        std::chrono::milliseconds lease);

    // Ends a lease; unknown ones (expired) are ignored.
    ForeignReferences end_lease(std::uint64_t lease);
    // The same where nobody would release the foreign references: they are left to the scrub.
    void drop_lease(std::uint64_t lease) noexcept;
    // Ends the leases whose time is over, and returns how many. Foreign references that they were
    // the last to keep are left to the scrub.
    std::size_t expire_leases();

    [[nodiscard]] ModelInfo lookup(std::string_view model) const;
    [[nodiscard]] LayerTablePtr table(std::string_view model) const;
    [[nodiscard]] bool contains(std::string_view model) const;
    // Whether a model may still use what it refers to: it is visible, or retired but leased.
    [[nodiscard]] bool is_alive(std::string_view model) const;
    // Whether leases hold a retired model of that id; another one may be visible beside it.
    [[nodiscard]] bool is_retired_and_leased(std::string_view model) const;
    // What a visible model's own layers are found by; empty if there is none.
    [[nodiscard]] std::string owner_of(std::string_view model) const;
    // Ids of the visible models of a namespace (all namespaces: nullptr), oldest first.
    [[nodiscard]] std::vector<std::string> list(const std::string* ns = nullptr) const;

    // Out of the candidates at once; memory goes with the last reference. not_found if unknown.
    // What is noted becomes durable together with it.
    ForeignReferences retire(std::string_view model, std::optional<Note> note = std::nullopt);

    // References of a model on another server (`holder`) to layers stored here. Idempotent.
    void acquire(std::string_view owner, std::span<const LayerKey> keys, std::string_view holder);
    void release(std::string_view owner, std::span<const LayerKey> keys, std::string_view holder);
    // Brings layers of a retired model back that models on other servers refer to, from a server
    // that still has them: reserves memory, and when it is filled, takes them in for a holder.
    [[nodiscard]] PendingPut prepare_adoption(std::string_view owner,
                                              std::vector<OwnerlessLayer> layers);
    void adopt(PendingPut put, std::string_view holder);
    // Those whose last `acquire` is at least `age` old: a younger one may be a put in progress.
    [[nodiscard]] std::vector<std::string> holders(std::chrono::milliseconds age = {}) const;
    // Whether it refers to all of these.
    [[nodiscard]] bool is_held(std::string_view owner, std::span<const LayerKey> keys,
                               std::string_view holder) const;
    // What holders refer to, ordered by their names: those after `after`, at least `most` layers if
    // there are as many.
    [[nodiscard]] std::vector<HeldLayers> held_after(std::string_view after,
                                                     std::size_t most) const;
    // Drops everything that a holder refers to here.
    void release_holder(std::string_view holder);
    // Without a data directory: nothing to do. Else durable as a put is, instead of what was noted
    // of the id before.
    void note(Note note);
    // What the data directory had when it was opened; once.
    [[nodiscard]] Notes take_notes();

    // Recomputes checksums; returns the names of layers whose bytes changed ("owner/key hex").
    [[nodiscard]] std::vector<std::string> verify() const;

    [[nodiscard]] StoreStats stats() const;
    // A server has answered a call; any thread, and nobody waits.
    void note_call(std::size_t operation, std::chrono::nanoseconds time) noexcept;
    [[nodiscard]] const Arena& arena() const noexcept;

    // Whether it keeps its models in a data directory, too.
    [[nodiscard]] bool has_data_dir() const noexcept;
    // Waits until all that was acknowledged is on disk. Without a data directory: nothing to do.
    void flush();
    // flush(), and lets go of the data directory: what changes the store is refused from now on,
    // what is in memory can still be read. Idempotent. The destructor does it, too.
    void close();

  private:
    friend class PendingPut;
    struct Impl;
    std::shared_ptr<Impl> impl_;  // pinned layers outlive the store: they keep its arena
};

}  // namespace cpp_store
