// One request on its way through the server.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "cpp_store/store.hpp"
#include "local/endpoint.hpp"
#include "local/layers.hpp"
#include "net/assembler.hpp"
#include "net/endpoint.hpp"
#include "net/wire.hpp"
#include "replication/replica.hpp"
#include "security/seal.hpp"
#include "server/rate.hpp"
#include "server/staged.hpp"
#include "server/transfer.hpp"

namespace cpp_store::server {

// Where a client is: one of both.
struct Place {
    net::Peer peer = FI_ADDR_UNSPEC;  // over a network
    local::LinePtr line;              // on this host
};

// A client that has joined, or is about to, whatever it comes through. Belongs to the progress
// thread, but for what is const, the leases and the pins.
struct Session {
    using Clock = std::chrono::steady_clock;

    Session(std::uint64_t session_id, Place where, std::string client_name)
        : id(session_id), at(std::move(where)), client(std::move(client_name)) {}

    const std::uint64_t id;
    const Place at;
    const std::string client;                // "host/pid"
    std::unique_ptr<security::Seals> seals;  // null: nothing is sealed
    bool encrypts = false;                   // bulk comes in messages, not by RMA
    // Bulk comes by RMA, which is not sealed: messages say what its checksums are.
    [[nodiscard]] bool sums_bulk() const noexcept { return seals && !encrypts; }
    // It maps our memory: it is told where tensors are, and has what it knows of pinned.
    [[nodiscard]] bool shares_memory() const noexcept { return at.line != nullptr; }
    net::Assembler requests;
    Clock::time_point heard = Clock::now();  // its last message
    Clock::time_point moved{};               // the last step of a transfer of it
    Clock::time_point probed{};
    unsigned probes = 0;                                      // sent since it was heard
    bool is_cut = false;                                      // to be dropped
    std::string origin;                                       // origin_of() its address
    std::shared_ptr<const std::vector<std::string>> servers;  // Engine::servers, as it joined
    Rate requests_rate;
    std::unordered_map<std::uint64_t, bool> calls;  // that are not answered; whether given up
    std::uint64_t bytes_in_flight = 0;
    std::shared_ptr<Stages> stages = std::make_shared<Stages>();
    std::deque<std::function<void()>> waiting;  // transfers, until less is in flight

    // What it may still use: ended with it.
    void add_lease(std::uint64_t lease) {
        const std::scoped_lock lock(leases_mutex_);
        leases_.insert(lease);
        // Numbers ascend: of so many, the first have expired.
        if (leases_.size() > most_leases) leases_.erase(leases_.begin());
    }
    void remove_lease(std::uint64_t lease) {
        const std::scoped_lock lock(leases_mutex_);
        leases_.erase(lease);
    }
    void take_over(std::set<std::uint64_t> leases) noexcept {
        const std::scoped_lock lock(leases_mutex_);
        leases_.merge(leases);
    }
    [[nodiscard]] std::set<std::uint64_t> take_leases() {
        const std::scoped_lock lock(leases_mutex_);
        return std::exchange(leases_, {});
    }

  private:
    static constexpr std::size_t most_leases = 65536;
    std::mutex leases_mutex_;
    std::set<std::uint64_t> leases_;
};

class Call;
using CallPtr = std::shared_ptr<Call>;

// What a call needs of the server. All of it may be called from any thread.
class Host {
  public:
    virtual ~Host() = default;
    [[nodiscard]] virtual Store& store() = 0;
    // Its part in a store of several replicas; null if it keeps the only one.
    [[nodiscard]] virtual replication::Replica* replica() = 0;
    virtual void respond(CallPtr call, std::uint16_t code, std::vector<std::byte> body) = 0;
    // Where there is no memory for an answer: Refusal::of() the call, or the end of the connection.
    virtual void refuse(CallPtr call) noexcept = 0;
    virtual void start_transfer(CallPtr call, Transfer::Plan plan, std::function<void()> then) = 0;
    virtual void request_shutdown() = 0;
};

// One of a list that takes no memory.
struct Refused {
    CallPtr next;
};

// A handler answers its call exactly once: by reply(), by throwing, or later, from the end of a
// transfer. Thread-safe in so far as one thread at a time works on a call.
class Call : public std::enable_shared_from_this<Call>, public Refused {
  public:
    Call(Host& host, std::shared_ptr<Session> session, wire::Operation operation, std::uint64_t id,
         std::vector<std::byte> body)
        : host_(host),
          session_(std::move(session)),
          operation_(operation),
          id_(id),
          body_(std::move(body)) {}

