// Which layers of a store with a data directory are in memory: they leave it for others, and come
// back when they are read.
#include <algorithm>
#include <limits>

#include "core/checksum.hpp"
#include "core/store_impl.hpp"

namespace cpp_store {
namespace {

// From here on it costs less to map a tensor than to have the kernel copy it.
constexpr std::uint64_t mapped_size = std::uint64_t{256} << 10;
// The kernel is asked for so much at a time; read ahead and copying take turns.
constexpr std::uint64_t mapped_piece = std::uint64_t{2} << 20;
// What is read into place is summed while it is in the processor's cache.
constexpr std::uint64_t read_piece = std::uint64_t{512} << 10;

// Brings a tensor's bytes from a file into memory; returns their checksum. Mapped, they are copied
// and summed in one pass over the page cache's own memory. Read, they pass through memory twice.
Checksum load_from_segment(const durable::File& file, std::uint64_t offset, std::byte* target,
                           std::uint64_t size) {
    CopySum sum(target, size);
    std::uint64_t done = 0;
    if (size >= mapped_size) {
        const durable::Mapping mapping(file, offset, size);
        while (done < size) {
            const std::uint64_t part = std::min(size - done, mapped_piece);
            const std::byte* const bytes = mapping.bring(done, part);
            if (!bytes) break;  // reading says why, or works
            sum.add(bytes, part);
            done += part;
        }
    }
    while (done < size) {
        const std::uint64_t part = std::min(size - done, read_piece);
        file.read({target + done, part}, offset + done);
        sum.add_in_place(part);
        done += part;
    }
    return sum.value();
}

// The same of the bytes of a layer that the catalogue has. Whether they are what was put.
bool load_from_catalogue(const durable::TensorRecord& tensor, std::span<const std::byte> layer,
                         std::byte* target) {
    const auto bytes = tensor.within(layer);
    return bytes && copy_and_checksum(target, bytes->data(), bytes->size()) == tensor.checksum;
}

bool is_intact_on_disk(durable::Journal& journal, const durable::LayerRecord& record) {
    std::vector<std::byte> small;
    durable::File segment;
    if (record.segment == 0) {
        small = journal.read_small(record.place());
    } else {
        segment = journal.open_segment(record.segment);
    }
    return std::ranges::all_of(record.tensors, [&](const durable::TensorRecord& tensor) {
        if (record.segment == 0) {
            const auto bytes = tensor.within(small);
            return bytes && checksum_of(bytes->data(), bytes->size()) == tensor.checksum;
        }
        const auto bytes = segment.read(tensor.offset, tensor.spec.nbytes());
        return checksum_of(bytes.data(), bytes.size()) == tensor.checksum;
    });
}

}  // namespace

Extent Store::Impl::allocate(std::uint64_t bytes) {
    if (!journal) return arena->allocate(bytes);
    while (true) {
        try {
            return arena->allocate(bytes);
        } catch (const Error& error) {
            if (error.code() != Errc::out_of_memory || bytes > options.memory.limit) throw;
            Garbage garbage;
            {
                const std::lock_guard lock(mutex);
                if (evict(bytes, garbage) > 0) continue;  // the garbage goes first
            }
            // What is not on disk yet can leave once it is.
            if (!journal->flush_some()) throw;
        }
    }
}

std::uint64_t Store::Impl::evict(std::uint64_t bytes, Garbage& garbage) {
    std::uint64_t freed = 0;
    std::size_t looked_at = 0;
    const std::size_t all = resident.size();
    while (freed < bytes && looked_at++ < all) {
        const auto oldest = resident.begin();
        auto& [owner, at] = *oldest;
        Owner::Entry& entry = owner->entries[at];
        // Copies are made under the mutex only, so this one is the last or it is in use.
        if (entry.layer.use_count() > 1) {
            resident.splice(resident.end(), resident, oldest);
            continue;
        }
        for (const StoredLayer::Tensor& tensor : entry.layer->tensors) freed += tensor.extent.size;
        entry.kept->resident = resident.end();
        garbage.add(std::move(entry.layer));
        resident.erase(oldest);
    }
    return freed;
}

void Store::Impl::touch(Owner& owner, std::size_t entry) {
    const Kept* const kept = owner.entries[entry].kept.get();
    if (!kept || !kept->on_disk) return;
    if (kept->resident == resident.end()) return list(owner, entry);
    resident.splice(resident.end(), resident, kept->resident);
}

void Store::Impl::place(Owner& owner, std::size_t entry,
                        const durable::LayerRecord& record) noexcept {
    Owner::Entry& placed = owner.entries[entry];
    Kept& kept = *placed.kept;
    kept.on_disk = true;
    kept.record.segment = record.segment;
    for (std::size_t t = 0; t < record.tensors.size(); ++t) {
        kept.record.tensors[t].offset = record.tensors[t].offset;
    }
    list(owner, entry);
}

// An entry whose layer is in memory and on disk: it may leave.
void Store::Impl::list(Owner& owner, std::size_t entry) noexcept {
    Kept& kept = *owner.entries[entry].kept;
    if (!owner.entries[entry].layer || kept.resident != resident.end()) return;
    try {
        kept.resident = resident.insert(resident.end(), {&owner, entry});
    } catch (const std::bad_alloc&) {
        // It stays, until it is read or moved.
    }
}

void Store::Impl::place(const durable::ModelRecord& record) noexcept {
    const auto found = owners.find(record.owner);
    if (found == owners.end()) return;
    Owner& owner = *found->second;
    for (const durable::LayerRecord& layer : record.layers) {
        const std::size_t entry =
            owner.find(layer.key ? *layer.key : record.table->key(layer.position));
        if (entry == owner.entries.size()) continue;
        const Kept* const kept = owner.entries[entry].kept.get();
        if (kept && kept->place() == layer.place()) place(owner, entry, layer);
    }
}

// Called by the journal's thread.
void Store::Impl::moved(std::span<const std::pair<std::string, durable::LayerRecord>> layers) {
    const std::lock_guard lock(mutex);
    for (const auto& [id, record] : layers) {
        const auto found = owners.find(id);
        if (found == owners.end()) continue;
        Owner& owner = *found->second;
        for (std::size_t i = 0; i < owner.entries.size(); ++i) {
            const Kept* const kept = owner.entries[i].kept.get();
            if (kept && kept->place() == record.place()) this->place(owner, i, record);
        }
    }
}

std::shared_ptr<LayerInArena> Store::Impl::load(const Owner& owner, std::size_t entry,
                                                const durable::LayerRecord& record,
                                                std::uint64_t layer_serial,
                                                const durable::File& segment) {
    auto layer = std::make_shared<LayerInArena>();
    layer->owner = owner.model;
    layer->key = owner.key_of(entry);
    layer->serial = layer_serial;
    layer->tensors.reserve(record.tensors.size());
    std::uint64_t total = 0;
    for (const durable::TensorRecord& tensor : record.tensors) {
        const std::uint64_t bytes = padded(tensor.spec.nbytes());
        layer->tensors.push_back({tensor.spec, {nullptr, bytes, -1, 0}, tensor.checksum});
        total += bytes;
    }
    layer->extent = allocate(total);
    layer->arena = arena;
    std::vector<std::byte> small;
    if (record.segment == 0) small = journal->read_small(record.place());
    Extent rest = layer->extent;
    for (std::size_t i = 0; i < record.tensors.size(); ++i) {
        StoredLayer::Tensor& tensor = layer->tensors[i];
        tensor.extent = {rest.data, tensor.extent.size, rest.region, rest.offset};
        if (tensor.extent.size > 0) rest.data += tensor.extent.size;
        rest.offset += tensor.extent.size;
        const bool is_intact =
            record.segment == 0
                ? load_from_catalogue(record.tensors[i], small, tensor.extent.data)
                : load_from_segment(segment, record.tensors[i].offset, tensor.extent.data,
                                    tensor.spec.nbytes()) == tensor.checksum;
        if (is_intact) continue;
        throw Error(
            Errc::storage,
            "layer key " + hex(layer->key) + " of model '" + owner.model + "' is damaged in " +
                (record.segment == 0 ? journal->directory() / "catalogue.sqlite" : segment.path())
                    .string() +
                ": its checksum is another");
    }
    return layer;
}

bool Store::Impl::is_intact(const Place& place) const {
    StoredLayerPtr layer;
    durable::LayerRecord record;
    {
        const std::lock_guard lock(mutex);
        const Owner::Entry& entry = place.owner->entries[place.entry];
        layer = entry.layer;
        if (!layer && !entry.kept) return true;
        if (!layer) record = entry.kept->record;
    }
    if (layer) {
        return std::all_of(
            layer->tensors.begin(), layer->tensors.end(), [](const StoredLayer::Tensor& tensor) {
                return checksum_of(tensor.extent.data, tensor.spec.nbytes()) == tensor.checksum;
            });
    }
    try {
        if (is_intact_on_disk(*journal, record)) return true;
    } catch (const Error& error) {
        if (error.code() != Errc::storage) throw;
    }
    const std::lock_guard lock(mutex);  // unless it was moved or dropped meanwhile
    const Kept* const kept = place.owner->entries[place.entry].kept.get();
    return !kept || kept->record.segment != record.segment;
}

std::vector<StoredLayerPtr> Store::Impl::pin(std::span<const Place> places) {
    struct Missing {
        std::size_t place = 0;
        durable::LayerRecord record;
        std::uint64_t serial = 0;
    };
    std::vector<StoredLayerPtr> out(places.size());
    std::vector<Missing> missing;  // that nobody else is loading
    const auto entry_of = [](const Place& place) -> Owner::Entry& {
        return place.owner->entries[place.entry];
    };
    // Whatever happens: nobody waits for us for ever.
    struct Leave {
        Store::Impl& store;
        std::span<const Place> places;
        std::vector<Missing>& missing;
        ~Leave() {
            if (missing.empty()) return;
            const std::lock_guard lock(store.mutex);
            for (const Missing& each : missing) {
                const Place& place = places[each.place];
                if (Kept* const kept = place.owner->entries[place.entry].kept.get()) {
                    kept->loading = false;
                }
            }
            store.loaded.notify_all();
        }
    };
    while (true) {
        const Leave leave{*this, places, missing};
        {
            std::unique_lock lock(mutex);
            std::size_t awaited = places.size();
            for (std::size_t i = 0; i < places.size(); ++i) {
                if (out[i]) continue;
                Owner::Entry& entry = entry_of(places[i]);
                if (entry.layer) {
                    out[i] = entry.layer;
                    touch(*places[i].owner, places[i].entry);
                } else if (!entry.kept) {
                    throw Error(Errc::not_found, "there is no model '" + places[i].owner->model +
                                                     "' any more: it was retired");
                } else if (entry.kept->loading) {
                    awaited = i;
                } else {
                    missing.push_back({i, entry.kept->record, entry.kept->serial});
                    entry.kept->loading = true;
                }
            }
            if (missing.empty()) {
                if (awaited == places.size()) return out;
                loaded.wait(lock, [&] {
                    const Owner::Entry& entry = entry_of(places[awaited]);
                    return !entry.kept || !entry.kept->loading;
                });
                continue;
            }
        }
        // In the order of the files.
        std::sort(missing.begin(), missing.end(), [](const Missing& a, const Missing& b) {
            const auto offset = [](const Missing& each) {
                return each.record.tensors.empty() ? 0 : each.record.tensors.front().offset;
            };
            return std::pair(a.record.segment, offset(a)) < std::pair(b.record.segment, offset(b));
        });
        durable::File file;
        std::uint64_t open_segment = 0;
        for (const Missing& each : missing) {
            const Place& place = places[each.place];
            std::shared_ptr<LayerInArena> layer;
            try {
                if (open_segment != each.record.segment) {  // 0: the catalogue
                    file = journal->open_segment(each.record.segment);
                    open_segment = each.record.segment;
                }
                layer = load(*place.owner, place.entry, each.record, each.serial, file);
            } catch (const Error& error) {
                const std::lock_guard lock(mutex);
                const Kept* const kept = entry_of(place).kept.get();
                const bool is_elsewhere = kept && kept->record.segment != each.record.segment;
                if (error.code() != Errc::storage || (kept && !is_elsewhere)) throw;
                break;  // it was moved or dropped meanwhile: look again
            }
            const std::lock_guard lock(mutex);
            Owner::Entry& entry = entry_of(place);
            if (entry.kept && !entry.layer) {
                entry.layer = layer;
                list(*place.owner, place.entry);
            }
            out[each.place] = std::move(layer);
        }
        {
            const std::lock_guard lock(mutex);
            for (const Missing& each : missing) {
                if (Kept* const kept = entry_of(places[each.place]).kept.get()) {
                    kept->loading = false;
                }
            }
            missing.clear();
        }
        loaded.notify_all();
    }
}

}  // namespace cpp_store
