// The journal's life, its queue, and its thread.
#include "durable/journal.hpp"

#include <algorithm>
#include <set>
#include <utility>

#include "cpp_store/error.hpp"
#include "durable/batch.hpp"
#include "durable/replay.hpp"
#include "durable/segment.hpp"
#include "durable/wal.hpp"

namespace cpp_store::durable {
namespace {

using std::chrono::milliseconds;

constexpr std::uint64_t MiB = std::uint64_t{1} << 20;
constexpr std::uint64_t most_batch = 256 * MiB;
constexpr std::uint64_t headroom = 16 * MiB;  // of the disk: what retires models must be written
constexpr milliseconds retry_interval{500};
constexpr milliseconds quiet{20};  // without a change, until packets are packed

// This thread has nobody to leave it to if there is no memory just then.
void tell(const Journal::Placed& placed) {
    while (true) {
        try {
            placed();
            return;
        } catch (const std::bad_alloc&) {
            std::this_thread::sleep_for(quiet);
        }
    }
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
    return has_log(directory) || !list_directory(segments_of(directory)).empty();
}

Journal::Journal(Options options)
    : options_(std::move(options)),
      segments_path_(segments_of(options_.directory)),
      lock_(lock_directory(options_.directory)),
      catalogue_(std::in_place, catalogue_of(options_.directory), !has_data(options_.directory)) {
    recover();
}

// Segments that the catalogue does not know belong to changes that did not happen, or a part of it
// is lost: they are moved aside. References that
// nobody has any more (leases end with the store) go, and with them what they kept.
void Journal::recover() {
    applied_ = in_catalogue_ =
        replay_log(options_.directory, *catalogue_, options_.most_retirements);
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
    packet_bytes_ = catalogue_->packet_bytes();
    while (packet_bytes_ > 0 && pack(0)) {
    }
}

void Journal::start(Moved moved) {
    moved_ = std::move(moved);
    if (options_.sync) {
        log_.emplace(options_.directory, applied_);
        logger_ = std::thread([this] { run_log(); });
    }
    thread_ = std::thread([this] { run(); });
}

Journal::~Journal() {
    if (birthplace_.is_elsewhere()) {  // a fork has no such thread
        if (thread_.joinable()) thread_.detach();
        if (logger_.joinable()) logger_.detach();
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
        log_wake_.notify_one();
    }
    if (logger_.joinable()) logger_.join();
    {
        const std::scoped_lock lock(mutex_);
        ending_ = true;
        wake_.notify_one();
    }
    if (thread_.joinable()) thread_.join();
    std::string failure;
    {
        const std::scoped_lock lock(mutex_);
        closed_ = true;
        failure = failure_;
        queue_.clear();
    }
    if (log_ && failure.empty()) remove_log(options_.directory);
    log_.reset();
    catalogue_.reset();
    lock_ = File();
    if (failure.empty()) return;
    throw Error(Errc::storage, (options_.sync ? "the last changes are in the log only: "
                                              : "the last changes are lost: ") +
                                   failure);
}

// --------------------------------------------------------------------------------- changes

void Journal::check_process() const {
    if (!birthplace_.is_elsewhere()) return;
    throw Error(Errc::invalid_argument,
                "the store belongs to process " + std::to_string(birthplace_.process()) +
                    ", of which this is a fork; it can be read here, but not written to");
}

void Journal::admit(std::uint64_t bytes) {
    check_process();
    std::uint64_t free = free_space(options_.directory);
    std::unique_lock lock(mutex_);
    const auto refuse = [&](const std::string& why) {
        throw Error(Errc::storage,
                    "data directory " + options_.directory.string() + " takes no changes: " + why);
    };
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
        wait_while([&] { return written_ < last; });
        free = free_space(options_.directory);
    }
    if (closing_) refuse("the store is closed");
    if (is_full()) {
        refuse("its disk is full: " + std::to_string(free / MiB) + " MiB are free, of which " +
               std::to_string(headroom / MiB) + " stay so that models can be retired");
    }
    const auto is_too_much = [&] {
        return waiting_bytes_ > 0 && waiting_bytes_ + bytes > options_.most_waiting;
    };
    wait_while([&] {
        if (is_too_much()) return true;
        return !options_.sync && written_ != enqueued_ && Clock::now() - oldest_ >= options_.lag;
    });
    if (options_.sync && !failure_.empty() && is_too_much()) {
        // Perhaps the catalogue can be written again: nobody is refused before that was tried.
        const std::uint64_t attempts = attempts_ + (trying_ ? 1 : 0);
        ++hurry_;
        wake_.notify_one();
        // One that was under way may succeed: then there is nothing left to try.
        progress_.wait(lock, [&] { return attempts_ > attempts || failure_.empty() || closing_; });
        --hurry_;
        wait_while(is_too_much);
    }
    // The log takes more though the catalogue cannot be written.
    if (!failure_.empty() && (!options_.sync || is_too_much())) refuse(failure_);
    if (closing_) refuse("the store is closed");
}

void Journal::put(std::shared_ptr<ModelRecord> model, std::vector<StoredLayerPtr> layers,
                  Logged logged, Placed placed) {
    Change change{
        .kind = Change::Kind::put, .logged = std::move(logged), .placed = std::move(placed)};
    const bool is_written = !model->layers.empty() && model->layers.front().segment != 0;
    if (!is_written) {
        change.bytes = model->nbytes();
        change.layers = std::move(layers);
    }
    change.record = std::move(model);
    enqueue(std::move(change));
}

void Journal::retire(std::uint64_t model, std::optional<Note> note, Logged logged) {
    enqueue({.kind = Change::Kind::retire,
             .layer = {model, 0},
             .note = std::move(note),
             .logged = std::move(logged)});
}

void Journal::note(Note note, Logged logged) {
    enqueue({.kind = Change::Kind::note, .note = std::move(note), .logged = std::move(logged)});
}

void Journal::acquire(HolderRecord reference, Logged logged) {
    enqueue({.kind = Change::Kind::acquire,
             .layer = {reference.owner, reference.position},
             .holder = std::move(reference.holder),
             .logged = std::move(logged)});
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
    if (closing_) {
        throw Error(Errc::storage, "data directory " + options_.directory.string() +
                                       " takes no changes: the store is closed");
    }
    if (written_ == enqueued_) oldest_ = change.since;
    const std::uint64_t bytes = change.bytes;
    const bool was_empty = options_.sync ? unlogged_.empty() : queue_.empty();
    const bool was_due = is_due();
    if (options_.sync) {
        unlogged_.push_back(std::move(change));
    } else {
        queue_.push_back(std::move(change));
    }
    waiting_bytes_ += bytes;
    ++enqueued_;
    if (options_.sync) {
        if (was_empty) log_wake_.notify_one();
    } else if (was_empty || (!was_due && is_due())) {
        wake_.notify_one();
    }
}

void Journal::flush() {
    std::unique_lock lock(mutex_);
    const std::uint64_t last = enqueued_;
    ++hurry_;
    const std::uint64_t attempts = attempts_ + (trying_ ? 1 : 0);  // begun before this call
    wake_.notify_one();
    progress_.wait(lock, [&] {
        return written_ >= last || closed_ || (attempts_ > attempts && !failure_.empty());
    });
    --hurry_;
    if (written_ < last) throw Error(Errc::storage, failure_);
}

bool Journal::make_progress() {
    std::unique_lock lock(mutex_);
    if (closing_) return false;
    const std::uint64_t written = written_;
    if (written == enqueued_ && !pack_wanted_ && packet_bytes_ == 0) return false;
    const std::uint64_t attempts = attempts_;
    ++hurry_;
    pack_wanted_ = true;
    wake_.notify_one();
    progress_.wait(lock, [&] { return attempts_ != attempts || closed_; });
    --hurry_;
    return failure_.empty() && !closed_;
}

Journal::Stats Journal::stats() const {
    const std::scoped_lock lock(mutex_);
    Stats out = stats_;
    out.waiting_bytes = waiting_bytes_;
    out.failure = failure_;
    return out;
}

// --------------------------------------------------------------------------------- the thread

// With the mutex held.
bool Journal::is_due() const {
    if (pack_wanted_) return true;
    if (queue_.empty()) return false;
    return hurry_ > 0 || ending_ || waiting_bytes_ >= options_.most_waiting / 2 ||
           Clock::now() - oldest_ >= options_.lag / 2;
}

void Journal::run() {
    std::unique_lock lock(mutex_);
    bool may_pack = true;
    while (true) {
        if (!failure_.empty() && !ending_) {
            wake_.wait_for(lock, retry_interval, [this] { return ending_ || hurry_ > 0; });
        }
        bool is_quiet = false;
        while (!ending_ && !is_due() && !is_quiet) {
            if (!queue_.empty()) {
                wake_.wait_until(lock, oldest_ + options_.lag / 2);
            } else if (packet_bytes_ < options_.some_packets || !may_pack) {
                wake_.wait(lock);
            } else if (wake_.wait_for(lock, quiet) == std::cv_status::timeout) {
                is_quiet = queue_.empty();
            }
        }
        if (queue_.empty() && ending_) return;
        std::vector<Change> batch;
        std::uint64_t bytes = 0;
        // Entries of the log whole: the catalogue says up to which one it has them all.
        const auto is_within_entry = [&] { return options_.sync && batch.back().entry == 0; };
        while (!queue_.empty() &&
               (batch.empty() || is_within_entry() || bytes + queue_.front().bytes <= most_batch)) {
            bytes += queue_.front().bytes;
            batch.push_back(std::move(queue_.front()));
            queue_.pop_front();
        }
        const bool pack_now = std::exchange(pack_wanted_, false);
        trying_ = true;
        lock.unlock();

        std::exception_ptr error;
        std::string cause;
        try {
            if (!batch.empty()) write(batch);
        } catch (const std::exception& caught) {
            error = std::current_exception();
            cause = caught.what();
        }
        if (!error) {
            for (const Change& change : batch) {
                if (change.placed) durable::tell(change.placed);
            }
            try {
                may_pack = false;  // again, if this fails, once there is something new
                if (pack_now) {
                    while (packet_bytes_ > 0 && pack(0)) {
                    }
                } else if (is_quiet || packet_bytes_ >= options_.most_packets) {
                    (void)pack(0);
                    if (is_quiet) catalogue_->checkpoint();
                }
                tidy();
                may_pack = true;
            } catch (const std::exception& caught) {
                cause = caught.what();  // nothing is lost: it is tried again
            }
        }
        const std::size_t count = batch.size();
        if (!error) batch.clear();  // what it held can leave the memory
        lock.lock();
        const std::string before = failure_;
        if (error) {
            queue_.insert(queue_.begin(), std::make_move_iterator(batch.begin()),
                          std::make_move_iterator(batch.end()));
        } else {
            waiting_bytes_ -= bytes;
            written_ += count;
            in_catalogue_ = applied_;
        }
        if (!queue_.empty()) {
            oldest_ = queue_.front().since;
        } else if (!unlogged_.empty()) {
            oldest_ = unlogged_.front().since;
        }
        failure_ = error ? cause : std::string();
        ++attempts_;
        trying_ = false;
        stats_.segments = uses_.size();
        progress_.notify_all();
        const bool is_news = !cause.empty() && cause != before;
        if (ending_ && error) return;
        lock.unlock();
        if (is_news) options_.warn("cannot write to the data directory: " + cause);
        if (before != cause && cause.empty() && !before.empty()) {
            options_.warn("the data directory can be written to again");
        }
        lock.lock();
    }
}

File Journal::open_segment(std::uint64_t serial) const {
    {
        const std::scoped_lock lock(mutex_);
        if (closed_) throw Error(Errc::storage, "the store is closed");
    }
    return {path_of(serial), File::Mode::read};
}

std::filesystem::path Journal::path_of(std::uint64_t segment) const {
    return segments_path_ / segment_name(segment);
}

}  // namespace cpp_store::durable
