#include "security/key.hpp"

#include <fcntl.h>
#include <sodium.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "cpp_store/error.hpp"
#include "cpp_store/keys.hpp"
#include "net/address.hpp"
#include "security/sodium.hpp"

namespace cpp_store::security {
namespace {

constexpr std::string_view label = "cpp_store shared key";
constexpr std::size_t longest = 4096;
// Fewer characters can be guessed by whoever has recorded a handshake with a false server.
constexpr std::size_t shortest = 16;
constexpr const char* advice = "; make one with: cpp-store keygen FILE";

[[noreturn]] void refuse(const std::string& path, const std::string& why) {
    throw Error(Errc::invalid_argument, "key file " + path + ": " + why);
}

class File {
  public:
    explicit File(int fd) : fd_(fd) {}
    ~File() {
        if (fd_ >= 0) ::close(fd_);
    }
    File(const File&) = delete;
    File& operator=(const File&) = delete;
    [[nodiscard]] int fd() const noexcept { return fd_; }

  private:
    int fd_;
};

std::string octal(mode_t mode) {
    std::string digits = "0";
    for (const int shift : {6, 3, 0}) digits += static_cast<char>('0' + ((mode >> shift) & 7));
    return digits;
}

void check_owner(const std::string& path, int fd) {
    struct stat found {};
    if (::fstat(fd, &found) != 0) refuse(path, std::strerror(errno));
    if (!S_ISREG(found.st_mode)) refuse(path, "it is no regular file");
    if (found.st_uid != ::geteuid()) {
        refuse(path, "it belongs to user " + std::to_string(found.st_uid) + ", not to user " +
                         std::to_string(::geteuid()) + ", who uses it");
    }
    if ((found.st_mode & 077) != 0) {
        refuse(path, "others may use it (mode " + octal(found.st_mode) +
                         "); it must be the owner's alone: chmod 600 " + path);
    }
}

void check_length(const std::string& what, const std::string& key) {
    if (key.size() >= shortest) return;
    throw Error(Errc::invalid_argument, what + ": a key of " + std::to_string(key.size()) +
                                            " characters can be guessed, at least " +
                                            std::to_string(shortest) + " are wanted" + advice);
}

// A directory that nobody else can put files into. Returns false if there is none.
bool is_there_and_own(const std::string& directory) {
    const File file(::open(directory.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_DIRECTORY));
    if (file.fd() < 0 && errno == ENOENT) return false;
    struct stat found {};
    const bool is_own = file.fd() >= 0 && ::fstat(file.fd(), &found) == 0 &&
                        found.st_uid == ::geteuid() && (found.st_mode & 077) == 0;
    if (is_own) return true;
    throw Error(Errc::invalid_argument,
                directory +
                    ": the user's key would be in there, and it is no directory that is this "
                    "user's alone (mode 0700, no link); remove it, or name a key file: --key_file "
                    "FILE or CPP_STORE_KEY_FILE");
}

std::string directory_of_user() {
    const char* const runtime = std::getenv("XDG_RUNTIME_DIR");
    struct stat found {};
    if (runtime != nullptr && *runtime == '/' && ::stat(runtime, &found) == 0 &&
        S_ISDIR(found.st_mode) && found.st_uid == ::geteuid() && (found.st_mode & 022) == 0) {
        return std::string(runtime) + "/cpp_store";
    }
    return "/tmp/cpp_store-" + std::to_string(::geteuid());
}

// Servers may start at once: each makes a key beside, and the first link() decides.
void make_key_of_user(const std::string& directory) {
    if (::mkdir(directory.c_str(), 0700) != 0 && errno != EEXIST) {
        throw Error(Errc::invalid_argument,
                    directory + ": " + std::strerror(errno) + "; name a key file: --key_file FILE");
    }
    if (!is_there_and_own(directory)) refuse(directory + "/key", std::strerror(ENOENT));
    const std::string path = directory + "/key";
    if (::access(path.c_str(), F_OK) == 0) return;
    std::array<unsigned char, 8> chosen{};
    start_sodium();
    randombytes_buf(chosen.data(), chosen.size());
    std::array<char, 2 * chosen.size() + 1> name{};
    sodium_bin2hex(name.data(), name.size(), chosen.data(), chosen.size());
    const std::string beside = path + "." + name.data();
    make_key_file(beside);
    const int error = ::link(beside.c_str(), path.c_str()) == 0 ? 0 : errno;
    ::unlink(beside.c_str());
    if (error != 0 && error != EEXIST) refuse(path, std::strerror(error));
}

bool is_of_this_host_only(const std::string& address) {
    return net::Address::parse(address).is_of_this_host_only();
}

}  // namespace

void start_sodium() {
    if (sodium_init() < 0) throw Error(Errc::internal, "libsodium cannot be used here");
}

Secret::~Secret() {
    sodium_memzero(bytes_.data(), bytes_.size());
}

void wipe(std::string& text) noexcept {
    sodium_memzero(text.data(), text.size());
    text.clear();
}

Secret secret_of(std::string_view key) {
    start_sodium();
    Secret secret;
    const auto* text = reinterpret_cast<const unsigned char*>(key.data());
    const auto* name = reinterpret_cast<const unsigned char*>(label.data());
    crypto_generichash(secret.data(), Secret::size, text, key.size(), name, label.size());
    return secret;
}

std::string read_key_file(const std::string& path) {
    // Without blocking: what is no regular file might be a pipe.
    const File file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
    if (file.fd() < 0) {
        if (errno == ELOOP) refuse(path, "it is a symbolic link; give the file itself");
        refuse(path, std::strerror(errno) + std::string(errno == ENOENT ? advice : ""));
    }
    check_owner(path, file.fd());
    std::string key(longest + 1, '\0');
    std::size_t length = 0;
    while (length < key.size()) {
        const ssize_t count = ::read(file.fd(), key.data() + length, key.size() - length);
        if (count < 0 && errno == EINTR) continue;
        if (count < 0) refuse(path, std::strerror(errno));
        if (count == 0) break;
        length += static_cast<std::size_t>(count);
    }
    sodium_memzero(key.data() + length, key.size() - length);
    key.resize(length);
    while (!key.empty() && std::isspace(static_cast<unsigned char>(key.back()))) key.pop_back();
    const bool is_line = std::none_of(
        key.begin(), key.end(), [](unsigned char byte) { return byte < 0x20 || byte == 0x7f; });
    if (length > longest || !is_line) {
        wipe(key);
        refuse(path, std::string("it is not one line of text") + advice);
    }
    check_length("key file " + path, key);
    return key;
}

void make_key_file(const std::string& path) {
    start_sodium();
    const File file(
        ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600));
    if (file.fd() < 0) {
        refuse(path,
               errno == EEXIST ? "it exists; a key is not overwritten" : std::strerror(errno));
    }
    Secret secret;
    randombytes_buf(secret.data(), Secret::size);
    std::array<char, 2 * Secret::size + 1> line{};
    sodium_bin2hex(line.data(), line.size(), secret.data(), Secret::size);
    line.back() = '\n';
    // The umask takes rights away, which would be odd here, and gives none.
    const bool done =
        ::fchmod(file.fd(), 0600) == 0 &&
        ::write(file.fd(), line.data(), line.size()) == static_cast<ssize_t>(line.size()) &&
        ::fsync(file.fd()) == 0;
    const int error = errno;
    sodium_memzero(line.data(), line.size());
    if (!done) {
        ::unlink(path.c_str());
        refuse(path, std::strerror(error));
    }
}

std::string key_of_environment() {
    if (const char* key = std::getenv("CPP_STORE_KEY"); key != nullptr && *key != '\0') {
        std::string text(key);
        check_length("CPP_STORE_KEY", text);
        return text;
    }
    const char* const file = std::getenv("CPP_STORE_KEY_FILE");
    return file != nullptr && *file != '\0' ? read_key_file(file) : std::string();
}

std::string default_server_key(const std::string& address) {
    std::string key = key_of_environment();
    if (!key.empty() || !is_of_this_host_only(address)) return key;
    const std::string directory = directory_of_user();
    make_key_of_user(directory);
    return read_key_file(directory + "/key");
}

std::string default_client_key(const std::vector<std::string>& addresses) {
    std::string key = key_of_environment();
    if (!key.empty() || !std::all_of(addresses.begin(), addresses.end(), is_of_this_host_only)) {
        return key;
    }
    const std::string directory = directory_of_user();
    const std::string path = directory + "/key";
    if (!is_there_and_own(directory) || ::access(path.c_str(), F_OK) != 0) return {};
    return read_key_file(path);
}

}  // namespace cpp_store::security
