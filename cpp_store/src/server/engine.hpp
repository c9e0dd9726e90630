// The server: one thread that hears clients and tells them (the progress thread), and workers that
// do what takes time. Its parts, each in the file of its name:
//
//   engine    its life, and the progress thread's rounds
//   clients   how they come, which servers they know of, how they go
//   requests  to the functions that answer them, of which each operation has one (call.hpp)
//   answers   back to the clients
//   bulk      tensors: by RMA, in messages where they are encrypted, through memory on one host
//
// Clients come through two endpoints, libfabric's and the socket of this host. From hello on they
// are sessions, and the same to everything here but send(), which knows where they are.
#pragma once

#include <sys/eventfd.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <chrono>
#include <mutex>
#include <set>
#include <thread>
#include <unordered_map>

#include "core/forks.hpp"
#include "cpp_store/server.hpp"
#include "local/endpoint.hpp"
#include "net/libfabric.hpp"
#include "security/greeting.hpp"
#include "server/call.hpp"
#include "server/lobby.hpp"
#include "server/old_clients.hpp"
#include "server/replication.hpp"
#include "server/rma.hpp"
#include "server/stream.hpp"
#include "server/workers.hpp"

namespace cpp_store::server {

class EventFd {
  public:
    EventFd() : fd_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
        if (fd_ < 0) throw Error(Errc::internal, "no event descriptor: too many files open");
    }
    ~EventFd() { close(fd_); }
    EventFd(const EventFd&) = delete;
    EventFd& operator=(const EventFd&) = delete;
    [[nodiscard]] int fd() const noexcept { return fd_; }
    void set() noexcept { [[maybe_unused]] const int done = eventfd_write(fd_, 1); }
    void clear() noexcept {
        eventfd_t value = 0;
        [[maybe_unused]] const int done = eventfd_read(fd_, &value);
    }

  private:
    int fd_;
};

// What its parts share, so all of it is theirs. Functions are of the progress thread, but for
// those that say otherwise and those of Host.
struct Engine final : Host, net::Endpoint::Listener, local::Endpoint::Listener {
    using Clock = std::chrono::steady_clock;
    using Options = Server::Options;

    Engine(std::shared_ptr<Store> served, Options given);
    ~Engine() override { stop(); }
    void stop();  // any thread; idempotent

    // ------------------------------------------------------------------ engine.cpp

    static Options checked(Options options);
    // Without this socket, clients on this host come over libfabric, too.
    void listen_on_host();
    // Puts that are on their way to disk hold calls, and these hold us.
    void await_disk() noexcept;

    void run();
    // One round. Whatever finds no memory in it is tried again, or costs its client the connection.
    std::size_t make_progress() noexcept;
    void sleep();
    // What has to be done now and then.
    void sweep();
    void look_after(Session& session, bool moving, Clock::time_point now);
    void look_after_strangers(Clock::time_point now);

    // Runs something on the progress thread, from any thread. It must not throw.
    void post(std::function<void()> work);
    void wake_up();
    bool has_posted();
    std::size_t run_posted();

    // Any thread. At most a line a second: whoever sends garbage shall not fill the log.
    void complain(std::string_view what) noexcept override;
    void log(LogLevel level, std::string_view line) noexcept;
    void request_shutdown() override;

    // ------------------------------------------------------------------ clients.cpp

    // Of a client of this host, with its line.
    void hello(std::span<const std::byte> message, const local::LinePtr& line);
    void welcome_in(std::uint64_t call, std::span<const std::byte> body, Place place,
                    const std::string& origin);
    // The one try of a guest.
    void join(Lobby::Guest guest, std::span<std::byte> message);
    // Of a client with whom nothing is agreed on.
    void turn_away(const Place& place, std::uint64_t session, std::uint64_t call, Errc code,
                   const std::string& why);
    void leave(const Place& place);  // nobody there is a client any more
    void refuse_old(const OldHello& old);
    // Takes the seal off a message, if there has to be one; false if it is not right.
    static bool open(const Session& session, std::span<std::byte>& message);

