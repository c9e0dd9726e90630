// cpp-store-server: a store for other processes, until it is told to stop.
#include <fcntl.h>
#include <malloc.h>
#include <poll.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <string>
#include <system_error>

#include "cpp_store/keys.hpp"
#include "cpp_store/server.hpp"

namespace {

using cpp_store::LogLevel;

struct Settings {
    std::string address = "ofi+tcp://127.0.0.1:0";
    unsigned threads = 2;
    std::uint64_t memory = std::uint64_t{4} << 30;
    bool json = false;
    std::string key_file;
    bool insecure = false;
    bool encrypt = false;
    cpp_store::ServerLimits limits;
    std::string data_dir;
    cpp_store::Durability durability = cpp_store::Durability::lazy;
    double lag = 1;  // seconds
    LogLevel log_level = LogLevel::info;
};

// Returns an exit code, or -1 to go on.
int parse(int argc, char** argv, Settings& settings) {
    CLI::App app("Keeps models and serves them to clients that have its address in MODEL_SERVERS.",
                 "cpp-store-server");
    app.add_option("address,--listen", settings.address,
                   "Where to listen: ofi+<provider>://<host>:<port>, port 0 for a free one")
        ->capture_default_str();
    app.add_option("--threads", settings.threads, "Threads that do what requests ask for")
        ->check(CLI::Range(1, 1024))
        ->capture_default_str();
    app.add_option("--memory", settings.memory, "Limit for tensors, such as 512MiB or 4GiB")
        ->transform(CLI::AsSizeValue(false))
        ->default_str("4GiB");
    app.add_option("--key_file", settings.key_file,
                   "File with the key that clients must know (cpp-store keygen FILE makes one); "
                   "default: CPP_STORE_KEY, or the file that CPP_STORE_KEY_FILE names, or at an "
                   "address that only this host reaches the user's own key, which is made and "
                   "found without a word")
        ->excludes(app.add_flag(
            "--insecure", settings.insecure,
            "Serve without a key: whoever reaches the address, every user of this host among "
            "them, may read, put and retire models and end the server"));
    app.add_flag("--encrypt", settings.encrypt,
                 "Encrypt all that goes over a network; takes a key");
    app.add_option("--max_clients", settings.limits.clients, "Connections at a time")
        ->check(CLI::PositiveNumber)
        ->capture_default_str();
    app.add_option("--max_clients_of_host", settings.limits.clients_of_host,
                   "Connections at a time from one address")
        ->check(CLI::PositiveNumber)
        ->capture_default_str();
    app.add_option("--max_bytes_in_flight", settings.limits.bytes_in_flight,
                   "Bytes of one client on their way; its other calls wait meanwhile")
        ->transform(CLI::AsSizeValue(false))
        ->default_str("1GiB");
    app.add_option("--max_requests_per_second", settings.limits.requests_per_second,
                   "Of one client; what is more is refused. 0: any number")
        ->check(CLI::NonNegativeNumber)
        ->capture_default_str();
    app.add_option("--data_dir", settings.data_dir,
                   "Directory where models are kept; without it they end with the server");
    app.add_option("--durability", settings.durability,
                   "When puts are acknowledged: lazy, when they are in memory (a second later they "
                   "are on disk); sync, when they are on disk")
        ->transform(CLI::CheckedTransformer(std::map<std::string, cpp_store::Durability>{
                                                {"lazy", cpp_store::Durability::lazy},
                                                {"sync", cpp_store::Durability::sync}})
                        .description("lazy or sync"))
        ->type_name("WHEN:")
        ->default_str("lazy");
    app.add_option("--lag", settings.lag,
                   "Of lazy durability: seconds until what was acknowledged is on disk")
        ->check(CLI::Range(0.001, 3600.0))
        ->capture_default_str();
    app.add_flag("--json", settings.json, "Print the address as one line of JSON");
    app.add_option("--log-level", settings.log_level, "What to write to standard error")
        ->transform(
            CLI::CheckedTransformer(std::map<std::string, LogLevel>{{"error", LogLevel::error},
                                                                    {"warning", LogLevel::warning},
                                                                    {"info", LogLevel::info},
                                                                    {"debug", LogLevel::debug}})
                .description("error, warning, info or debug"))
        ->type_name("LEVEL:")
        ->default_str("info");
#ifdef CPP_STORE_FAILPOINTS
    app.set_version_flag("--version", "cpp-store-server " CPP_STORE_VERSION " with failpoints");
#else
    app.set_version_flag("--version", "cpp-store-server " CPP_STORE_VERSION);
#endif
    try {
        app.parse(argc, argv);
    } catch (const CLI::CallForHelp&) {
        std::fputs(app.help().c_str(), stdout);
        return 0;
    } catch (const CLI::CallForVersion& asked) {
        std::puts(asked.what());
        return 0;
    } catch (const CLI::ParseError& error) {
        std::fprintf(stderr, "cpp-store-server: %s\n", error.what());
        return 2;
    }
    if (settings.memory == 0) {
        std::fputs("cpp-store-server: --memory: 0 bytes hold no model\n", stderr);
        return 2;
    }
    return -1;
}

// Each client over tcp takes a descriptor, and the limit that shells set is a thousand.
void allow_many_descriptors() {
    rlimit limit{};
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
}

// Or the next files to be opened become standard output and error, and get what is meant for them.
void keep_standard_streams() {
    int opened = 0;
    do {
        opened = open("/dev/null", O_RDWR);
    } while (opened >= 0 && opened <= STDERR_FILENO);
    if (opened >= 0) close(opened);
}

void flush_output() {
    if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return;
    throw std::system_error(errno, std::generic_category(), "cannot write to standard output");
}

void announce(const cpp_store::Server& server, const Settings& settings) {
    if (settings.json) {
        std::printf("{\"address\": \"%s\", \"memory\": %llu, \"threads\": %u, \"pid\": %d}\n",
                    server.address().c_str(), static_cast<unsigned long long>(settings.memory),
                    settings.threads, getpid());
    } else {
        std::printf("%s\n", server.address().c_str());
    }
    flush_output();  // whoever started it waits for the address
}

std::string where_kept(const cpp_store::Store& store, const Settings& settings) {
    if (settings.data_dir.empty()) {
        return "cpp-store-server: models are kept in memory only; --data_dir DIR keeps them on "
               "disk";
    }
    const bool is_sync = settings.durability == cpp_store::Durability::sync;
    return "cpp-store-server: models are kept in " + settings.data_dir + " (" +
           (is_sync ? "sync" : "lazy") + "); found " + std::to_string(store.stats().models);
}

int serve(const Settings& settings, int signals) {
    cpp_store::Store::Options store;
    store.memory.limit = settings.memory;
    store.data_dir = settings.data_dir;
    store.durability = settings.durability;
    store.lag = std::chrono::milliseconds(static_cast<std::int64_t>(settings.lag * 1e3));
    store.warn = [](std::string_view line) {
        std::fprintf(stderr, "cpp-store-server: %.*s\n", static_cast<int>(line.size()),
                     line.data());
    };
    cpp_store::Server::Options options;
    options.address = settings.address;
    options.threads = settings.threads;
    options.log_level = settings.log_level;
    if (!settings.insecure) {
        options.key = settings.key_file.empty()
                          ? cpp_store::security::default_server_key(settings.address)
                          : cpp_store::security::read_key_file(settings.key_file);
    }
    options.insecure = settings.insecure;
    options.encrypt = settings.encrypt;
    options.limits = settings.limits;
    const auto kept = std::make_shared<cpp_store::Store>(store);
    cpp_store::Server server(kept, std::move(options));
    if (settings.log_level >= LogLevel::info) {
        std::fprintf(stderr, "%s\n", where_kept(*kept, settings).c_str());
    }
    announce(server, settings);
    std::array<pollfd, 2> waiting{pollfd{signals, POLLIN, 0},
                                  pollfd{server.shutdown_fd(), POLLIN, 0}};
    // What malloc keeps of models that are gone goes back to the kernel, as their tensors do.
    constexpr int look_interval = 5'000;  // ms
    std::uint64_t most = 0;               // models since then
    while (poll(waiting.data(), waiting.size(), look_interval) <= 0) {
        const std::uint64_t models = server.store()->stats().models;
        most = std::max(most, models);
        if (most < 1'000 || most < 2 * models) continue;
        malloc_trim(0);
        most = models;
    }
    server.stop();
    kept->close();
    return 0;
}

}  // namespace

int main(int argc, char** argv) {
    keep_standard_streams();
    Settings settings;
    if (const int code = parse(argc, argv, settings); code >= 0) return code;

    // Before the first thread, so that all of them inherit it.
    sigset_t stop;
    sigemptyset(&stop);
    sigaddset(&stop, SIGTERM);
    sigaddset(&stop, SIGINT);
    sigprocmask(SIG_BLOCK, &stop, nullptr);
    allow_many_descriptors();
    signal(SIGPIPE, SIG_IGN);  // a client that goes is no reason to end
    const int signals = signalfd(-1, &stop, SFD_CLOEXEC);
    try {
        return serve(settings, signals);
    } catch (const cpp_store::Error& error) {
        std::fprintf(stderr, "cpp-store-server: %s\n", error.what());
        const bool is_theirs = error.code() == cpp_store::Errc::invalid_argument ||
                               error.code() == cpp_store::Errc::storage;
        return is_theirs ? 2 : 1;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "cpp-store-server: %s\n", error.what());
        return 1;
    }
}
