#include "cpp_store/digest.hpp"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <bit>
#include <limits>
#include <memory>
#include <numeric>
#include <span>
#include <string>
#include <unordered_map>

#include "cpp_store/error.hpp"

namespace cpp_store {

namespace {

constexpr std::uint64_t call_seed = 1;  // calls and layers are hashed apart
constexpr std::uint64_t layer_seed = 2;

struct DigestHash {
    std::size_t operator()(const Digest& digest) const noexcept {
        return static_cast<std::size_t>(digest.low);
    }
};

// Collects what is hashed: numbers little-endian, digests big-endian.
class Message {
  public:
    void clear() noexcept { bytes_.clear(); }
    void number(std::uint32_t value) {
        const std::uint32_t raw = little ? value : __builtin_bswap32(value);
        bytes_.append(reinterpret_cast<const char*>(&raw), sizeof raw);
    }
    void digest(const Digest& value) {
        const std::array<char, 16> raw = to_bytes(value);
        bytes_.append(raw.data(), raw.size());
    }
    void text(std::string_view value) { bytes_.append(value); }
    [[nodiscard]] std::string_view view() const noexcept { return bytes_; }

  private:
    static constexpr bool little = std::endian::native == std::endian::little;

    std::string bytes_;
};

// One assignment of digests: of the whole graph, or of the ancestors of one layer.
struct Terms {
    std::vector<Digest> layers;
    std::vector<Digest> calls;
    std::vector<std::uint32_t> occurrences;
    Terms(std::size_t layer_count, std::size_t call_count)
        : layers(layer_count), calls(call_count), occurrences(layer_count, 0) {}
};

class Namer {
  public:
    explicit Namer(const GraphView& graph)
        : graph_(graph),
          size_(static_cast<std::uint32_t>(graph.layers.size())),
          plain_(graph.layers.size(), graph.calls.size()) {}

    NamedLayers run();

  private:
    using Edge = GraphView::Edge;

    static constexpr std::uint32_t unranked = std::numeric_limits<std::uint32_t>::max();

    [[nodiscard]] std::uint32_t calls_begin(std::uint32_t layer) const noexcept {
        return layer == 0 ? 0 : graph_.layers[layer - 1].calls_end;
    }
    [[nodiscard]] std::uint32_t calls_end(std::uint32_t layer) const noexcept {
        return graph_.layers[layer].calls_end;
    }
    [[nodiscard]] std::span<const Edge> inputs_of(std::uint32_t call) const noexcept {
        const std::uint32_t begin = call == 0 ? 0 : graph_.calls[call - 1].edges_end;
        return std::span(graph_.edges).subspan(begin, graph_.calls[call].edges_end - begin);
    }
    // All inputs of all calls of a layer.
    [[nodiscard]] std::span<const Edge> inputs_of_layer(std::uint32_t layer) const noexcept {
        const std::uint32_t first = calls_begin(layer);
        const std::uint32_t begin = first == 0 ? 0 : graph_.calls[first - 1].edges_end;
        return std::span(graph_.edges)
            .subspan(begin, graph_.calls[calls_end(layer) - 1].edges_end - begin);
    }
    [[nodiscard]] std::string describe(std::uint32_t layer) const {
        return "layer " + std::to_string(layer) + " (" + std::string(graph_.layers[layer].label) +
               ")";
    }

    void check_edge(const Edge& edge, std::uint32_t before, const std::string& what) const;
    void check() const;
    void number_inputs();
    void hash_layer(std::uint32_t layer, Terms& terms);

    bool find_ties();
    void measure_depths();

    void rank(std::span<const std::uint32_t> members, std::span<const Edge> outputs);
    void reach(std::uint32_t layer);
    void visit(std::uint32_t call, std::vector<std::uint32_t>* met = nullptr);
    [[nodiscard]] std::vector<std::uint32_t> outlook(std::uint32_t layer, std::uint32_t call);
    void drain();
    void finish();

