// Longest-shared-prefix queries over all stored models, exact, in time that does not grow with
// them.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cpp_store/layer_table.hpp"

namespace cpp_store {

// What makes a prefix heavy.
enum class Weight : std::uint8_t { layers = 0, bytes = 1 };

struct Query {
    std::string_view ns = {};  // models of other namespaces never match
    Weight weight = Weight::layers;
    std::uint32_t count = 1;                // how many matches at most
    std::uint32_t min_layers = 1;           // prefixes of fewer layers are no match; 0 counts as 1
    std::vector<std::string> exclude = {};  // model ids that are not to be returned
    std::string only = {};  // the one model that may be; empty: any. Stores know it, no index does
};

struct Match {
    std::string model;
    double score = 0;
    std::uint64_t sequence = 0;  // order of registration; larger is newer
    std::uint64_t layers = 0;    // weight of the prefix, both ways
    std::uint64_t bytes = 0;
    std::vector<std::uint32_t> positions;  // of the prefix's layers in the query's table, ascending
};

// The index. Models are sets of layer keys closed under `requires_of`. The prefix of two models is
// the intersection of their sets; the best match of a query is the model with the heaviest one,
// ties to the higher score (NaN counts as lowest), then to the larger sequence.
//
// Thread-safe: any number of readers beside writers; a waiting writer goes before later readers.
// Memory is proportional to the layers that no other model has, plus a constant per model.
//
// Cost, with L layers in the table at hand: add and remove look at these L layers and, where more
// than 16 layers or models stand below one, at the logarithm of their number. A query looks up L
// keys and then, as a rule, only the few models that have the rarest of the shared layers; never
// more than those that have any layer on which the best matches and the shared layers differ. How
// many models are stored does not enter, nor how many have the same layers (docs/prefix-index.md).
class PrefixIndex {
  public:
    PrefixIndex();
    ~PrefixIndex();
    PrefixIndex(const PrefixIndex&) = delete;
    PrefixIndex& operator=(const PrefixIndex&) = delete;

    // Makes a model findable. `sequence` 0 takes the next one; servers that share a search pass
    // their own (such as a time in ns) so that "newer" means the same on all of them.
    // Throws Errc::already_exists if the id is registered, in any namespace;
    // Errc::invalid_argument if a layer of equal key has other requirements in a stored model.
    void add(std::string_view model, std::string_view ns, const LayerTable& table, double score,
             std::uint64_t sequence = 0);

    // Throws Errc::invalid_argument where add() would.
    void check(std::string_view ns, const LayerTable& table);

    // Takes a model out at once. Returns false if there is none of that id.
    bool remove(std::string_view model) noexcept;

    [[nodiscard]] bool contains(std::string_view model) const;

    // The best matches, best first; empty if nothing shares `min_layers` layers.
    [[nodiscard]] std::vector<Match> best_matches(const LayerTable& table,
                                                  const Query& query) const;

    struct Stats {
        std::uint64_t models = 0;
        std::uint64_t layers = 0;  // distinct keys held
        std::uint64_t bytes = 0;   // memory of the index, estimated from its containers
        std::uint64_t namespaces = 0;
    };
    [[nodiscard]] Stats stats() const;

  private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace cpp_store
