// What belongs to the process that made it. A fork has the memory of its parent, but none of its
// threads, connections or locks: whatever of ours it lets go of is forgotten, and what its arrays
// show stays as it is for as long as it lives.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>

#include "core/forks.hpp"

namespace cpp_store::python {

// Deletes in the process that made it. A fork leaves it where it is, until it ends itself.
struct Forgetting {
    Birthplace birthplace;

    template <typename T>
    void operator()(T* object) const {
        if (!birthplace.is_elsewhere()) delete object;
    }
};
template <typename T>
using Ours = std::unique_ptr<T, Forgetting>;

// A capsule that keeps something for arrays on its memory. If the process was forked meanwhile, the
// arrays are in the child, too, of which nobody hears when it lets go of them: then it is kept
// until the child has ended, or has become another program. Needs the GIL.
[[nodiscard]] pybind11::capsule keeping(std::shared_ptr<const void> kept);

// Lets go of what was only kept for children that have ended. Needs the GIL.
void let_go_for_ended_children();

}  // namespace cpp_store::python
