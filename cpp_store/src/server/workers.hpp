// The threads that do what requests ask for.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace cpp_store::server {

// Two queues: light work (microseconds) goes first, and heavy work (checksums of large models)
// never takes the last thread, so that a small request waits for no bulk transfer.
class Workers {
  public:
    using Task = std::function<void()>;  // must not throw

    explicit Workers(unsigned threads);
    ~Workers();  // finishes what has begun, drops the rest
    Workers(const Workers&) = delete;
    Workers& operator=(const Workers&) = delete;

    void light(Task task);
    void heavy(Task task);

  private:
    void run();
    [[nodiscard]] bool next(Task& task, bool& is_heavy);

    std::mutex mutex_;  // guards everything below
    std::condition_variable ready_;
    std::deque<Task> light_;
    std::deque<Task> heavy_;
    unsigned heavy_running_ = 0;
    unsigned heavy_limit_;
    bool stopping_ = false;
    std::vector<std::thread> threads_;
};

}  // namespace cpp_store::server