    [[nodiscard]] Store& store() { return host_.store(); }
    [[nodiscard]] replication::Replica* replica() { return host_.replica(); }
    [[nodiscard]] wire::Operation operation() const noexcept { return operation_; }
    [[nodiscard]] std::uint64_t id() const noexcept { return id_; }
    [[nodiscard]] const std::shared_ptr<Session>& session() const noexcept { return session_; }
    // Views what the call owns.
    [[nodiscard]] wire::Reader body() const { return wire::Reader(body_); }
    [[nodiscard]] std::span<const std::byte> bytes() const noexcept { return body_; }

    void reply(wire::Writer body = {});  // fails if that is more than a message may hold
    void fail(const std::exception& error);
    // The store is not what it was: whoever hears of an error now must not think otherwise.
    void note_change() noexcept { has_changed_ = true; }
    [[nodiscard]] bool has_changed() const noexcept { return has_changed_; }

    // Moves the pieces, then runs `then` on a worker, which replies. If a piece cannot be moved the
    // client is gone, and nobody is answered; `then` is dropped with all that it holds once nothing
    // touches the memory any more.
    void transfer(Transfer::Plan plan, std::function<void()> then) {
        host_.start_transfer(shared_from_this(), std::move(plan), std::move(then));
    }
    // Of a client that shares our memory: where a layer is (null: it is not here). What the answer
    // tells of is pinned.
    [[nodiscard]] local::Layer pin(wire::Layer description, const StoredLayerPtr& stored);
    // The regions of the arena in which that is.
    [[nodiscard]] const std::set<int>& regions() const noexcept { return regions_; }
    void request_shutdown() { host_.request_shutdown(); }

  private:
    void note_time() noexcept;

    Host& host_;
    std::shared_ptr<Session> session_;
    wire::Operation operation_;
    std::uint64_t id_;
    std::vector<std::byte> body_;
    bool has_changed_ = false;
    std::set<int> regions_;
    std::uint32_t pins_ = 0;
    const std::chrono::steady_clock::time_point began_ = std::chrono::steady_clock::now();
};

// An answer that takes no memory, since it was made before.
struct Refusal {
    std::uint16_t code = 0;
    std::span<const std::byte> body;

    // That there is no memory for a call: nothing has changed, or nobody will say what has.
    [[nodiscard]] static Refusal of(bool has_changed) noexcept;
};

// One function an operation, in the file of its name; they run on workers and may throw.
void put(Call& call);
void read(Call& call);
void fetch(Call& call);
void best_matches(Call& call);
void end_lease(Call& call);
void lookup(Call& call);
void contains(Call& call);
void list(Call& call);
void retire(Call& call);
void acquire(Call& call);
void release(Call& call);
void holders(Call& call);
void release_holder(Call& call);
void stats(Call& call);
void verify(Call& call);
void shutdown(Call& call);

void state(Call& call);
void of_replicas(Call& call);  // undo, compare, shared, pull, repair

// A put on its way through the store.
[[nodiscard]] PendingPut prepare(Call& call, PutRequest request);
void commit(Call& call, PendingPut pending);  // and answers

using Handler = void (*)(Call&);

// What a request to read or fetch asks for, yet without specs and data.
struct Described {
    std::vector<wire::Layer> layers;
    std::vector<StoredLayerPtr> stored;  // of each; null if it is on another server
};
[[nodiscard]] Described describe_model(Call& call);
[[nodiscard]] Described describe_layers(Store& store, const wire::Fetch& request);

// The answer that says where layers are: with their tensors, if they are small, or where these lie
// in memory that the client shares.
void reply_with_layers(Call& call, Described found);

}  // namespace cpp_store::server
