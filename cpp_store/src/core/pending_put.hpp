// A put on its way: put.cpp fills it, commit.cpp publishes it.
#pragma once

#include "core/checksum.hpp"
#include "core/store_impl.hpp"

namespace cpp_store {

struct PendingPut::Impl {
    struct alignas(64) Target {  // threads fill side by side
        StoredLayer::Tensor* tensor = nullptr;
        bool summed = false;
        std::uint64_t filled = 0;                // by append()
        std::unique_ptr<CopySum> sum = nullptr;  // of them, until they are all
    };

    std::shared_ptr<Store::Impl> store;
    std::shared_ptr<Model> model;   // as it will be, slots of inherited layers included
    std::vector<LayerKey> adopted;  // keys of the layers, instead of the model's table
    std::vector<std::pair<std::uint32_t, std::shared_ptr<LayerInArena>>> own;
    std::vector<std::span<std::byte>> buffers;
    std::vector<Target> targets;
    // As of complete().
    std::shared_ptr<Owner> owner;
    std::vector<Slot> slots;  // all of the model's
    Garbage replaced;         // by its own layers
    bool referring = false;   // the slots' references are counted, and not yet the visible model's

    Impl() = default;
    Impl(const Impl&) = delete;
    Impl& operator=(const Impl&) = delete;
    ~Impl() {
        if (!referring) return;
        Garbage garbage;
        const std::lock_guard lock(store->mutex);
        store->drop_references(model, garbage);
    }

    void reserve(const std::vector<Own>& layers);
    void refer(const std::vector<Inherited>& layers);
    void sum_the_rest() noexcept;
    void complete();
    [[nodiscard]] std::shared_ptr<Owner> make_owner() const;
    void keep(Owner& made) const;
    [[nodiscard]] std::vector<Slot> slots_with(const std::shared_ptr<Owner>& from) const;

    // commit.cpp
    [[nodiscard]] bool is_there() const;
    template <typename Log>
    void publish(Log log);
    void join(const std::shared_ptr<Owner>& known) noexcept;
    std::uint64_t commit_in_memory();
    std::uint64_t commit_lazily();
    static void commit_durably(std::unique_ptr<Impl> put, Store::Committed done);
    [[nodiscard]] std::shared_ptr<durable::ModelRecord> record();
    [[nodiscard]] std::vector<StoredLayerPtr> stored() const;
    void take_back() noexcept;

    // adoption.cpp
    [[nodiscard]] std::shared_ptr<durable::ModelRecord> record_for(std::string_view holder) const;
    struct Adoption;
    void join_adopted(Adoption& adoption, const std::function<void()>& log);
    void give_up(const durable::ModelRecord& record) const noexcept;
};

// Of a layer that is not on disk yet, and has no owner there.
[[nodiscard]] durable::LayerRecord record_of(std::uint32_t position, const StoredLayer& layer);

}  // namespace cpp_store
