// What the protocol asks servers, and what they answer, whatever carries it.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "cpp_store/store.hpp"
#include "replication/ledger.hpp"
#include "replication/membership.hpp"
#include "replication/task.hpp"

namespace cpp_store::replication {

// A layer's tensors on their way.
struct LayerData {
    LayerKey key;
    std::vector<TensorSpec> specs;
    std::vector<std::span<const std::byte>> tensors;
    std::shared_ptr<const void> pin;  // keeps the bytes
};

// A model on its way from one server to another.
struct Pulled {
    ModelInfo info;
    Version version = 0;
    std::string owner;              // what its own layers are found by
    std::vector<LayerData> layers;  // its own ones, in the order of the table
};

struct Request {
    enum class Kind : std::uint8_t {
        put,      // `put`, whose created_ns is its version; `through`
        retire,   // `version`, `by`, `through`
        bury,     // retires what is not newer than `version`, whoever else knows
        undo,     // of a put that failed: retires `version` and no other
        refuse,   // of a put that this server refused after others took it
        state,    // of `models`
        chain,    // of `model`, soon to be looked at again
        acquire,  // layers `keys` of `model`, for `holder`
        release,
        changes,  // after `since`, if the server still is `incarnation`, for the server `asker`
        read,     // a visible model, for a client
        pull,     // a visible model with the tensors of its own layers, for a peer
        fetch,    // layers `keys` of `model`, whoever refers to them
    };
    explicit Request(Kind what) : kind(what) {}

    Kind kind;
    std::string model;
    Version version = 0;
    Chain through;          // the servers before this one, and as what they took it
    Retirement token = 0;   // retire: of the call
    Retirement by = 0;      // retire, bury: by which it was retired already
    bool decisive = false;  // state: only of a server that knows nothing that could be lost
    std::vector<std::string> models;
    std::vector<LayerKey> keys;
    std::string holder;
    const PutRequest* put = nullptr;
    std::span<const std::span<const std::byte>> tensors;  // of `put`
    std::size_t asker = 0;
    Incarnation asking = 0;  // changes: the asker's own incarnation
    bool joining = false;    // changes: whether it joins with all that there is
    bool anyway = false;     // though the server did not answer a moment ago
    Incarnation incarnation = 0;
    std::uint64_t since = 0;
};

struct Answer {
    // Errc::connection and deadline: nobody knows whether it was done; the server is gone, or does
    // not say, or not yet.
    std::optional<Errc> error;
    std::string why;
    std::size_t server = 0;  // where the caller left the choice

    std::uint64_t bytes = 0;           // put: that the model added
    bool done = false;                 // put: the model is new here; refuse: it is not there
    Chain chain;                       // put, retire, chain: as what the model's servers take part
    std::vector<State> states;         // state: of each
    Retirement by = 0;                 // retire: by which it was retired; 0: not known
    std::vector<std::uint64_t> sizes;  // acquire: bytes of each layer
    Incarnation incarnation = 0;       // changes: of the server, since it started
    bool ready = false;                // changes: whether the server answers questions
    Incarnation joined = 0;            // changes: as what the asker takes part there
    std::uint64_t followed = 0;        // changes: how far it has followed the asker's
    std::uint64_t since = 0;           // changes: the last one that is in the answer
    std::uint64_t last = 0;            // changes: the last one that there is
    Version forgotten = 0;             // changes: Ledger::forgotten()
    std::vector<Change> changes;
    std::optional<ModelInfo> info;  // read
    Version version = 0;            // read: of the model
    std::vector<LayerData> layers;  // fetch
    std::optional<Pulled> pulled;   // pull

    [[nodiscard]] bool is_unreachable() const noexcept {
        return error == Errc::connection || error == Errc::deadline;
    }
    [[nodiscard]] Error exception() const { return Error(*error, why); }
};

// How requests reach servers, by their position in the list.
class Network {
  public:
    struct Call {
        std::size_t server;
        Request request;
    };
    struct Exchange {
        std::vector<Answer> answers;  // one a call
        bool done = false;
        std::coroutine_handle<> waiting = nullptr;  // resumed by the network, where it is not done
    };
    struct Await {
        Exchange* exchange;
        [[nodiscard]] bool await_ready() const noexcept { return exchange->done; }
        void await_suspend(std::coroutine_handle<> waiter) const noexcept {
            exchange->waiting = waiter;
        }
        std::vector<Answer> await_resume() const { return std::move(exchange->answers); }
    };

    virtual ~Network() = default;
    // All at once. What is in the requests by reference stays until the answer.
    [[nodiscard]] virtual std::shared_ptr<Exchange> start(std::vector<Call> calls) = 0;
    // Whether a server did not answer a moment ago, so that it is better to ask another one.
    [[nodiscard]] virtual bool is_down(std::size_t server) const = 0;
    // That it is worth asking again.
    virtual void forget_down(std::size_t server) = 0;
    // Nanoseconds since the epoch, but for the lowest 16 bits, which are chance.
    [[nodiscard]] virtual Version now() const = 0;
    // An exchange of no calls that is done after a while.
    [[nodiscard]] virtual std::shared_ptr<Exchange> pause(std::chrono::milliseconds length) = 0;

    // For tasks: `co_await network.ask_all(...)`.
    [[nodiscard]] Task<std::vector<Answer>> ask_all(std::vector<Call> calls);
    [[nodiscard]] Task<Answer> ask(std::size_t server, Request request);
    [[nodiscard]] Task<void> rest(std::chrono::milliseconds length);
};

}  // namespace cpp_store::replication
