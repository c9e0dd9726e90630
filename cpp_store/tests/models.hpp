// Models and their bytes for the tests of stores.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "cpp_store/error.hpp"
#include "cpp_store/layer_table.hpp"

namespace cpp_store {

using Bytes = std::vector<std::byte>;

// A chain: every layer requires the one before.
inline LayerTablePtr chain(const std::vector<std::string>& names) {
    std::vector<LayerTable::Layer> layers;
    for (const std::string& name : names) {
        const auto position = static_cast<std::uint32_t>(layers.size());
        layers.push_back({name, {}, 0});
        if (position > 0) layers.back().requires_.push_back(position - 1);
    }
    return std::make_shared<LayerTable>(std::move(layers));
}

// Bytes that look random, and follow from a seed.
inline Bytes pattern(std::uint64_t size, std::uint64_t seed) {
    Bytes bytes(size);
    for (std::byte& each : bytes) {
        seed = seed * 6'364'136'223'846'793'005 + 1'442'695'040'888'963'407;
        each = static_cast<std::byte>(seed >> 56);
    }
    return bytes;
}

// What a call that must fail throws.
inline Errc code_of(const std::function<void()>& call, std::string* message = nullptr) {
    try {
        call();
    } catch (const Error& error) {
        if (message) *message = error.what();
        return error.code();
    }
    ADD_FAILURE() << "nothing was thrown";
    return Errc::internal;
}

}  // namespace cpp_store
