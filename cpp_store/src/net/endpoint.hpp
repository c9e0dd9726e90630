// A connectionless (RDM) libfabric endpoint: messages both ways, RMA, and sleeping until either
// ends.
#pragma once

#include <rdma/fi_domain.h>
#include <rdma/fi_endpoint.h>

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "net/address.hpp"
#include "net/tagging.hpp"

namespace cpp_store::net {

using Peer = fi_addr_t;

// What the address of a server may name, here: providers with connectionless endpoints and RMA.
[[nodiscard]] std::set<std::string> available_providers();

// Memory that peers may read or write (or that is only registered because the provider wants local
// buffers registered). Closing it revokes the right.
class MemoryRegion {
  public:
    MemoryRegion() = default;
    [[nodiscard]] std::uint64_t address() const noexcept { return address_; }  // as peers say it
    [[nodiscard]] std::uint64_t key() const noexcept { return key_; }
    [[nodiscard]] void* descriptor() const noexcept {
        return mr_ ? fi_mr_desc(mr_.get()) : nullptr;
    }

  private:
    friend class Endpoint;
    struct Close {
        void operator()(fid_mr* mr) const noexcept;
    };
    std::unique_ptr<fid_mr, Close> mr_;
    std::uint64_t address_ = 0;
    std::uint64_t key_ = 0;
};

// What libfabric hands back when an operation ends; it may write to the first part until then.
struct Operation : fi_context2 {
    enum class Kind : std::uint8_t { receive, send, rma };
    explicit Operation(Kind operation_kind) : fi_context2{}, kind(operation_kind) {}
    const Kind kind;
};

// One RMA in flight. It lives until completed() was called or the endpoint is closed.
class Rma : public Operation {
  public:
    Rma() : Operation(Kind::rma) {}
    virtual ~Rma() = default;
    Rma(const Rma&) = delete;
    Rma& operator=(const Rma&) = delete;

    bool write = false;  // to the peer; else from it
    Peer peer = FI_ADDR_UNSPEC;
    std::byte* local = nullptr;
    std::uint64_t length = 0;
    void* descriptor = nullptr;  // of the local memory, where the provider wants one
    std::uint64_t remote = 0;
    std::uint64_t key = 0;

    // `error` is 0 or a positive error of libfabric. Called from Endpoint::progress() only.
    virtual void completed(int error) = 0;
};

// Not thread-safe: whoever shares one holds a lock around every call. wait_fd() may be polled
// without it.
class Endpoint {
  public:
    enum class Role : std::uint8_t { client, server };

    // What progress() reports. Called from progress() only; may call the endpoint.
    class Listener {
      public:
        virtual ~Listener() = default;
        // It is the listener's to write to until it returns.
        virtual void received(std::span<std::byte> message) = 0;
        virtual void send_failed(Peer peer, int error) = 0;
    };

    // A server listens at `address`; a client is ready to talk to it. A peer that cannot be reached
    // for `patience` is gone.
    // Throws Errc::invalid_argument (unknown provider or host, port taken) or Errc::connection.
    Endpoint(const Address& address, Role role, Listener& listener,
             std::chrono::milliseconds patience = std::chrono::seconds(10));
    ~Endpoint();
    Endpoint(const Endpoint&) = delete;
    Endpoint& operator=(const Endpoint&) = delete;

    // Ends everything without a report: nothing touches the memory of operations any more. Regions
    // may and must be dropped after this and before the destructor.
    void close() noexcept { endpoint_.reset(); }

    // Where clients reach a server.
    [[nodiscard]] const Address& address() const noexcept { return address_; }
    // The address that peers pass to insert(), in the provider's own form.
    [[nodiscard]] const std::vector<std::byte>& name() const noexcept { return name_; }
    // The server that a client was made for.
    [[nodiscard]] Peer server() const noexcept { return server_; }
    // Largest message that peers take.
    [[nodiscard]] std::size_t max_message() const noexcept { return max_message_; }
    [[nodiscard]] const std::string& provider() const noexcept { return provider_; }

    // Where a server is: its address in the provider's form, and the provider and the address of
    // this host by which it is reached. Throws as the constructor does.
    struct Target {
        std::vector<std::byte> name;
        std::string local;
    };
    [[nodiscard]] static Target resolve(const Address& server);

    // The same peer for the same name, until it was removed as often as it was inserted. Throws
    // Errc::protocol if these bytes are no address.
    [[nodiscard]] Peer insert(std::span<const std::byte> name);
    void remove(Peer peer);

