// Servers and clients of a replicated store in one thread, over a network that loses, delays,
// reorders and repeats messages and is cut, with servers that crash, hang, are slow, busy or full,
// refuse, and return, and clients that crash. The protocol is the one that the programs run
// (src/replication), and so are the stores; time, the network and all chance come from a seed.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

namespace cpp_store::replication {

// What can be made wrong on purpose, to see that it is found: messages are changed on their way as
// a server or a client with that bug would send or take them.
enum class Bug : std::uint8_t {
    none,
    retirements_stay,        // lists say nothing of what was retired
    references_stay,         // nor of references
    undo_is_lost,            // a refused put stays where it was taken
    all_compares_equal,      // peers never find that they differ
    silence_is_no_use,       // a server that does not answer has no use for anything
    lists_end_early,         // after the first page
    references_not_taken,    // a put takes no references
    one_not_found_is_enough  // no other server is asked
};

struct Simulated {
    std::string wrong;  // what was found to be wrong; empty: nothing
    // How much of what happened, so that a test can see that it did.
    unsigned puts = 0, heirs = 0, retirements = 0, reads = 0, faults = 0, refused = 0, scrubbed = 0;
};

// Keeps stores from one history to the next, as making one costs more than a history.
class Simulator {
  public:
    Simulator();
    ~Simulator();
    [[nodiscard]] Simulated run(std::uint64_t seed, Bug bug = Bug::none);

  private:
    struct Stores;
    std::unique_ptr<Stores> stores_;
};

}  // namespace cpp_store::replication
