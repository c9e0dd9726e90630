// What a client does to change or find a model, whether one server keeps it or several.
#pragma once

#include <chrono>
#include <cstddef>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "cpp_store/client.hpp"
#include "replication/network.hpp"
#include "replication/placement.hpp"

namespace cpp_store::replication {

// Puts a model at all of its servers at once; references to what it inherits are taken first, at
// every reachable server of each owner. Done when all of its servers have it or, where some do not
// answer, the rest, which are told so that they repair it. If one refuses it (it is full, or has
// other content of the id) it is taken back from the others, and what that one says is thrown;
// Errc::connection or deadline if none answers, and then it may be there or not.
//
// Returns the bytes that the model added at one of its servers.
Task<std::uint64_t> put(Network& network, const Placement& placement, PutRequest request,
                        std::vector<std::span<const std::byte>> tensors);

// Retires a model at all of its servers that answer; the others learn it from these. Ends its
// references if all of them answered and none has use for them any more. Throws Errc::not_found if
// all say that there is none, or one that it was retired; Errc::connection or deadline if those
// that could have it do not answer.
Task<void> retire(Network& network, const Placement& placement, std::string model);

// Whom to ask about a model, and what the answers mean: one server after the other, those that did
// not answer lately last.
class Reading {
  public:
    Reading(const Network& network, const Placement& placement, std::string_view model);

    // Null when all have been asked.
    [[nodiscard]] std::optional<std::size_t> next();
    // What the last one said, if it was no answer. Throws it if no other server will say better.
    void failed(const Error& error);
    // Servers that said that there is no such model.
    [[nodiscard]] const std::vector<std::size_t>& without() const noexcept { return without_; }
    // When nobody has it: what one said that may have; null if all said that they have not.
    [[nodiscard]] const std::optional<Error>& silent() const noexcept { return silent_; }
    // What one of without() said; null if there is none.
    [[nodiscard]] const std::optional<Error>& none() const noexcept { return none_; }

  private:
    std::vector<std::size_t> left_;
    std::size_t asked_ = 0;
    std::vector<std::size_t> without_;
    std::optional<Error> none_;
    std::optional<Error> silent_;
};
// What to throw after a reading that found nothing. Of a server that does not answer nobody knows
// whether it has the model, unless another one knows that it was retired.
Task<Error> outcome_of(Network& network, std::string model, const Reading& reading);
// Whether one of these servers remembers that a model of this id was retired.
Task<bool> is_retired(Network& network, std::string model, std::vector<std::size_t> servers);
// That these servers lack a model which another one has.
Task<void> tell_to_repair(Network& network, std::string model, std::vector<std::size_t> servers);

// Finds a model at one of its servers.
struct Found {
    std::size_t server = 0;
    ModelInfo info;
};
Task<Found> find(Network& network, const Placement& placement, std::string model);

// One answer a server to a question of best matches.
struct Answered {
    std::size_t server = 0;
    std::vector<LeasedMatch> matches;
};
struct Lease {
    std::size_t server = 0;
    std::uint64_t lease = 0;
};
struct Merged {
    LeasedMatch match;
    std::size_t server = 0;     // of match.lease
    std::vector<Lease> others;  // on the same model, at its other servers
};
// The best of all, best first: the heavier prefix, then the higher score (NaN lowest), then the
// newer. A model that several servers answered is one match with several leases. `spare` gets the
// leases of those that are more than `count`.
[[nodiscard]] std::vector<Merged> merge(std::vector<Answered> answers, Weight weight,
                                        std::size_t count, std::vector<Lease>& spare);

}  // namespace cpp_store::replication