    void count_twins(std::vector<std::uint32_t>& layers, Terms& terms);
    void group_twins();
    void sort_by_rank(std::vector<std::uint32_t>& layers) const;
    [[nodiscard]] bool counted_alike(std::span<const std::uint32_t> tied);
    [[nodiscard]] bool has_doubles(std::vector<std::uint32_t>& layers) const;
    void hash_alone(std::uint32_t layer);
    void take_alone(std::uint32_t layer, const Terms& terms);
    void ancestors_of(std::uint32_t layer, std::vector<std::uint32_t>& found);
    [[nodiscard]] std::string name(std::uint32_t layer) const;
    [[nodiscard]] NamedLayers result();

    const GraphView& graph_;
    std::uint32_t size_;
    Message message_;  // scratch, as the next
    std::vector<Digest> sorted_calls_;
    std::vector<std::uint32_t> ordinals_;  // of a model input among those of its spec

    Terms plain_;                    // as if no layer had a twin
    std::unique_ptr<Terms> global_;  // with the occurrences of the whole graph; null: as plain_
    std::unique_ptr<Terms> alone_;   // of each layer, as its ancestors alone would have it

    std::vector<char> tied_;        // shares its plain digest with another layer
    std::vector<char> tied_calls_;  // has calls that share their plain digest
    std::vector<std::uint32_t> depths_;

    std::vector<std::uint32_t> groups_;       // of the twins of the whole graph
    std::vector<std::uint32_t> group_sizes_;  // scratch of counted_alike

