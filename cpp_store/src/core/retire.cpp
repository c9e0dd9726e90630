// Retirement. What takes memory comes before what changes something: a full machine must not keep
// models that nobody wants, nor half of them.
#include "core/store_impl.hpp"

namespace cpp_store {

namespace {

// Of a model that another call has retired meanwhile, too.
[[noreturn]] void none(std::string_view model) {
    throw Error(Errc::not_found, "there is no model '" + std::string(model) + "' to retire");
}

}  // namespace

ForeignReferences Store::retire(std::string_view model, std::optional<Note> note) {
    Garbage garbage;
    std::unique_lock lock(impl_->mutex);
    impl_->expire_leases(garbage);
    auto found = impl_->models.find(model);
    if (found == impl_->models.end()) none(model);
    const ModelPtr retired = found->second;
    ForeignReferences foreign = retired->foreign_references();
    std::set<std::string, std::less<>> leased{retired->id};
    if (impl_->journal) {
        durable::Wait wait(*impl_->journal);
        impl_->journal->retire(retired->serial, std::move(note), wait.done());
        if (impl_->journal->is_sync()) {
            lock.unlock();
            wait.get();
            lock.lock();
            found = impl_->models.find(model);
            if (found == impl_->models.end() || found->second != retired) none(model);
        }
    }
    impl_->index.remove(model);
    impl_->models.erase(found);
    impl_->counts.bytes_referenced -= retired->bytes_own + retired->bytes_inherited;
    ++impl_->counts.retires;
    retired->retired = true;
    if (retired->leases > 0) {
        impl_->retired.merge(leased);
        return {};
    }
    impl_->drop_references(retired, garbage);
    return foreign;
}

void Store::note(Note note) {
    if (!impl_->journal) return;
    durable::Wait wait(*impl_->journal);
    impl_->journal->note(std::move(note), wait.done());
    wait.get();
}

Notes Store::take_notes() {
    const std::lock_guard lock(impl_->mutex);
    return std::exchange(impl_->notes, {});
}

ForeignReferences Model::foreign_references() const {
    ForeignReferences foreign;
    foreign.holder = owner;
    for (const Slot& slot : slots) {
        if (!slot.owner) foreign.by_owner[slot.foreign_owner].push_back(table->key(slot.layer));
    }
    return foreign;
}

void Store::Impl::drop_references(const ModelPtr& model, Garbage& garbage) noexcept {
    for (const Slot& slot : model->slots) {
        if (slot.owner) drop(*slot.owner, slot.entry, garbage);
    }
    garbage.add(model);
}

}  // namespace cpp_store
