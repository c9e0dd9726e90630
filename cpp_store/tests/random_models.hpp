// Models of random bytes for the tests of servers and clients.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "cpp_store/client.hpp"

namespace cpp_store {

using Bytes = std::vector<std::byte>;

inline Bytes random_bytes(std::size_t size, std::uint64_t seed) {
    std::mt19937_64 random(seed);
    Bytes bytes(size);
    for (std::size_t i = 0; i < size; i += 8) {
        const std::uint64_t value = random();
        std::memcpy(bytes.data() + i, &value, std::min<std::size_t>(8, size - i));
    }
    return bytes;
}

// A model of one chain of layers, one tensor of bytes a layer.
struct RandomModel {
    RandomModel(std::string id, const std::vector<std::string>& names,
                const std::vector<std::size_t>& sizes, std::uint64_t seed = 1) {
        std::vector<LayerTable::Layer> layers;
        for (std::size_t i = 0; i < names.size(); ++i) {
            layers.push_back({names[i], {}, sizes[i]});
            if (i > 0) layers.back().requires_ = {static_cast<std::uint32_t>(i - 1)};
            tensors.push_back(random_bytes(sizes[i], seed * 1000 + i));
            request.own.push_back({static_cast<std::uint32_t>(i), {{DType::uint8, {sizes[i]}}}});
        }
        request.model = std::move(id);
        request.ns = "test";
        request.table = std::make_shared<const LayerTable>(std::move(layers));
    }
    std::uint64_t put(Cluster& cluster) const {
        const std::vector<std::span<const std::byte>> spans(tensors.begin(), tensors.end());
        return cluster.put(request, spans);
    }
    PutRequest request;
    std::vector<Bytes> tensors;
};

}  // namespace cpp_store
