#include "server/lobby.hpp"

#include <netinet/in.h>
#include <sys/socket.h>

#include <cstring>
#include <utility>

namespace cpp_store::server {

std::string origin_of(std::span<const std::byte> address) {
    const auto part = [&](std::size_t offset, std::size_t size) {
        return std::string(reinterpret_cast<const char*>(address.data()) + offset, size);
    };
    sa_family_t family = AF_UNSPEC;
    if (address.size() >= sizeof family) std::memcpy(&family, address.data(), sizeof family);
    if (family == AF_INET && address.size() >= sizeof(sockaddr_in)) {
        return part(offsetof(sockaddr_in, sin_addr), sizeof(in_addr));
    }
    if (family == AF_INET6 && address.size() >= sizeof(sockaddr_in6)) {
        return part(offsetof(sockaddr_in6, sin6_addr), sizeof(in6_addr));
    }
    return part(0, address.size());
}

std::optional<Lobby::Guest> Lobby::admit(const std::string& origin, Clock::time_point now) {
    if (const auto tried = wrong_keys_.find(origin);
        tried != wrong_keys_.end() && tried->second.is_exhausted(now)) {
        throw Error(Errc::busy, "too many wrong keys came from there; try again in a second");
    }
    const auto count = counts_.find(origin);
    const bool is_crowd = count != counts_.end() && count->second >= most_of_an_origin;
    if (!is_crowd && guests_.size() < most) return std::nullopt;
    const Guest* first = nullptr;
    for (const auto& [id, guest] : guests_) {
        if (is_crowd && guest.origin != origin) continue;
        if (!first || guest.since < first->since) first = &guest;
    }
    if (now - first->since < least_stay) {
        throw Error(Errc::busy, "too many clients connect at once; try again in a second");
    }
    return leave(first->session->id);
}

void Lobby::enter(Guest guest) {
    ++counts_[guest.origin];
    const std::uint64_t id = guest.session->id;
    guests_.emplace(id, std::move(guest));
}

Lobby::Guest Lobby::leave(std::uint64_t session) {
    const auto found = guests_.find(session);
    Guest guest = std::move(found->second);
    guests_.erase(found);
    if (--counts_[guest.origin] == 0) counts_.erase(guest.origin);
    return guest;
}

void Lobby::note_wrong_key(const std::string& origin, Clock::time_point now) {
    auto [tried, is_new] = wrong_keys_.try_emplace(origin, wrong_keys_a_second, wrong_keys_at_once);
    (void)tried->second.take(now);
}

std::vector<Lobby::Guest> Lobby::expire(Clock::time_point now) {
    std::erase_if(wrong_keys_, [now](const auto& tried) { return tried.second.is_full(now); });
    std::vector<std::uint64_t> over;
    for (const auto& [id, guest] : guests_) {
        if (now - guest.since >= patience_) over.push_back(id);
    }
    std::vector<Guest> expired;
    for (const std::uint64_t id : over) expired.push_back(leave(id));
    return expired;
}

}  // namespace cpp_store::server
