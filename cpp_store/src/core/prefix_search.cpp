#include "core/prefix_search.hpp"

#include <algorithm>
#include <bit>
#include <functional>
#include <limits>

namespace cpp_store {

namespace {

// As many models are considered all at once, whatever their ranks: that takes less than ordering
// them.
constexpr std::uint32_t batch = 32;

}  // namespace

std::vector<Match> PrefixSearch::run(const LayerDag& dag, const LayerTable& table,
                                     const LayerKey& salt, const Query& query) {
    dag_ = &dag;
    table_ = &table;
    query_ = &query;
    min_layers_ = std::max(query.min_layers, 1U);
    words_ = (table.size() + 63) / 64;
    info_by_node_.clear();
    infos_.clear();
    sets_.clear();
    candidates_.clear();
    origins_known_ = false;
    removed_.assign(words_, 0);
    excluded_.assign(query.exclude.begin(), query.exclude.end());
    std::sort(excluded_.begin(), excluded_.end());
    if (query.count == 0) return {};

    keys_.clear();
    for (const LayerKey& key : table.keys()) keys_.push_back(LayerDag::salted(key, salt));
    dag.prefetch(keys_);
    find_live_layers();
    for (const NodeId layer : live_) {
        if (layers_left_ < min_layers_) break;
        if (candidates_.size() == query.count && weight_left_ < candidates_.front().weight) break;
        consider_below(layer);
        const std::uint32_t position = infos_[info_of(layer)].position;
        removed_[position / 64] |= Word{1} << (position % 64);
        --layers_left_;
        weight_left_ -= query.weight == Weight::layers ? 1 : table.nbytes(position);
    }

    std::sort_heap(candidates_.begin(), candidates_.end(), std::greater<>());
    std::vector<Match> matches;
    matches.reserve(candidates_.size());
    for (const Candidate& candidate : candidates_) matches.push_back(match_of(candidate.rank));
    constexpr std::size_t worth_keeping = std::size_t{1} << 20;
    if (sets_.capacity() > worth_keeping) sets_ = {};
    return matches;
}

// Fills live_ and, where it is known at once, the prefix of its only last layer.
void PrefixSearch::find_live_layers() {
    live_.clear();
    layers_left_ = 0;
    weight_left_ = 0;
    required_.assign(table_->size(), 0);
    for (std::uint32_t i = 0; i < table_->size(); ++i) {
        const NodeId node = dag_->find(keys_[i]);
        if (node == no_id || dag_->is_joint(node)) continue;
        infos_[info_of(node)].position = i;
        live_.push_back(node);
        ++layers_left_;
        weight_left_ += query_->weight == Weight::layers ? 1 : table_->nbytes(i);
    }
    std::size_t last_layers = live_.size();
    for (const NodeId node : live_) {
        for (std::size_t i = 0; i < dag_->needs_count(node); ++i) {
            const std::uint32_t above = info_by_node_.find(dag_->need(node, i));
            if (above == NodeMap::none) continue;
            std::uint8_t& required = required_[infos_[above].position];
            if (required == 0) --last_layers;
            required = 1;
        }
    }
    if (last_layers == 1) {
        // The one layer that no other requires has all of U at or above it.
        const auto last = std::find_if(live_.begin(), live_.end(), [&](NodeId node) {
            return required_[infos_[info_by_node_.find(node)].position] == 0;
        });
        Info& info = infos_[info_by_node_.find(*last)];
        info.set = static_cast<std::uint32_t>(sets_.size());
        sets_.resize(sets_.size() + words_, 0);
        for (const NodeId node : live_) {
            const std::uint32_t position = infos_[info_by_node_.find(node)].position;
            sets_[info.set + position / 64] |= Word{1} << (position % 64);
        }
        info.layers = layers_left_;
        info.weight = weight_left_;
    }
    // A layer is at least as common as those that require it; they stand behind it in the table.
    std::sort(live_.begin(), live_.end(), [&](NodeId a, NodeId b) {
        if (dag_->count(a) != dag_->count(b)) return dag_->count(a) < dag_->count(b);
        return infos_[info_by_node_.find(a)].position > infos_[info_by_node_.find(b)].position;
    });
}

// Considers every model that has the layer and may be among the best.
void PrefixSearch::consider_below(NodeId layer) {
    heap_.clear();
    has_next_ = false;
    push(Entry::node(layer), Item{});
    while (true) {
        Item item;
        if (has_next_ && (heap_.empty() || !(next_ < heap_.front()))) {
            item = next_;
            has_next_ = false;
        } else if (!heap_.empty()) {
            std::pop_heap(heap_.begin(), heap_.end());
            item = heap_.back();
            heap_.pop_back();
        } else {
            return;
        }
        // All that is still waiting ranks lower.
        if (hopeless(item.rank.model)) return;
        step(item);
    }
}

// Whether no model of that rank or a lower one, having nothing of what was removed from U, can be
// among the matches.
bool PrefixSearch::hopeless(ModelId model) const noexcept {
    if (candidates_.size() < query_->count) return false;
    const Candidate& worst = candidates_.front();
    return weight_left_ < worst.weight ||
           (weight_left_ == worst.weight && dag_->rank(model) <= worst.rank);
}

void PrefixSearch::step(const Item& item) {
    switch (item.kind) {
        case Item::Kind::node:
            step_into_node(item);
            break;
        case Item::Kind::place:
            step_into_place(item);
            break;
        case Item::Kind::model:
            consider(item.rank.model, item.settled);
            break;
    }
}

void PrefixSearch::step_into_node(const Item& item) {
    if (dag_->count(item.id) == 1) {
        consider_once(item.rank.model, item.settled);
        return;
    }
    const std::uint32_t index = info_of(item.id);
    if (infos_[index].expanded) return;
    Item from = item;
    if (!from.settled) {
        const Info& info = prefix_of(item.id);
        if (meets_removed(info)) return;
        from.settled = info.weight == weight_left_ && info.layers >= min_layers_;
    }
    if (from.settled && query_->count == 1 && !excluded(item.rank.model)) {
        offer(weight_left_, item.rank);
        return;
    }
    infos_[index].expanded = true;
    if (dag_->count(item.id) <= batch) {
        consider_all(item.id, from.settled);
    } else if (dag_->capacity(item.id) > LayerDag::few) {
        from.kind = Item::Kind::place;
        from.place = 1;
        step_into_place(from);
    } else {
        for (const Entry entry : dag_->entries(item.id)) push(entry, from);
    }
}

void PrefixSearch::step_into_place(const Item& item) {
    const std::uint32_t capacity = dag_->capacity(item.id);
    if (item.place >= capacity) {
        push(dag_->entries(item.id)[item.place - capacity], item);
        return;
    }
    for (const std::uint32_t place : {2 * item.place, 2 * item.place + 1}) {
        const std::uint32_t slot = dag_->winner(item.id, place);
        if (slot == no_id) continue;
        Item below = item;
        below.place = place;
        below.rank = dag_->rank(dag_->entries(item.id)[slot]);
        push(below);
    }
}

void PrefixSearch::consider_all(NodeId node, bool settled) {
    // All models are found before the first is looked at, so that memory fetches them meanwhile.
    models_.clear();
    stack_.assign(1, node);
    while (!stack_.empty()) {
        const NodeId at = stack_.back();
        stack_.pop_back();
        for (const Entry entry : dag_->entries(at)) {
            if (!entry.is_model()) dag_->prefetch(entry.id());
        }
        for (const Entry entry : dag_->entries(at)) {
            if (!entry.is_model() && dag_->count(entry.id()) != 1) {
                Info& info = infos_[info_of(entry.id())];
                if (!info.expanded) stack_.push_back(entry.id());
                info.expanded = true;
                continue;
            }
            models_.push_back(entry.is_model() ? entry.id() : dag_->best(entry.id()));
            dag_->prefetch_model(models_.back());
        }
    }
    for (const ModelId model : models_) __builtin_prefetch(dag_->inherited(model).data());
    for (const ModelId model : models_) consider_once(model, settled);
}

// A model may be reached from each of the layers that no other model has.
void PrefixSearch::consider_once(ModelId model, bool settled) {
    const NodeId last = dag_->model(model).last;
    if (dag_->count(last) == 1) {
        Info& info = infos_[info_of(last)];
        if (info.expanded) return;
        info.expanded = true;
    }
    consider(model, settled);
}

void PrefixSearch::consider(ModelId model, bool settled) {
    if (hopeless(model)) return;
    std::uint64_t weight = weight_left_;
    if (!settled) {
        const Info& info = prefix_of_model(model);
        if (info.layers < min_layers_) return;
        weight = info.weight;
    }
    if (!excluded(model)) offer(weight, dag_->rank(model));
}

void PrefixSearch::push(Entry entry, const Item& from) {
    Item item;
    item.rank = dag_->rank(entry);
    item.kind = entry.is_model() ? Item::Kind::model : Item::Kind::node;
    item.id = entry.id();
    item.settled = from.settled;
    push(item);
}

void PrefixSearch::push(const Item& item) {
    if (!has_next_) {
        next_ = item;
        has_next_ = true;
        return;
    }
    if (next_ < item) {
        heap_.push_back(next_);
        next_ = item;
    } else {
        heap_.push_back(item);
    }
    std::push_heap(heap_.begin(), heap_.end());
}

void PrefixSearch::offer(std::uint64_t weight, const Rank& rank) {
    const Candidate candidate{weight, rank};
    if (candidates_.size() == query_->count) {
        if (candidate <= candidates_.front()) return;
        std::pop_heap(candidates_.begin(), candidates_.end(), std::greater<>());
        candidates_.pop_back();
    }
    candidates_.push_back(candidate);
    std::push_heap(candidates_.begin(), candidates_.end(), std::greater<>());
}

bool PrefixSearch::excluded(ModelId model) const noexcept {
    return !excluded_.empty() &&
           std::binary_search(excluded_.begin(), excluded_.end(), dag_->name(model));
}

std::uint32_t PrefixSearch::info_of(NodeId node) {
    std::uint32_t& index = info_by_node_[node];
    if (index == NodeMap::none) {
        index = static_cast<std::uint32_t>(infos_.size());
        infos_.emplace_back().node = node;
    }
    return index;
}

const PrefixSearch::Info& PrefixSearch::prefix_of(NodeId node) {
    const std::uint32_t index = info_of(node);
    if (infos_[index].set == Info::unknown) work_out(index);
    return infos_[index];
}

// The same for a model, that is, for its last layer: from what it inherited and what came with it,
// without looking at the layers in between.
const PrefixSearch::Info& PrefixSearch::prefix_of_model(ModelId model) {
    const std::uint32_t index = info_of(dag_->model(model).last);
    if (infos_[index].set != Info::unknown) return infos_[index];
    for (const NodeId node : dag_->inherited(model)) (void)prefix_of(node);
    if (infos_[index].set != Info::unknown) return infos_[index];
    if (!origins_known_) find_origins();
    const std::size_t set = sets_.size();
    sets_.resize(set + words_, 0);
    const auto unite = [&](std::size_t with) {
        for (std::size_t word = 0; word < words_; ++word) sets_[set + word] |= sets_[with + word];
    };
    for (const NodeId node : dag_->inherited(model)) {
        unite(infos_[info_by_node_.find(node)].set);
    }
    const std::uint32_t own = origins_.find(model);
    if (own != NodeMap::none) unite(own);
    infos_[index].set = static_cast<std::uint32_t>(set);
    measure(infos_[index]);
    return infos_[index];
}

void PrefixSearch::find_origins() {
    origins_.clear();
    for (const NodeId node : live_) {
        const ModelId origin = dag_->origin(node);
        if (origin == no_id) continue;
        std::uint32_t& set = origins_[origin];
        if (set == NodeMap::none) {
            set = static_cast<std::uint32_t>(sets_.size());
            sets_.resize(sets_.size() + words_, 0);
        }
        const std::uint32_t position = infos_[info_by_node_.find(node)].position;
        sets_[set + position / 64] |= Word{1} << (position % 64);
    }
    origins_known_ = true;
}

// The query layers at or above a node: its own, and those of its requirements. Depth first, without
// recursion: a graph may be deep.
void PrefixSearch::work_out(std::uint32_t index) {
    path_.clear();
    path_.push_back(index);
    while (!path_.empty()) {
        const std::uint32_t at = path_.back();
        const NodeId node = infos_[at].node;
        const std::size_t count = dag_->needs_count(node);
        bool ready = infos_[at].set != Info::unknown;
        if (!ready) {
            ready = true;
            for (std::size_t i = 0; i < count; ++i) {
                const std::uint32_t above = info_of(dag_->need(node, i));
                if (infos_[above].set == Info::unknown) {
                    path_.push_back(above);
                    ready = false;
                }
            }
            if (!ready) continue;
        } else {
            path_.pop_back();
            continue;
        }
        path_.pop_back();
        Info& info = infos_[at];
        if (count == 1 && info.position == Info::unknown) {
            // A chain of foreign layers adds nothing: the set is shared.
            const Info& above = infos_[info_by_node_.find(dag_->need(node, 0))];
            info.set = above.set;
            info.layers = above.layers;
            info.weight = above.weight;
            continue;
        }
        const std::size_t set = sets_.size();
        sets_.resize(set + words_, 0);
        for (std::size_t i = 0; i < count; ++i) {
            const std::uint32_t above = infos_[info_by_node_.find(dag_->need(node, i))].set;
            for (std::size_t word = 0; word < words_; ++word) {
                sets_[set + word] |= sets_[above + word];
            }
        }
        if (info.position != Info::unknown) {
            sets_[set + info.position / 64] |= Word{1} << (info.position % 64);
        }
        info.set = static_cast<std::uint32_t>(set);
        measure(info);
    }
}

void PrefixSearch::measure(Info& info) const {
    info.layers = 0;
    info.weight = 0;
    for (std::size_t word = 0; word < words_; ++word) {
        Word bits = sets_[info.set + word];
        info.layers += static_cast<std::uint32_t>(std::popcount(bits));
        if (query_->weight == Weight::layers) continue;
        for (; bits != 0; bits &= bits - 1) {
            info.weight +=
                table_->nbytes(word * 64 + static_cast<std::size_t>(std::countr_zero(bits)));
        }
    }
    if (query_->weight == Weight::layers) info.weight = info.layers;
}

bool PrefixSearch::meets_removed(const Info& info) const noexcept {
    for (std::size_t word = 0; word < words_; ++word) {
        if ((sets_[info.set + word] & removed_[word]) != 0) return true;
    }
    return false;
}

Match PrefixSearch::match_of(const Rank& rank) {
    const LayerDag::Model& model = dag_->model(rank.model);
    const Info& info = prefix_of_model(rank.model);
    Match match;
    match.model = dag_->name(rank.model);
    match.score = Rank::score_of(model.score);
    match.sequence = model.sequence;
    match.layers = info.layers;
    match.positions.reserve(info.layers);
    for (std::size_t word = 0; word < words_; ++word) {
        for (Word bits = sets_[info.set + word]; bits != 0; bits &= bits - 1) {
            const std::size_t position =
                word * 64 + static_cast<std::size_t>(std::countr_zero(bits));
            match.positions.push_back(static_cast<std::uint32_t>(position));
            match.bytes += table_->nbytes(position);
        }
    }
    return match;
}

}  // namespace cpp_store
