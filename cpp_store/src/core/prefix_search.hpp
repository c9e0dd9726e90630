// The query of the prefix index: the models with the heaviest prefixes, exactly.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "core/layer_dag.hpp"
#include "core/node_map.hpp"
#include "cpp_store/prefix_index.hpp"

namespace cpp_store {

// Let U be the layers of the query that some model has. No prefix is heavier than U, and a model
// that lacks a layer of U has a prefix of at most the weight of U without it. So the search takes
// the layers of U one by one, those that the fewest models have first. For each it looks at the
// models below it, those of the highest rank first, and then removes it from U: all models that
// have it have been considered. It ends when the weight that is left in U is less than that of the
// matches found, which for the children of stored models happens after very few models.
//
// What is above a node never changes from one of the models below it to another, so prefixes are
// worked out once a node, on the way down; and where the prefix at a node is all that is left of U,
// every model below has that prefix, and the best one is known without going there.
//
// Scratch memory is kept between queries: one object a thread.
class PrefixSearch {
  public:
    // `salt`: the namespace's, as in LayerDag::plan.
    [[nodiscard]] std::vector<Match> run(const LayerDag& dag, const LayerTable& table,
                                         const LayerKey& salt, const Query& query);

  private:
    using Word = std::uint64_t;

    // What is known of a node within this query.
    struct Info {
        static constexpr std::uint32_t unknown = 0xffff'ffff;
        NodeId node = no_id;
        std::uint32_t position = unknown;  // in the query's table, if it has the layer
        std::uint32_t set = unknown;  // where in sets_ its prefix is: query layers at or above it
        std::uint32_t layers = 0;     // of that set
        std::uint64_t weight = 0;
        bool expanded = false;  // what is below was, or need not be, considered
    };

    // Something below which models are waiting, the best of which has this rank.
    struct Item {
        enum class Kind : std::uint8_t { node, place, model };
        Rank rank;
        std::uint32_t id = 0;  // of the node (place: whose tournament it is), or the model's last
        std::uint32_t place = 0;  // in the tournament of the node
        Kind kind = Kind::node;
        bool settled = false;  // the prefix of all models below weighs all that is left of U
        bool operator<(const Item& other) const noexcept { return rank < other.rank; }
    };

    struct Candidate {
        std::uint64_t weight = 0;
        Rank rank;
        auto operator<=>(const Candidate&) const = default;
    };

    void find_live_layers();
    void consider_below(NodeId layer);
    void step(const Item& item);
    void step_into_node(const Item& item);
    void step_into_place(const Item& item);
    void consider_all(NodeId node, bool settled);
    void consider_once(ModelId model, bool settled);
    void consider(ModelId model, bool settled);
    void push(Entry entry, const Item& from);
    void push(const Item& item);
    [[nodiscard]] bool hopeless(ModelId model) const noexcept;
    void offer(std::uint64_t weight, const Rank& rank);
    [[nodiscard]] bool excluded(ModelId model) const noexcept;

    [[nodiscard]] std::uint32_t info_of(NodeId node);
    [[nodiscard]] const Info& prefix_of(NodeId node);
    void work_out(std::uint32_t info);
    [[nodiscard]] const Info& prefix_of_model(ModelId model);
    void find_origins();
    void measure(Info& info) const;
    [[nodiscard]] bool meets_removed(const Info& info) const noexcept;
    [[nodiscard]] Match match_of(const Rank& rank);

    const LayerDag* dag_ = nullptr;
    const LayerTable* table_ = nullptr;
    const Query* query_ = nullptr;
    std::uint32_t min_layers_ = 1;
    std::size_t words_ = 0;  // of a set of query layers

    NodeMap info_by_node_;
    std::vector<Info> infos_;
    std::vector<Word> sets_;
    std::vector<NodeId> live_;       // layers of U, rarest first
    std::vector<Word> removed_;      // those taken out of U
    std::uint64_t weight_left_ = 0;  // of U
    std::uint32_t layers_left_ = 0;
    std::vector<Item> heap_;
    Item next_;  // the best of all, kept out of the heap
    bool has_next_ = false;
    std::vector<Candidate> candidates_;  // heap, the worst on top; at most query.count
    std::vector<std::string_view> excluded_;
    std::vector<std::uint32_t> path_;  // scratch of work_out()
    std::vector<NodeId> stack_;        // scratch of consider_all()
    std::vector<ModelId> models_;      // scratch of consider_all()
    std::vector<std::uint8_t> required_;
    std::vector<LayerKey> keys_;
    NodeMap origins_;  // models that layers of U came with: to a set of these
    bool origins_known_ = false;
};

}  // namespace cpp_store
