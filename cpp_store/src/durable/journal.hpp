// What a store with a data directory has done and is not on disk yet, in the order in which it was
// done; and the thread that brings it there.
//
// There is one log: that of the catalogue, SQLite's own. The thread takes all changes that wait, as
// one transaction, with one sync, and then acknowledges all of them (group commit); of a lazy store
// they wait for up to half its lag, of a sync store not at all. So what is found after a crash is
// what the store was at some moment: no model without all that it inherits. Tensors are in the
// catalogue for good where a put brings few bytes, which takes one sync; else in a segment, which
// is written and synced before the transaction that speaks of it.
//
// After a sync that failed nobody knows what is on disk, and a later one that succeeds does not say
// it: no change is acknowledged any more until the directory is opened again.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <filesystem>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "core/forks.hpp"
#include "cpp_store/store.hpp"
#include "durable/catalogue.hpp"
#include "durable/change.hpp"
#include "durable/files.hpp"
#include "durable/records.hpp"
#include "durable/segment.hpp"

namespace cpp_store::durable {

class Journal {
  public:
    struct Options {
        std::filesystem::path directory;
        bool sync = false;
        std::chrono::milliseconds lag{1'000};
        std::uint64_t most_waiting = std::uint64_t{256} << 20;  // bytes not on disk, if lazy
        std::uint64_t most_retirements = 200'000;               // that are noted
        std::function<void(std::string_view)> warn;
    };
    // Once, by the journal's thread, which holds no lock then: null if it is on disk, and of a put
    // the record says where the layers are; else why it is not, and it is forgotten. A lazy journal
    // only ever calls it with null. Must not throw.
    using Done = std::function<void(std::exception_ptr)>;
    // Layers whose bytes have moved, with the id of their owner.
    using Moved = std::function<void(std::span<const std::pair<std::string, LayerRecord>>)>;

    // Opens and locks the directory and brings it to a consistent state. Throws
    // Errc::invalid_argument (in use, not a directory, of a newer format, ...) or Errc::storage.
    explicit Journal(Options options);
    ~Journal();  // closes; what cannot be written is told to `warn`
    Journal(const Journal&) = delete;
    Journal& operator=(const Journal&) = delete;

    // What was there, before start().
    void load(const std::function<void(ModelRecord)>& each) { catalogue_->models(each); }
    [[nodiscard]] std::vector<HolderRecord> holders() { return catalogue_->holders(); }
    [[nodiscard]] Notes notes() { return catalogue_->notes(); }
    void start(Moved moved);

    [[nodiscard]] bool is_sync() const noexcept { return options_.sync; }
    [[nodiscard]] std::uint64_t next_serial() noexcept { return ++last_serial_; }

    // Before a put: throws Errc::storage if it cannot be taken now, because the disk is full or the
    // last ones could not be written. If lazy, waits until the `bytes` that it brings are not too
    // many.
    void admit(std::uint64_t bytes);

    // A large put's tensors, written and synced by its own thread, before put().
    [[nodiscard]] bool is_large(std::uint64_t bytes) const noexcept;
    void write_ahead(ModelRecord& model, std::span<const StoredLayerPtr> layers);

    // Changes. Their order is that of the calls. Of a sync journal, those with `done` that cannot
    // be written are forgotten; all others are tried again.
    void put(std::shared_ptr<ModelRecord> model, std::vector<StoredLayerPtr> layers, Done done);
    void retire(std::uint64_t model, std::optional<Note> note, Done done);
    void note(Note note, Done done);
    void acquire(HolderRecord reference, Done done);
    void release(HolderRecord reference) noexcept;
    void drop_layer(LayerPlace layer) noexcept;
    // See Catalogue::replace_layer.
    void replace_layer(LayerPlace layer, LayerPlace by) noexcept;

    // Waits until all that was done so far is in the catalogue. Throws Errc::storage.
    void flush();
    // The same, so that its tensors can leave the memory. False if there was nothing, or it could
    // not be written.
    bool flush_some() noexcept;
    // flush(), then lets go of the directory: changes are refused from now on. Idempotent.
    void close();

    // Any thread.
    [[nodiscard]] File open_segment(std::uint64_t serial) const;
    // The bytes of a layer that is in no segment. Throws Errc::storage.
    [[nodiscard]] std::vector<std::byte> read_small(const LayerPlace& layer);