    // Sends head and body as one message of at most max_message(), with the seal's tag if there is
    // one; copies them. Order to one peer is kept. Failures are reported to the listener, among
    // them that a peer is gone.
    void send(Peer peer, std::span<const std::byte> head, std::span<const std::byte> body,
              Tagging* seal = nullptr);
    // Starts an RMA; it may stay queued until progress() can post it.
    void start(Rma& rma);

    [[nodiscard]] MemoryRegion expose(std::span<const std::byte> memory, bool writable);
    // For local buffers of RMA: registers them only if the provider asks for it.
    [[nodiscard]] MemoryRegion register_local(std::span<std::byte> memory);

    // Handles what has ended or arrived; returns how many things that was.
    std::size_t progress();

    // How long one may sleep until wait_fd() is readable; 0: not at all. What another thread starts
    // meanwhile wakes the sleeper when it ends. May itself take a millisecond.
    static constexpr std::chrono::microseconds forever = std::chrono::hours(1);
    [[nodiscard]] std::chrono::microseconds may_sleep();
    // Ends a may_sleep() that is under way, from any thread.
    void interrupt() noexcept;
    // -1 if the provider has none: may_sleep() is short then.
    [[nodiscard]] int wait_fd() const noexcept { return wait_fd_; }

  private:
    struct MessageBuffer;
    using Completions = std::array<fi_cq_msg_entry, 16>;
    struct Failure {
        Operation* operation;
        int error;
    };
    template <typename T>
    struct CloseFid {
        void operator()(T* object) const noexcept { fi_close(&object->fid); }
    };
    template <typename T>
    using Fid = std::unique_ptr<T, CloseFid<T>>;
    struct FreeInfo {
        void operator()(fi_info* info) const noexcept;
    };
    using Info = std::unique_ptr<fi_info, FreeInfo>;

    [[nodiscard]] static Info find(const Address& address, Role role);
    void open();
    void open_queue();
    void learn_name(const Address& asked);
    void add_buffers(std::size_t count, Operation::Kind kind);
    void add_receives();  // as many as so many peers take
    [[nodiscard]] static std::vector<std::byte> destination(const Address& address,
                                                            const fi_info& info);
    void post_receive(MessageBuffer& buffer);
    void post(Operation& operation, Peer peer);
    [[nodiscard]] ssize_t try_post(Operation& operation);
    [[nodiscard]] MemoryRegion register_memory(std::span<const std::byte> memory,
                                               std::uint64_t access);
    void finish(Operation& operation, std::size_t bytes, int error);
    void try_again(Peer peer);
    std::size_t post_queued();
    [[nodiscard]] bool may_be_peer(std::span<const std::byte> name) const;
    std::size_t handle(const Completions& entries, ssize_t count);
    std::size_t report_failures();
    std::size_t report_error();

    Listener& listener_;
    const std::chrono::milliseconds patience_;
    const std::chrono::microseconds most_wait_;
    Address address_;
    std::string provider_;
    std::vector<std::byte> name_;
    Peer server_ = FI_ADDR_UNSPEC;
    std::size_t max_message_ = 0;
    int wait_fd_ = -1;

    Info info_;
    // Closed in reverse order.
    Fid<fid_fabric> fabric_;
    Fid<fid_domain> domain_;
    Fid<fid_av> av_;
    // One queue for messages and RMA: a queue of its own for bulk would be read just as often, for
    // another system call each time with tcp, and holds only a few entries ahead of a message.
    Fid<fid_cq> cq_;
    std::vector<std::unique_ptr<std::byte[]>> slabs_;
    std::vector<MemoryRegion> slab_regions_;
    std::deque<MessageBuffer> buffers_;  // a deque: their addresses stay
    Fid<fid_ep> endpoint_;

    std::vector<MessageBuffer*> free_;  // for sending
    std::size_t receives_ = 0;          // buffers for them
    struct Known {
        std::string name;
        std::size_t uses = 0;
    };
    std::map<Peer, Known> peers_;
    std::map<std::string, Peer> peers_by_name_;
    // What could not be posted yet. A peer that is slow to connect holds up no other.
    struct Queue {
        std::deque<Operation*> operations;
        std::chrono::steady_clock::time_point moved;   // when one was last added first or posted
        std::chrono::steady_clock::time_point next{};  // when to try again
        std::chrono::microseconds wait{0};             // since the last try
    };
    std::map<Peer, Queue> queued_;
    std::vector<Failure> failures_;
    std::uint64_t rma_flags_ = 0;
    bool sticky_wait_ = false;
    std::chrono::steady_clock::time_point last_event_ = std::chrono::steady_clock::now();
};

}  // namespace cpp_store::net
