// Connections to servers on this host, which share their memory with us.
#include <algorithm>

#include "client/connection.hpp"

namespace cpp_store::client {

void PendingCall::wait_for_local() {
    if (!local_ || answered_) return;
    answered_ = true;
    try {
        code_ = local_->wait(body_);
    } catch (const Error& error) {
        wire::Writer out;
        out.string(connection_->address() + ": " + error.what());
        code_ = static_cast<std::uint16_t>(error.code());
        body_ = out.take();
    }
}

local::SharedLayer PendingCall::decode_layer(wire::Reader& in) const {
    if (local_) return local_->decode_layer(in);
    return {wire::decode_layer(in), nullptr};
}

std::shared_ptr<local::Link> Connection::open_local() const {
    if (!options_.same_host) return nullptr;
    try {
        return local::Link::open({.address = parsed_,
                                  .request = request(security::Way::one_host),
                                  .patience = std::min(options_.timeout, connect_patience),
                                  .check_signals = options_.check_signals});
    } catch (const Error& error) {
        if (error.code() == Errc::invalid_argument || error.code() == Errc::permission) {
            throw;  // it says whose fault it is
        }
        throw Error(error.code(), options_.address + ": " + error.what());
    }
}

std::shared_ptr<local::Link> Connection::local_link() {
    const std::scoped_lock lock(mutex_);
    connect_locked();
    return local_;
}

PendingCallPtr Connection::start_local(std::shared_ptr<local::Link> link, wire::Operation operation,
                                       const Encode& encode, std::span<const Exposure> exposures) {
    wire::Writer body;
    encode(body, std::vector<wire::Remote>(exposures.size()));
    check_size(operation, body.data());
    std::vector<std::span<const std::byte>> tensors;
    tensors.reserve(exposures.size());
    for (const Exposure& exposure : exposures) tensors.push_back(exposure.memory);
    PendingCallPtr call(new PendingCall(shared_from_this()));
    call->done_ = true;  // there is nothing to abandon at the endpoint
    try {
        call->local_ = link->start(operation, body.data(), std::move(tensors),
                                   Clock::now() + time_for(exposures));
    } catch (const Error& error) {
        throw Error(error.code(), options_.address + ": " + error.what());
    }
    return call;
}

std::string Connection::transport() {
    const std::scoped_lock lock(mutex_);
    connect_locked();
    return local_ ? "shm" : endpoint_->provider();
}

}  // namespace cpp_store::client
