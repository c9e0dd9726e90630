// Layers from whichever servers have them, into the caller's memory.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "client/connection.hpp"
#include "cpp_store/client.hpp"

namespace cpp_store::client {

// A layer to be read: what it is, where it is, and where it goes.
struct Source {
    std::string name;
    std::string owner;
    LayerKey key;
    std::size_t server = 0;
    bool described = false;
    std::uint64_t serial = 0;
    std::vector<TensorSpec> specs;
    std::vector<std::span<const std::byte>> data;  // where it is already; empty: to be fetched
    std::shared_ptr<const void> pin;  // of data in the server's memory; null: it is in an answer
    bool viewed = false;              // the caller has them
    bool placed = false;              // the caller said where they go
    bool delivered = false;           // they are there
    std::vector<std::span<std::byte>> buffers;
    std::vector<std::size_t> tried;  // servers that did not have it, or did not answer
};

// Takes down where a layer is, and its tensors if they came along.
void describe(Source& source, local::SharedLayer layer);

// Sets a source's server to another one that may have it, after an error of the one that it was;
// false if there is none.
using Elsewhere = std::function<bool(Source& source, const Error& error)>;

// As Cluster::fetch. `elsewhere` may be null.
std::uint64_t gather(const std::vector<std::shared_ptr<Connection>>& connections,
                     std::vector<Source>& sources, const Cluster::Buffers& buffers,
                     const Cluster::Views& views, const Elsewhere& elsewhere);

}  // namespace cpp_store::client
