// All layers of all registered models as one graph: the data structure of the prefix index.
#pragma once

#include <compare>
#include <cstdint>
#include <limits>
#include <memory_resource>
#include <span>
#include <string_view>
#include <vector>

#include "core/id_table.hpp"
#include "core/node_map.hpp"
#include "core/slab.hpp"
#include "cpp_store/layer_table.hpp"

namespace cpp_store {

using NodeId = std::uint32_t;
using ModelId = std::uint32_t;
inline constexpr std::uint32_t no_id = IdTable::none;

// Order of models of equal prefix weight; larger is better. Total: the id decides between models
// that were registered with the same sequence.
struct Rank {
    std::uint64_t score = 0;  // order-preserving image of the score; 0 is below every score
    std::uint64_t sequence = 0;
    ModelId model = no_id;

    [[nodiscard]] static std::uint64_t image_of(double score) noexcept;
    [[nodiscard]] static double score_of(std::uint64_t image) noexcept;
    auto operator<=>(const Rank&) const = default;
};

// What stands directly below a node: a layer that requires it, or a model whose last layer it is.
class Entry {
  public:
    Entry() = default;
    [[nodiscard]] static Entry node(NodeId id) noexcept { return Entry(id); }
    [[nodiscard]] static Entry model(ModelId id) noexcept { return Entry(id | model_bit); }
    [[nodiscard]] bool is_model() const noexcept { return (bits_ & model_bit) != 0; }
    [[nodiscard]] std::uint32_t id() const noexcept { return bits_ & ~model_bit; }

  private:
    static constexpr std::uint32_t model_bit = 0x8000'0000;
    explicit Entry(std::uint32_t bits) noexcept : bits_(bits) {}
    std::uint32_t bits_ = 0;
};

// A node stands for one layer key and exists once, however many models contain the layer. It knows
// its requirements, its entries, how many models contain it and which of them has the highest rank.
// A model is an entry of its last layer, the one that no other layer of it requires; a model with
// several last layers is an entry of a node without a layer that requires these (`joint`), which
// models of the same last layers share. Hence memory is proportional to what is new in a model.
//
// Nodes with more than `few` entries keep a tournament over them, so that replacing a best model
// costs a logarithm however many there are.
//
// Not thread-safe: see PrefixIndex. Methods that throw change nothing.
class LayerDag {
  public:
    struct Model {
        std::uint64_t score = 0;  // Rank::image_of
        std::uint64_t sequence = 0;
        NodeId* inherited = nullptr;  // see inherited(); the name stands behind them
        std::uint32_t inherited_count = 0;
        std::uint32_t name_size = 0;
        NodeId last = no_id;      // no_id: a model without layers
        std::uint32_t slot = 0;   // among the entries of `last`
        std::uint32_t space = 0;  // for PrefixIndex: which namespace
    };

    LayerDag() = default;
    LayerDag(const LayerDag&) = delete;
    LayerDag& operator=(const LayerDag&) = delete;

    // --- reading ---
    [[nodiscard]] NodeId find(const LayerKey& key) const noexcept;
    // Fetches what find() will look at; for many keys at once, so that memory answers them
    // together.
    void prefetch(std::span<const LayerKey> keys) const noexcept;
    void prefetch(NodeId node) const noexcept { nodes_.prefetch(node); }
    void prefetch_model(ModelId model) const noexcept { models_.prefetch(model); }
    [[nodiscard]] bool is_joint(NodeId node) const noexcept { return nodes_[node].joint != 0; }
    [[nodiscard]] std::uint32_t count(NodeId node) const noexcept { return nodes_[node].count; }
    [[nodiscard]] ModelId best(NodeId node) const noexcept { return nodes_[node].best; }
    [[nodiscard]] std::size_t needs_count(NodeId node) const noexcept {
        return nodes_[node].needs_count;
    }
    [[nodiscard]] NodeId need(NodeId node, std::size_t i) const noexcept {
        return nodes_[node].needs_begin()[i].node;
    }
    [[nodiscard]] const Model& model(ModelId id) const noexcept { return models_[id]; }
    [[nodiscard]] std::string_view name(ModelId id) const noexcept {
        const Model& model = models_[id];
        return {reinterpret_cast<const char*>(model.inherited + model.inherited_count),
                model.name_size};
    }
    // A short description of all layers of a model: those that came with it (`origin` is the
    // model), and all layers at or above these, which were there before.
    [[nodiscard]] std::span<const NodeId> inherited(ModelId id) const noexcept {
        return {models_[id].inherited, models_[id].inherited_count};
    }
    [[nodiscard]] ModelId origin(NodeId node) const noexcept { return nodes_[node].origin; }
    [[nodiscard]] Rank rank(ModelId id) const noexcept {
        if (id == no_id) return {};
        const Model& model = models_[id];
        return {model.score, model.sequence, id};
    }
    [[nodiscard]] Rank rank(Entry entry) const noexcept {
        return rank(entry.is_model() ? entry.id() : nodes_[entry.id()].best);
    }

