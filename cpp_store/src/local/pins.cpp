#include "local/pins.hpp"

#include <string>
#include <utility>

namespace cpp_store::local {
namespace {

constexpr std::size_t most = std::size_t{1} << 22;

}  // namespace

void Pins::pin(std::uint64_t call, StoredLayerPtr layer) {
    const std::scoped_lock lock(mutex_);
    if (is_over_) throw Error(Errc::connection, "the client is gone");
    if (held_ >= most) {
        throw Error(Errc::invalid_argument, "this client has views of " + std::to_string(held_) +
                                                " layers; it must let go of some");
    }
    Answer& answer = answers_[call];
    answer.layers.push_back(std::move(layer));
    ++answer.held;
    ++held_;
}

// Layers are let go of without the lock: their memory is freed with them.
void Pins::unpin(std::uint64_t call, std::uint32_t pin) noexcept {
    StoredLayerPtr ended;
    const std::scoped_lock lock(mutex_);
    const auto found = answers_.find(call);
    if (found == answers_.end() || pin >= found->second.layers.size()) return;
    ended = std::move(found->second.layers[pin]);
    if (!ended) return;
    --held_;
    if (--found->second.held == 0) answers_.erase(found);
}

void Pins::unpin(std::uint64_t call) noexcept {
    std::vector<StoredLayerPtr> ended;
    const std::scoped_lock lock(mutex_);
    const auto found = answers_.find(call);
    if (found == answers_.end()) return;
    held_ -= found->second.held;
    ended = std::move(found->second.layers);
    answers_.erase(found);
}

bool Pins::is_empty() const {
    const std::scoped_lock lock(mutex_);
    return held_ == 0;
}

void Pins::end() noexcept {
    std::unordered_map<std::uint64_t, Answer> ended;
    const std::scoped_lock lock(mutex_);
    is_over_ = true;
    held_ = 0;
    ended.swap(answers_);
}

}  // namespace cpp_store::local
