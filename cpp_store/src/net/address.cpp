#include "net/address.hpp"

#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <memory>

#include "cpp_store/error.hpp"

namespace cpp_store::net {
namespace {

constexpr std::string_view scheme = "ofi+";
constexpr std::string_view raw_prefix = "raw-";
constexpr std::string_view hex_digits = "0123456789abcdef";

[[noreturn]] void malformed(std::string_view text, const std::string& why) {
    throw Error(Errc::invalid_argument, "malformed address '" + std::string(text) + "': " + why +
                                            "; expected ofi+<provider>://<host>:<port>, such as "
                                            "ofi+tcp://127.0.0.1:4711");
}

std::string from_hex(std::string_view text, std::string_view hex) {
    std::string bytes;
    if (hex.empty() || hex.size() % 2 != 0 ||
        hex.find_first_not_of(hex_digits) != std::string_view::npos) {
        malformed(text, "raw address is not hexadecimal");
    }
    for (std::size_t i = 0; i < hex.size(); i += 2) {
        bytes.push_back(
            static_cast<char>(hex_digits.find(hex[i]) * 16 + hex_digits.find(hex[i + 1])));
    }
    return bytes;
}

std::uint16_t parse_port(std::string_view text, std::string_view digits) {
    std::uint16_t port = 0;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), port);
    if (digits.empty() || error != std::errc{} || end != digits.data() + digits.size()) {
        malformed(text, "'" + std::string(digits) + "' is no port (0 to 65535)");
    }
    return port;
}

bool is_loopback(const sockaddr* address) {
    if (address->sa_family == AF_INET) {
        sockaddr_in in{};
        std::memcpy(&in, address, sizeof in);
        return ntohl(in.sin_addr.s_addr) >> 24 == 127;
    }
    if (address->sa_family != AF_INET6) return false;
    sockaddr_in6 in{};
    std::memcpy(&in, address, sizeof in);
    return IN6_IS_ADDR_LOOPBACK(&in.sin6_addr) ||
           (IN6_IS_ADDR_V4MAPPED(&in.sin6_addr) && in.sin6_addr.s6_addr[12] == 127);
}

}  // namespace

Address Address::parse(std::string_view text) {
    Address address;
    if (!text.starts_with(scheme)) malformed(text, "it does not start with 'ofi+'");
    const std::size_t separator = text.find("://");
    if (separator == std::string_view::npos) malformed(text, "no '://'");
    address.provider = text.substr(scheme.size(), separator - scheme.size());
    const bool plain = std::all_of(address.provider.begin(), address.provider.end(), [](char c) {
        return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_' || c == ';' || c == '-';
    });
    if (address.provider.empty() || !plain) malformed(text, "no provider between 'ofi+' and '://'");

    std::string_view rest = text.substr(separator + 3);
    if (rest.starts_with(raw_prefix)) {
        address.raw = from_hex(text, rest.substr(raw_prefix.size()));
        return address;
    }
    if (rest.empty()) {
        if (address.provider == "shm" || address.provider == "cxi") return address;
        malformed(text, "no host");
    }
    std::string_view port;
    if (rest.starts_with('[')) {
        const std::size_t end = rest.find("]:");
        if (end == std::string_view::npos) malformed(text, "no ']:' after '['");
        address.host = rest.substr(1, end - 1);
        port = rest.substr(end + 2);
    } else {
        const std::size_t colon = rest.rfind(':');
        if (colon == std::string_view::npos) malformed(text, "no port");
        address.host = rest.substr(0, colon);
        port = rest.substr(colon + 1);
        if (address.host.find(':') != std::string::npos) {
            malformed(text, "an IPv6 address needs brackets");
        }
    }
    if (address.host.empty() || address.host.find_first_of(" /?#@\t\n") != std::string::npos) {
        malformed(text, "'" + address.host + "' is no host");
    }
    address.port = parse_port(text, port);
    return address;
}

std::string Address::text() const {
    std::string text = std::string(scheme) + provider + "://";
    if (!raw.empty()) {
        text += raw_prefix;
        for (const char c : raw) {
            text += hex_digits[static_cast<unsigned char>(c) >> 4];
            text += hex_digits[static_cast<unsigned char>(c) & 15];
        }
        return text;
    }
    if (host.empty()) return text;
    const bool brackets = host.find(':') != std::string::npos;
    return text + (brackets ? "[" + host + "]" : host) + ":" + std::to_string(port);
}

bool Address::is_of_this_host_only() const {
    if (provider == "shm") return true;
    if (host.empty()) return false;
    addrinfo hints{};
    hints.ai_socktype = SOCK_STREAM;
    addrinfo* found = nullptr;
    if (getaddrinfo(host.c_str(), nullptr, &hints, &found) != 0) return false;
    const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> all(found, &freeaddrinfo);
    for (const addrinfo* one = found; one != nullptr; one = one->ai_next) {
        if (!is_loopback(one->ai_addr)) return false;
    }
    return true;
}

}  // namespace cpp_store::net
