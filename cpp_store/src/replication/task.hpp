// Coroutines that wait for answers of servers: the same code over a network and in a simulation.
#pragma once

#include <coroutine>
#include <exception>
#include <memory>
#include <optional>
#include <utility>
#include <variant>

namespace cpp_store::replication {

// A coroutine that begins when it is awaited or started, and owns its frame: destroying a task that
// waits gives it up, with all that it awaits. What it throws is thrown where its value is taken.
template <typename T>
class [[nodiscard]] Task {
    struct Empty {};
    using Value = std::conditional_t<std::is_void_v<T>, Empty, T>;

    struct Final {
        [[nodiscard]] bool await_ready() const noexcept { return false; }
        template <typename Promise>
        std::coroutine_handle<> await_suspend(std::coroutine_handle<Promise> ended) const noexcept {
            const std::coroutine_handle<> next = ended.promise().continuation;
            return next ? next : std::noop_coroutine();
        }
        void await_resume() const noexcept {}
    };
    struct PromiseBase {
        std::coroutine_handle<> continuation;
        std::exception_ptr error;
        std::suspend_always initial_suspend() const noexcept { return {}; }
        Final final_suspend() const noexcept { return {}; }
        void unhandled_exception() noexcept { error = std::current_exception(); }
    };
    struct ValuePromise : PromiseBase {
        std::optional<Value> value;
        void return_value(Value given) { value = std::move(given); }
    };
    struct VoidPromise : PromiseBase {
        void return_void() const noexcept {}
    };

  public:
    struct promise_type : std::conditional_t<std::is_void_v<T>, VoidPromise, ValuePromise> {
        Task get_return_object() {
            return Task(std::coroutine_handle<promise_type>::from_promise(*this));
        }
    };

    Task(Task&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
    Task& operator=(Task&& other) noexcept {
        std::swap(handle_, other.handle_);
        return *this;
    }
    ~Task() {
        if (handle_) handle_.destroy();
    }

    // Runs until it waits for an answer that is not there yet, or to its end.
    void start() { handle_.resume(); }
    [[nodiscard]] bool done() const noexcept { return handle_.done(); }
    // Of a task that is done.
    T get() {
        auto& promise = handle_.promise();
        if (promise.error) std::rethrow_exception(promise.error);
        if constexpr (!std::is_void_v<T>) return std::move(*promise.value);
    }

    // Within another task.
    [[nodiscard]] bool await_ready() const noexcept { return false; }
    std::coroutine_handle<> await_suspend(std::coroutine_handle<> waiting) noexcept {
        handle_.promise().continuation = waiting;
        return handle_;
    }
    T await_resume() { return get(); }

  private:
    explicit Task(std::coroutine_handle<promise_type> handle) : handle_(handle) {}
    std::coroutine_handle<promise_type> handle_;
};

// Of a task over a network whose calls return when they are answered.
template <typename T>
T run(Task<T> task) {
    task.start();
    return task.get();
}

}  // namespace cpp_store::replication
