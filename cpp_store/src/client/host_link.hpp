// A link to a server of this host, which shares its memory with us.
#pragma once

#include "client/link.hpp"

namespace cpp_store::client {

// All threads of a client share it. Views hold it, so it lasts until the last of them is gone,
// whatever becomes of the calls: the server keeps what they see as long as the socket is open.
class HostLink final : public Link {
  public:
    // Null if the address's server is not on this host.
    [[nodiscard]] static std::shared_ptr<HostLink> open(const LinkOptions& options,
                                                        const net::Address& address);

    [[nodiscard]] std::string transport() const override { return "shm"; }
    [[nodiscard]] bool is_on_host() const noexcept override { return true; }

  private:
    struct Mapping;
    struct Pin;

    HostLink(const LinkOptions& options, local::Socket socket)
        : Link(options), socket_(std::move(socket)), buffer_(local::Socket::max_message) {}

    [[nodiscard]] std::mutex& mutex() noexcept override { return mutex_; }
    [[nodiscard]] security::Way way() const noexcept override { return security::Way::one_host; }
    [[nodiscard]] std::vector<std::byte> name() const override { return {}; }
    void send_message(std::span<const std::byte> head, std::span<const std::byte> part,
                      security::Seal* seal) override;
    [[nodiscard]] std::size_t most_part() const override { return local::Socket::max_part; }
    std::size_t progress() override;
    [[nodiscard]] Nap before_sleep() override;
    void prepare(PendingCall& call, std::span<const Exposure> exposures,
                 std::vector<wire::Remote>& remotes) override;
    [[nodiscard]] local::SharedLayer decode_layer(const PendingCall& call,
                                                  wire::Reader& in) override;
    void hear_else(const wire::Frame& frame, std::span<const std::byte> part,
                   local::Descriptor passed) override;
    void close(bool /*moving*/) noexcept override {}
    [[nodiscard]] bool must_confirm(const PendingCall& /*call*/) const noexcept override {
        return false;  // nobody else touches its memory
    }

    void unpin(local::Unpin pin, std::uint64_t bytes) noexcept;
    void tell_unpinned();  // with the mutex of what is unpinned held

    std::mutex mutex_;  // as Link says, and guards the next four
    local::Socket socket_;
    std::vector<std::byte> buffer_;
    std::unordered_map<std::uint32_t, std::shared_ptr<Mapping>> regions_;
    std::map<std::uint32_t, std::shared_ptr<local::Staging>> stages_;

    std::mutex unpinned_mutex_;           // guards these; taken last
    std::vector<local::Unpin> unpinned_;  // that the server does not know of yet
    std::uint64_t unpinned_bytes_ = 0;
};

}  // namespace cpp_store::client
