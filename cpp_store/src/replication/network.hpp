// What the protocol asks servers, and what they answer, whatever carries it.
#pragma once

#include <bitset>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "cpp_store/store.hpp"
#include "replication/task.hpp"

namespace cpp_store::replication {

// A layer's tensors on their way.
struct LayerData {
    LayerKey key;
    std::vector<TensorSpec> specs;
    std::vector<std::span<const std::byte>> tensors;
    std::shared_ptr<const void> pin;  // keeps the bytes
};

// What a server knows of a model, by its owner's name.
enum class Presence : std::uint8_t {
    unknown = 0,
    in_use = 1,   // visible, leased, or on its way in
    retired = 2,  // and the server remembers it
};

// Two servers compare what both keep by a sum for each of these parts of it, by the model's id.
inline constexpr std::size_t bucket_count = 256;
using Buckets = std::bitset<bucket_count>;
using Sums = std::vector<std::uint64_t>;

// Where a list of what two servers share goes on.
struct Cursor {
    enum class Section : std::uint8_t { retired = 0, models = 1, held = 2, end = 3 };
    Section section = Section::retired;
    std::string after;  // the last name of the page before
};

// A part of such a list.
struct Page {
    std::vector<std::string> retired;  // owners' names, as are the models
    std::vector<std::string> models;   // visible ones
    std::vector<HeldLayers> held;
    Cursor next;
};

struct Request {
    enum class Kind : std::uint8_t {
        put,      // `put` with `tensors`
        retire,   // `model`, by its id
        undo,     // of a put that failed: `model`, by its owner's name
        state,    // of `names`, each an owner's or an id
        acquire,  // layers `keys` of the owner `model`, for `holder`
        release,
        read,     // a visible model, for a client
        pull,     // a visible model by its owner's name, with its own tensors, for a peer
        fetch,    // layers `keys` of the owner `model`, those that are there
        compare,  // what both the server and `asker` keep, which doubts `buckets` of it
        shared,   // what the server and `asker` both keep in `buckets`, from `cursor` on
        repair,   // that a server of `model` may lack something of it; `degraded`: by a put
    };
    explicit Request(Kind what) : kind(what) {}

    Kind kind;
    std::string model;
    std::vector<std::string> names;
    std::vector<LayerKey> keys;
    std::string holder;
    const PutRequest* put = nullptr;
    std::span<const std::span<const std::byte>> tensors;  // of `put`
    std::size_t asker = 0;
    Buckets buckets;
    Cursor cursor;
    bool degraded = false;
};

struct Answer {
    std::optional<Errc> error;
    std::string why;
    std::size_t server = 0;  // where the caller left the choice

    std::uint64_t bytes = 0;           // put: that the model added
    bool is_new = false;               // put: it was not there
    ForeignReferences foreign;         // retire: what may end elsewhere
    std::vector<Presence> states;      // state: of each
    std::vector<std::uint64_t> sizes;  // acquire: bytes of each layer
    Sums sums;                         // compare
    Page page;                         // shared
    std::optional<ModelInfo> info;     // read, pull
    std::vector<LayerData> layers;     // pull: its own, in the order of the table; fetch

    // Nobody knows whether it was done; the server is gone, or does not say.
    [[nodiscard]] bool is_silent() const noexcept {
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
    // An exchange of no calls that is done after a while.
    [[nodiscard]] virtual std::shared_ptr<Exchange> pause(std::chrono::milliseconds length) = 0;
    // Chance, for waits that are not to be the same for all.
    [[nodiscard]] virtual std::uint32_t random() = 0;

    // For tasks: `co_await network.ask_all(...)`.
    [[nodiscard]] Task<std::vector<Answer>> ask_all(std::vector<Call> calls);
    [[nodiscard]] Task<Answer> ask(std::size_t server, Request request);
    [[nodiscard]] Task<void> rest(std::chrono::milliseconds length);
};

}  // namespace cpp_store::replication
