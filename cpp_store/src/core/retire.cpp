#include "core/store_impl.hpp"

namespace cpp_store {

ForeignReferences Store::retire(std::string_view model) {
    Garbage garbage;
    const std::lock_guard lock(impl_->mutex);
    impl_->expire_leases(garbage);
    const auto found = impl_->models.find(model);
    if (found == impl_->models.end()) {
        throw Error(Errc::not_found, "there is no model '" + std::string(model) + "' to retire");
    }
    const ModelPtr retired = found->second;
    impl_->index.remove(model);
    impl_->models.erase(found);
    impl_->counts.bytes_referenced -= retired->bytes_own + retired->bytes_inherited;
    ++impl_->counts.retires;
    retired->retired = true;
    if (retired->leases > 0) {
        impl_->retired.insert(retired->id);
        return {};
    }
    return impl_->drop_references(retired, garbage);
}

ForeignReferences Store::Impl::drop_references(const ModelPtr& model, Garbage& garbage) {
    ForeignReferences foreign;
    foreign.holder = model->id;
    for (const Slot& slot : model->slots) {
        if (slot.owner) {
            drop(*slot.owner, slot.entry, garbage);
        } else {
            foreign.by_owner[slot.foreign_owner].push_back(model->table->key(slot.layer));
        }
    }
    garbage.models.push_back(model);
    return foreign;
}

}  // namespace cpp_store
