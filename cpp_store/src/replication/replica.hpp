// A server's part in a store of several replicas.
//
// What is kept where. A model lives at the servers that Placement::of names, each with its own
// layers and with what was said of it. Layers that it inherits stay with their owner's servers, and
// are references there, at every one of them: a replicated model keeps none of them beside itself,
// even where owner and heir share a server, so that each server's part can be lost and restored
// alone. References are held in the name of the heir *and its version*, and layers are found by
// their owner's id *and version* (`versioned`): what ends for a retired model never ends for a
// later one of the same id, and what was inherited from it is never taken for the later one's.
//
// Who decides. A model's servers one after the other, as Membership says: the first of those that
// take part. What they know of an id is its highest version, and of equal ones the retirement
// (Ledger): servers that hear the same agree, in whatever order they hear it. Servers follow each
// other's changes (Follower), a few times a second; so a server that missed some, or that comes
// back with nothing or with what it had long ago, comes to know what the others know, without any
// client. It takes part in nothing before it does (`is_ready`).
//
// When a reference ends. Never by the word of a client, which cannot know whether another replica
// still leases the heir: a server that hears that an heir is retired, or that there is a later
// version of it, asks all of its servers, and ends the reference when each says that this version
// is out of use.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "cpp_store/store.hpp"
#include "replication/membership.hpp"
#include "replication/network.hpp"
#include "replication/placement.hpp"

namespace cpp_store::replication {

// What a model is called as an heir that holds references, and as the owner of layers: its id and
// the version that it was put as.
[[nodiscard]] std::string versioned(std::string_view model, Version version);
struct Heir {
    std::string model;
    Version version = 0;
    auto operator<=>(const Heir&) const = default;
};
// Of such a name; null if it is not one.
[[nodiscard]] std::optional<Heir> heir_of(std::string_view name);

// The model's id in an owner's name.
[[nodiscard]] std::string id_of(std::string_view owner);

// The inherited layers of a request, by owner.
[[nodiscard]] References references_of(const PutRequest& request);
[[nodiscard]] std::vector<LayerKey> keys_of(const std::vector<std::string>& names);

// What a server answers to what servers and clients ask of it, and what it does by itself.
// Thread-safe; calls about one id come one after the other.
class Replica {
  public:
    using Clock = std::chrono::steady_clock;

    // `self`: the server's position in the list. Takes note of what is in the store already.
    Replica(Store& store, Placement placement, std::size_t self, Incarnation incarnation,
            std::function<Clock::time_point()> clock = &Clock::now,
            std::size_t most_tombstones = Ledger::most_tombstones);

    [[nodiscard]] const Placement& placement() const noexcept { return placement_; }
    [[nodiscard]] std::size_t self() const noexcept { return self_; }
    [[nodiscard]] Incarnation incarnation() const noexcept { return incarnation_; }
    [[nodiscard]] Store& store() noexcept { return store_; }

    // ------------------------------------------------------------------ what others ask

    struct Published {
        std::uint64_t bytes = 0;
        bool is_new = false;  // of this version; else there was one of the same content, or a later
        Chain chain;          // who takes part in the model
    };
    // As Store::prepare and commit, of a put that came `through` the model's servers before this
    // one. If one of them decided, the put is done here whatever there was; null if there is
    // something later, so that there is nothing to do but `passed`. Else throws already_exists for
    // what was retired since, too. Throws Errc::deadline if another server is to be asked first, or
    // this one later.
    [[nodiscard]] std::optional<PendingPut> prepare(PutRequest request, const Chain& through);
    Published commit(PendingPut put, std::string_view model, Version version, References references,
                     const Chain& through);
    [[nodiscard]] Published passed(std::string_view model) const;

    struct Retired {
        Retirement by = 0;  // the call that did it; 0: not known, there is a later version
        Chain chain;
    };
    // Retires a version, for a call that calls itself `token`. It may have been told already that
    // it, or another call, did so: if a server that takes part decided it, it is done here; if not,
    // it counts unless this server knows better. Throws as prepare.
    Retired retire(std::string_view model, Retirement token, Version version, Retirement by,
                   const Chain& through);
    // Retires what is not newer than a version, and takes note that it is retired.
    void bury(std::string_view model, Version version, Retirement by = 0);
    // Of a put that failed: retires this version and no other.
    void undo(std::string_view model, Version version);
    // Of a put that this server refused although others took it: does not let it come by another
    // way any more. False if it has come.
    bool refuse(std::string_view model, Version version);
    [[nodiscard]] State state(std::string_view model) const;
    // As Store::lookup, and the version of what was found.
    [[nodiscard]] std::pair<ModelInfo, Version> look_up(std::string_view model) const;
    // Throws Errc::deadline if another of the model's servers is to be asked what there is, or this
    // one later.
    void check_answers(std::string_view model) const;
    // Who takes part in a model.
    [[nodiscard]] Chain chain(std::string_view model) const;
    void acquire(std::string_view owner, std::span<const LayerKey> keys, std::string_view holder);
    void release(std::string_view owner, std::span<const LayerKey> keys, std::string_view holder);

