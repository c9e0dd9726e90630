// The bytes of a put through memory that a client of this host shares with us.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "local/staging.hpp"
#include "server/transfer.hpp"

namespace cpp_store::server {

// Of one client: a few puts at a time have memory to go through, the others wait.
class Stages {
  public:
    static constexpr std::size_t most = 4;

    // Of the progress thread.
    [[nodiscard]] bool has_room() const noexcept;
    // Which one, and whether the client has yet to get it. Throws Errc::out_of_memory.
    struct Taken {
        std::uint32_t number = 0;
        std::shared_ptr<local::Staging> memory;
        bool is_new = false;
    };
    [[nodiscard]] Taken take();
    void give_back(const Taken& taken, bool is_through) noexcept;  // else it is of no use any more

  private:
    struct Stage {
        std::shared_ptr<local::Staging> memory;
        bool is_taken = false;
    };
    std::array<Stage, most> stages_;
};

// The client copies into the memory while a worker copies out of it. Where nothing comes for a
// moment the worker goes on with something else, and a message of the client's brings one back.
class Staged final : public Transfer {
  public:
    struct Host {
        std::function<void(const Stages::Taken&)> tell;   // the client may begin
        std::function<void(std::function<void()>)> work;  // on a worker
        std::function<void()> over;  // any thread: look() has something to do; does not throw
    };
    // Workers hold what this holds, until they have noticed that it is given up.
    Staged(Plan plan, std::shared_ptr<Stages> stages, Host host, Done done);
    ~Staged() override;

    void start() override;
    [[nodiscard]] bool hear(wire::Kind kind, std::span<const std::byte> part) override;
    [[nodiscard]] bool cancel(int /*error*/) noexcept override;
    [[nodiscard]] bool is_through() const noexcept override { return work_->is_over; }
    void look() override;
    [[nodiscard]] Clock::time_point moved() const noexcept override;

  private:
    // What the worker has of it.
    struct Work {
        enum class State : std::uint8_t { asleep, awake, called };

        Plan plan;
        std::shared_ptr<local::Staging> memory;
        std::function<void()> over;
        std::vector<std::uint64_t> filled;         // of each piece
        std::exception_ptr failure;                // set before is_over
        std::atomic<State> state = State::asleep;  // of the worker
        std::atomic<bool> is_given_up = false;
        std::atomic<bool> is_over = false;
        std::atomic<Clock::time_point> moved{Clock::now()};

        void run() noexcept;
        void take(std::size_t piece, std::span<const std::byte> bytes);
    };
    void wake();

    Host host_;
    Done done_;
    std::shared_ptr<Stages> stages_;
    Stages::Taken stage_;
    std::shared_ptr<Work> work_;
    bool is_whole_ = false;  // all of it has come
};

}  // namespace cpp_store::server
