// A put: prepare checks and reserves, fill copies, commit publishes.
#include <algorithm>
#include <limits>
#include <numeric>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "core/content.hpp"
#include "core/pending_put.hpp"

namespace cpp_store {

namespace {

constexpr std::size_t longest_name = 65'535;

// XXH3-128 over values, each with its length, so that no two different sequences are the same
// bytes.
class Digest {
  public:
    Digest() { XXH3_128bits_reset(&state_); }
    void add(std::uint64_t value) { XXH3_128bits_update(&state_, &value, sizeof value); }
    void add(const Checksum& value) {
        add(value.high);
        add(value.low);
    }
    void add(std::string_view text) {
        add(text.size());
        XXH3_128bits_update(&state_, text.data(), text.size());
    }
    [[nodiscard]] Checksum value() const {
        const XXH128_hash_t hash = XXH3_128bits_digest(&state_);
        return {hash.high64, hash.low64};
    }

  private:
    XXH3_state_t state_;
};

[[noreturn]] void invalid(const PutRequest& request, const std::string& what) {
    throw Error(Errc::invalid_argument, "model '" + request.model + "': " + what);
}

std::string layer_name(const PutRequest& request, std::uint32_t layer) {
    return "layer '" + std::string(request.table->name(layer)) + "'";
}

std::uint64_t bytes_of(const Own& own) {
    std::uint64_t sum = 0;
    for (const TensorSpec& spec : own.tensors) {
        const std::uint64_t bytes = spec.nbytes();  // below 2^63
        if (bytes > std::numeric_limits<std::uint64_t>::max() / 2 - sum) {
            throw Error(Errc::invalid_argument, "the tensors of one layer exceed 2^63 bytes");
        }
        sum += bytes;
    }
    return sum;
}

// That every layer comes once, from one place, and with the bytes that its table promises.
void check(const PutRequest& request) {
    if (request.model.empty() || request.model.size() > longest_name) {
        throw Error(Errc::invalid_argument, "a model id has 1 to 65,535 bytes, not " +
                                                std::to_string(request.model.size()));
    }
    if (request.ns.size() > longest_name) invalid(request, "a namespace has at most 65,535 bytes");
    if (!request.table) invalid(request, "there is no layer table");
    const LayerTable& table = *request.table;

    std::vector<bool> seen(table.size());
    const auto take = [&](std::uint32_t layer) {
        if (layer >= table.size()) {
            invalid(request, "there is no layer at position " + std::to_string(layer) +
                                 "; the table has " + std::to_string(table.size()));
        }
        if (seen[layer]) invalid(request, layer_name(request, layer) + " comes twice");
        seen[layer] = true;
    };
    for (const Own& own : request.own) {
        take(own.layer);
        const std::uint64_t found = bytes_of(own);
        const std::uint64_t expected = table.nbytes(own.layer);
        if (expected != 0 && expected != found) {
            invalid(request, layer_name(request, own.layer) + " has " + std::to_string(expected) +
                                 " bytes by its table, but tensors of " + std::to_string(found) +
                                 " bytes");
        }
    }
    for (const Inherited& inherited : request.inherited) {
        take(inherited.layer);
        if (inherited.owner.empty()) {
            invalid(request, layer_name(request, inherited.layer) + " is inherited from nobody");
        }
    }
    for (std::uint32_t layer = 0; layer < table.size(); ++layer) {
        if (!seen[layer] && table.nbytes(layer) > 0) {
            invalid(request, layer_name(request, layer) + " has " +
                                 std::to_string(table.nbytes(layer)) +
                                 " bytes by its table, but it is neither put nor inherited");
        }
    }
}

std::uint64_t now_ns() {
    const auto since = std::chrono::system_clock::now().time_since_epoch();
    return static_cast<std::uint64_t>(
        std::chrono::duration_cast<std::chrono::nanoseconds>(since).count());
}

}  // namespace

Checksum description_of(const PutRequest& request) {
    Digest digest;
    digest.add(request.ns);
    digest.add(request.parent);
    digest.add(request.graph);
    digest.add(request.metadata);
    std::uint64_t score = 0;
    static_assert(sizeof score == sizeof request.score);
    std::copy_n(reinterpret_cast<const char*>(&request.score), sizeof score,
                reinterpret_cast<char*>(&score));
    digest.add(score);
    const LayerTable& table = *request.table;
    digest.add(table.size());
    for (std::size_t i = 0; i < table.size(); ++i) {
        digest.add(table.name(i));
        digest.add(table.nbytes(i));
        digest.add(table.requires_of(i).size());
        for (const std::uint32_t needed : table.requires_of(i)) digest.add(needed);
    }
    digest.add(request.own.size());
    for (const Own& own : request.own) {
        digest.add(own.layer);
        digest.add(own.tensors.size());
        for (const TensorSpec& spec : own.tensors) {
            digest.add(static_cast<std::uint64_t>(spec.dtype));
            digest.add(spec.shape.size());
            for (const std::uint64_t extent : spec.shape) digest.add(extent);
        }
    }
    digest.add(request.inherited.size());
    for (const Inherited& inherited : request.inherited) {
        digest.add(inherited.layer);
        digest.add(inherited.owner);
    }
    return digest.value();
}

Checksum content_of(const Checksum& description, std::span<const Checksum> tensors) {
    Digest digest;
    digest.add(description);
    for (const Checksum& sum : tensors) digest.add(sum);
    return digest.value();
}

// One allocation for all tensors; each layer gets its own part of it.
void PendingPut::Impl::reserve(const std::vector<Own>& layers) {
    std::uint64_t total = 0;
    std::size_t tensors = 0;
    for (const Own& layer : layers) {
        if (layer.tensors.empty()) continue;
        tensors += layer.tensors.size();
        auto stored = std::make_shared<LayerInArena>();
        stored->owner = model->owner;
        stored->key = model->table ? model->table->key(layer.layer) : adopted[layer.layer];
        stored->serial = ++store->last_serial;
        stored->tensors.reserve(layer.tensors.size());
        for (const TensorSpec& spec : layer.tensors) {
            const std::uint64_t bytes = padded(spec.nbytes());
            stored->extent.size += bytes;
            total += bytes;
            if (total > std::numeric_limits<std::int64_t>::max()) {
                throw Error(Errc::invalid_argument, "the tensors of one put exceed 2^63 bytes");
            }
            stored->tensors.push_back({spec, {nullptr, bytes, -1, 0}, {}});
        }
        own.emplace_back(layer.layer, std::move(stored));
    }
    buffers.reserve(tensors);
    targets.reserve(tensors);

    // From here on nothing throws but the allocation itself.
    Extent rest = store->allocate(total);
    const auto cut = [&rest](std::uint64_t size) {
        const Extent part{rest.data, size, rest.region, rest.offset};
        if (size > 0) rest.data += size;
        rest.offset += size;
        return part;
    };
    for (auto& [position, layer] : own) {
        const Extent whole{rest.data, layer->extent.size, rest.region, rest.offset};
        for (StoredLayer::Tensor& tensor : layer->tensors) {
            tensor.extent = cut(tensor.extent.size);
            buffers.emplace_back(tensor.extent.data, tensor.spec.nbytes());
            targets.push_back({.tensor = &tensor, .sum = nullptr});
        }
        layer->extent = whole;
        layer->arena = store->arena;
        model->bytes_own += cpp_store::bytes_of(*layer);
    }
}

void PendingPut::Impl::refer(const std::vector<Inherited>& layers) {
    model->slots.reserve(own.size() + layers.size());
    const std::lock_guard lock(store->mutex);
    for (const Inherited& inherited : layers) {
        Slot slot{.layer = inherited.layer,
                  .owner = nullptr,
                  .entry = 0,
                  .stored = nullptr,
                  .foreign_owner = {}};
        if (inherited.foreign) {
            slot.foreign_owner = inherited.owner;
            model->bytes_inherited +=
                std::max(model->table->nbytes(inherited.layer), inherited.bytes);
        } else {
            std::tie(slot.owner, slot.entry) =
                store->find_layer(inherited.owner, model->table->key(inherited.layer));
            const Owner::Entry& entry = slot.owner->entries[slot.entry];
            if (!store->journal) slot.stored = entry.layer;
            const std::uint64_t found = entry.nbytes();
            const std::uint64_t expected = model->table->nbytes(inherited.layer);
            if (expected != 0 && expected != found) {
                throw Error(Errc::invalid_argument,
                            "model '" + model->id + "': layer '" +
                                std::string(model->table->name(inherited.layer)) + "' has " +
                                std::to_string(expected) + " bytes by its table, but '" +
                                inherited.owner + "' owns " + std::to_string(found));
            }
            model->bytes_inherited += found;
        }
        model->slots.push_back(std::move(slot));
    }
    for (const Slot& slot : model->slots) {
        if (slot.owner) store->refer(*slot.owner, slot.entry);
    }
    referring = true;
}

void PendingPut::Impl::sum_the_rest() noexcept {
    for (Target& target : targets) {
        if (target.summed) continue;
        StoredLayer::Tensor& tensor = *target.tensor;
        tensor.checksum = checksum_of(tensor.extent.data, tensor.spec.nbytes());
        target.summed = true;
    }
}

durable::LayerRecord record_of(std::uint32_t position, const StoredLayer& layer) {
    durable::LayerRecord record;
    record.position = position;
    for (const StoredLayer::Tensor& tensor : layer.tensors) {
        record.tensors.push_back({.spec = tensor.spec, .checksum = tensor.checksum});
    }
    return record;
}

// What the data directory will know of the layers.
void PendingPut::Impl::keep(Owner& made) const {
    for (const auto& [position, layer] : own) {
        auto kept = std::make_unique<Kept>();
        kept->record = record_of(position, *layer);
        kept->serial = layer->serial;
        kept->resident = store->resident.end();
        made.entries[made.find(layer->key)].kept = std::move(kept);
    }
}

std::shared_ptr<Owner> PendingPut::Impl::make_owner() const {
    auto made = std::make_shared<Owner>();
    made->model = model->owner;
    made->entries.reserve(own.size());
    for (const auto& [position, layer] : own) made->entries.push_back({layer, 1, nullptr});
    std::sort(
        made->entries.begin(), made->entries.end(),
        [](const Owner::Entry& a, const Owner::Entry& b) { return a.layer->key < b.layer->key; });
    for (const Owner::Entry& entry : made->entries) made->keys.push_back(entry.layer->key);
    made->referred = own.size();
    if (store->journal) keep(*made);
    return made;
}

// Of all layers, once those that the put brings have an owner.
std::vector<Slot> PendingPut::Impl::slots_with(const std::shared_ptr<Owner>& from) const {
    std::vector<Slot> all = model->slots;
    for (const auto& [position, layer] : own) {
        const std::size_t entry = from->find(layer->key);
        all.push_back({.layer = position,
                       .owner = from,
                       .entry = entry,
                       .stored = store->journal ? nullptr : from->entries[entry].layer,
                       .foreign_owner = {}});
    }
    std::sort(all.begin(), all.end(),
              [](const Slot& a, const Slot& b) { return a.layer < b.layer; });
    return all;
}

PendingPut::PendingPut(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
PendingPut::PendingPut(PendingPut&&) noexcept = default;
PendingPut& PendingPut::operator=(PendingPut&&) noexcept = default;
PendingPut::~PendingPut() = default;

std::span<const std::span<std::byte>> PendingPut::buffers() const noexcept {
    return impl_->buffers;
}

Checksum PendingPut::content() {
    impl_->complete();
    return impl_->model->content;
}

const std::string& PendingPut::model() const noexcept {
    return impl_->model->id;
}

const std::string& PendingPut::owner() const noexcept {
    return impl_->model->owner;
}

std::vector<LayerLocation> PendingPut::layers() const {
    std::vector<LayerLocation> out;
    out.reserve(impl_->own.size());
    for (const auto& [position, layer] : impl_->own) {
        out.push_back({position, impl_->model->owner, layer});
    }
    return out;
}

void PendingPut::fill(std::size_t tensor, const std::byte* source) {
    Impl::Target& target = impl_->targets.at(tensor);
    const std::span<std::byte> buffer = impl_->buffers[tensor];
    target.tensor->checksum = copy_and_checksum(buffer.data(), source, buffer.size());
    target.summed = true;
}

bool PendingPut::check(std::size_t tensor, const Checksum& expected) {
    Impl::Target& target = impl_->targets.at(tensor);
    const std::span<std::byte> buffer = impl_->buffers[tensor];
    target.tensor->checksum = checksum_of(buffer.data(), buffer.size());
    target.summed = true;
    return target.tensor->checksum == expected;
}

void PendingPut::append(std::size_t tensor, std::span<const std::byte> piece) {
    Impl::Target& target = impl_->targets.at(tensor);
    const std::span<std::byte> buffer = impl_->buffers[tensor];
    if (piece.size() > buffer.size() - target.filled) {
        throw Error(Errc::invalid_argument, "more bytes than a tensor has");
    }
    if (!target.sum) target.sum = std::make_unique<CopySum>(buffer.data(), buffer.size());
    target.sum->add(piece.data(), piece.size());
    target.filled += piece.size();
    if (target.filled == buffer.size()) {
        target.tensor->checksum = target.sum->value();
        target.summed = true;
        target.sum.reset();
    }
}

void Store::Impl::check_is_free(std::string_view model, std::string_view owner) const {
    const bool is_owned = owner == model && owners.contains(owner);
    if (!is_owned && !retired.contains(model)) return;
    throw Error(Errc::already_exists,
                "model '" + std::string(model) +
                    "' was retired, but others still refer to its layers; choose another id");
}

PendingPut Store::prepare(PutRequest request) {
    check(request);
    auto pending = std::make_unique<PendingPut::Impl>();
    pending->store = impl_;
    auto model = std::make_shared<Model>();
    model->description = description_of(request);
    const std::string owner = request.owner.empty() ? request.model : request.owner;
    {
        Garbage garbage;
        const std::lock_guard lock(impl_->mutex);
        impl_->expire_leases(garbage);
        const auto same = impl_->models.find(request.model);
        if (same == impl_->models.end()) {
            impl_->check_is_free(request.model, owner);
        } else if (same->second->description != model->description) {
            throw Error(Errc::already_exists,
                        "there is a model '" + request.model + "' with other content");
        }
    }
    model->id = std::move(request.model);
    model->owner = owner;
    model->ns = std::move(request.ns);
    model->table = std::move(request.table);
    model->score = request.score;
    model->parent = std::move(request.parent);
    model->graph = std::move(request.graph);
    model->metadata = std::move(request.metadata);
    model->created_ns = request.created_ns ? request.created_ns : now_ns();
    pending->model = std::move(model);
    pending->reserve(request.own);
    pending->refer(request.inherited);
    return PendingPut(std::move(pending));
}

std::size_t Store::Impl::find_or_add(Owner& owner,
                                     const std::shared_ptr<const LayerInArena>& layer) {
    const std::size_t entry = owner.find(layer->key);
    if (entry != owner.entries.size()) return entry;
    ++counts.layers;
    counts.tensors += layer->tensors.size();
    counts.bytes_stored += bytes_of(*layer);
    const std::size_t made = owner.add(layer->key);
    owner.entries[made].layer = layer;
    return made;
}

// The model, complete, while nobody sees it.
void PendingPut::Impl::complete() {
    sum_the_rest();
    std::vector<Checksum> sums;
    sums.reserve(targets.size());
    for (const Target& target : targets) sums.push_back(target.tensor->checksum);
    model->content = content_of(model->description, sums);
    owner = make_owner();
    slots = slots_with(owner);
}

}  // namespace cpp_store
