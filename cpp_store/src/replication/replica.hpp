// A server's part in a store of several replicas.
//
// A model is its id and the digest of its content, which are together the name of its owner
// (placement.hpp). It lives at the servers that Placement::of names; layers that it inherits stay
// with their owner's servers and are references there, in the heir's owner's name, at every one of
// them. Nothing is agreed on: who puts or retires asks all servers of the model (calls.hpp), and
// what one of them missed it learns from the others afterwards (passes.hpp).
//
// Of two contents of one id, which only a parted network lets happen, the one of the lower name
// stays at all servers. What was retired is remembered by name, so that a server that was away does
// not bring it back; a put of the same content ends that.
#pragma once

#include <array>
#include <atomic>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "cpp_store/store.hpp"
#include "replication/network.hpp"
#include "replication/placement.hpp"

namespace cpp_store::replication {

// Owners' names of retired models, no more than a number of them: the oldest are forgotten. Not
// thread-safe.
class Tombstones {
  public:
    explicit Tombstones(std::size_t most) : most_(most) {}
    void add(std::string_view owner);
    void remove(std::string_view owner);
    [[nodiscard]] bool contains(std::string_view owner) const { return names_.contains(owner); }
    // Whether there is one of this id.
    [[nodiscard]] bool knows(std::string_view model) const;
    [[nodiscard]] const auto& names() const noexcept { return names_; }

  private:
    const std::size_t most_;
    std::map<std::string, std::uint64_t, std::less<>> names_;  // with the number of each
    std::map<std::uint64_t, std::string_view> by_age_;
    std::uint64_t last_ = 0;
};

// Thread-safe. Calls that change what is said of one id come one after the other, and wait for the
// disk where the store does: none may be made by the thread that hears clients.
class Replica {
  public:
    static constexpr std::size_t most_tombstones = 200'000;
    static constexpr std::size_t most_listed = 4096;  // looked at for one page

    // `self`: the server's position in the list. Takes note of what is in the store already.
    Replica(Store& store, Placement placement, std::size_t self,
            std::size_t remembered = most_tombstones, std::size_t listed = most_listed);

    [[nodiscard]] const Placement& placement() const noexcept { return placement_; }
    [[nodiscard]] std::size_t self() const noexcept { return self_; }
    [[nodiscard]] Store& store() noexcept { return store_; }

    // ------------------------------------------------------------------ what clients ask

    // As Store::prepare, of a request that names its owner.
    [[nodiscard]] PendingPut prepare(PutRequest request);
    struct Published {
        std::uint64_t bytes = 0;
        bool is_new = false;  // else it was there
    };
    // As Store::commit. Throws Errc::connection if the content is not what the owner's name says.
    Published publish(PendingPut put);
    ForeignReferences retire(std::string_view model);
    // Of a put that was refused elsewhere: as if it had never come.
    void undo(std::string_view owner);
    // Of a model, by its owner's name or its id.
    [[nodiscard]] Presence state(std::string_view name) const;
    // That one of a model's servers lacks something of it: they are compared soon.
    void repair(std::string_view model, bool degraded);

    // ------------------------------------------------------------------ what peers ask

    // Sums over the visible models that this server and `asker` both keep. `doubted`: what else
    // the asker wants to be compared.
    [[nodiscard]] Sums compare(std::size_t asker, const Buckets& doubted);
    // The next part of what both keep.
    [[nodiscard]] Page shared(std::size_t asker, const Buckets& buckets,
                              const Cursor& cursor) const;
    // A visible model, by its owner's name. Throws Errc::not_found.
    [[nodiscard]] ModelInfo described(const std::string& owner) const;

    // ------------------------------------------------------------------ what it learns from them

    [[nodiscard]] Sums sums(std::size_t peer) const;
    // What is to be compared with a peer, whatever the sums say: `ours` was found out here, the
    // rest by the peer.
    struct Doubts {
        Buckets ours;
        Buckets theirs;
        [[nodiscard]] bool any() const noexcept { return ours.any() || theirs.any(); }
    };
    [[nodiscard]] Doubts take_doubts(std::size_t peer);
    void doubt(std::size_t peer, const Doubts& doubts);
    // Whether a model that a peer has is to come here; if so, until `arrived`, it counts as used.
    [[nodiscard]] bool expect(const std::string& owner);
    void arrived(const std::string& owner);
    // A model with the tensors of its own layers. Nothing happens if it was retired meanwhile.
    void take_in(const ModelInfo& info, const std::vector<LayerData>& layers);
    // Retires a model if it is here, and remembers that it is retired. Returns what may end
    // elsewhere.
    ForeignReferences bury(std::string_view owner);
    // Which of the layers that an heir refers to are not here.
    [[nodiscard]] std::vector<LayerKey> missing(std::string_view owner,
                                                std::span<const LayerKey> keys) const;
    // Takes layers in that an heir refers to and whose owner is retired.
    void adopt(std::string_view owner, const std::vector<LayerData>& layers,
               std::string_view holder);

    // ------------------------------------------------------------------ for people

    void note_pass(std::size_t peer, bool complete);
    // The last pass went through, and nothing was doubted since.
    [[nodiscard]] bool agrees_with(std::size_t peer) const;
    void count_into(StoreStats& stats) const;
    // Called when a peer is to be compared soon; `heard`: it is there, as it asked something. From
    // any thread, and must not wait. Set once, before anybody asks.
    void on_doubt(std::function<void(std::size_t peer, bool heard)> wake) {
        wake_ = std::move(wake);
    }

  private:
    static constexpr std::size_t stripes = 64;
    [[nodiscard]] std::mutex& stripe(std::string_view model) const;
    // With the id's stripe held:
    ForeignReferences retire_here(std::string_view model, const std::string& owner);
    void note_visible(const std::string& owner, bool visible);

    [[nodiscard]] std::vector<std::size_t> others(std::string_view owner) const;
    void wake(std::size_t peer, bool heard) const {
        if (wake_) wake_(peer, heard);
    }

    Store& store_;
    const Placement placement_;
    const std::size_t self_;
    const std::size_t most_listed_;
    std::function<void(std::size_t, bool)> wake_;

    // What is said of one id changes the store and what follows together. Taken before mutex_.
    mutable std::array<std::mutex, stripes> stripes_;
    mutable std::mutex mutex_;  // guards what follows; the store is not called with it
    // Visible models by their owners' names, and which other servers keep each.
    std::map<std::string, std::vector<std::size_t>, std::less<>> visible_;
    Tombstones tombstones_;
    std::set<std::string, std::less<>> arriving_;
    struct Peer {
        Sums sums = Sums(bucket_count);
        Doubts doubts;
        bool agrees = false;
    };
    std::vector<Peer> peers_;
    std::uint64_t degraded_puts_ = 0;
    std::uint64_t repaired_ = 0;
};

// A server's answer to a request of the protocol, for whoever carries it: what the store throws
// becomes the answer's error. Tensors are those of the store, pinned.
[[nodiscard]] Answer answer(Replica& replica, const Request& request);

}  // namespace cpp_store::replication
