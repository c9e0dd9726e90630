#include "core/layer_dag.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <string>

#include "cpp_store/error.hpp"

namespace cpp_store {

namespace {

constexpr std::uint64_t sign = std::uint64_t{1} << 63;
constexpr std::uint64_t nan_image = 1;  // below the image of minus infinity

}  // namespace

std::uint64_t Rank::image_of(double score) noexcept {
    if (std::isnan(score)) return nan_image;
    const auto bits = std::bit_cast<std::uint64_t>(score + 0.0);  // -0.0 becomes 0.0
    return (bits & sign) != 0 ? ~bits : bits | sign;
}

double Rank::score_of(std::uint64_t image) noexcept {
    if (image == nan_image) return std::numeric_limits<double>::quiet_NaN();
    return std::bit_cast<double>((image & sign) != 0 ? image & ~sign : ~image);
}

void* LayerDag::CountedMemory::do_allocate(std::size_t bytes, std::size_t alignment) {
    void* const p = std::pmr::new_delete_resource()->allocate(bytes, alignment);
    bytes_ += bytes;
    return p;
}

void LayerDag::CountedMemory::do_deallocate(void* p, std::size_t bytes, std::size_t alignment) {
    std::pmr::new_delete_resource()->deallocate(p, bytes, alignment);
    bytes_ -= bytes;
}

NodeId LayerDag::find(const LayerKey& key) const noexcept {
    return by_key_.find(hash_of(key), [&](NodeId id) { return nodes_[id].key == key; });
}

void LayerDag::prefetch(std::span<const LayerKey> keys) const noexcept {
    for (const LayerKey& key : keys) by_key_.prefetch(hash_of(key));
    for (const LayerKey& key : keys) {
        const NodeId id = by_key_.candidate(hash_of(key));
        if (id != no_id) nodes_.prefetch(id);
    }
}

void LayerDag::plan(const LayerTable& table, const LayerKey& salt, Plan& plan) const {
    const std::size_t count = table.size();
    plan.keys.clear();
    plan.nodes.clear();
    plan.last.clear();
    plan.needs.clear();
    plan.needs_ends.clear();
    plan.required.assign(count, 0);
    for (const LayerKey& key : table.keys()) plan.keys.push_back(salted(key, salt));
    prefetch(plan.keys);
    for (std::uint32_t i = 0; i < count; ++i) {
        const auto begin = static_cast<std::ptrdiff_t>(plan.needs.size());
        for (const std::uint32_t required : table.requires_of(i)) {
            plan.needs.push_back(required);
            plan.required[required] = 1;
        }
        if (plan.needs.size() - static_cast<std::size_t>(begin) > 1) {
            std::sort(plan.needs.begin() + begin, plan.needs.end());
            plan.needs.erase(std::unique(plan.needs.begin() + begin, plan.needs.end()),
                             plan.needs.end());
        }
        plan.needs_ends.push_back(static_cast<std::uint32_t>(plan.needs.size()));

        const NodeId id = find(plan.keys[i]);
        plan.nodes.push_back(id);
        if (id == no_id) continue;
        const Node& node = nodes_[id];
        models_.prefetch(node.best);  // add() will compare with it
        plan.given.clear();
        plan.held.clear();
        for (auto at = begin; at != std::ssize(plan.needs); ++at) {
            plan.given.push_back(plan.nodes[plan.needs[static_cast<std::size_t>(at)]]);
        }
        for (std::size_t j = 0; j < node.needs_count; ++j) plan.held.push_back(need(id, j));
        if (plan.given == plan.held) continue;
        // Positions may differ from model to model.
        std::sort(plan.given.begin(), plan.given.end());
        std::sort(plan.held.begin(), plan.held.end());
        if (plan.given != plan.held || node.joint) {
            throw Error(Errc::invalid_argument,
                        "layer '" + std::string(table.name(i)) +
                            "' requires other layers than in a stored model; layers of equal name "
                            "must have equal ancestors");
        }
    }
    for (std::uint32_t i = 0; i < count; ++i) {
        if (plan.required[i] == 0) plan.last.push_back(i);
    }
    plan.required.assign(count, 0);
    plan.inherited.clear();
    for (std::size_t i = count; i-- != 0;) {
        if (plan.nodes[i] == no_id) continue;
        if (plan.required[i] == 0) plan.inherited.push_back(plan.nodes[i]);
        for (std::uint32_t at = i == 0 ? 0 : plan.needs_ends[i - 1]; at != plan.needs_ends[i];
             ++at) {
            plan.required[plan.needs[at]] = 1;
        }
    }
}

ModelId LayerDag::add(std::string_view name, Plan& plan, double score, std::uint64_t sequence,
                      std::uint32_t space) {
    walk_.reserve(plan.nodes.size() + 1);  // and a joint
    path_.reserve(plan.nodes.size() + 1);
    seen_.reserve(plan.nodes.size() + 1);
    const ModelId id = models_.allocate();
    Model& model = models_[id];
    model.inherited_count = static_cast<std::uint32_t>(plan.inherited.size());
    model.name_size = static_cast<std::uint32_t>(name.size());
    model.score = Rank::image_of(score);
    model.sequence = sequence;
    model.space = space;
    std::vector<std::uint32_t>& made = plan.made;
    made.clear();
    NodeId joint = no_id;
    try {
        model.inherited = static_cast<NodeId*>(heap_.allocate(tail_bytes(model), alignof(NodeId)));
        std::copy(plan.inherited.begin(), plan.inherited.end(), model.inherited);
        std::copy(name.begin(), name.end(),
                  reinterpret_cast<char*>(model.inherited + model.inherited_count));
        std::vector<NodeId>& needs = plan.made_needs;
        for (std::uint32_t i = 0; i < plan.nodes.size(); ++i) {
            if (plan.nodes[i] != no_id) continue;
            needs.clear();
            for (std::uint32_t at = i == 0 ? 0 : plan.needs_ends[i - 1]; at != plan.needs_ends[i];
                 ++at) {
                needs.push_back(plan.nodes[plan.needs[at]]);
            }
            made.push_back(i);
            plan.nodes[i] = make_node(plan.keys[i], needs, id);
        }
        if (plan.last.size() > 1) joint = make_joint(plan, id);
        if (!plan.last.empty()) {
            const NodeId last = joint != no_id ? joint : plan.nodes[plan.last.front()];
            model.slot = add_entry(last, Entry::model(id));
            model.last = last;
        }
    } catch (...) {
        if (joint != no_id && nodes_[joint].count == 0) drop_node(joint);
        for (auto i = made.rbegin(); i != made.rend(); ++i) {
            if (plan.nodes[*i] != no_id) drop_node(plan.nodes[*i]);
        }
        if (model.inherited != nullptr) {
            heap_.deallocate(model.inherited, tail_bytes(model), alignof(NodeId));
        }
        models_.free(id);
        throw;
    }

    // From here on nothing fails. Last layers first: a best model is right below before it is
    // compared above.
    const Rank rank_of_new = rank(id);
    const auto enter = [&](NodeId at) {
        Node& node = nodes_[at];
        ++node.count;
        if (rank(node.best) < rank_of_new) {
            node.best = id;
            best_changed(at);
        }
    };
    if (joint != no_id) enter(joint);
    for (std::size_t i = plan.nodes.size(); i-- != 0;) enter(plan.nodes[i]);
    return id;
}

void LayerDag::remove(ModelId id) noexcept {
    Model& model = models_[id];
    if (model.last != no_id) {
        collect(model.last);
        remove_entry(model.last, model.slot);
        for (std::size_t i = walk_.size(); i-- != 0;) {
            const NodeId at = walk_[i];
            Node& node = nodes_[at];
            if (node.origin == id) node.origin = no_id;
            if (--node.count == 0) {
                drop_node(at);
            } else if (node.best == id) {
                node.best = find_best(at);
                best_changed(at);
            }
        }
    }
    heap_.deallocate(model.inherited, tail_bytes(model), alignof(NodeId));
    models_.free(id);
}

// Fills walk_ with `last` and all that it requires, requirements first.
void LayerDag::collect(NodeId last) noexcept {
    walk_.clear();
    path_.clear();
    seen_.clear();
    path_.push_back({last, 0});
    seen_[last] = 0;
    while (!path_.empty()) {
        Step& step = path_.back();
        const Node& node = nodes_[step.node];
        if (step.next == node.needs_count) {
            if (node.count == 1) by_key_.prefetch(hash_of(node.key));  // it will be dropped
            walk_.push_back(step.node);
            path_.pop_back();
            continue;
        }
        if (step.next == 0) {
            for (std::uint32_t i = 1; i < node.needs_count; ++i) {
                nodes_.prefetch(node.needs_begin()[i].node);
            }
        }
        const NodeId above = node.needs_begin()[step.next++].node;
        std::uint32_t& seen = seen_[above];
        if (seen == NodeMap::none) {
            seen = 0;
            path_.push_back({above, 0});
        }
    }
}

NodeId LayerDag::make_node(const LayerKey& key, std::span<const NodeId> needs, ModelId origin) {
    const NodeId id = nodes_.allocate();
    Node& node = nodes_[id];
    node.key = key;
    node.origin = origin;
    std::uint32_t linked = 0;
    bool known = false;
    Need* array = &node.need;
    try {
        if (needs.size() > 1) {
            array = static_cast<Need*>(heap_.allocate(needs.size() * sizeof(Need), alignof(Need)));
            node.needs = array;
        }
        by_key_.insert(hash_of(key), id);
        known = true;
        for (; linked < needs.size(); ++linked) {
            array[linked] = {needs[linked], add_entry(needs[linked], Entry::node(id))};
        }
        node.needs_count = static_cast<std::uint32_t>(needs.size());
    } catch (...) {
        while (linked != 0) {
            --linked;
            remove_entry(array[linked].node, array[linked].slot);
        }
        if (known) by_key_.erase(hash_of(key), id);
        if (array != &node.need)
            heap_.deallocate(array, needs.size() * sizeof(Need), alignof(Need));
        nodes_.free(id);
        throw;
    }
    return id;
}

void LayerDag::drop_node(NodeId id) noexcept {
    Node& node = nodes_[id];
    Need* const needs = node.needs_begin();
    for (std::uint32_t i = 0; i < node.needs_count; ++i) remove_entry(needs[i].node, needs[i].slot);
    if (node.needs_count > 1) {
        heap_.deallocate(needs, node.needs_count * sizeof(Need), alignof(Need));
    }
    if (node.has_block) {
        heap_.deallocate(node.block, EntryBlock::bytes(node.block->capacity), alignof(EntryBlock));
    }
    if (node.joint) --joints_;
    by_key_.erase(hash_of(node.key), id);
    nodes_.free(id);
}

NodeId LayerDag::make_joint(const Plan& plan, ModelId origin) {
    std::vector<LayerKey> keys;
    std::vector<NodeId> needs;
    for (const std::uint32_t position : plan.last) {
        keys.push_back(plan.keys[position]);
        needs.push_back(plan.nodes[position]);
    }
    std::sort(keys.begin(), keys.end());
    // No layer has this key: 0xff is in no UTF-8 name.
    std::string text = "\xff joint";
    text.append(reinterpret_cast<const char*>(keys.data()), keys.size() * sizeof(LayerKey));
    const LayerKey key = layer_key(text);
    const NodeId found = find(key);
    if (found != no_id) return found;
    const NodeId made = make_node(key, needs, origin);
    nodes_[made].joint = 1;
    ++joints_;
    return made;
}

std::uint32_t LayerDag::add_entry(NodeId parent, Entry entry) {
    Node& node = nodes_[parent];
    const std::uint32_t slot = node.entries_count;
    if (slot == node.capacity()) resize_block(node, slot * 2);
    node.entries_begin()[slot] = entry;
    node.entries_count = (slot + 1) & entries_limit;
    if (node.capacity() > few) replay(node, slot);
    return slot;
}

void LayerDag::remove_entry(NodeId parent, std::uint32_t slot) noexcept {
    Node& node = nodes_[parent];
    const std::uint32_t last = node.entries_count - 1;
    Entry* const entries = node.entries_begin();
    node.entries_count = last & entries_limit;
    if (slot != last) {
        entries[slot] = entries[last];
        set_slot(entries[slot], parent, slot);
    }
    if (node.capacity() > few) {
        replay(node, last);
        if (slot != last) replay(node, slot);
    }
    if (node.has_block && node.entries_count <= node.capacity() / 4) {
        try {
            resize_block(node, node.capacity() / 2);
        } catch (const std::bad_alloc&) {
            // The larger block serves as well.
        }
    }
}

void LayerDag::set_slot(Entry entry, NodeId parent, std::uint32_t slot) noexcept {
    if (entry.is_model()) {
        models_[entry.id()].slot = slot;
        return;
    }
    Need* need = nodes_[entry.id()].needs_begin();
    while (need->node != parent) ++need;
    need->slot = slot;
}

void LayerDag::resize_block(Node& node, std::uint32_t capacity) {
    if (capacity > entries_limit) {
        throw Error(Errc::out_of_memory, "2^29 layers or models directly below one layer at most");
    }
    EntryBlock* const former = node.has_block != 0 ? node.block : nullptr;
    const Entry* const entries = node.entries_begin();
    const std::uint32_t count = node.entries_count;
    if (capacity > inline_entries) {
        void* const memory = heap_.allocate(EntryBlock::bytes(capacity), alignof(EntryBlock));
        auto* const block = ::new (memory) EntryBlock{capacity};
        for (std::uint32_t slot = 0; slot < count; ++slot) block->entries()[slot] = entries[slot];
        node.block = block;
        node.has_block = 1;
        if (capacity > few) {
            for (std::uint32_t place = capacity - 1; place != 0; --place) {
                block->winners()[place] = decide(node, place);
            }
        }
    } else {
        node.has_block = 0;
        for (std::uint32_t slot = 0; slot < count; ++slot) node.few_entries[slot] = entries[slot];
    }
    if (former != nullptr) {
        heap_.deallocate(former, EntryBlock::bytes(former->capacity), alignof(EntryBlock));
    }
}

std::uint32_t LayerDag::winner(const Node& node, std::uint32_t place) const noexcept {
    const std::uint32_t capacity = node.block->capacity;
    if (place < capacity) return node.block->winners()[place];
    const std::uint32_t slot = place - capacity;
    return slot < node.entries_count ? slot : no_id;
}

std::uint32_t LayerDag::decide(const Node& node, std::uint32_t place) const noexcept {
    const std::uint32_t left = winner(node, 2 * place);
    const std::uint32_t right = winner(node, 2 * place + 1);
    if (left == no_id || right == no_id) return left == no_id ? right : left;
    const Entry* const entries = node.entries_begin();
    return rank(entries[left]) < rank(entries[right]) ? right : left;
}

// Decides again wherever the entry of a slot takes part, after it has changed.
void LayerDag::replay(Node& node, std::uint32_t slot) noexcept {
    std::uint32_t* const winners = node.block->winners();
    for (std::uint32_t place = (slot + node.block->capacity) / 2; place != 0; place /= 2) {
        const std::uint32_t before = winners[place];
        winners[place] = decide(node, place);
        if (winners[place] == before && before != slot) break;
    }
}

void LayerDag::best_changed(NodeId id) noexcept {
    const Node& node = nodes_[id];
    const Need* const needs = node.needs_begin();
    for (std::uint32_t i = 0; i < node.needs_count; ++i) {
        Node& parent = nodes_[needs[i].node];
        if (parent.capacity() > few) replay(parent, needs[i].slot);
    }
}

ModelId LayerDag::find_best(NodeId id) const noexcept {
    const Node& node = nodes_[id];
    if (node.capacity() > few) {
        const std::uint32_t slot = winner(node, 1);
        return slot == no_id ? no_id : rank(node.entries_begin()[slot]).model;
    }
    for (const Entry entry : entries(id)) {
        if (!entry.is_model()) nodes_.prefetch(entry.id());
    }
    Rank best;
    for (const Entry entry : entries(id)) best = std::max(best, rank(entry));
    return best.model;
}

}  // namespace cpp_store
