// Servers and clients of a replicated store in one thread, over a network that loses, delays,
// reorders and repeats messages, with servers that crash, hang and return and clients that crash.
// The protocol is the one that the programs run (src/replication), and so are the stores; time, the
// network and all chance come from a seed.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

namespace cpp_store::replication {

struct Simulated {
    std::string wrong;  // what was found to be wrong; empty: nothing
    // How much of what happened, so that a test can see that it did.
    unsigned puts = 0, heirs = 0, retirements = 0, reads = 0, faults = 0, contended = 0;
};

// Keeps stores from one history to the next, as making one costs more than a history.
class Simulator {
  public:
    Simulator();
    ~Simulator();
    [[nodiscard]] Simulated run(std::uint64_t seed);

  private:
    struct Stores;
    std::unique_ptr<Stores> stores_;
};

}  // namespace cpp_store::replication
