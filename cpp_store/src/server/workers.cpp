#include "server/workers.hpp"

#include <algorithm>

namespace cpp_store::server {

Workers::Workers(unsigned threads) : heavy_limit_(std::max(2u, threads) - 1) {
    for (unsigned i = 0; i < threads; ++i) threads_.emplace_back([this] { run(); });
}

Workers::~Workers() {
    {
        const std::scoped_lock lock(mutex_);
        stopping_ = true;
    }
    ready_.notify_all();
    for (std::thread& thread : threads_) thread.join();
}

void Workers::light(Task task) {
    {
        const std::scoped_lock lock(mutex_);
        light_.push_back(std::move(task));
    }
    ready_.notify_one();
}

void Workers::heavy(Task task) {
    {
        const std::scoped_lock lock(mutex_);
        heavy_.push_back(std::move(task));
    }
    ready_.notify_one();
}

bool Workers::next(Task& task, bool& is_heavy) {
    is_heavy = light_.empty();
    if (is_heavy && (heavy_.empty() || heavy_running_ >= heavy_limit_)) return false;
    auto& queue = is_heavy ? heavy_ : light_;
    task = std::move(queue.front());
    queue.pop_front();
    return true;
}

void Workers::run() {
    std::unique_lock lock(mutex_);
    while (true) {
        Task task;
        bool is_heavy = false;
        ready_.wait(lock, [&] { return stopping_ || next(task, is_heavy); });
        if (stopping_) return;
        heavy_running_ += is_heavy ? 1 : 0;
        lock.unlock();
        task();
        task = nullptr;  // what it holds is freed without the lock
        lock.lock();
        if (is_heavy) {
            --heavy_running_;
            if (!heavy_.empty()) ready_.notify_one();
        }
    }
}

}  // namespace cpp_store::server