    [[nodiscard]] const std::filesystem::path& directory() const noexcept {
        return options_.directory;
    }

  private:
    using Clock = std::chrono::steady_clock;
    struct Use {  // of a segment
        std::uint64_t data_bytes = 0;
        std::uint64_t live_bytes = 0;
        std::uint64_t layers = 0;
    };
    using Uses = std::map<std::uint64_t, Use>;

    void check_process() const;  // throws in a fork
    void recover();
    void enqueue(Change change);
    void enqueue_if_possible(Change change) noexcept;
    void run();
    [[nodiscard]] bool is_due() const;
    void wait_until_due(std::unique_lock<std::mutex>& lock);
    [[noreturn]] void refuse(const std::string& why) const;
    void check_is_open() const;
    void tell(Batch& batch, const std::exception_ptr& error);
    [[nodiscard]] std::exception_ptr attempt(Batch& batch);
    [[nodiscard]] std::string tidy_up();
    std::string stop(const SyncError& why);
    [[nodiscard]] bool is_stopped() const;
    void write(Batch& batch);
    std::uint64_t write_segment_of(Batch& batch, Uses& uses);
    void write_file(std::uint64_t serial, std::vector<SegmentTensor> tensors,
                    std::span<const ModelRecord* const> models) const;
    void undo(std::uint64_t segment) noexcept;
    void apply(const Change& change, Uses& changed);
    void drop_empty(Uses& uses, std::vector<std::uint64_t>& emptied);
    void take_over(const Uses& changed, const std::vector<std::uint64_t>& emptied);
    void tidy();
    bool move_layers(std::uint64_t segment);
    [[nodiscard]] std::filesystem::path path_of(std::uint64_t segment) const;

    const Options options_;
    const std::filesystem::path segments_path_;
    const Birthplace birthplace_;
    File lock_;
    std::optional<Catalogue>
        catalogue_;  // until it is closed; of the journal's thread once it runs
    std::atomic<std::uint64_t> last_serial_ = 0;
    Moved moved_;

    std::mutex reading_;               // guards the reader
    std::optional<Catalogue> reader_;  // a second connection, for read_small(); until it is closed

    // Of the journal's thread.
    Uses uses_;
    std::set<std::uint64_t> wasteful_;  // segments of which much is dead

    mutable std::mutex mutex_;          // guards what follows
    std::condition_variable wake_;      // the journal's thread
    std::condition_variable progress_;  // those who wait for it
    Batch queue_;                       // behind the batch at hand
    std::uint64_t waiting_bytes_ = 0;   // in both
    Clock::time_point oldest_{};        // change that is not done
    std::uint64_t enqueued_ = 0;        // numbers of changes
    std::uint64_t finished_ = 0;        // written, or forgotten
    std::uint64_t attempts_ = 0;        // of batches
    bool trying_ = false;               // one is at hand
    std::uint64_t hurry_ = 0;           // those who wait for a flush
    bool closing_ = false;              // no more changes
    bool closed_ = false;
    std::string failure_;   // of the last attempt
    bool stopped_ = false;  // a sync failed: `failure_` stays
    std::thread thread_;
};

// For whoever waits for a change, if the journal is one to wait for.
class Wait {
  public:
    explicit Wait(const Journal& journal) {
        if (journal.is_sync()) result_ = std::make_shared<std::promise<void>>();
    }
    [[nodiscard]] Journal::Done done() const {
        if (!result_) return nullptr;
        return [result = result_](const std::exception_ptr& error) {
            if (error) {
                result->set_exception(error);
            } else {
                result->set_value();
            }
        };
    }
    void get() const {
        if (result_) result_->get_future().get();
    }

  private:
    std::shared_ptr<std::promise<void>> result_;
};

// Opens the catalogue of a directory only after it has been made and locked.
[[nodiscard]] File lock_directory(const std::filesystem::path& directory);
// Its path, for it to be opened. Throws Errc::storage, without having touched it, if its WAL is
// damaged so that SQLite would lose what is in it.
[[nodiscard]] std::filesystem::path catalogue_of(const std::filesystem::path& directory);
// Whether there is something that only a catalogue can tell the meaning of.
[[nodiscard]] bool has_data(const std::filesystem::path& directory);

}  // namespace cpp_store::durable
