// Waiting for something: looking for it, then sleeping.
#pragma once

#include <poll.h>

#include <chrono>
#include <span>

namespace cpp_store::net {

// Looking costs less than being woken, and the other side's answer may be here in microseconds. But
// where both sides share a processor, the other one cannot answer while we look; where the next
// thing comes much later, looking is wasted. So: looks while that has found something lately, and
// else only now and then, to see whether it would.
//
// Whoever looks must not yield the processor between: where others compute, it comes back only
// after milliseconds.
class Spin {
  public:
    using Clock = std::chrono::steady_clock;

    explicit Spin(std::chrono::microseconds longest) : longest_(longest) {}

    // From now on something may come.
    void start(Clock::time_point now) {
        looking_ = misses_ < patience || ++skipped_ % seldom == 0;
        until_ = looking_ ? now + longest_ : now;
    }
    [[nodiscard]] bool goes_on(Clock::time_point now) const { return now < until_; }
    // What start() waited for has come, while this went on or soon enough.
    void found() { misses_ = 0; }
    // Nothing came; one goes to sleep.
    void missed() { misses_ += looking_ ? 1u : 0u; }

  private:
    static constexpr unsigned patience = 4;
    static constexpr unsigned seldom = 16;

    std::chrono::microseconds longest_;
    Clock::time_point until_{};
    bool looking_ = false;
    unsigned misses_ = 0;
    unsigned skipped_ = 0;
};

// Until one of the descriptors (negative ones: none) is ready, or the time is over.
inline void sleep(std::span<pollfd> waiting, std::chrono::nanoseconds limit) noexcept {
    if (limit.count() <= 0) return;
    const auto whole = std::chrono::floor<std::chrono::seconds>(limit);
    const timespec time{.tv_sec = whole.count(), .tv_nsec = (limit - whole).count()};
    ppoll(waiting.data(), waiting.size(), &time, nullptr);
}

}  // namespace cpp_store::net
