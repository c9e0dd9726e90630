// Links to servers by libfabric, all of them over one endpoint of this process.
#pragma once

#include <set>

#include "client/knock.hpp"
#include "client/link.hpp"

namespace cpp_store::client {

class NetLink;

// The endpoint, of one provider and one of this host's addresses. An endpoint costs megabytes and
// eight descriptors, and a server has to connect to each anew; so a process has one for all.
class Fabric final : private net::Endpoint::Listener {
  public:
    // For a server: the one there is, or a new one. Throws as net::Endpoint does.
    [[nodiscard]] static std::shared_ptr<Fabric> reaching(const net::Address& server,
                                                          const std::string& local);
    ~Fabric() override;

    std::mutex mutex;  // guards what follows, and the links

  private:
    friend class NetLink;
    explicit Fabric(const net::Address& server)
        : endpoint_(std::make_unique<net::Endpoint>(
              server, net::Endpoint::Role::client, static_cast<net::Endpoint::Listener&>(*this))) {}

    void received(std::span<std::byte> message) override;
    void send_failed(net::Peer peer, int error) override;
    std::size_t progress();
    // Nothing touches the memory of any call any more, of whichever link.
    void close() noexcept;

    const Birthplace birthplace_;
    bool is_closed_ = false;
    std::unique_ptr<net::Endpoint> endpoint_;
    std::set<NetLink*> links_;
    std::unordered_map<std::uint64_t, NetLink*> greeting_;  // by the number of the hello
    std::unordered_map<std::uint64_t, NetLink*> joined_;    // by session
    std::uint64_t last_call_ = 0;                           // of all links
    bool has_broken_ = false;                               // some link
};

class NetLink final : public Link {
  public:
    // Throws Errc::connection (nobody listens, no answer), Errc::permission (the key) or what the
    // server refuses us for.
    [[nodiscard]] static std::shared_ptr<NetLink> open(const LinkOptions& options,
                                                       const net::Address& address);
    ~NetLink() override;

    [[nodiscard]] std::string transport() const override;

  private:
    friend class Fabric;
    NetLink(const LinkOptions& options, const net::Address& address,
            std::span<const std::byte> name, std::shared_ptr<Fabric> fabric);

    [[nodiscard]] std::mutex& mutex() noexcept override { return fabric_->mutex; }
    [[nodiscard]] security::Way way() const noexcept override { return security::Way::network; }
    [[nodiscard]] std::vector<std::byte> name() const override;
    [[nodiscard]] std::uint64_t next_call() override { return ++fabric_->last_call_; }
    void send_message(std::span<const std::byte> head, std::span<const std::byte> part,
                      security::Seal* seal) override;
    [[nodiscard]] std::size_t most_part() const override;
    std::size_t progress() override { return fabric_->progress(); }
    [[nodiscard]] Nap before_sleep() override;
    void greeted(std::uint64_t call) override;
    void joined(std::uint64_t session) override;
    void prepare(PendingCall& call, std::span<const Exposure> exposures,
                 std::vector<wire::Remote>& remotes) override;
    [[nodiscard]] local::SharedLayer decode_layer(const PendingCall& call,
                                                  wire::Reader& in) override;
    [[nodiscard]] std::string find_out(bool at_once) override;
    void heard() override { knock_.reset(); }
    void close(bool moving) noexcept override;
    [[nodiscard]] bool must_confirm(const PendingCall& call) const noexcept override {
        return !call.regions_.empty();
    }
    void forget() noexcept;  // the fabric, this link

    const net::Address address_;
    std::shared_ptr<Fabric> fabric_;
    net::Peer peer_ = FI_ADDR_UNSPEC;
    std::uint64_t hello_ = 0;
    std::unique_ptr<Knock> knock_;  // while the server is silent
};

}  // namespace cpp_store::client