    // Why a client that knows of this list of servers is refused; empty if it is not. The list is
    // that of whoever joined first until the last client is gone and there is no model.
    std::string refuse(std::vector<std::string> list, Session& client);
    // Takes its part among servers that keep replicas, if the list says that these do. Calls under
    // way may still use the part that it had; so it stays.
    std::string replicate(std::vector<std::string> list);
    // By the whole address, or by the only one with its port.
    [[nodiscard]] std::optional<std::size_t> find_self(const std::vector<std::string>& list) const;
    void stop_replication();

    void send_failed(net::Peer peer, int error) override;
    void ended(const local::LinePtr& line, const Error& why) override;
    void drop(const Session& session, const std::string& why);
    // The memory that a transfer of it fills stays taken until the provider has done with it: when
    // the client's process has ended, or the kernel has given its host up.
    void forget(const Session& session, bool said_bye = false);
    // Leases are a process's, not a connection's. Of one that went without a word they are kept for
    // a while, for when it connects anew, or go to another connection of it.
    void pass_on(std::set<std::uint64_t> leases, const Session& from);
    void take_over(Session& session);
    void end_leases(std::set<std::uint64_t> leases) noexcept;
    void expire_orphans(Clock::time_point now);

    // ------------------------------------------------------------------ requests.cpp

    void received(std::span<std::byte> message) override { hear(message, nullptr); }
    void received(const local::LinePtr& line, std::span<std::byte> message) override {
        hear(message, line);
    }
    void hear(std::span<std::byte> message, const local::LinePtr& line);
    void hear(const std::shared_ptr<Session>& session, const wire::Frame& frame,
              std::span<const std::byte> part);
    void request(const std::shared_ptr<Session>& session, const wire::Frame& frame,
                 std::span<const std::byte> part);
    // Whether to answer at once instead of waking a worker: on a machine whose processors all
    // compute, each thread that has to be woken costs a call milliseconds. One call a round, so
    // that the workers share what many clients ask at a time, and none that took long the last
    // time.
    bool is_brief(const wire::Frame& frame, wire::Operation operation);
    static void work_here(Call& call, Handler handler, Clock::duration& cost);
    template <typename Work>
    static void guarded(Call& call, const Work& work) {
        try {
            work(call);
        } catch (const std::exception& error) {
            call.fail(error);
        }
    }

    // ------------------------------------------------------------------ answers.cpp

    void send(const Session& session, wire::Frame frame, std::span<const std::byte> part);
    void send_body(const Session& session, wire::Frame frame, std::span<const std::byte> body);
    void send_body(const Place& place, security::Seal* seal, wire::Frame frame,
                   std::span<const std::byte> body);
    void send(const Place& place, security::Seal* seal, const wire::Frame& frame,
              std::span<const std::byte> part, int passed = -1);
    // In a message to a client, for a part of a body.
    [[nodiscard]] std::size_t room(const Place& place, bool is_sealed) const;
    // Gives the client the regions that an answer tells of and it does not have yet, and tells it
    // which ones are no more.
    void hand_over(const Session& session, const std::set<int>& regions);
    void respond(CallPtr call, std::uint16_t code, std::vector<std::byte> body) override;
    void answer(Call& call, std::uint16_t code, const std::vector<std::byte>& body);

    void refuse(CallPtr call) noexcept override;
    void refuse_calls() noexcept;
    void refuse_now(const Session& session, std::uint64_t call, const Refusal& refusal) noexcept;
    // The session is to end, for want of memory to tell its client more.
    void cut(std::uint64_t session) noexcept;
    void drop_cut();

    // ------------------------------------------------------------------ bulk.cpp

    void start_transfer(CallPtr call, Transfer::Plan plan, std::function<void()> then) override;
    void start_or_wait(Call& call, Transfer::Plan plan, std::function<void()> then);
    void start_now(const CallPtr& call, Transfer::Plan plan, std::function<void()> then,
                   std::uint64_t bytes);
    // How the bytes of this client move.
    [[nodiscard]] std::unique_ptr<Transfer> make_transfer(const CallPtr& call, Transfer::Plan plan,
                                                          Transfer::Done done);
    void finished(const CallPtr& call, std::function<void()> then, std::uint64_t id, int error);
    // What waited for the end of this one may begin.
    void end_transfer(Session& session, std::uint64_t id);
    void start_waiting(Session& session);

