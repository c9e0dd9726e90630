// NumPy arrays to the store's types and back: what the store in process and the client of servers
// share. Everything here needs the GIL.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "cpp_store/store.hpp"

namespace cpp_store::python {

// Which tensor a message is about.
struct Place {
    std::string_view layer;
    std::size_t tensor = 0;
};

// A tensor of the caller, to be read from. Holds the array that holds the bytes.
struct Source {
    pybind11::array array;
    TensorSpec spec;
    const std::byte* data = nullptr;
};

// Anything that is an array, or gives one without a copy (DLPack, the buffer protocol, __array__).
// Throws Errc::invalid_argument for what is not C-contiguous, byte-swapped or of unknown dtype.
[[nodiscard]] Source source(pybind11::handle object, const Place& place);

// A caller's array to write to. Throws Errc::invalid_argument unless it is a writable, C-contiguous
// array of exactly that dtype and shape.
[[nodiscard]] std::span<std::byte> target(pybind11::handle object, const TensorSpec& spec,
                                          const Place& place);

// The caller's arrays for a layer of `count` tensors. Throws Errc::invalid_argument for another
// number.
[[nodiscard]] pybind11::list buffer_list(pybind11::handle object, std::string_view layer,
                                         std::size_t count);

// The tensors of a layer as arrays on the store's memory, which keep the layer alive.
enum class Access { read_only, writable };
[[nodiscard]] pybind11::list views(const StoredLayerPtr& layer, Access access = Access::read_only);
// The same for tensors in memory that another process shares with this one, which keep `pin`.
[[nodiscard]] pybind11::list views(std::span<const TensorSpec> specs,
                                   std::span<const std::span<const std::byte>> tensors,
                                   std::shared_ptr<const void> pin);

[[nodiscard]] const pybind11::dtype& numpy_dtype(DType dtype);
// None for dtypes that the store does not have, whatever their byte order.
[[nodiscard]] std::optional<DType> dtype_of(const pybind11::dtype& dtype);

// A fresh array of the caller's own.
[[nodiscard]] pybind11::array empty(const TensorSpec& spec);

// The arguments of a put. `sources` are the tensors of request.own, in order.
struct PutArguments {
    PutRequest request;
    std::vector<Source> sources;
};
// `tensors`: dict of layer name -> sequence of arrays; `table` null: those layers in that order,
// requiring nothing. `inherited`: list of (layer name, owner).
[[nodiscard]] PutArguments put_arguments(std::string model, const pybind11::dict& tensors,
                                         LayerTablePtr table, const pybind11::list& inherited,
                                         std::string ns, double score, std::string parent,
                                         std::string graph, std::string metadata);
// The same for a put whose tensors are yet to be written: layer name -> sequence of (shape, dtype).
[[nodiscard]] PutRequest allocate_arguments(std::string model, const pybind11::dict& specs,
                                            LayerTablePtr table, const pybind11::list& inherited,
                                            std::string ns, double score, std::string parent,
                                            std::string graph, std::string metadata);

// Positions of layers by name, ascending. Throws Errc::invalid_argument for a name that the table
// does not have.
[[nodiscard]] std::vector<std::uint32_t> positions_of(const LayerTable& table,
                                                      const pybind11::list& names,
                                                      std::string_view model);

[[nodiscard]] Query query_arguments(std::string_view ns, const std::string& weight,
                                    std::int64_t count, std::int64_t min_layers,
                                    std::vector<std::string> exclude);
// None: the store's default, -1. Throws Errc::invalid_argument for negative and not-a-number.
[[nodiscard]] std::chrono::milliseconds lease_argument(const pybind11::object& seconds);

// (Match, lease, server, {layer name: owner}) of a match for the model of `table`.
[[nodiscard]] pybind11::tuple leased_match(LeasedMatch match, const LayerTable& table,
                                           std::size_t server);

[[nodiscard]] pybind11::dict stats_dict(const StoreStats& stats);

}  // namespace cpp_store::python
