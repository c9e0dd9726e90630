// Stores with a data directory for tests, and models for them.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include "cpp_store/store.hpp"
#include "models.hpp"

namespace cpp_store {

constexpr std::uint64_t MiB = std::uint64_t{1} << 20;

// What a layer's one tensor of `size` bytes is filled with.
inline Bytes pattern(std::uint64_t size, std::string_view model, std::string_view layer) {
    return pattern(size,
                   std::hash<std::string_view>{}(model)*31 + std::hash<std::string_view>{}(layer));
}

inline PutRequest request_of(const std::string& model, const std::vector<std::string>& names,
                             std::uint64_t size, std::uint32_t inherited = 0,
                             const std::string& owner = "") {
    PutRequest request;
    request.model = model;
    request.table = chain(names);
    for (std::uint32_t i = 0; i < names.size(); ++i) {
        if (i < inherited) {
            request.inherited.push_back({i, owner});
        } else {
            request.own.push_back({i, {{DType::uint8, {size}}}});
        }
    }
    return request;
}

inline PendingPut filled(Store& store, PutRequest request) {
    const std::string model = request.model;
    const LayerTablePtr table = request.table;
    const std::vector<Own> own = request.own;
    PendingPut pending = store.prepare(std::move(request));
    for (std::size_t i = 0; i < own.size(); ++i) {
        const Bytes bytes = pattern(pending.buffers()[i].size(), model, table->name(own[i].layer));
        pending.fill(i, bytes.data());
    }
    return pending;
}

inline std::uint64_t put(Store& store, PutRequest request) {
    return store.commit(filled(store, std::move(request)));
}

// The bytes that a layer should have, by who put it.
inline void expect_intact(Store& store, const std::string& model) {
    const LayerTablePtr table = store.table(model);
    for (const LayerLocation& location : store.read(model, {})) {
        ASSERT_TRUE(location.stored) << model;
        const StoredLayer::Tensor& tensor = location.stored->tensors.at(0);
        const Bytes expected =
            pattern(tensor.spec.nbytes(), location.owner, table->name(location.layer));
        EXPECT_EQ(std::memcmp(tensor.extent.data, expected.data(), expected.size()), 0) << model;
    }
}

class DurableStore : public testing::TestWithParam<Durability> {
  protected:
    DurableStore() {
        std::string name = (std::filesystem::temp_directory_path() / "cpp_store_XXXXXX").string();
        root = ::mkdtemp(name.data());
    }
    ~DurableStore() override { std::filesystem::remove_all(root); }

    Store::Options options(std::uint64_t limit = 64 * MiB) const {
        Store::Options made;
        made.memory = {.limit = limit, .region_size = 4 * MiB, .ahead = 0};
        made.data_dir = root / "data";
        made.durability = GetParam();
        made.lag = std::chrono::milliseconds(50);
        made.warn = [](std::string_view line) { ADD_FAILURE() << line; };
        return made;
    }
    std::size_t files() const {
        std::size_t count = 0;
        for (const auto& entry : std::filesystem::directory_iterator(root / "data" / "segments")) {
            count += entry.is_regular_file();
        }
        return count;
    }

    std::filesystem::path root;
};

}  // namespace cpp_store
