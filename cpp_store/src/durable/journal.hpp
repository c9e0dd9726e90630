// What a store with a data directory has done and is not on disk yet, in the order in which it was
// done; and the thread that brings it there.
//
// Changes reach the catalogue in their order, many in one transaction. So what is found after a
// crash is what the store was at some moment: no model without all that it inherits. Tensors are
// written before the transaction that speaks of them: as a segment of their own, or, where they are
// few bytes, within it, which takes one sync instead of three. Later these are packed into a
// segment.
//
// Where changes are acknowledged when they are on disk (sync), a second thread first syncs them to
// a log, in the same order, and acknowledges them. What the catalogue lacks of it after a crash is
// read from there.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
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
#include "durable/redo_log.hpp"
#include "durable/segment.hpp"

namespace cpp_store::durable {

class Journal {
  public:
    struct Options {
        std::filesystem::path directory;
        bool sync = false;
        std::chrono::milliseconds lag{1'000};
        std::uint64_t most_waiting = std::uint64_t{256} << 20;  // bytes not on disk, if lazy
        // Bytes in packets, from which on they are packed when nothing else is to be done; and
        // from which on whoever puts waits for that.
        std::uint64_t some_packets = std::uint64_t{8} << 20;
        std::uint64_t most_packets = std::uint64_t{64} << 20;
        std::uint64_t most_retirements = 200'000;  // that are noted
        std::function<void(std::string_view)> warn;
    };
    // Once: null if it is on disk, else why it is not. Of sync journals. Both of these are called
    // by a thread of the journal that holds no lock then.
    using Logged = std::function<void(std::exception_ptr)>;
    // Once: the record says where the layers are. After Logged. If it throws std::bad_alloc it is
    // called again.
    using Placed = std::function<void()>;
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

    // Before a change: throws Errc::storage if it cannot be taken now, because the disk is full or
    // the last ones could not be written. If lazy, waits until the `bytes` that it brings are not
    // too many.
    void admit(std::uint64_t bytes);

    // A large put's tensors, written and synced by its own thread, before put().
    [[nodiscard]] bool is_large(std::uint64_t bytes) const noexcept;
    void write_ahead(ModelRecord& model, std::span<const StoredLayerPtr> layers);

    // Changes. Their order is that of the calls. Those with `logged` that cannot be logged are
    // forgotten; all others are tried again until they are in the catalogue.
    void put(std::shared_ptr<ModelRecord> model, std::vector<StoredLayerPtr> layers, Logged logged,
             Placed placed);
    void retire(std::uint64_t model, std::optional<Note> note, Logged logged);
    void note(Note note, Logged logged);
    void acquire(HolderRecord reference, Logged logged);
    void release(HolderRecord reference) noexcept;
    void drop_layer(LayerPlace layer) noexcept;
    // See Catalogue::replace_layer.
    void replace_layer(LayerPlace layer, LayerPlace by) noexcept;

    // Waits until all that was done so far is in the catalogue. Throws Errc::storage.
    void flush();
    // Waits until something more of it is, and small tensors are packed so that they can be
    // evicted. False if there was nothing, or it could not be written.
    bool make_progress();
    // flush(), then lets go of the directory: changes are refused from now on. Idempotent.
    void close();

    // Any thread.
    [[nodiscard]] File open_segment(std::uint64_t serial) const;

    struct Stats {
        std::uint64_t waiting_bytes = 0;  // of tensors that are not on disk yet
        std::uint64_t segments = 0;       // files
        std::string failure;              // why the last changes could not be written; or empty
    };
    [[nodiscard]] Stats stats() const;
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
    void run_log();
    [[nodiscard]] std::uint64_t tell(std::vector<Change>& batch, const std::exception_ptr& error);
    void abandon(std::uint64_t segment) noexcept;
    void run();
    [[nodiscard]] bool is_due() const;
    void write(std::vector<Change>& batch);
    std::uint64_t write_tensors(std::vector<Change>& batch, Uses& uses);
    void write_file(std::uint64_t serial, std::vector<SegmentTensor> tensors) const;
    void apply(const Change& change, Uses& changed);
    void drop_empty(Uses& uses, std::vector<std::uint64_t>& emptied);
    void take_over(const Uses& changed, const std::vector<std::uint64_t>& emptied);
    void tidy();
    bool pack(std::uint64_t segment);
    [[nodiscard]] std::filesystem::path path_of(std::uint64_t segment) const;

    const Options options_;
    const std::filesystem::path segments_path_;
    const Birthplace birthplace_;
    File lock_;
    std::optional<Catalogue>
        catalogue_;  // until it is closed; of the journal's thread once it runs
    std::atomic<std::uint64_t> last_serial_ = 0;
    Moved moved_;

    // Of the journal's thread.
    std::uint64_t applied_ = 0;  // entries of the log that the catalogue has
    Uses uses_;
    std::set<std::uint64_t> wasteful_;  // segments of which much is dead
    std::atomic<std::uint64_t> packet_bytes_ = 0;
    // Segments of commits that failed: perhaps such a commit is in the log all the same. They go
    // when a later one has overwritten it.
    std::vector<std::uint64_t> doomed_;

    // Of the log's thread.
    std::optional<RedoLog> log_;
    std::vector<std::uint64_t> abandoned_;  // segments of puts that failed, perhaps in the log

    mutable std::mutex mutex_;          // guards what follows
    std::condition_variable log_wake_;  // the log's thread
    std::condition_variable wake_;      // the journal's thread
    std::condition_variable progress_;  // those who wait for it
    std::vector<Change> unlogged_;
    std::deque<Change> queue_;
    std::uint64_t in_catalogue_ = 0;   // entries of the log that need not be there any more
    std::uint64_t waiting_bytes_ = 0;  // in both queues and in the batches at hand
    Clock::time_point oldest_{};       // what is not in the catalogue yet
    std::uint64_t enqueued_ = 0;       // numbers of changes
    std::uint64_t written_ = 0;        // or forgotten
    std::uint64_t attempts_ = 0;       // of batches
    bool trying_ = false;              // one is at hand
    std::uint64_t hurry_ = 0;          // those who wait for a flush
    bool pack_wanted_ = false;
    bool closing_ = false;  // no more changes
    bool ending_ = false;   // nor any on their way through the log
    bool closed_ = false;
    std::string failure_;  // of the last attempt
    Stats stats_;
    std::thread logger_;
    std::thread thread_;
};

// For whoever waits for a change, if the journal is one to wait for.
class Wait {
  public:
    explicit Wait(const Journal& journal) {
        if (journal.is_sync()) result_ = std::make_shared<std::promise<void>>();
    }
    [[nodiscard]] Journal::Logged logged() const {
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