    // Entries of a node, in no order. With a tournament (`capacity(node) > few`) they are its
    // leaves: place p has the children 2p and 2p + 1, the root is 1, slot s is place capacity + s.
    static constexpr std::uint32_t few = 16;
    [[nodiscard]] std::span<const Entry> entries(NodeId node) const noexcept {
        return {nodes_[node].entries_begin(), nodes_[node].entries_count};
    }
    [[nodiscard]] std::uint32_t capacity(NodeId node) const noexcept {
        return nodes_[node].capacity();
    }
    // The slot that wins below a place; no_id if the places below are empty.
    [[nodiscard]] std::uint32_t winner(NodeId node, std::uint32_t place) const noexcept {
        return winner(nodes_[node], place);
    }

    [[nodiscard]] std::size_t layers() const noexcept { return nodes_.size() - joints_; }
    [[nodiscard]] std::size_t models() const noexcept { return models_.size(); }
    [[nodiscard]] std::size_t bytes() const noexcept {
        return nodes_.bytes() + models_.bytes() + by_key_.bytes() + system_.bytes();
    }

    // --- writing, in two steps ---
    // What add() will do; valid until the next change. Reads only, so it may run beside readers.
    struct Plan {
        std::vector<LayerKey> keys;        // salted
        std::vector<NodeId> nodes;         // no_id: to be made
        std::vector<std::uint32_t> last;   // positions that no other layer requires
        std::vector<std::uint32_t> needs;  // positions, of all layers; no layer's twice
        std::vector<std::uint32_t> needs_ends;
        std::vector<std::uint8_t> required;  // scratch
        std::vector<NodeId> inherited;       // those there that no other one there requires
        std::vector<NodeId> given, held;     // scratch
        std::vector<std::uint32_t> made;     // scratch
        std::vector<NodeId> made_needs;      // scratch
    };
    // Throws Errc::invalid_argument if a layer of equal key has other requirements here.
    // `salt` keeps namespaces apart: it is mixed into every key.
    void plan(const LayerTable& table, const LayerKey& salt, Plan& plan) const;
    [[nodiscard]] ModelId add(std::string_view name, Plan& plan, double score,
                              std::uint64_t sequence, std::uint32_t space);
    void remove(ModelId id) noexcept;

    [[nodiscard]] static LayerKey salted(const LayerKey& key, const LayerKey& salt) noexcept {
        return {key.high ^ salt.high, key.low ^ salt.low};
    }

  private:
    struct Need {
        NodeId node = no_id;
        std::uint32_t slot = 0;  // among the entries of `node`
    };

    // Memory from heap_: `capacity`, then that many entries, then, if there are more than few, the
    // tournament: for each place the winning slot.
    struct EntryBlock {
        std::uint32_t capacity;
        Entry* entries() noexcept { return reinterpret_cast<Entry*>(this + 1); }
        std::uint32_t* winners() noexcept {
            return reinterpret_cast<std::uint32_t*>(this + 1) + capacity;
        }
        static std::size_t bytes(std::uint32_t capacity) noexcept {
            return sizeof(std::uint32_t) * (1 + std::size_t{capacity} * (capacity > few ? 2 : 1));
        }
    };
    static constexpr std::uint32_t inline_entries = 2;
    static constexpr std::uint32_t entries_limit = (std::uint32_t{1} << 30) - 1;

