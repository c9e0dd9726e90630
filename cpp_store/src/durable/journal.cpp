#include "durable/journal.hpp"

#include <algorithm>
#include <cstring>
#include <set>
#include <utility>

#include "core/checksum.hpp"
#include "cpp_store/error.hpp"
#include "durable/segment.hpp"

namespace cpp_store::durable {
namespace {

using std::chrono::milliseconds;

constexpr std::uint64_t MiB = std::uint64_t{1} << 20;
// From here on two more syncs cost less than to write the bytes twice.
constexpr std::uint64_t packet_limit = MiB / 4;
constexpr std::uint64_t write_ahead_limit = MiB;
constexpr std::uint64_t most_batch = 256 * MiB;
constexpr std::uint64_t most_moved = 64 * MiB;  // at a time, since it is held in memory
constexpr std::uint64_t least_waste = MiB;      // for which a segment is written anew
constexpr milliseconds retry_interval{500};

std::filesystem::path segments_of(const std::filesystem::path& directory) {
    return directory / "segments";
}

std::string tensor_name(std::string_view owner, const LayerTable& table, std::uint32_t position,
                        std::size_t tensor) {
    std::string name(owner);
    name += '/';
    name += table.name(position);
    name += '/';
    name += std::to_string(tensor);
    return name;
}

// The tensors of a model's layers that are in memory, to be written.
void add_tensors(std::vector<SegmentTensor>& out, ModelRecord& model,
                 std::span<const StoredLayerPtr> stored) {
    for (std::size_t i = 0; i < model.layers.size(); ++i) {
        LayerRecord& layer = model.layers[i];
        for (std::size_t t = 0; t < layer.tensors.size(); ++t) {
            out.push_back({tensor_name(model.owner, *model.table, layer.position, t),
                           stored[i]->tensors[t].extent.data, &layer.tensors[t]});
        }
    }
}

std::uint64_t bytes_of(const ModelRecord& model) {
    std::uint64_t sum = 0;
    for (const LayerRecord& layer : model.layers) sum += layer.nbytes();
    return sum;
}

}  // namespace

struct Journal::Change {
    enum class Kind : std::uint8_t { put, retire, acquire, release, drop_layer };
    Kind kind = Kind::put;
    std::uint64_t model = 0;
    std::uint32_t position = 0;
    std::string holder;
    std::shared_ptr<ModelRecord> record;
    std::vector<StoredLayerPtr> layers;
    std::uint64_t bytes = 0;  // that are only in memory
    Done done;
    bool waited_for = false;
    Clock::time_point since{};
    std::vector<std::byte> packet;
};

File lock_directory(const std::filesystem::path& directory) {
    if (directory.empty()) {
        throw Error(Errc::invalid_argument, "data directory: expected a path, found nothing");
    }
    make_directory(directory);
    const std::filesystem::path catalogue = directory / "catalogue.sqlite";
    std::error_code error;
    if (!std::filesystem::exists(catalogue, error)) {
        for (const std::string& name : list_directory(directory)) {
            if (name == "lock" || name == "segments" || name.starts_with("catalogue.sqlite")) {
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

Journal::Journal(Options options)
    : options_(std::move(options)),
      segments_path_(segments_of(options_.directory)),
      lock_(lock_directory(options_.directory)),
      catalogue_(std::in_place, options_.directory / "catalogue.sqlite") {
    recover();
}

// Segments that the catalogue does not know belong to changes that did not happen. References that
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

    std::set<std::uint64_t> found;
    for (const std::string& name : list_directory(segments_path_)) {
        const std::uint64_t serial = segment_serial(name);
        if (serial != 0 && name == segment_name(serial) && uses_.contains(serial)) {
            found.insert(serial);
        } else {
            remove_file(segments_path_ / name);
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
    last_serial_ = std::max(last_serial_.load(), catalogue_->last_serial());
    packet_bytes_ = catalogue_->packet_bytes();
    while (packet_bytes_ > 0 && pack(0, most_moved)) {
    }
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
        failure = failure_;
        queue_.clear();
    }
    catalogue_.reset();
    lock_ = File();
    if (!failure.empty()) throw Error(Errc::storage, "the last changes are lost: " + failure);
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
    std::unique_lock lock(mutex_);
    const auto refuse = [&](const std::string& why) {
        throw Error(Errc::storage,
                    "data directory " + options_.directory.string() + " takes no changes: " + why);
    };
    const auto has_room = [&] {
        if (waiting_bytes_ > 0 && waiting_bytes_ + bytes > options_.most_waiting) return false;
        return written_ == enqueued_ || Clock::now() - oldest_ < options_.lag;
    };
    if (closing_) refuse("the store is closed");
    if (options_.sync) return;
    while (failure_.empty() && !closing_ && !has_room()) {
        ++hurry_;
        wake_.notify_one();
        progress_.wait_for(lock, options_.lag);
        --hurry_;
    }
    if (!failure_.empty()) refuse(failure_);
    if (closing_) refuse("the store is closed");
}

bool Journal::is_large(std::uint64_t bytes) const noexcept {
    return options_.sync && bytes >= write_ahead_limit;
}

void Journal::write_ahead(ModelRecord& model, std::span<const StoredLayerPtr> layers) {
    const std::uint64_t serial = next_serial();
    std::vector<SegmentTensor> tensors;
    add_tensors(tensors, model, layers);
    write_file(serial, std::move(tensors));
    for (LayerRecord& layer : model.layers) layer.segment = serial;
}

void Journal::put(std::shared_ptr<ModelRecord> model, std::vector<StoredLayerPtr> layers,
                  Done done) {
    Change change{.kind = Change::Kind::put,
                  .model = model->serial,
                  .holder = {},
                  .record = nullptr,
                  .layers = {},
                  .done = std::move(done),
                  .packet = {}};
    const bool is_written = !model->layers.empty() && model->layers.front().segment != 0;
    if (!is_written) {
        change.bytes = bytes_of(*model);
        change.layers = std::move(layers);
    }
    change.record = std::move(model);
    enqueue(std::move(change));
}

void Journal::retire(std::uint64_t model, Done done) {
    enqueue({.kind = Change::Kind::retire,
             .model = model,
             .holder = {},
             .record = nullptr,
             .layers = {},
             .done = std::move(done),
             .packet = {}});
}

void Journal::acquire(HolderRecord reference, Done done) {
    enqueue({.kind = Change::Kind::acquire,
             .model = reference.owner,
             .position = reference.position,
             .holder = std::move(reference.holder),
             .record = nullptr,
             .layers = {},
             .done = std::move(done),
             .packet = {}});
}

void Journal::release(HolderRecord reference) noexcept {
    try {
        enqueue({.kind = Change::Kind::release,
                 .model = reference.owner,
                 .position = reference.position,
                 .holder = std::move(reference.holder),
                 .record = nullptr,
                 .layers = {},
                 .done = {},
                 .packet = {}});
    } catch (const std::exception&) {
        // No memory: what is not said here is found out when the directory is opened again.
    }
}

void Journal::drop_layer(std::uint64_t model, std::uint32_t position) noexcept {
    try {
        enqueue({.kind = Change::Kind::drop_layer,
                 .model = model,
                 .position = position,
                 .holder = {},
                 .record = nullptr,
                 .layers = {},
                 .done = {},
                 .packet = {}});
    } catch (const std::exception&) {
        // As above.
    }
}

void Journal::enqueue(Change change) {
    check_process();
    change.since = Clock::now();
    change.waited_for = options_.sync && change.done;
    const std::scoped_lock lock(mutex_);
    if (closing_) {
        throw Error(Errc::storage, "data directory " + options_.directory.string() +
                                       " takes no changes: the store is closed");
    }
    const bool was_empty = queue_.empty();
    const bool was_due = !was_empty && is_due();
    if (was_empty && written_ == enqueued_) oldest_ = change.since;
    const std::uint64_t bytes = change.bytes;
    const bool is_waited_for = change.waited_for;
    queue_.push_back(std::move(change));
    waiting_bytes_ += bytes;
    waited_for_ += is_waited_for;
    ++enqueued_;
    if (was_empty || (!was_due && is_due())) wake_.notify_one();
}

void Journal::flush() {
    std::unique_lock lock(mutex_);
    const std::uint64_t last = enqueued_;
    ++hurry_;
    const std::uint64_t attempts = attempts_;
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
    return waited_for_ > 0 || hurry_ > 0 || closing_ ||
           waiting_bytes_ >= options_.most_waiting / 2 ||
           Clock::now() - oldest_ >= options_.lag / 2;
}

void Journal::run() {
    std::unique_lock lock(mutex_);
    while (true) {
        if (!failure_.empty() && !closing_) {
            wake_.wait_for(lock, retry_interval,
                           [this] { return closing_ || hurry_ > 0 || waited_for_ > 0; });
        }
        while (!closing_ && !is_due()) {
            if (queue_.empty()) {
                wake_.wait(lock);
            } else {
                wake_.wait_until(lock, oldest_ + options_.lag / 2);
            }
        }
        if (queue_.empty() && closing_) return;
        std::vector<Change> batch;
        std::uint64_t bytes = 0;
        while (!queue_.empty() && (batch.empty() || bytes + queue_.front().bytes <= most_batch)) {
            bytes += queue_.front().bytes;
            waited_for_ -= queue_.front().waited_for;
            batch.push_back(std::move(queue_.front()));
            queue_.pop_front();
        }
        const bool pack_now = std::exchange(pack_wanted_, false);
        lock.unlock();

        std::exception_ptr error;
        std::string cause;
        try {
            if (!batch.empty()) write(batch);
        } catch (const std::exception& caught) {
            error = std::current_exception();
            cause = caught.what();
        }
        for (Change& change : batch) {
            if (change.done && (!error || change.waited_for)) change.done(error);
        }
        if (!error) {
            try {
                if (pack_now || packet_bytes_ >= options_.most_packets) {
                    while (packet_bytes_ > 0 && pack(0, most_moved)) {
                    }
                }
                tidy();
            } catch (const std::exception& caught) {
                cause = caught.what();  // nothing is lost: it is tried again
            }
        }
        std::uint64_t left = 0;
        if (error) {
            std::erase_if(batch, [](const Change& change) { return change.waited_for; });
            for (Change& change : batch) left += change.bytes;
        }
        const std::size_t kept = error ? batch.size() : 0;
        if (!error) batch.clear();  // what it held can leave the memory
        const std::string before = failure_;
        lock.lock();
        waiting_bytes_ -= bytes - left;
        if (error) {
            queue_.insert(queue_.begin(), std::make_move_iterator(batch.begin()),
                          std::make_move_iterator(batch.end()));
        }
        written_ = enqueued_ - queue_.size();
        if (!queue_.empty()) oldest_ = queue_.front().since;
        // In sync mode whoever waited has been told; a later put finds out for itself.
        failure_ = error && (kept > 0 || !options_.sync) ? cause : std::string();
        ++attempts_;
        stats_.segments = uses_.size();
        progress_.notify_all();
        const bool is_news = !cause.empty() && cause != before;
        if (closing_ && error) return;
        lock.unlock();
        if (is_news) options_.warn("cannot write to the data directory: " + cause);
        if (before != cause && cause.empty() && !before.empty()) {
            options_.warn("the data directory can be written to again");
        }
        lock.lock();
    }
}

// One transaction. Throws if nothing of it happened (or, after a failed sync, perhaps all of it).
void Journal::write(std::vector<Change>& batch) {
    Uses changed;  // what the segments at hand will be like
    std::vector<std::uint64_t> made;
    std::vector<std::uint64_t> emptied;
    write_tensors(batch, changed);
    for (const Change& change : batch) {
        if (!change.record || change.bytes > 0 || change.record->layers.empty()) continue;
        const std::uint64_t segment = change.record->layers.front().segment;
        if (segment != 0) changed[segment].data_bytes = bytes_of(*change.record);  // write_ahead
    }
    for (const auto& [serial, use] : changed) made.push_back(serial);
    try {
        catalogue_->begin();
        for (const std::uint64_t serial : made) {
            catalogue_->add_segment({serial, changed[serial].data_bytes});
        }
        for (Change& change : batch) apply(change, changed);
        drop_empty(changed, emptied);
        catalogue_->commit();
    } catch (...) {
        catalogue_->rollback();
        doomed_.insert(doomed_.end(), made.begin(), made.end());
        for (Change& change : batch) {
            change.packet.clear();
            if (!change.record) continue;
            for (LayerRecord& layer : change.record->layers) layer.segment = 0;
        }
        throw;
    }
    for (const Change& change : batch) packet_bytes_ += change.packet.size();
    take_over(changed, emptied);
}

// The bytes of a batch: all in one segment, or where they are few, in packets.
void Journal::write_tensors(std::vector<Change>& batch, Uses& uses) {
    std::uint64_t bytes = 0;
    for (const Change& change : batch) bytes += change.bytes;
    if (bytes < packet_limit) {
        for (Change& change : batch) {
            if (change.bytes == 0) continue;
            change.packet.reserve(change.bytes);
            for (std::size_t i = 0; i < change.layers.size(); ++i) {
                LayerRecord& layer = change.record->layers[i];
                for (std::size_t t = 0; t < layer.tensors.size(); ++t) {
                    TensorRecord& tensor = layer.tensors[t];
                    tensor.offset = change.packet.size();
                    const std::byte* const data = change.layers[i]->tensors[t].extent.data;
                    change.packet.insert(change.packet.end(), data, data + tensor.spec.nbytes());
                }
            }
        }
        return;
    }
    const std::uint64_t serial = next_serial();
    std::vector<SegmentTensor> tensors;
    for (Change& change : batch) {
        if (change.bytes > 0) add_tensors(tensors, *change.record, change.layers);
    }
    write_file(serial, std::move(tensors));
    for (Change& change : batch) {
        if (change.bytes == 0) continue;
        for (LayerRecord& layer : change.record->layers) layer.segment = serial;
    }
    uses[serial].data_bytes = bytes;
}

void Journal::write_file(std::uint64_t serial, std::vector<SegmentTensor> tensors) const {
    try {
        write_segment(path_of(serial), std::move(tensors));
        sync_directory(segments_path_);
    } catch (...) {
        remove_file(path_of(serial));  // no transaction speaks of it
        throw;
    }
}

void Journal::apply(Change& change, Uses& changed) {
    switch (change.kind) {
        case Change::Kind::put:
            catalogue_->put(*change.record);
            if (!change.packet.empty()) catalogue_->put_packet(change.model, change.packet);
            for (const LayerRecord& layer : change.record->layers) {
                if (layer.segment == 0) continue;
                Use& use = changed[layer.segment];
                use.live_bytes += layer.nbytes();
                ++use.layers;
            }
            break;
        case Change::Kind::retire:
            catalogue_->retire(change.model);
            break;
        case Change::Kind::acquire:
            catalogue_->acquire({change.holder, change.model, change.position});
            break;
        case Change::Kind::release:
            catalogue_->release({change.holder, change.model, change.position});
            break;
        case Change::Kind::drop_layer: {
            const auto [segment, bytes] = catalogue_->drop_layer(change.model, change.position);
            const auto known = uses_.find(segment);
            if (known != uses_.end()) changed.emplace(segment, known->second);
            if (const auto use = changed.find(segment); use != changed.end()) {
                use->second.live_bytes -= bytes;
                --use->second.layers;
            }
            break;
        }
    }
}

void Journal::drop_empty(Uses& uses, std::vector<std::uint64_t>& emptied) {
    for (const auto& [serial, use] : uses) {
        if (use.layers == 0) emptied.push_back(serial);
    }
    for (const std::uint64_t serial : emptied) {
        catalogue_->remove_segment(serial);
        uses.erase(serial);
    }
}

// After a commit.
void Journal::take_over(const Uses& changed, const std::vector<std::uint64_t>& emptied) {
    for (const auto& [serial, use] : changed) {
        uses_[serial] = use;
        const std::uint64_t waste = use.data_bytes - use.live_bytes;
        if (waste >= least_waste && waste > use.data_bytes / 2) wasteful_.insert(serial);
    }
    for (const std::uint64_t serial : emptied) {
        uses_.erase(serial);
        wasteful_.erase(serial);
        remove_file(path_of(serial));
    }
    for (const std::uint64_t serial : doomed_) remove_file(path_of(serial));
    doomed_.clear();
}

// Writes one segment anew of which more than half is dead.
void Journal::tidy() {
    if (wasteful_.empty()) return;
    const std::uint64_t serial = *wasteful_.begin();
    try {
        if (!pack(serial, most_moved)) wasteful_.erase(serial);
    } catch (const std::exception&) {
        wasteful_.erase(serial);  // until something more of it dies
        throw;
    }
}

// Moves layers from a segment, or from packets (0), to a new segment. False if none is left there.
bool Journal::pack(std::uint64_t from, std::uint64_t most_bytes) {
    std::vector<LayerRecord> layers = catalogue_->layers_in(from);
    std::uint64_t bytes = 0;
    std::size_t count = 0;
    while (count < layers.size() && (count == 0 || bytes < most_bytes)) {
        bytes += layers[count++].nbytes();
    }
    const bool is_all = count == layers.size();
    layers.resize(count);
    if (layers.empty()) {
        if (from == 0) packet_bytes_ = 0;
        return false;
    }

    std::vector<std::vector<std::byte>> content;
    std::vector<std::pair<std::string, LayerRecord>> moved;
    std::vector<SegmentTensor> tensors;
    std::vector<std::byte> packet;
    File file = from == 0 ? File() : open_segment(from);
    std::uint64_t model = 0;
    LayerTablePtr table;
    std::string id;
    for (LayerRecord& layer : layers) {
        if (layer.owner != model) {
            model = layer.owner;
            table = catalogue_->table_of(model);
            id = catalogue_->owner_of(model);
            if (from == 0) packet = catalogue_->packet(model);
        }
        if (!table || layer.position >= table->size()) {
            throw Error(Errc::storage, "the catalogue is damaged: a layer of no model");
        }
        for (std::size_t t = 0; t < layer.tensors.size(); ++t) {
            TensorRecord& tensor = layer.tensors[t];
            std::vector<std::byte>& data = content.emplace_back(tensor.spec.nbytes());
            if (from != 0) {
                file.read(data, tensor.offset);
            } else if (tensor.offset <= packet.size() &&
                       data.size() <= packet.size() - tensor.offset) {
                std::copy_n(packet.begin() + static_cast<std::ptrdiff_t>(tensor.offset),
                            data.size(), data.begin());
            }
            const std::string name = tensor_name(id, *table, layer.position, t);
            if (checksum_of(data.data(), data.size()) != tensor.checksum) {
                throw Error(Errc::storage, "tensor " + name + " in " +
                                               (from ? path_of(from).string() : "the catalogue") +
                                               " is damaged: its checksum is another");
            }
            tensors.push_back({name, data.data(), &tensor});
        }
    }
    const std::uint64_t serial = next_serial();
    write_file(serial, std::move(tensors));
    Uses changed;
    changed[serial] = {.data_bytes = bytes, .live_bytes = bytes, .layers = layers.size()};
    if (from != 0) {
        Use& use = changed.emplace(from, uses_[from]).first->second;
        use.live_bytes -= bytes;
        use.layers -= layers.size();
    }
    for (LayerRecord& layer : layers) layer.segment = serial;
    std::vector<std::uint64_t> emptied;
    try {
        catalogue_->begin();
        catalogue_->add_segment({serial, bytes});
        for (const LayerRecord& layer : layers) catalogue_->move_layer(layer);
        if (from == 0) catalogue_->remove_unused_packets();
        drop_empty(changed, emptied);
        catalogue_->commit();
    } catch (...) {
        catalogue_->rollback();
        doomed_.push_back(serial);
        throw;
    }
    // Readers learn of the new place before the old one goes.
    if (moved_) {
        for (LayerRecord& layer : layers) {
            std::string owner = catalogue_->owner_of(layer.owner);
            moved.emplace_back(std::move(owner), std::move(layer));
        }
        moved_(moved);
    }
    take_over(changed, emptied);
    if (from == 0) packet_bytes_ = is_all ? 0 : packet_bytes_ - std::min(bytes, packet_bytes_ - 1);
    return !is_all;
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
