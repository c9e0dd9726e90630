#include "forks.hpp"

#include <fcntl.h>
#include <poll.h>
#include <pybind11/pybind11.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "bindings.hpp"

namespace py = pybind11;

namespace cpp_store::python {

namespace {

struct Kept {
    std::shared_ptr<const void> what;
    std::uint64_t made;          // how often this process had forked
    std::uint64_t let_go = 0;    // the same, when its arrays here were gone
    Birthplace birthplace = {};  // where it was made
};

// A child that may have arrays of ours. It, and whoever it forks, hold the other end of a pipe,
// which nobody writes to; it is closed when the last of them has ended or has become another
// program.
struct Child {
    std::uint64_t fork;
    int end;  // -1: there was no descriptor for a pipe, so it is taken to live for ever
};

// All of it is guarded by the GIL, and never destroyed: arrays outlive the interpreter's modules.
struct Forks {
    std::uint64_t count = 0;  // of this process
    std::uint64_t alive = 0;  // things kept
    std::vector<Child> children;
    std::vector<Kept*> waiting;  // let go of here, perhaps not in a child
    bool is_asking = false;
};

Forks& forks() {
    static auto* const made = new Forks;
    return *made;
}

// Of the fork that this thread is about to make.
thread_local bool is_counted = false;
thread_local int pipe_ends[2] = {-1, -1};

void close_end(int& end) {
    if (end >= 0) ::close(std::exchange(end, -1));
}

bool may_be_seen(const Kept& kept) {
    return std::ranges::any_of(forks().children, [&kept](const Child& child) {
        return kept.made < child.fork && child.fork <= kept.let_go;
    });
}

void forget_ended_children() {
    std::erase_if(forks().children, [](Child& child) {
        pollfd asked{child.end, 0, 0};  // a negative descriptor is ignored
        if (::poll(&asked, 1, 0) <= 0 || (asked.revents & POLLHUP) == 0) return false;
        close_end(child.end);
        return true;
    });
}

void before_fork() {
    is_counted = forks().alive > 0;
    if (!is_counted) return;
    if (::pipe2(pipe_ends, O_CLOEXEC) != 0) pipe_ends[0] = pipe_ends[1] = -1;
}

void after_fork_in_parent() {
    if (!std::exchange(is_counted, false)) return;
    close_end(pipe_ends[1]);
    forks().children.push_back({++forks().count, std::exchange(pipe_ends[0], -1)});
}

void after_fork_in_child() {
    for (Child& child : forks().children) close_end(child.end);
    close_end(pipe_ends[0]);
    pipe_ends[1] = -1;  // stays open
    is_counted = false;
    forks() = {};
}

}  // namespace

py::capsule keeping(std::shared_ptr<const void> kept) {
    if (!forks().waiting.empty()) let_go_for_ended_children();
    ++forks().alive;
    return py::capsule(new Kept{std::move(kept), forks().count}, [](void* pointer) {
        auto* const held = static_cast<Kept*>(pointer);
        if (held->birthplace.is_elsewhere()) return;
        --forks().alive;
        held->let_go = forks().count;
        forks().waiting.push_back(held);
        let_go_for_ended_children();
    });
}

void let_go_for_ended_children() {
    Forks& all = forks();
    if (all.is_asking) return;  // what is let go of may hold arrays itself
    all.is_asking = true;
    if (!all.children.empty()) forget_ended_children();
    std::vector<Kept*> still;
    while (!all.waiting.empty()) {
        Kept* const held = all.waiting.back();
        all.waiting.pop_back();
        if (may_be_seen(*held)) {
            still.push_back(held);
        } else {
            delete held;
        }
    }
    all.waiting = std::move(still);
    all.is_asking = false;
}

void bind_forks(py::module_& /*m*/) {
    py::module_::import("os").attr("register_at_fork")(
        py::arg("before") = py::cpp_function(&before_fork),
        py::arg("after_in_parent") = py::cpp_function(&after_fork_in_parent),
        py::arg("after_in_child") = py::cpp_function(&after_fork_in_child));
}

}  // namespace cpp_store::python