    std::vector<std::uint32_t> ranks_;
    std::vector<char> visited_;           // calls
    std::vector<std::uint32_t> reached_;  // layers, by rank
    std::vector<std::uint32_t> entered_;  // calls that an outlook visited
    std::size_t settled_ = 0;             // reached layers whose untied calls are visited
    std::size_t finished_ = 0;            // reached layers all of whose calls are visited
    std::vector<char> member_;            // scratch of ancestors_of
};

NamedLayers Namer::run() {
    check();
    number_inputs();
    for (std::uint32_t layer = 0; layer < size_; ++layer) hash_layer(layer, plain_);
    if (!find_ties()) return result();  // nearly every graph

    measure_depths();
    std::vector<std::uint32_t> all(size_);
    std::iota(all.begin(), all.end(), 0U);
    rank(all, graph_.outputs);
    global_ = std::make_unique<Terms>(graph_.layers.size(), graph_.calls.size());
    count_twins(all, *global_);
    group_twins();

    alone_ = std::make_unique<Terms>(graph_.layers.size(), graph_.calls.size());
    for (std::uint32_t layer = 0; layer < size_; ++layer) hash_alone(layer);
    return result();
}

void Namer::check_edge(const Edge& edge, std::uint32_t before, const std::string& what) const {
    if (edge.layer >= size_) {
        throw Error(Errc::invalid_argument, what + " is layer " + std::to_string(edge.layer) +
                                                ", which is not there: the graph has " +
                                                std::to_string(size_) + " layers");
    }
    if (edge.layer == before) {
        throw Error(Errc::invalid_argument,
                    what + " is the layer itself; a layer that feeds itself has no name");
    }
    if (edge.layer > before) {
        throw Error(Errc::invalid_argument, what + " is " + describe(edge.layer) +
                                                ", which comes later: the graph has a " +
                                                "cycle or its layers are not in topological order");
    }
    if (edge.call >= calls_end(edge.layer) - calls_begin(edge.layer)) {
        throw Error(Errc::invalid_argument, what + " is call " + std::to_string(edge.call) +
                                                " of " + describe(edge.layer) +
                                                ", which is called less often");
    }
}

void Namer::check() const {
    for (std::uint32_t layer = 0; layer < size_; ++layer) {
        if (calls_begin(layer) == calls_end(layer)) {
            throw Error(Errc::invalid_argument, describe(layer) + " is never called");
        }
        for (const Edge& edge : inputs_of_layer(layer)) {
            // The message is only put together when it is needed.
            if (edge.layer < layer && edge.call < calls_end(edge.layer) - calls_begin(edge.layer)) {
                continue;
            }
            check_edge(edge, layer, "an input of " + describe(layer));
        }
    }
    for (const Edge& edge : graph_.inputs) check_edge(edge, size_, "an input of the graph");
    for (const Edge& edge : graph_.outputs) check_edge(edge, size_, "an output of the graph");
}

// What is fed to the first input is not what is fed to the second, though they look the same.
void Namer::number_inputs() {
    ordinals_.assign(size_, 0);
    for (std::size_t i = 0; i < graph_.inputs.size(); ++i) {
        const std::uint32_t layer = graph_.inputs[i].layer;
        for (std::size_t j = 0; j < i; ++j) {
            const std::uint32_t other = graph_.inputs[j].layer;
            if (other == layer) break;
            if (graph_.layers[other].spec == graph_.layers[layer].spec) {
                ordinals_[layer] = std::max(ordinals_[layer], ordinals_[other] + 1);
            }
        }
    }
}

void Namer::hash_layer(std::uint32_t layer, Terms& terms) {
    sorted_calls_.clear();
    for (std::uint32_t call = calls_begin(layer); call < calls_end(layer); ++call) {
        const std::span<const Edge> inputs = inputs_of(call);
        message_.clear();
        message_.number(static_cast<std::uint32_t>(inputs.size()));
        for (const Edge& edge : inputs) {
            message_.digest(terms.layers[edge.layer]);
            message_.number(terms.occurrences[edge.layer]);
            message_.digest(terms.calls[calls_begin(edge.layer) + edge.call]);
            message_.number(edge.tensor);
        }
        message_.text(graph_.calls[call].arguments);
        terms.calls[call] = xxh3_128(message_.view(), call_seed);
        sorted_calls_.push_back(terms.calls[call]);
    }
    if (sorted_calls_.size() > 1) std::sort(sorted_calls_.begin(), sorted_calls_.end());
    message_.clear();
    message_.digest(graph_.layers[layer].spec);
    message_.number(ordinals_[layer]);
    message_.number(static_cast<std::uint32_t>(sorted_calls_.size()));
    for (const Digest& call : sorted_calls_) message_.digest(call);
    terms.layers[layer] = xxh3_128(message_.view(), layer_seed);
}

bool Namer::find_ties() {
    std::vector<std::uint32_t> order(size_);
    std::iota(order.begin(), order.end(), 0U);
    std::sort(order.begin(), order.end(), [this](std::uint32_t a, std::uint32_t b) {
        return plain_.layers[a] < plain_.layers[b];
    });
    bool any = false;
    for (std::size_t i = 1; i < order.size(); ++i) {
        if (plain_.layers[order[i - 1]] != plain_.layers[order[i]]) continue;
        if (!any) tied_.assign(size_, 0);
        any = true;
        tied_[order[i - 1]] = tied_[order[i]] = 1;
    }
    // Without tied layers, tied calls have the very same inputs: nothing can tell them apart.
    if (!any) return false;

    tied_calls_.assign(size_, 0);
    for (std::uint32_t layer = 0; layer < size_; ++layer) {
        if (calls_end(layer) - calls_begin(layer) < 2) continue;
        sorted_calls_.assign(plain_.calls.begin() + calls_begin(layer),
                             plain_.calls.begin() + calls_end(layer));
        std::sort(sorted_calls_.begin(), sorted_calls_.end());
        tied_calls_[layer] =
            std::adjacent_find(sorted_calls_.begin(), sorted_calls_.end()) != sorted_calls_.end();
    }
    return true;
}

void Namer::measure_depths() {
    depths_.assign(size_, 0);
    for (std::uint32_t layer = 0; layer < size_; ++layer) {
        for (const Edge& edge : inputs_of_layer(layer)) {
            depths_[layer] = std::max(depths_[layer], depths_[edge.layer] + 1);
        }
    }
}

void Namer::reach(std::uint32_t layer) {
    if (ranks_[layer] != unranked) return;
    ranks_[layer] = static_cast<std::uint32_t>(reached_.size());
    reached_.push_back(layer);
}

// Depth first along the ordered inputs of one call; a layer's other calls wait, since a later path
// may lead to a certain one of them. Appends the ranks of the layers met, new ones included.
void Namer::visit(std::uint32_t call, std::vector<std::uint32_t>* met) {
    if (visited_[call] != 0) return;
    struct Frame {
        std::uint32_t call;
        std::uint32_t next;
    };
    std::vector<Frame> stack;
    const auto enter = [&](std::uint32_t next) {
        visited_[next] = 1;
        stack.push_back({next, 0});
        if (met != nullptr) entered_.push_back(next);
    };
    enter(call);
    while (!stack.empty()) {
        Frame& frame = stack.back();
        const std::span<const Edge> inputs = inputs_of(frame.call);
        if (frame.next == inputs.size()) {
            stack.pop_back();
            continue;
        }
        const Edge& edge = inputs[frame.next++];
        reach(edge.layer);
        if (met != nullptr) met->push_back(ranks_[edge.layer]);
        const std::uint32_t target = calls_begin(edge.layer) + edge.call;
        if (visited_[target] == 0) enter(target);
    }
}

// How often the layer is called so, and the ranks that visiting this call would meet and give.
std::vector<std::uint32_t> Namer::outlook(std::uint32_t layer, std::uint32_t call) {
    const auto same = [&](std::uint32_t other) {
        return std::ranges::equal(inputs_of(other), inputs_of(call)) &&
               graph_.calls[other].arguments == graph_.calls[call].arguments;
    };
    std::vector<std::uint32_t> met{0};
    for (std::uint32_t other = calls_begin(layer); other < calls_end(layer); ++other) {
        if (same(other)) ++met[0];
    }
    const std::size_t reached = reached_.size();
    entered_.clear();
    visit(call, &met);
    for (const std::uint32_t entered : entered_) visited_[entered] = 0;
    for (std::size_t i = reached; i < reached_.size(); ++i) ranks_[reached_[i]] = unranked;
    reached_.resize(reached);
    return met;
}

// Visits the waiting calls of the layers reached, save those whose order nothing tells.
void Namer::drain() {
    for (; settled_ < reached_.size(); ++settled_) {
        const std::uint32_t layer = reached_[settled_];
        std::vector<std::uint32_t> calls;
        for (std::uint32_t call = calls_begin(layer); call < calls_end(layer); ++call) {
            const auto same = [&](std::uint32_t other) {
                return other != call && plain_.calls[other] == plain_.calls[call];
            };
            bool tied = false;
            for (std::uint32_t other = calls_begin(layer);
                 tied_calls_[layer] != 0 && other < calls_end(layer); ++other) {
                tied = tied || same(other);
            }
            if (visited_[call] == 0 && !tied) calls.push_back(call);
        }
        std::sort(calls.begin(), calls.end(), [this](std::uint32_t a, std::uint32_t b) {
            return plain_.calls[a] < plain_.calls[b];
        });
        for (const std::uint32_t call : calls) visit(call);
    }
}

// Visits the calls that tie: the one first that meets the layers of lowest ranks. Where even that
// ties, they are symmetric as far as we can see, and the order in which they are written decides.
void Namer::finish() {
    for (; finished_ < reached_.size(); ++finished_) {
        const std::uint32_t layer = reached_[finished_];
        while (true) {
            std::vector<std::uint32_t> tied;
            for (std::uint32_t call = calls_begin(layer); call < calls_end(layer); ++call) {
                if (visited_[call] != 0) continue;
                if (!tied.empty() && plain_.calls[call] < plain_.calls[tied[0]]) tied.clear();
                if (tied.empty() || plain_.calls[call] == plain_.calls[tied[0]]) {
                    tied.push_back(call);
                }
            }
            if (tied.empty()) break;
            std::uint32_t best = tied[0];
            if (tied.size() > 1) {
                std::vector<std::uint32_t> best_outlook = outlook(layer, best);
                for (const std::uint32_t call : std::span(tied).subspan(1)) {
                    std::vector<std::uint32_t> other = outlook(layer, call);
                    if (other < best_outlook) {
                        best = call;
                        best_outlook = std::move(other);
                    }
                }
            }
            visit(best);
            drain();
        }
    }
}

// Numbers `members`, a set of layers that holds all their ancestors. Layers that have no double in
// it come first, the shallow ones before the deep: so a change far down in the network seldom
// renumbers the twins above it. `outputs` tell apart what remains.
void Namer::rank(std::span<const std::uint32_t> members, std::span<const Edge> outputs) {
    std::vector<std::uint32_t> order(members.begin(), members.end());
    std::sort(order.begin(), order.end(), [this](std::uint32_t a, std::uint32_t b) {
        return depths_[a] != depths_[b] ? depths_[a] < depths_[b]
                                        : plain_.layers[a] < plain_.layers[b];
    });
    ranks_.assign(size_, unranked);
    visited_.assign(graph_.calls.size(), 0);
    reached_.clear();
    settled_ = finished_ = 0;
    // Doubles have equal depths, so they are neighbours.
    const auto doubles = [&](std::size_t i, std::size_t j) {
        return plain_.layers[order[i]] == plain_.layers[order[j]];
    };
    for (std::size_t i = 0; i < order.size(); ++i) {
        if (i > 0 && doubles(i - 1, i)) continue;
        if (i + 1 < order.size() && doubles(i, i + 1)) continue;
        reach(order[i]);
        drain();
    }
    for (const Edge& edge : outputs) {
        reach(edge.layer);
        visit(calls_begin(edge.layer) + edge.call);
        drain();
    }
    finish();
    for (const std::uint32_t layer : members) {
        if (ranks_[layer] != unranked) continue;
        reach(layer);
        drain();
        finish();
    }
}

void Namer::sort_by_rank(std::vector<std::uint32_t>& layers) const {
    std::sort(layers.begin(), layers.end(), [this](std::uint32_t a, std::uint32_t b) {
        return depths_[a] != depths_[b] ? depths_[a] < depths_[b] : ranks_[a] < ranks_[b];
    });
}

// Numbers the groups of twins of the whole graph.
void Namer::group_twins() {
    std::unordered_map<Digest, std::uint32_t, DigestHash> known;
    groups_.assign(size_, 0);
    for (std::uint32_t layer = 0; layer < size_; ++layer) {
        if (tied_[layer] == 0) continue;
        const auto group = static_cast<std::uint32_t>(known.size());
        groups_[layer] = known.try_emplace(global_->layers[layer], group).first->second;
    }
    group_sizes_.assign(known.size(), 0);
}

// Whether these layers, sorted by rank, count their twins as the whole graph does. Then their
// digests are those in the whole graph, and need not be computed.
bool Namer::counted_alike(std::span<const std::uint32_t> tied) {
    std::fill(group_sizes_.begin(), group_sizes_.end(), 0);
    return std::ranges::all_of(tied, [this](std::uint32_t layer) {
        return global_->occurrences[layer] == group_sizes_[groups_[layer]]++;
    });
}

// Digests in which twins are told apart by their ranks.
void Namer::count_twins(std::vector<std::uint32_t>& layers, Terms& terms) {
    sort_by_rank(layers);
    std::unordered_map<Digest, std::uint32_t, DigestHash> seen;
    for (const std::uint32_t layer : layers) {
        hash_layer(layer, terms);
        terms.occurrences[layer] = tied_[layer] != 0 ? seen[terms.layers[layer]]++ : 0;
    }
}

void Namer::ancestors_of(std::uint32_t layer, std::vector<std::uint32_t>& found) {
    member_.assign(size_, 0);
    found.assign(1, layer);
    member_[layer] = 1;
    for (std::size_t i = 0; i < found.size(); ++i) {
        for (const Edge& edge : inputs_of_layer(found[i])) {
            if (member_[edge.layer] != 0) continue;
            member_[edge.layer] = 1;
            found.push_back(edge.layer);
        }
    }
}

// The digest of a layer: that of a graph of its ancestors alone.
void Namer::hash_alone(std::uint32_t layer) {
    const std::span<const Edge> inputs = inputs_of_layer(layer);
    // On one layer, there is nothing new to tell apart: its digest has it all. (Unless it has calls
    // that only what they are called on tells apart.)
    const bool on_one_layer = std::ranges::all_of(
        inputs, [&](const Edge& edge) { return edge.layer == inputs[0].layer; });
    if (inputs.empty() || (on_one_layer && tied_calls_[inputs[0].layer] == 0)) {
        hash_layer(layer, *alone_);  // occurrences are all 0 here
        return;
    }
    std::vector<std::uint32_t> ancestors;
    ancestors_of(layer, ancestors);
    std::vector<std::uint32_t> tied;
    for (const std::uint32_t ancestor : ancestors) {
        if (tied_[ancestor] != 0) tied.push_back(ancestor);
    }
    if (!has_doubles(tied)) {
        take_alone(layer, plain_);
        return;
    }
    rank(ancestors, {});
    sort_by_rank(tied);
    if (counted_alike(tied)) {
        take_alone(layer, *global_);
        return;
    }
    Terms terms(graph_.layers.size(), graph_.calls.size());
    count_twins(ancestors, terms);
    take_alone(layer, terms);
}

bool Namer::has_doubles(std::vector<std::uint32_t>& layers) const {
    const auto less = [this](std::uint32_t a, std::uint32_t b) {
        return plain_.layers[a] < plain_.layers[b];
    };
    const auto equal = [this](std::uint32_t a, std::uint32_t b) {
        return plain_.layers[a] == plain_.layers[b];
    };
    std::sort(layers.begin(), layers.end(), less);
    return std::adjacent_find(layers.begin(), layers.end(), equal) != layers.end();
}

void Namer::take_alone(std::uint32_t layer, const Terms& terms) {
    alone_->layers[layer] = terms.layers[layer];
    std::copy(terms.calls.begin() + calls_begin(layer), terms.calls.begin() + calls_end(layer),
              alone_->calls.begin() + calls_begin(layer));
}

void append_hex(std::string& out, std::uint64_t value) {
    constexpr std::string_view digits = "0123456789abcdef";
    for (int shift = 60; shift >= 0; shift -= 4) out.push_back(digits[(value >> shift) & 0xf]);
}

std::string Namer::name(std::uint32_t layer) const {
    const Terms& own = alone_ ? *alone_ : plain_;
    const Digest& digest = own.layers[layer];
    std::string text;
    text.reserve(graph_.layers[layer].label.size() + 54);
    text.append(graph_.layers[layer].label);
    text.push_back('_');
    append_hex(text, digest.high);
    append_hex(text, digest.low);
    if (!global_) return text;
    const std::uint32_t occurrence = global_->occurrences[layer];
    if (global_->layers[layer] == digest) {
        if (occurrence != 0) text.append("_").append(std::to_string(occurrence));
        return text;
    }
    // The top bit keeps these apart from occurrences.
    const std::uint64_t place =
        (global_->layers[layer].low + occurrence) | (std::uint64_t{1} << 63);
    return text.append("_").append(std::to_string(place));
}

NamedLayers Namer::result() {
    std::vector<LayerTable::Layer> rows(size_);
    for (std::uint32_t layer = 0; layer < size_; ++layer) {
        rows[layer].name = name(layer);
        rows[layer].nbytes = graph_.layers[layer].nbytes;
        std::vector<std::uint32_t>& needs = rows[layer].requires_;
        for (const Edge& edge : inputs_of_layer(layer)) needs.push_back(edge.layer);
        if (needs.size() > 1) {
            std::sort(needs.begin(), needs.end());
            needs.erase(std::unique(needs.begin(), needs.end()), needs.end());
        }
    }
    return {alone_ ? std::move(alone_->layers) : std::move(plain_.layers),
            global_ ? std::move(global_->occurrences) : std::move(plain_.occurrences),
            std::make_shared<LayerTable>(std::move(rows))};
}

}  // namespace

Digest xxh3_128(std::string_view bytes, std::uint64_t seed) noexcept {
    const XXH128_hash_t hash = XXH3_128bits_withSeed(bytes.data(), bytes.size(), seed);
    return {hash.high64, hash.low64};
}

NamedLayers name_layers(const GraphView& graph) {
    return Namer(graph).run();
}

}  // namespace cpp_store
