// How often something may happen.
#pragma once

#include <algorithm>
#include <chrono>
#include <limits>

namespace cpp_store::server {

// A token bucket: `burst` at once, `per_second` in the long run. Not thread-safe.
class Rate {
  public:
    using Clock = std::chrono::steady_clock;

    Rate(double per_second, double burst)
        : per_second_(per_second), burst_(burst), tokens_(burst) {}

    // As often as one likes.
    Rate() : Rate(0, std::numeric_limits<double>::infinity()) {}

    // Whether it may happen once more now; then it has.
    [[nodiscard]] bool take(Clock::time_point now) {
        tokens_ = tokens_at(now);
        filled_ = now;
        if (tokens_ < 1) return false;
        tokens_ -= 1;
        return true;
    }
    [[nodiscard]] bool is_exhausted(Clock::time_point now) const { return tokens_at(now) < 1; }
    [[nodiscard]] bool is_full(Clock::time_point now) const { return tokens_at(now) >= burst_; }

  private:
    [[nodiscard]] double tokens_at(Clock::time_point now) const {
        const std::chrono::duration<double> passed = now - filled_;
        return std::min(burst_, tokens_ + passed.count() * per_second_);
    }

    double per_second_;
    double burst_;
    double tokens_;
    Clock::time_point filled_ = Clock::now();
};

}  // namespace cpp_store::server