    struct Node {
        LayerKey key;
        std::uint32_t count = 0;
        ModelId best = no_id;
        ModelId origin = no_id;  // the model that it was made for, until that is removed
        std::uint32_t needs_count = 0;
        std::uint32_t entries_count : 30 = 0;
        std::uint32_t has_block : 1 = 0;
        std::uint32_t joint : 1 = 0;
        union {
            Need need;    // needs_count <= 1
            Need* needs;  // from heap_
        };
        union {
            Entry few_entries[inline_entries];
            EntryBlock* block;  // has_block
        };
        Node() noexcept : need(), few_entries() {}

        [[nodiscard]] Need* needs_begin() noexcept { return needs_count > 1 ? needs : &need; }
        [[nodiscard]] const Need* needs_begin() const noexcept {
            return needs_count > 1 ? needs : &need;
        }
        [[nodiscard]] Entry* entries_begin() noexcept {
            return has_block ? block->entries() : few_entries;
        }
        [[nodiscard]] const Entry* entries_begin() const noexcept {
            return has_block ? block->entries() : few_entries;
        }
        [[nodiscard]] std::uint32_t capacity() const noexcept {
            return has_block ? block->capacity : inline_entries;
        }
    };
    static_assert(sizeof(Node) == 56);

    // Counts what the pool takes from the system.
    class CountedMemory final : public std::pmr::memory_resource {
      public:
        [[nodiscard]] std::size_t bytes() const noexcept { return bytes_; }

      private:
        void* do_allocate(std::size_t bytes, std::size_t alignment) override;
        void do_deallocate(void* p, std::size_t bytes, std::size_t alignment) override;
        bool do_is_equal(const memory_resource& other) const noexcept override {
            return this == &other;
        }
        std::size_t bytes_ = 0;
    };

    [[nodiscard]] static std::uint64_t hash_of(const LayerKey& key) noexcept {
        return (key.high & ~std::uint64_t{0xffff'ffff}) | (key.low & 0xffff'ffff);
    }
    [[nodiscard]] std::uint32_t winner(const Node& node, std::uint32_t place) const noexcept;

    [[nodiscard]] NodeId make_node(const LayerKey& key, std::span<const NodeId> needs,
                                   ModelId origin);
    void drop_node(NodeId id) noexcept;
    [[nodiscard]] NodeId make_joint(const Plan& plan, ModelId origin);

    // Bytes at Model::inherited.
    [[nodiscard]] static std::size_t tail_bytes(const Model& model) noexcept {
        return model.inherited_count * sizeof(NodeId) + model.name_size;
    }

    [[nodiscard]] std::uint32_t add_entry(NodeId parent, Entry entry);
    void remove_entry(NodeId parent, std::uint32_t slot) noexcept;
    void set_slot(Entry entry, NodeId parent, std::uint32_t slot) noexcept;
    void resize_block(Node& node, std::uint32_t capacity);
    void replay(Node& node, std::uint32_t slot) noexcept;
    [[nodiscard]] std::uint32_t decide(const Node& node, std::uint32_t place) const noexcept;
    void best_changed(NodeId id) noexcept;
    [[nodiscard]] ModelId find_best(NodeId id) const noexcept;
    void collect(NodeId last) noexcept;

    CountedMemory system_;
    std::pmr::unsynchronized_pool_resource heap_{
        {.max_blocks_per_chunk = 1024, .largest_required_pool_block = 1024}, &system_};
    Slab<Node> nodes_;
    Slab<Model> models_;
    IdTable by_key_;
    std::size_t joints_ = 0;

    // Scratch of remove(), with room for each of the models.
    struct Step {
        NodeId node;
        std::uint32_t next;
    };
    std::vector<NodeId> walk_;
    std::vector<Step> path_;
    NodeMap seen_;
};

}  // namespace cpp_store
