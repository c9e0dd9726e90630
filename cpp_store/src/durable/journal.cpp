// The journal's life, its queue, and its thread.
#include "durable/journal.hpp"

#include <algorithm>
#include <set>
#include <utility>

#include "cpp_store/error.hpp"
#include "durable/batch.hpp"
#include "durable/segment.hpp"
#include "durable/wal.hpp"

namespace cpp_store::durable {
namespace {

using std::chrono::milliseconds;

constexpr std::uint64_t MiB = std::uint64_t{1} << 20;
constexpr std::uint64_t headroom = 16 * MiB;  // of the disk: what retires models must be written
constexpr milliseconds retry_interval{500};

std::string message_of(const std::exception_ptr& error) {
    try {
        std::rethrow_exception(error);
    } catch (const std::exception& caught) {
        return caught.what();
    }
}

std::uint64_t bytes_of(const Batch& batch) {
    std::uint64_t sum = 0;
    for (const Change& change : batch) sum += change.bytes;
    return sum;
}

std::filesystem::path segments_of(const std::filesystem::path& directory) {
    return directory / "segments";
}

}  // namespace

File lock_directory(const std::filesystem::path& directory) {
    if (directory.empty()) {
        throw Error(Errc::invalid_argument, "data directory: expected a path, found nothing");
    }
    make_directory(directory);
    const std::filesystem::path catalogue = directory / "catalogue.sqlite";
    std::error_code error;
    if (!std::filesystem::exists(catalogue, error)) {
        for (const std::string& name : list_directory(directory)) {
            if (name == "lock" || name == "segments" || name == "aside" ||
                name.starts_with("log.") || name.starts_with("catalogue.sqlite")) {
                continue;
            }
            throw Error(Errc::invalid_argument,
                        "data directory " + directory.string() + " has other files (such as '" +
                            name +
                            "') and no catalogue.sqlite; name an empty directory or a new one");
        }
    }
    File lock(directory / "lock", File::Mode::lock);
    if (!lock.lock()) {
        throw Error(Errc::invalid_argument,
                    "data directory " + directory.string() + " is in use by another store");
    }
    make_directory(segments_of(directory));
    return lock;
}

std::filesystem::path catalogue_of(const std::filesystem::path& directory) {
    const std::filesystem::path log = directory / "catalogue.sqlite-wal";
    if (hides_transactions(log)) {
        throw Error(Errc::storage,
                    log.string() +
                        " is damaged: transactions that were acknowledged follow a frame that is "
                        "not right; cpp-store check --repair goes on without them, and leaves a "
                        "copy in aside/");
    }
    return directory / "catalogue.sqlite";
}

bool has_data(const std::filesystem::path& directory) {
    return !list_directory(segments_of(directory)).empty();
}

Journal::Journal(Options options)
    : options_(std::move(options)),
      segments_path_(segments_of(options_.directory)),
      lock_(lock_directory(options_.directory)),
      catalogue_(std::in_place, catalogue_of(options_.directory), !has_data(options_.directory)),
      reader_(std::in_place, options_.directory / "catalogue.sqlite", false) {
    recover();
}

// Segments that the catalogue does not know belong to changes that did not happen, or a part of it
// is lost: they are moved aside. References that
// nobody has any more (leases end with the store) go, and with them what they kept.
void Journal::recover() {
    catalogue_->begin();
    (void)catalogue_->leaks(true);
    for (const SegmentRecord& segment : catalogue_->segments()) {
        Use& use = uses_[segment.serial];
        use.data_bytes = segment.data_bytes;
        for (const LayerRecord& layer : catalogue_->layers_in(segment.serial)) {
            use.live_bytes += layer.nbytes();
            ++use.layers;
        }
    }
    std::vector<std::uint64_t> emptied;
    drop_empty(uses_, emptied);
    catalogue_->commit();
    for (const std::uint64_t serial : emptied) remove_file(path_of(serial));

    std::set<std::uint64_t> found;
    std::vector<std::string> unknown;
    for (const std::string& name : list_directory(segments_path_)) {
        const std::uint64_t serial = segment_serial(name);
        if (serial != 0 && name == segment_name(serial) && uses_.contains(serial)) {
            found.insert(serial);
        } else {
            unknown.push_back(name);
        }
        last_serial_ = std::max(last_serial_.load(), serial);
    }
    for (const auto& [serial, use] : uses_) {
        if (found.contains(serial)) continue;
        throw Error(Errc::storage, "data directory " + options_.directory.string() +
                                       " is damaged: " + path_of(serial).string() +
                                       " is missing; cpp-store check --repair drops the models "
                                       "that need it");
    }
    for (const std::string& name : unknown) {
        move_aside(options_.directory, segments_path_ / name);
    }
    if (!unknown.empty()) {
        options_.warn("data directory " + options_.directory.string() + ": " +
                      std::to_string(unknown.size()) +
                      " files that the catalogue does not know are moved from segments/ to aside/ "
                      "(" +
                      unknown.front() + (unknown.size() > 1 ? ", ...)" : ")") +
                      "; remove them there if you miss no models");
    }
    last_serial_ = std::max(last_serial_.load(), catalogue_->last_serial());
}

void Journal::start(Moved moved) {
    moved_ = std::move(moved);
    thread_ = std::thread([this] { run(); });
}

Journal::~Journal() {
    if (birthplace_.is_elsewhere()) {  // a fork has no such thread
        if (thread_.joinable()) thread_.detach();
        return;
    }
    try {
        close();
    } catch (const std::exception& error) {
        options_.warn(error.what());
    }
}

void Journal::close() {
    if (birthplace_.is_elsewhere()) return;
    {
        const std::scoped_lock lock(mutex_);
        if (closed_) return;
        closing_ = true;
        wake_.notify_one();
    }
    if (thread_.joinable()) thread_.join();
    std::string failure;
    {
        const std::scoped_lock lock(mutex_);
        closed_ = true;
        // Whoever waited for a sync store was told; what nobody waited for is found out later.
        if (!options_.sync && finished_ != enqueued_) failure = failure_;
        queue_.clear();
    }
    {
        const std::scoped_lock lock(reading_);
        reader_.reset();
    }
    catalogue_.reset();
    lock_ = File();
    if (!failure.empty()) throw Error(Errc::storage, "the last changes are lost: " + failure);
}

// --------------------------------------------------------------------------------- changes

void Journal::check_process() const {
    if (!birthplace_.is_elsewhere()) return;
    throw Error(
        Errc::invalid_argument,
        "the store belongs to process " + std::to_string(birthplace_.process()) +
            ", of which this is a fork; what is in memory can be read here, and nothing written");
}

// With the mutex held, or before there is another thread.
void Journal::refuse(const std::string& why) const {
    throw Error(Errc::storage,
                "data directory " + options_.directory.string() + " takes no changes: " + why);
}

void Journal::check_is_open() const {
    if (closing_) refuse("the store is closed");
    if (stopped_) refuse(failure_);
}

void Journal::admit(std::uint64_t bytes) {
    check_process();
    std::uint64_t free = free_space(options_.directory);
    std::unique_lock lock(mutex_);
    const auto wait_while = [&](const auto& condition) {
        while (failure_.empty() && !closing_ && condition()) {
            ++hurry_;
            wake_.notify_one();
            progress_.wait_for(lock, options_.lag);
            --hurry_;
        }
    };
    const auto is_full = [&] { return free < waiting_bytes_ + bytes + headroom; };
    if (is_full()) {
        const std::uint64_t last = enqueued_;  // there may be retirements, which make room
        wait_while([&] { return finished_ < last; });
        free = free_space(options_.directory);
    }
    check_is_open();
    if (is_full()) {
        refuse("its disk is full: " + std::to_string(free / MiB) + " MiB are free, of which " +
               std::to_string(headroom / MiB) + " stay so that models can be retired");
    }
    if (options_.sync) return;  // whoever puts waits for the disk anyway
    wait_while([&] {
        if (waiting_bytes_ > 0 && waiting_bytes_ + bytes > options_.most_waiting) return true;
        return finished_ != enqueued_ && Clock::now() - oldest_ >= options_.lag;
    });
    check_is_open();
    if (!failure_.empty()) refuse(failure_);
}

void Journal::put(std::shared_ptr<ModelRecord> model, std::vector<StoredLayerPtr> layers,
                  Done done) {
    Change change{.kind = Change::Kind::put, .done = std::move(done)};
    const bool is_written = !model->layers.empty() && model->layers.front().segment != 0;
    if (!is_written) {
        change.bytes = model->nbytes();
        change.layers = std::move(layers);
    }
    change.record = std::move(model);
    enqueue(std::move(change));
}

void Journal::retire(std::uint64_t model, std::optional<Note> note, Done done) {
    enqueue({.kind = Change::Kind::retire,
             .layer = {model, 0},
             .note = std::move(note),
             .done = std::move(done)});
}

void Journal::note(Note note, Done done) {
    enqueue({.kind = Change::Kind::note, .note = std::move(note), .done = std::move(done)});
}

void Journal::acquire(HolderRecord reference, Done done) {
    enqueue({.kind = Change::Kind::acquire,
             .layer = {reference.owner, reference.position},
             .holder = std::move(reference.holder),
             .done = std::move(done)});
}

void Journal::release(HolderRecord reference) noexcept {
    enqueue_if_possible({.kind = Change::Kind::release,
                         .layer = {reference.owner, reference.position},
                         .holder = std::move(reference.holder)});
}

void Journal::drop_layer(LayerPlace layer) noexcept {
    enqueue_if_possible({.kind = Change::Kind::drop_layer, .layer = layer});
}

void Journal::replace_layer(LayerPlace layer, LayerPlace by) noexcept {
    enqueue_if_possible({.kind = Change::Kind::replace_layer, .layer = layer, .by = by});
}

void Journal::enqueue_if_possible(Change change) noexcept {
    try {
        enqueue(std::move(change));
    } catch (const std::exception&) {
        // No memory: what is not said here is found out when the directory is opened again.
    }
}

void Journal::enqueue(Change change) {
    check_process();
    change.since = Clock::now();
    const std::scoped_lock lock(mutex_);
    check_is_open();
    const std::uint64_t bytes = change.bytes;
    if (finished_ == enqueued_) oldest_ = change.since;
    const bool was_empty = queue_.empty();
    const bool was_due = is_due();
    queue_.push_back(std::move(change));
    waiting_bytes_ += bytes;
    ++enqueued_;
    if (was_empty || (!was_due && is_due())) wake_.notify_one();
}

void Journal::flush() {
    std::unique_lock lock(mutex_);
    const std::uint64_t last = enqueued_;
    ++hurry_;
    const std::uint64_t attempts = attempts_ + (trying_ ? 1 : 0);  // begun before this call
    wake_.notify_one();
    progress_.wait(lock, [&] {
        return finished_ >= last || closed_ || stopped_ ||
               (attempts_ > attempts && !failure_.empty());
    });
    --hurry_;
    if (finished_ < last) throw Error(Errc::storage, failure_);
}

bool Journal::flush_some() noexcept {
    {
        const std::scoped_lock lock(mutex_);
        if (closing_ || stopped_ || finished_ == enqueued_) return false;
    }
    try {
        flush();
        return true;
    } catch (const std::exception&) {
        return false;
    }
}

// --------------------------------------------------------------------------------- the thread

// With the mutex held.
bool Journal::is_due() const {
    if (queue_.empty()) return false;
    return options_.sync || hurry_ > 0 || closing_ || waiting_bytes_ >= options_.most_waiting / 2 ||
           Clock::now() - oldest_ >= options_.lag / 2;
}

void Journal::wait_until_due(std::unique_lock<std::mutex>& lock) {
    while (!is_due() && !closing_) {
        if (queue_.empty()) {
            wake_.wait(lock);
        } else {
            wake_.wait_until(lock, oldest_ + options_.lag / 2);
        }
    }
}

bool Journal::is_stopped() const {
    const std::scoped_lock lock(mutex_);
    return stopped_;
}

// After a failed sync, by any thread: those who wait are told by the journal's.
// Returns what to tell them.
std::string Journal::stop(const SyncError& why) {
    const std::scoped_lock lock(mutex_);
    if (stopped_) return failure_;
    stopped_ = true;
    failure_ =
        why.what() + std::string("; what is on disk is known when the directory is opened again");
    wake_.notify_one();
    progress_.notify_all();
    return failure_;
}

// Tells those who wait that their changes are on disk, or why not; only these stay in a batch that
// nobody waits for.
void Journal::tell(Batch& batch, const std::exception_ptr& error) {
    for (Change& change : batch) {
        if (!change.done) continue;
        const std::uint64_t ahead = change.written_ahead();
        // As in undo(): after a failed sync the transaction may be there all the same, and needs
        // it.
        if (error && ahead != 0 && !is_stopped()) remove_file(path_of(ahead));
        change.done(error);
    }
    std::erase_if(batch, [&](const Change& change) { return !error || change.done; });
}

// Leaves those changes in the batch that are to be tried again. Returns why it failed, or null.
std::exception_ptr Journal::attempt(Batch& batch) {
    std::exception_ptr error;
    try {
        write(batch);
    } catch (const SyncError& failed) {
        error = std::make_exception_ptr(Error(Errc::storage, stop(failed)));
    } catch (const std::exception&) {
        error = std::current_exception();
    }
    // What a lazy store could not write is tried again.
    if (!error || options_.sync) tell(batch, error);
    return error;
}

// What is better done between two transactions. Returns what went wrong; empty: nothing.
std::string Journal::tidy_up() {
    try {
        catalogue_->checkpoint();
        tidy();
    } catch (const SyncError& failed) {
        return stop(failed);
    } catch (const std::exception& failed) {
        return failed.what();  // nothing is lost: it is tried again
    }
    return "";
}

void Journal::run() {
    Batch batch;
    std::string told;  // the last trouble
    std::unique_lock lock(mutex_);
    while (true) {
        if (failure_.empty()) {
            wait_until_due(lock);
        } else {
            wake_.wait_for(lock, retry_interval, [this] {
                return closing_ || stopped_ || hurry_ > 0 || (options_.sync && !queue_.empty());
            });
        }
        batch.splice(batch.end(), queue_);
        if (stopped_) break;
        if (batch.empty()) {
            if (closing_) return;
            continue;
        }
        const std::size_t count = batch.size();
        const std::uint64_t bytes = bytes_of(batch);
        trying_ = true;
        lock.unlock();
        const std::exception_ptr error = attempt(batch);
        const std::string trouble = error ? message_of(error) : tidy_up();
        if (trouble != told) {
            options_.warn(trouble.empty() ? "the data directory can be written to again"
                                          : "cannot write to the data directory: " + trouble);
        }
        told = trouble;
        lock.lock();
        trying_ = false;
        ++attempts_;
        finished_ += count - batch.size();
        waiting_bytes_ -= bytes - bytes_of(batch);
        if (!batch.empty() || !queue_.empty()) {
            oldest_ = batch.empty() ? queue_.front().since : batch.front().since;
        }
        if (!stopped_) failure_ = error ? trouble : std::string();
        progress_.notify_all();
        if (closing_ && error) break;
    }
    // Nothing more is written: those who wait must know.
    const auto error = std::make_exception_ptr(Error(Errc::storage, failure_));
    lock.unlock();
    if (options_.sync) tell(batch, error);
    lock.lock();
    progress_.notify_all();
}

File Journal::open_segment(std::uint64_t serial) const {
    {
        const std::scoped_lock lock(mutex_);
        if (closed_) throw Error(Errc::storage, "the store is closed");
    }
    return {path_of(serial), File::Mode::read};
}

std::vector<std::byte> Journal::read_small(const LayerPlace& layer) {
    check_process();  // the connection does not survive a fork
    const std::scoped_lock lock(reading_);
    if (!reader_) throw Error(Errc::storage, "the store is closed");
    return reader_->small(layer);
}

std::filesystem::path Journal::path_of(std::uint64_t segment) const {
    return segments_path_ / segment_name(segment);
}

}  // namespace cpp_store::durable
