// Which process something was made in, for what a fork must not touch.
#pragma once

#include <pthread.h>
#include <unistd.h>

#include <atomic>

namespace cpp_store {

// Remembers the process that it is made in. Cheaper to ask than the process id.
class Birthplace {
  public:
    // Whether this process is a fork of that one.
    [[nodiscard]] bool is_elsewhere() const noexcept {
        return forks_.load(std::memory_order_relaxed) != generation_;
    }
    [[nodiscard]] pid_t process() const noexcept { return process_; }

  private:
    // How many forks lie between the first process and this one.
    static inline std::atomic<unsigned> forks_ = 0;
    static unsigned count() {
        [[maybe_unused]] static const int registered = ::pthread_atfork(
            nullptr, nullptr, [] { forks_.fetch_add(1, std::memory_order_relaxed); });
        return forks_.load(std::memory_order_relaxed);
    }

    pid_t process_ = ::getpid();
    unsigned generation_ = count();
};

}  // namespace cpp_store
