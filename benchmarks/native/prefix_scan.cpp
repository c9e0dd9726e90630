// Best matches by looking at every stored graph: what the prefix index is compared with and checked
// against. Written with care, so that the comparison is fair: no allocation, no hashing and no
// string within the scan; all graphs lie in flat arrays, one after the other, in the order of the
// scan.
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "cpp_store/layer_table.hpp"

namespace {

using cpp_store::LayerKey;
using cpp_store::LayerTable;

class PrefixScan {
  public:
    // `data`: LayerTable.encode(). Later models are newer.
    void add(std::string_view data, double score) {
        const LayerTable table = decode(data);
        const std::size_t count = table.size();
        Graph graph{layer_ids_.size(), edges_.size(), static_cast<std::uint32_t>(count), score};
        std::vector<std::vector<std::uint32_t>> below(count);
        for (std::uint32_t i = 0; i < count; ++i) {
            const auto [found, is_new] =
                ids_.try_emplace(table.key(i), static_cast<std::uint32_t>(ids_.size()));
            layer_ids_.push_back(found->second);
            inputs_.push_back(static_cast<std::uint32_t>(table.requires_of(i).size()));
            for (const std::uint32_t above : table.requires_of(i)) below[above].push_back(i);
        }
        for (const auto& layers : below) {
            edges_.insert(edges_.end(), layers.begin(), layers.end());
            edge_ends_.push_back(static_cast<std::uint32_t>(edges_.size() - graph.first_edge));
        }
        graphs_.push_back(graph);
        if (waiting_.size() < count) waiting_.resize(count);
        in_query_.resize(ids_.size(), 0);
    }

    // (model, layers) of the best match by layers, breadth first from the inputs of each graph: a
    // layer belongs to the prefix if the query has it and all its inputs belong to it. (-1, 0) if
    // none does.
    std::tuple<std::int64_t, std::uint32_t> best_match(std::string_view data) {
        return scan(data, [this](const Graph& graph) { return walk(graph); });
    }

    // The same by counting the layers that a graph and the query have in common. That suffices only
    // because a layer's key stands for all that is above it; the reference has no such keys.
    std::tuple<std::int64_t, std::uint32_t> best_match_by_sets(std::string_view data) {
        return scan(data, [this](const Graph& graph) {
            std::uint32_t shared = 0;
            for (std::size_t i = graph.first; i < graph.first + graph.count; ++i) {
                shared += in_query_[layer_ids_[i]];
            }
            return shared;
        });
    }

  private:
    struct Graph {
        std::size_t first = 0;       // in layer_ids_, inputs_ and edge_ends_
        std::size_t first_edge = 0;  // in edges_
        std::uint32_t count = 0;
        double score = 0;
    };

    static constexpr std::uint32_t absent = 0xffff'ffff;

    static LayerTable decode(std::string_view data) {
        return LayerTable::decode(std::as_bytes(std::span(data.data(), data.size())));
    }

    template <typename Shared>
    std::tuple<std::int64_t, std::uint32_t> scan(std::string_view data, Shared&& shared_with) {
        const LayerTable query = decode(data);
        std::vector<std::uint32_t> marked;
        query_ = {};
        query_.below.resize(query.size());
        for (std::uint32_t i = 0; i < query.size(); ++i) {
            const auto found = ids_.find(query.key(i));
            if (found != ids_.end()) marked.push_back(found->second);
            query_.ids.push_back(found != ids_.end() ? found->second : absent);
            if (query.requires_of(i).empty()) query_.roots.push_back(i);
            for (const std::uint32_t above : query.requires_of(i)) query_.below[above].push_back(i);
        }
        for (const std::uint32_t id : marked) in_query_[id] = 1;
        std::int64_t best = -1;
        std::uint32_t layers = 0;
        for (std::size_t model = 0; model < graphs_.size(); ++model) {
            const std::uint32_t shared = shared_with(graphs_[model]);
            // Newer models come later: equal score is enough.
            if (shared > layers ||
                (shared == layers && shared != 0 &&
                 graphs_[model].score >= graphs_[static_cast<std::size_t>(best)].score)) {
                best = static_cast<std::int64_t>(model);
                layers = shared;
            }
        }
        for (const std::uint32_t id : marked) in_query_[id] = 0;
        return {best, layers};
    }

    std::uint32_t walk(const Graph& graph) {
        const std::uint32_t* const ids = &layer_ids_[graph.first];
        const std::uint32_t* const inputs = &inputs_[graph.first];
        const std::uint32_t* const ends = &edge_ends_[graph.first];
        const std::uint32_t* const edges = edges_.data() + graph.first_edge;
        queue_.clear();
        for (std::uint32_t i = 0; i < graph.count; ++i) {
            waiting_[i] = inputs[i];
            if (inputs[i] != 0) continue;
            for (const std::uint32_t root : query_.roots) {
                if (query_.ids[root] == ids[i]) queue_.push_back({i, root});
            }
        }
        for (std::size_t head = 0; head < queue_.size(); ++head) {
            const Pair at = queue_[head];
            for (std::uint32_t edge = at.stored == 0 ? 0 : ends[at.stored - 1];
                 edge != ends[at.stored]; ++edge) {
                const std::uint32_t below = edges[edge];
                for (const std::uint32_t partner : query_.below[at.asked]) {
                    if (query_.ids[partner] != ids[below]) continue;
                    if (--waiting_[below] == 0) queue_.push_back({below, partner});
                    break;
                }
            }
        }
        return static_cast<std::uint32_t>(queue_.size());
    }

    struct Pair {
        std::uint32_t stored;
        std::uint32_t asked;
    };
    struct Asked {
        std::vector<std::uint32_t> ids;
        std::vector<std::uint32_t> roots;
        std::vector<std::vector<std::uint32_t>> below;
    } query_;
    std::unordered_map<LayerKey, std::uint32_t> ids_;
    std::vector<Graph> graphs_;
    std::vector<std::uint32_t> layer_ids_;
    std::vector<std::uint32_t> inputs_;  // how many each layer has
    std::vector<std::uint32_t> edges_;   // to the layers that a layer feeds
    std::vector<std::uint32_t> edge_ends_;
    std::vector<std::uint8_t> in_query_;
    std::vector<std::uint32_t> waiting_;
    std::vector<Pair> queue_;
};

}  // namespace

// For ctypes.
extern "C" {

#define EXPORTED __attribute__((visibility("default")))

EXPORTED PrefixScan* prefix_scan_new() {
    return std::make_unique<PrefixScan>().release();
}

EXPORTED void prefix_scan_free(PrefixScan* scan) {
    const std::unique_ptr<PrefixScan> owner(scan);
}

EXPORTED void prefix_scan_add(PrefixScan* scan, const char* table, std::size_t size, double score) {
    scan->add({table, size}, score);
}

EXPORTED std::int64_t prefix_scan_best_match(PrefixScan* scan, const char* table, std::size_t size,
                                             bool by_sets, std::uint32_t* layers) {
    const auto [model, shared] =
        by_sets ? scan->best_match_by_sets({table, size}) : scan->best_match({table, size});
    *layers = shared;
    return model;
}
}