    struct Changes {
        std::uint64_t since = 0;
        std::uint64_t last = 0;
        Version forgotten = 0;
        std::vector<Change> changes;
    };
    // What concerns a server of what has changed here; all of it, if it speaks of another life. If
    // it is `joining` and this is all, it takes part from now on.
    [[nodiscard]] Changes changes(std::size_t asker, Incarnation asking, bool joining,
                                  Incarnation incarnation, std::uint64_t since);
    [[nodiscard]] std::uint64_t last_change() const;
    // How far it has followed another server's changes.
    void note_followed(std::size_t server, Incarnation incarnation, std::uint64_t since);
    [[nodiscard]] std::uint64_t followed(std::size_t server, Incarnation incarnation) const;

    // ------------------------------------------------------------------ what it learns

    // The version of an id that is to be pulled, as it is newer than what is here.
    [[nodiscard]] bool wants(const Change& change) const;
    // Takes a model in that another server has.
    void take_in(const Pulled& pulled);
    // Which layers of an owner are not here, of those that an heir refers to.
    [[nodiscard]] std::vector<LayerKey> missing(std::string_view owner,
                                                std::span<const LayerKey> keys) const;
    // Takes layers in that an heir refers to and whose owner is retired.
    void adopt(std::string_view owner, const std::vector<LayerData>& layers,
               std::string_view holder);
    // What is visible here though it may have been retired while nobody here heard of it.
    [[nodiscard]] std::vector<std::string> visible_until(Version version) const;

    // ------------------------------------------------------------------ references that may end

    // That an id's version is retired, or another one is there: references of its heirs are looked
    // at.
    void doubt(std::string_view model, Version version, bool retired);
    // The same of all heirs that a server keeps, which has begun another life.
    void doubt_all_of(std::size_t server);
    // Heirs whose references are to be looked at: doubted ones, and those acquired `age` ago that
    // nobody has heard of. Each with the number of doubts.
    [[nodiscard]] std::vector<std::pair<Heir, unsigned>> doubtful(Clock::time_point now,
                                                                  Clock::duration age);
    // It is visible, unless there were more doubts since.
    void confirm(const Heir& heir, unsigned doubts);
    void end(const Heir& heir);  // it is out of use

    // ------------------------------------------------------------------ whether it knows enough

    [[nodiscard]] Membership& membership() noexcept { return membership_; }
    [[nodiscard]] bool is_ready() const noexcept { return ready_; }
    // It has joined all that it can reach, and has not been away since `suspicions()` was this.
    void set_ready(unsigned suspicions) noexcept {
        if (suspicions == suspicions_) ready_ = true;
    }
    [[nodiscard]] unsigned suspicions() const noexcept { return suspicions_; }
    // It was away: others may have given it up and gone on without it.
    void suspect() noexcept {
        ++suspicions_;
        ready_ = false;
    }
    // To be called several times a second, if at all. A process that was stopped for a while finds
    // that it was not, before it answers anything: clients wait for longer than that until they
    // give a server up.
    void tick() noexcept;
    // Throws Errc::deadline if it does not: another server is to be asked, or the same one later.
    void check_ready() const;
    static constexpr std::chrono::milliseconds longest_absence{1'500};
    // How many others take part, as it knows; 0 while it does not itself.
    [[nodiscard]] std::size_t peers() const noexcept;
    // Whether a server asked something of this one lately.
    [[nodiscard]] bool hears(std::size_t server) const noexcept;

    // What to do when it is to be found out soon whether the others are still there. Set once,
    // before anybody asks.
    void on_doubt(std::function<void()> look) { look_ = std::move(look); }
    void look() const {
        if (look_) look_();
    }

  private:
    static constexpr std::size_t stripes = 64;
    [[nodiscard]] std::mutex& stripe(std::string_view model) const;
    [[nodiscard]] State known(std::string_view model) const;  // visible or gone
    void recall();
    [[nodiscard]] bool is_decided(std::string_view model, const Chain& through) const;
    [[nodiscard]] std::optional<PendingPut> prepare_decided(PutRequest request);
    Published commit_decided(PendingPut put, std::string_view model, Version version,
                             References references);
    // With the id's stripe held:
    [[nodiscard]] Retirement decide(std::string_view model, Retirement token, Version version,
                                    Retirement by) const;
    Published publish(PendingPut put, std::string_view model, Version version,
                      References references);
    void bury_here(std::string_view model, Version version, Retirement by);

    Store& store_;
    const Placement placement_;
    const std::size_t self_;
    const Incarnation incarnation_;
    const std::function<Clock::time_point()> clock_;
    std::atomic<bool> ready_ = false;
    std::atomic<unsigned> suspicions_ = 0;
    std::atomic<Clock::rep> ticked_ = 0;  // 0: never
    Membership membership_;
    std::function<void()> look_;

    // What is said of one id changes the store and the ledger together. Taken before mutex_.
    mutable std::array<std::mutex, stripes> stripes_;
    mutable std::mutex mutex_;  // guards what follows
    Ledger ledger_;
    struct Peer {
        Clock::time_point heard{};
        Incarnation incarnation = 0;
        std::uint64_t followed = 0;
    };
    std::vector<Peer> peers_;
    struct Held {
        Clock::time_point since;
        unsigned doubts = 0;
        bool heard_of = false;
    };
    std::map<Heir, Held> held_;  // heirs that hold references here
};

}  // namespace cpp_store::replication
