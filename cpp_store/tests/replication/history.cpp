#include "history.hpp"

#include <algorithm>
#include <set>
#include <sstream>
#include <utility>

namespace cpp_store::replication {
namespace {

using Kind = Operation::Kind;

class Search {
  public:
    explicit Search(const std::vector<Operation>& operations) : operations_(operations) {
        for (std::size_t i = 0; i < operations.size(); ++i) {
            if (operations[i].known) known_ |= std::uint64_t{1} << i;
        }
    }

    bool from(std::uint64_t taken, std::int32_t there) {
        if ((taken & known_) == known_) return true;
        if (!tried_.emplace(taken, there).second) return false;
        // Whatever comes next had begun before any of the others ended.
        std::uint64_t horizon = ~std::uint64_t{0};
        for (std::size_t i = 0; i < operations_.size(); ++i) {
            if (!(taken >> i & 1)) horizon = std::min(horizon, operations_[i].ended);
        }
        for (std::size_t i = 0; i < operations_.size(); ++i) {
            if (taken >> i & 1 || operations_[i].begun > horizon) continue;
            const std::optional<std::int32_t> after = step(operations_[i], there);
            if (after && from(taken | std::uint64_t{1} << i, *after)) return true;
        }
        return false;
    }

  private:
    // What is there afterwards; null if the operation would have answered something else.
    static std::optional<std::int32_t> step(const Operation& operation, std::int32_t there) {
        if (operation.kind == Kind::read) {
            if (operation.value != there) return std::nullopt;
            return there;
        }
        const bool does = operation.kind == Kind::put ? there == 0 : there != 0;
        if (operation.known && operation.done != does) return std::nullopt;
        if (!does) return there;
        return operation.kind == Kind::put ? operation.value : 0;
    }

    const std::vector<Operation>& operations_;
    std::uint64_t known_ = 0;
    std::set<std::pair<std::uint64_t, std::int32_t>> tried_;
};

}  // namespace

bool is_linearizable(const std::vector<Operation>& operations) {
    return Search(operations).from(0, 0);
}

std::string describe(const std::vector<Operation>& operations) {
    std::ostringstream out;
    for (const Operation& operation : operations) {
        out << "\n  " << operation.begun << " .. ";
        if (operation.known) {
            out << operation.ended;
        } else {
            out << '?';
        }
        switch (operation.kind) {
            case Kind::put:
                out << " put " << operation.value << (operation.done ? " stored" : " exists");
                break;
            case Kind::retire:
                out << " retire" << (operation.done ? " retired" : " missing");
                break;
            case Kind::read:
                out << " read " << operation.value;
        }
    }
    return out.str();
}

}  // namespace cpp_store::replication
