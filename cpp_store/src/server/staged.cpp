#include "server/staged.hpp"

#include <algorithm>
#include <cstring>
#include <utility>

namespace cpp_store::server {

bool Stages::has_room() const noexcept {
    return std::ranges::any_of(stages_, [](const Stage& stage) { return !stage.is_taken; });
}

Stages::Taken Stages::take() {
    const auto free = std::ranges::find_if(
        stages_, [](const Stage& stage) { return !stage.is_taken && stage.memory; });
    const auto found =
        free != stages_.end() ? free : std::ranges::find(stages_, false, &Stage::is_taken);
    Taken taken{static_cast<std::uint32_t>(found - stages_.begin()), found->memory, false};
    if (!taken.memory) {
        found->memory = taken.memory = std::make_shared<local::Staging>();
        taken.is_new = true;
    }
    found->is_taken = true;
    return taken;
}

void Stages::give_back(const Taken& taken, bool is_through) noexcept {
    Stage& stage = stages_[taken.number];
    stage.is_taken = false;
    if (!is_through) stage.memory.reset();
}

// ------------------------------------------------------------------------------------ Staged

Staged::Staged(Plan plan, std::shared_ptr<Stages> stages, Host host, Done done)
    : host_(std::move(host)),
      done_(std::move(done)),
      stages_(std::move(stages)),
      work_(std::make_shared<Work>()) {
    std::vector<std::uint64_t> sizes;
    for (const Piece& piece : plan.pieces) sizes.push_back(piece.length);
    work_->filled.resize(sizes.size());
    work_->plan = std::move(plan);
    work_->over = host_.over;
    stage_ = stages_->take();
    work_->memory = stage_.memory;
    work_->memory->begin(std::move(sizes));
}

Staged::~Staged() {
    work_->is_given_up = true;
    stages_->give_back(stage_, is_whole_);
}

void Staged::start() {
    host_.tell(stage_);
    wake();
}

bool Staged::hear(wire::Kind kind, std::span<const std::byte> /*part*/) {
    if (kind != wire::Kind::staging) return false;
    wake();
    return true;
}

bool Staged::cancel(int /*error*/) noexcept {
    work_->is_given_up = true;
    return true;  // what a worker still writes to, it holds
}

void Staged::wake() {
    if (work_->state.exchange(Work::State::called) != Work::State::asleep) return;
    host_.work([work = work_] { work->run(); });
}

void Staged::look() {
    is_whole_ = !work_->failure;
    const Done done = std::exchange(done_, nullptr);
    if (work_->failure) std::rethrow_exception(work_->failure);
    done(0);
}

Transfer::Clock::time_point Staged::moved() const noexcept {
    return work_->moved;
}

// ------------------------------------------------------------------------------------ on a worker

void Staged::Work::run() noexcept {
    bool is_through = false;
    try {
        while (!is_through) {
            state = State::awake;
            is_through = is_given_up || memory->take([this](std::size_t piece, std::uint64_t,
                                                            std::span<const std::byte> bytes) {
                moved = Clock::now();
                if (!is_given_up) take(piece, bytes);
            });
            if (is_through || !memory->sleep()) continue;
            State expected = State::awake;
            if (state.compare_exchange_strong(expected, State::asleep)) return;
        }
    } catch (const std::exception&) {
        failure = std::current_exception();
    }
    is_over = true;
    over();
}

void Staged::Work::take(std::size_t piece, std::span<const std::byte> bytes) {
    if (plan.take) {
        plan.take(piece, bytes);
        return;
    }
    std::memcpy(plan.pieces[piece].local + filled[piece], bytes.data(), bytes.size());
    filled[piece] += bytes.size();
}

}  // namespace cpp_store::server
