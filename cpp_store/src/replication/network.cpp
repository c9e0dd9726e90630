#include "replication/network.hpp"

namespace cpp_store::replication {

Task<std::vector<Answer>> Network::ask_all(std::vector<Call> calls) {
    if (calls.empty()) co_return std::vector<Answer>{};
    const std::shared_ptr<Exchange> exchange = start(std::move(calls));
    const Await answered{exchange.get()};
    co_return co_await answered;
}

Task<Answer> Network::ask(std::size_t server, Request request) {
    std::vector<Call> calls;
    calls.push_back({server, std::move(request)});
    std::vector<Answer> answers = co_await ask_all(std::move(calls));
    co_return std::move(answers.front());
}

Task<void> Network::rest(std::chrono::milliseconds length) {
    const std::shared_ptr<Exchange> exchange = pause(length);
    const Await over{exchange.get()};
    co_await over;
}

}  // namespace cpp_store::replication