    // Of a call.
    struct Moving {
        std::unique_ptr<Transfer> transfer;
        CallPtr call;
        std::uint64_t bytes = 0;
        bool is_given_up = false;  // by the client, which waits to hear of its end
    };
    using Transfers = std::unordered_map<std::uint64_t, Moving>;
    [[nodiscard]] Transfers::iterator find_transfer(const Session& session, std::uint64_t call);
    void hear_transfer(Session& session, const wire::Frame& frame, std::span<const std::byte> part);
    // The client waits no more for a call, and its memory is to be left alone.
    void give_up(Session& session, std::uint64_t call);
    void tell_given_up(const Session& session, std::uint64_t call);
    // A few messages of each transfer to a client, so that nobody waits long for another one's.
    std::size_t send_bulk();
    void look_at_transfers();

    void note_small_call(const Session& session);
    // What a client's own small calls, which stand before its transfers, do not slow down.
    Pace pace_for(Session& session) const;

    // ------------------------------------------------------------------ for others

    Store& store() override { return *store_; }
    replication::Replica* replica() override { return replica_now; }

    // ------------------------------------------------------------------ state

    const Birthplace birthplace;
    std::shared_ptr<Store> store_;
    Options options;
    EventFd wake;
    EventFd shutdown_wanted;
    std::atomic<bool> stopping = false;
    std::atomic<bool> asleep = false;

    std::mutex posted_mutex;  // guards these two
    std::vector<std::function<void()>> posted;
    CallPtr refused;  // the last one
    std::vector<std::function<void()>> running;

    std::mutex complaints_mutex;  // guards the next two
    Clock::time_point last_complaint{};
    unsigned complaints_held_back = 0;

    std::mutex servers_mutex;  // guards these two
    // The sorted list of the clients that are here, who share it, or whose models are.
    std::shared_ptr<const std::vector<std::string>> servers;
    std::vector<std::unique_ptr<Replication>> replications;  // the last one is in force
    std::atomic<replication::Replica*> replica_now = nullptr;

    // Of the progress thread.
    std::unordered_map<std::uint64_t, std::shared_ptr<Session>> sessions;
    std::unordered_map<std::string, std::size_t> clients_of_host;  // by origin
    Lobby lobby{options.silence};
    Transfers transfers;
    std::set<std::uint64_t> sending;  // those of them that send messages, with something to send
    std::atomic<bool> is_through = false;  // a worker, with one of them
    std::uint64_t last_transfer = 0;
    // Of clients that move no bulk: the last one, and the last of another one.
    std::uint64_t small_caller = 0;
    Clock::time_point last_small_call{};
    Clock::time_point other_small_call{};
    bool may_work = false;                                       // in this round
    bool heard = false;                                          // in this round
    std::array<Clock::duration, wire::operation_count> costs{};  // by operation, decaying
    bool has_cut = false;                                        // sessions that are to be dropped
    struct Orphans {
        std::string client;
        std::set<std::uint64_t> leases;
        pid_t process = 0;  // of a client of this host
        Clock::time_point until;
    };
    std::vector<Orphans> orphans;
    std::vector<net::Peer> gone;  // to be removed from the endpoint at the next sweep
    Clock::time_point last_expiry = Clock::now();
    Clock::time_point last_sweep = Clock::now();
    std::unique_ptr<net::Endpoint> endpoint;

    std::string address;
    security::Reception::Policy greeting_policy;
    std::unique_ptr<Workers> workers;
    std::thread::id progress_id;  // set before any request can come
    std::thread progress_thread;
    std::unique_ptr<local::Endpoint> host_endpoint;  // null: no clients of this host but by wire
};

}  // namespace cpp_store::server
