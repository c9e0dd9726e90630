#include "cpp_store/server.hpp"

#include "server/engine.hpp"

namespace cpp_store {

struct Server::Impl {
    server::Engine engine;
};

Server::Server(std::shared_ptr<Store> store, Options options)
    : impl_(new Impl{{std::move(store), std::move(options)}}) {}
Server::~Server() {
    // A fork has none of the threads, and nothing to end.
    if (impl_->engine.birthplace.is_elsewhere()) static_cast<void>(impl_.release());
}

const std::string& Server::address() const noexcept {
    return impl_->engine.address;
}
const std::shared_ptr<Store>& Server::store() const noexcept {
    return impl_->engine.store_;
}
int Server::shutdown_fd() const noexcept {
    return impl_->engine.shutdown_wanted.fd();
}
void Server::stop() {
    impl_->engine.stop();
}

}  // namespace cpp_store
