#include "client/connection.hpp"

#include "client/host_link.hpp"
#include "client/net_link.hpp"

namespace cpp_store::client {

Connection::Connection(Options options)
    : options_(std::move(options)), parsed_(net::Address::parse(options_.address)) {
    if (parsed_.raw.empty() && parsed_.port == 0) {
        throw Error(Errc::invalid_argument,
                    options_.address +
                        ": port 0 is for servers; give the port that the server "
                        "printed");
    }
}

Connection::~Connection() {
    if (link_) link_->leave();
}

PendingCallPtr Connection::call(wire::Operation operation, const Encode& encode) {
    PendingCallPtr call = start(operation, encode);
    wait({&call, 1});
    return call;
}

LinkPtr Connection::link() {
    const std::scoped_lock lock(mutex_);
    if (link_ && !link_->is_on_host() && link_->birthplace().is_elsewhere()) {
        throw Error(Errc::invalid_argument, options_.address +
                                                ": the connection belongs to process " +
                                                std::to_string(link_->birthplace().process()) +
                                                ", of which this is a fork; connect again here");
    }
    if (link_ && !link_->is_broken() && !link_->birthplace().is_elsewhere()) return link_;
    link_.reset();
    if (options_.same_host) link_ = HostLink::open(options_, parsed_);
    if (!link_) link_ = NetLink::open(options_, parsed_);
    return link_;
}

}  // namespace cpp_store::client
