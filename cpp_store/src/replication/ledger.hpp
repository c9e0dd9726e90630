// What a server has heard of each model id, in the order in which it heard it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "core/store_impl.hpp"

namespace cpp_store::replication {

// Of what is put under an id, the later has the higher version: nanoseconds since the epoch by the
// clock of the client that put it, or one more than the version that the id was retired at.
using Version = std::uint64_t;

// Which call retired a model, so that of several one knows that it was the one; 0: not known.
using Retirement = std::uint64_t;

enum class Presence : std::uint8_t {
    unknown = 0,  // never heard of, or forgotten
    visible = 1,
    leased = 2,  // retired, but what it refers to is still in use
    gone = 3,
};
struct State {
    Presence presence = Presence::unknown;
    Version version = 0;
    bool operator==(const State&) const = default;
};

// Names of the layers that a model inherits, by the model that owns them.
using References = std::map<std::string, std::vector<std::string>>;

// An id's latest change.
struct Change {
    std::string model;
    Version version = 0;
    bool retired = false;
    Retirement by = 0;
    References references;  // of one that is not retired
};

// Not thread-safe. For each id the highest version, and whether it is retired: of two servers'
// knowledge the higher version is right, of equal ones the retirement. Retired ids (tombstones) are
// kept so that a server that was away does not bring them back, but no more than a number of them:
// beyond it the oldest is forgotten, and what is not newer than a forgotten one counts as retired.
class Ledger {
  public:
    static constexpr std::size_t most_tombstones = 200'000;
    explicit Ledger(std::size_t tombstones = most_tombstones) : most_tombstones_(tombstones) {}

    struct Entry {
        Version version = 0;
        Version first = 0;  // that this content had
        bool retired = false;
        Retirement by = 0;
        References references;
        std::uint64_t change = 0;
    };
    [[nodiscard]] const Entry* find(std::string_view model) const;

    // Raise what is known of an id; the version must not be lower than the one known.
    void published(std::string_view model, Version version, References references);
    void retired(std::string_view model, Version version, Retirement by);

    // Retirements of versions up to this one were forgotten before.
    void forget_until(Version version) noexcept { forgotten_ = std::max(forgotten_, version); }

    // Changes are numbered from 1. Those after `since`, oldest first, at most `most` of them; sets
    // `since` to the last one that it looked at.
    template <typename Wanted>
    [[nodiscard]] std::vector<Change> after(std::uint64_t& since, std::size_t most,
                                            const Wanted& wanted) const {
        std::vector<Change> changes;
        for (auto entry = log_.upper_bound(since); entry != log_.end(); ++entry) {
            if (changes.size() == most) return changes;
            since = entry->first;
            const Entry& known = entries_.find(*entry->second)->second;
            Change change{*entry->second, known.version, known.retired, known.by, known.references};
            if (wanted(change)) changes.push_back(std::move(change));
        }
        return changes;
    }
    [[nodiscard]] std::uint64_t last_change() const noexcept { return last_change_; }
    // The highest version of a tombstone that was forgotten.
    [[nodiscard]] Version forgotten() const noexcept { return forgotten_; }
    // Visible ids that are not newer than a version.
    [[nodiscard]] std::vector<std::string> visible_until(Version version) const;

  private:
    Entry& change(std::string_view model);

    const std::size_t most_tombstones_;
    ById<Entry> entries_;
    std::map<std::uint64_t, const std::string*> log_;         // id by its latest change
    std::map<std::uint64_t, const std::string*> tombstones_;  // the retired ones of them
    std::uint64_t last_change_ = 0;
    Version forgotten_ = 0;
};

}  // namespace cpp_store::replication
