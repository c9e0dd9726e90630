// Data directories of which somebody, or a disk, has changed some bytes: a store opens them or
// refuses them, reads models or says what is wrong; and so it is after they were repaired.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "cpp_store/check.hpp"
#include "cpp_store/error.hpp"
#include "cpp_store/store.hpp"

namespace {

using namespace cpp_store;
namespace fs = std::filesystem;

struct File {
    fs::path name;
    std::string bytes;
};

// In memory where that can be had: tens of files an input.
const fs::path& scratch() {
    static const struct Scratch {
        Scratch() {
            const fs::path memory = "/dev/shm";
            const fs::path base = fs::exists(memory) ? memory : fs::temp_directory_path();
            std::string name = (base / "cpp_store_fuzz_XXXXXX").string();
            if (!::mkdtemp(name.data())) std::abort();
            path = name;
        }
        ~Scratch() { fs::remove_all(path); }
        fs::path path;
    } made;
    return made.path;
}

[[noreturn]] void fail(const std::string& why) {
    std::fputs((why + "\n").c_str(), stderr);
    std::abort();
}

Store::Options options(const fs::path& directory) {
    Store::Options made;
    made.memory = {.limit = 8 << 20, .region_size = 1 << 20, .ahead = 0};
    made.data_dir = directory;
    made.durability = Durability::sync;
    made.warn = [](std::string_view) {};
    return made;
}

void put(Store& store, const std::string& id, const std::string& parent, std::uint64_t size) {
    PutRequest request;
    request.model = id;
    request.table = std::make_shared<const LayerTable>(
        std::vector<LayerTable::Layer>{{"a", {}, 0}, {"b of " + id, {0}, 0}});
    if (parent.empty()) {
        request.own.push_back({0, {{DType::uint8, {size}}}});
    } else {
        request.inherited.push_back({0, parent});
    }
    request.own.push_back({1, {{DType::float32, {size / 4}}, {DType::uint8, {}}}});
    request.created_ns = 5;
    request.metadata = "{\"x\": 1}";
    PendingPut pending = store.prepare(std::move(request));
    for (std::size_t i = 0; i < pending.buffers().size(); ++i) {
        std::ranges::fill(pending.buffers()[i], static_cast<std::byte>(i + 1));
    }
    (void)store.commit(std::move(pending));
}

// What the catalogue of an open store, which dies, has in its log only.
std::string log_of(const fs::path& directory) {
    Store store(options(directory));
    put(store, "late", "ancestor", 200);
    store.retire("late", Note{"late", 7, true, 10});
    std::ifstream in(directory / "catalogue.sqlite-wal", std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
}

// A segment, small puts, a retired ancestor, another server's heir, a note of a retirement, a log.
std::vector<File> make_files() {
    const fs::path directory = scratch() / "template";
    {
        Store store(options(directory));
        put(store, "ancestor", "", 300'000);
        put(store, "heir", "ancestor", 400);
        put(store, "small", "", 40);
        const LayerKey key = store.table("small")->key(0);
        store.acquire("small", {&key, 1}, "of another server@7");
        store.retire("ancestor", Note{"ancestor", 6, true, 9});
    }
    std::vector<File> files;
    for (const auto& entry : fs::recursive_directory_iterator(directory)) {
        if (!entry.is_regular_file()) continue;
        std::ifstream in(entry.path(), std::ios::binary);
        files.push_back({fs::relative(entry.path(), directory),
                         std::string(std::istreambuf_iterator<char>(in), {})});
    }
    std::ranges::sort(files, {}, &File::name);
    files.push_back({"catalogue.sqlite-wal", log_of(directory)});
    return files;
}

// Why it is refused; empty: it is not.
std::string look_through(const fs::path& directory) {
    try {
        Store store(options(directory));
        for (const std::string& id : store.list()) {
            try {
                (void)store.lookup(id);
                (void)store.read(id, {});
            } catch (const Error& error) {
                if (error.code() == Errc::internal) fail(error.what());
            }
        }
        (void)store.verify();
        try {
            put(store, "more", "", 50);
            store.retire("small");
        } catch (const Error& error) {
            if (error.code() == Errc::internal) fail(error.what());
        }
        store.close();
    } catch (const Error& error) {
        if (error.code() != Errc::storage && error.code() != Errc::invalid_argument) {
            fail(error.what());
        }
        return error.what();
    }
    return "";
}

}  // namespace

// Changes, each: the file (1 byte; 128 or more: ends there), where (3 bytes), the byte to be there.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    static const std::vector<File> original = make_files();
    std::vector<File> files = original;
    for (; size >= 5; data += 5, size -= 5) {
        std::string& bytes = files[data[0] % files.size()].bytes;
        if (bytes.empty()) continue;
        std::uint32_t place = 0;
        std::memcpy(&place, data + 1, 3);
        const std::size_t at = place % bytes.size();
        if (data[0] >= 128) {
            bytes.resize(at);
        } else {
            bytes[at] = static_cast<char>(data[4]);
        }
    }
    const fs::path directory = scratch() / "changed";
    fs::remove_all(directory);
    for (const File& file : files) {
        fs::create_directories((directory / file.name).parent_path());
        std::ofstream(directory / file.name, std::ios::binary) << file.bytes;
    }
    (void)look_through(directory);
    try {
        (void)check_directory(directory, true);
        if (!check_directory(directory, true).damage.empty()) return 0;
    } catch (const Error& error) {
        if (error.code() != Errc::storage && error.code() != Errc::invalid_argument) {
            fail(error.what());
        }
        return 0;
    }
    // Whole again, it says.
    if (const std::string refused = look_through(directory); !refused.empty()) fail(refused);
    return 0;
}
