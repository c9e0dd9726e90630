#include "local/names.hpp"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <netdb.h>
#include <netinet/in.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>

#include "cpp_store/types.hpp"
#include "net/wire.hpp"

namespace cpp_store::local {
namespace {

constexpr std::string_view any_host = "*";  // of a server that listens at all addresses

// Short enough for a socket, however long a provider's address is.
std::string socket_name(const net::Address& address, std::string_view place) {
    static constexpr std::string_view digits = "0123456789abcdef";
    const LayerKey hash = layer_key(address.provider + " " + std::string(place));
    // Of this version of the wire format: others would not understand each other.
    std::string name = "cpp_store/" + std::to_string(wire::version) + "/";
    for (const std::uint64_t half : {hash.high, hash.low}) {
        for (int shift = 60; shift >= 0; shift -= 4) name += digits[(half >> shift) & 15];
    }
    return name;
}

std::string ip_name(const net::Address& address, std::string_view ip) {
    return socket_name(address, std::string(ip) + " " + std::to_string(address.port));
}

// The number of an IP address as text; empty for other families. IPv4 as IPv6 says it is IPv4.
std::string ip_of(const sockaddr* address) {
    std::array<char, INET6_ADDRSTRLEN> text{};
    if (address->sa_family == AF_INET) {
        sockaddr_in in{};
        std::memcpy(&in, address, sizeof in);
        inet_ntop(AF_INET, &in.sin_addr, text.data(), text.size());
    } else if (address->sa_family == AF_INET6) {
        sockaddr_in6 in{};
        std::memcpy(&in, address, sizeof in);
        if (IN6_IS_ADDR_V4MAPPED(&in.sin6_addr)) {
            inet_ntop(AF_INET, &in.sin6_addr.s6_addr[12], text.data(), text.size());
        } else {
            inet_ntop(AF_INET6, &in.sin6_addr, text.data(), text.size());
        }
    }
    return text.data();
}

bool is_ours(const std::string& ip) {
    if (ip.starts_with("127.") || ip == "::1") return true;
    ifaddrs* found = nullptr;
    if (getifaddrs(&found) != 0) return false;
    const std::unique_ptr<ifaddrs, decltype(&freeifaddrs)> all(found, &freeifaddrs);
    for (const ifaddrs* one = found; one != nullptr; one = one->ifa_next) {
        if (one->ifa_addr && ip_of(one->ifa_addr) == ip) return true;
    }
    return false;
}

}  // namespace

std::string server_name(const net::Address& address, std::span<const std::byte> raw) {
    if (!address.raw.empty()) return socket_name(address, address.raw);
    sockaddr_storage bound{};
    if (raw.empty() || raw.size() > sizeof bound) return {};
    std::memcpy(&bound, raw.data(), raw.size());
    const std::string ip = ip_of(reinterpret_cast<const sockaddr*>(&bound));
    if (ip.empty()) return {};
    return ip_name(address, ip == "0.0.0.0" || ip == "::" ? any_host : ip);
}

std::vector<std::string> client_names(const net::Address& address) {
    if (!address.raw.empty()) return {socket_name(address, address.raw)};
    addrinfo hints{};
    hints.ai_socktype = SOCK_STREAM;
    addrinfo* found = nullptr;
    if (getaddrinfo(address.host.c_str(), nullptr, &hints, &found) != 0) return {};
    const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> all(found, &freeaddrinfo);
    std::vector<std::string> names;
    for (const addrinfo* one = found; one != nullptr; one = one->ai_next) {
        const std::string ip = ip_of(one->ai_addr);
        if (!ip.empty() && is_ours(ip)) names.push_back(ip_name(address, ip));
    }
    if (!names.empty()) names.push_back(ip_name(address, any_host));
    return names;
}

}  // namespace cpp_store::local
