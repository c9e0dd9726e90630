#include "convert.hpp"

#include <pybind11/gil_safe_call_once.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <optional>

#include "bindings.hpp"
#include "cpp_store/error.hpp"
#include "dlpack.hpp"
#include "forks.hpp"
#include "net/wire.hpp"

namespace py = pybind11;

namespace cpp_store::python {

namespace {

using DTypes = std::array<py::dtype, dtype_count>;

// NumPy's dtype for each of ours; those that NumPy lacks are ml_dtypes'. Never destroyed: the
// interpreter is gone before static objects are.
const DTypes& dtypes() {
    PYBIND11_CONSTINIT static py::gil_safe_call_once_and_store<DTypes> storage;
    return storage
        .call_once_and_store_result([] {
            DTypes made;
            const py::module_ ml_dtypes = py::module_::import("ml_dtypes");
            for (std::size_t i = 0; i < dtype_count; ++i) {
                const std::string name(dtype_name(static_cast<DType>(i)));
                made[i] = py::hasattr(ml_dtypes, name.c_str())
                              ? py::dtype::from_args(ml_dtypes.attr(name.c_str()))
                              : py::dtype(name);
            }
            return made;
        })
        .get_stored();
}

std::string text(const py::handle& object) {
    return py::str(object).cast<std::string>();
}

[[noreturn]] void invalid(const Place& place, const std::string& what) {
    throw Error(Errc::invalid_argument, "layer '" + std::string(place.layer) + "', tensor " +
                                            std::to_string(place.tensor) + ": " + what);
}

DType checked_dtype(const py::dtype& dtype, const Place& place) {
    if (dtype.byteorder() == '>') {
        invalid(place, "dtype " + text(dtype) +
                           " is byte-swapped; pass array.astype(array.dtype.newbyteorder('='))");
    }
    const std::optional<DType> found = dtype_of(dtype);
    if (!found) {
        std::string known;
        for (std::size_t i = 0; i < dtype_count; ++i) {
            known += (i ? ", " : "") + std::string(dtype_name(static_cast<DType>(i)));
        }
        invalid(place, "expected one of the dtypes " + known + "; found " + text(dtype));
    }
    return *found;
}

void check_contiguous(const py::array& array, const Place& place, const char* advice) {
    if (array.flags() & py::array::c_style) return;
    invalid(place, "expected a C-contiguous array, found one of shape " +
                       text(array.attr("shape")) + " with strides " + text(array.attr("strides")) +
                       "; " + advice);
}

py::array as_array(py::handle object, const Place& place) {
    if (py::isinstance<py::array>(object)) return py::reinterpret_borrow<py::array>(object);
    const py::module_ numpy = py::module_::import("numpy");
    try {
        if (py::hasattr(object, "__dlpack__")) {
            try {
                if (std::optional<py::array> view = from_dlpack(object)) return *view;
            } catch (py::error_already_set&) {
                // It says no: by __array__, then, whose complaint is the one to hear.
            }
            // Not in host memory, or of a dtype that the store does not know.
        }
        return numpy.attr("asarray")(object);
    } catch (py::error_already_set& error) {
        invalid(place, "expected an array, found " + text(py::type::of(object)) + ", of which " +
                           "NumPy says: " + text(error.value()));
    }
}

std::vector<std::uint64_t> shape_of(const py::array& array) {
    return {array.shape(), array.shape() + array.ndim()};
}

bool is_sequence_of_arrays(py::handle object) {
    // What nearly everybody passes; the questions below cost an exception each.
    if (py::isinstance<py::list>(object) || py::isinstance<py::tuple>(object)) return true;
    return (py::isinstance<py::sequence>(object) || py::hasattr(object, "__iter__")) &&
           !py::isinstance<py::array>(object) && !py::isinstance<py::str>(object) &&
           !py::isinstance<py::bytes>(object) && !py::hasattr(object, "__array__") &&
           !py::hasattr(object, "__dlpack__");
}

// The items of a layer, after a check that the caller did not pass one array for a list of one.
py::list items_of(py::handle object, std::string_view layer, const char* what) {
    if (!is_sequence_of_arrays(object)) {
        throw Error(Errc::invalid_argument, "layer '" + std::string(layer) +
                                                "': expected a list of " + what + ", found " +
                                                text(py::type::of(object)));
    }
    return py::list(py::reinterpret_borrow<py::object>(object));
}

std::uint32_t position_of(const LayerTable& table, std::string_view layer, std::string_view model) {
    const std::size_t position = table.find(layer_key(layer));
    if (position == table.size()) {
        throw Error(Errc::invalid_argument, "model '" + std::string(model) + "' has no layer '" +
                                                std::string(layer) + "'; its " +
                                                std::to_string(table.size()) +
                                                " layers are those of its table");
    }
    return static_cast<std::uint32_t>(position);
}

std::string layer_name(py::handle name) {
    if (!py::isinstance<py::str>(name)) {
        throw Error(Errc::invalid_argument,
                    "a layer's name is a str, not " + text(py::type::of(name)));
    }
    return name.cast<std::string>();
}

using Specs = std::vector<std::pair<std::string, std::vector<TensorSpec>>>;

// All of a request but the bytes.
PutRequest make_request(std::string model, Specs specs, LayerTablePtr table,
                        const py::list& inherited, std::string ns, double score, std::string parent,
                        std::string graph, std::string metadata) {
    let_go_for_ended_children();  // whose memory this put may want
    if (!table) {
        std::vector<LayerTable::Layer> layers;
        layers.reserve(specs.size());
        for (const auto& [name, tensors] : specs) {
            std::uint64_t nbytes = 0;
            for (const TensorSpec& spec : tensors) nbytes += spec.nbytes();
            layers.push_back({name, {}, nbytes});
        }
        table = std::make_shared<const LayerTable>(std::move(layers));
    }
    PutRequest request;
    request.own.reserve(specs.size());
    for (auto& [name, tensors] : specs) {
        request.own.push_back({position_of(*table, name, model), std::move(tensors)});
    }
    for (const py::handle item : inherited) {
        auto [name, owner] = item.cast<std::pair<std::string, std::string>>();
        request.inherited.push_back({position_of(*table, name, model), std::move(owner)});
    }
    request.model = std::move(model);
    request.ns = std::move(ns);
    request.table = std::move(table);
    request.score = score;
    request.parent = std::move(parent);
    request.graph = std::move(graph);
    request.metadata = std::move(metadata);
    return request;
}

TensorSpec spec_argument(py::handle item, const Place& place) {
    try {
        const auto [shape, dtype] = item.cast<std::pair<std::vector<std::int64_t>, py::object>>();
        TensorSpec spec{checked_dtype(py::dtype::from_args(dtype), place), {}};
        for (const std::int64_t extent : shape) {
            if (extent < 0)
                invalid(place, "shape has the negative extent " + std::to_string(extent));
            spec.shape.push_back(static_cast<std::uint64_t>(extent));
        }
        return spec;
    } catch (const py::cast_error&) {
        invalid(place, "expected a pair (shape, dtype), found " + text(py::repr(item)));
    } catch (py::error_already_set& error) {
        invalid(place, text(error.value()));
    }
}

}  // namespace

const py::dtype& numpy_dtype(DType dtype) {
    return dtypes()[static_cast<std::size_t>(dtype)];
}

std::optional<DType> dtype_of(const py::dtype& dtype) {
    // NumPy's own by kind and size, since long and long long are two numbers for one thing.
    const auto size = dtype.itemsize();
    const auto pick = [size](DType first, DType second, DType third,
                             DType fourth) -> std::optional<DType> {
        switch (size) {
            case 1:
                return first;
            case 2:
                return second;
            case 4:
                return third;
            case 8:
                return fourth;
            default:
                return std::nullopt;
        }
    };
    switch (dtype.num() < 256 ? dtype.kind() : 'V') {
        case 'b':
            return DType::boolean;
        case 'i':
            return pick(DType::int8, DType::int16, DType::int32, DType::int64);
        case 'u':
            return pick(DType::uint8, DType::uint16, DType::uint32, DType::uint64);
        case 'f':
            if (size == 2) return DType::float16;
            if (size == 4) return DType::float32;
            if (size == 8) return DType::float64;
            return std::nullopt;
        case 'c':
            if (size == 8) return DType::complex64;
            if (size == 16) return DType::complex128;
            return std::nullopt;
        default:
            break;
    }
    for (std::size_t i = 0; i < dtype_count; ++i) {
        if (dtypes()[i].num() == dtype.num()) return static_cast<DType>(i);
    }
    return std::nullopt;
}

Source source(py::handle object, const Place& place) {
    py::array array = as_array(object, place);
    const DType dtype = checked_dtype(array.dtype(), place);
    check_contiguous(array, place, "pass np.ascontiguousarray(array)");
    const auto* const data = static_cast<const std::byte*>(array.data());
    TensorSpec spec{dtype, shape_of(array)};
    return {std::move(array), std::move(spec), data};
}

std::span<std::byte> target(py::handle object, const TensorSpec& spec, const Place& place) {
    if (!py::isinstance<py::array>(object)) {
        invalid(place, "expected a NumPy array to write to, found " + text(py::type::of(object)));
    }
    auto array = py::reinterpret_borrow<py::array>(object);
    const py::dtype& expected = numpy_dtype(spec.dtype);
    if (array.dtype().byteorder() == '>' || dtype_of(array.dtype()) != spec.dtype ||
        shape_of(array) != spec.shape) {
        std::string shape;
        for (const std::uint64_t extent : spec.shape) shape += std::to_string(extent) + ", ";
        if (spec.shape.size() > 1) shape.resize(shape.size() - 2);
        if (spec.shape.size() == 1) shape.pop_back();
        invalid(place, "expected an array of dtype " + text(expected) + " and shape (" + shape +
                           "), found dtype " + text(array.dtype()) + " and shape " +
                           text(array.attr("shape")));
    }
    check_contiguous(array, place, "read into an array as np.empty makes it");
    if (!array.writeable()) invalid(place, "expected a writable array, found a read-only one");
    return {static_cast<std::byte*>(array.mutable_data()),
            static_cast<std::size_t>(array.nbytes())};
}

py::list buffer_list(py::handle object, std::string_view layer, std::size_t count) {
    py::list items = items_of(object, layer, "arrays");
    if (items.size() != count) {
        throw Error(Errc::invalid_argument, "layer '" + std::string(layer) + "' has " +
                                                std::to_string(count) + " tensors, found " +
                                                std::to_string(items.size()) + " arrays for them");
    }
    return items;
}

namespace {

// An array on memory that lives as long as `pin`.
py::array view(const TensorSpec& spec, const std::byte* data, const py::capsule& pin,
               Access access) {
    py::array array(numpy_dtype(spec.dtype),
                    std::vector<py::ssize_t>(spec.shape.begin(), spec.shape.end()), data, pin);
    if (access == Access::read_only) {
        py::detail::array_proxy(array.ptr())->flags &= ~py::detail::npy_api::NPY_ARRAY_WRITEABLE_;
    }
    return array;
}

}  // namespace

py::list views(const StoredLayerPtr& layer, Access access) {
    const py::capsule pin = keeping(layer);
    py::list arrays(layer->tensors.size());
    for (std::size_t i = 0; i < layer->tensors.size(); ++i) {
        const StoredLayer::Tensor& tensor = layer->tensors[i];
        arrays[i] = view(tensor.spec, tensor.extent.data, pin, access);
    }
    return arrays;
}

py::list views(std::span<const TensorSpec> specs,
               std::span<const std::span<const std::byte>> tensors,
               std::shared_ptr<const void> pin) {
    const py::capsule held = keeping(std::move(pin));
    py::list arrays(specs.size());
    for (std::size_t i = 0; i < specs.size(); ++i) {
        arrays[i] = view(specs[i], tensors[i].data(), held, Access::read_only);
    }
    return arrays;
}

py::array empty(const TensorSpec& spec) {
    return py::array(numpy_dtype(spec.dtype),
                     std::vector<py::ssize_t>(spec.shape.begin(), spec.shape.end()));
}

PutArguments put_arguments(std::string model, const py::dict& tensors, LayerTablePtr table,
                           const py::list& inherited, std::string ns, double score,
                           std::string parent, std::string graph, std::string metadata) {
    PutArguments arguments;
    Specs specs;
    specs.reserve(tensors.size());
    for (const auto& [key, value] : tensors) {
        std::string name = layer_name(key);
        std::vector<TensorSpec> layer;
        for (const py::handle item : items_of(value, name, "arrays")) {
            arguments.sources.push_back(source(item, {name, layer.size()}));
            layer.push_back(arguments.sources.back().spec);
        }
        specs.emplace_back(std::move(name), std::move(layer));
    }
    arguments.request =
        make_request(std::move(model), std::move(specs), std::move(table), inherited, std::move(ns),
                     score, std::move(parent), std::move(graph), std::move(metadata));
    return arguments;
}

PutRequest allocate_arguments(std::string model, const py::dict& tensors, LayerTablePtr table,
                              const py::list& inherited, std::string ns, double score,
                              std::string parent, std::string graph, std::string metadata) {
    Specs specs;
    specs.reserve(tensors.size());
    for (const auto& [key, value] : tensors) {
        std::string name = layer_name(key);
        std::vector<TensorSpec> layer;
        for (const py::handle item : items_of(value, name, "pairs (shape, dtype)")) {
            layer.push_back(spec_argument(item, {name, layer.size()}));
        }
        specs.emplace_back(std::move(name), std::move(layer));
    }
    return make_request(std::move(model), std::move(specs), std::move(table), inherited,
                        std::move(ns), score, std::move(parent), std::move(graph),
                        std::move(metadata));
}

std::vector<std::uint32_t> positions_of(const LayerTable& table, const py::list& names,
                                        std::string_view model) {
    std::vector<std::uint32_t> positions;
    positions.reserve(names.size());
    for (const py::handle name : names) {
        positions.push_back(position_of(table, layer_name(name), model));
    }
    std::sort(positions.begin(), positions.end());
    positions.erase(std::unique(positions.begin(), positions.end()), positions.end());
    return positions;
}

Query query_arguments(std::string_view ns, const std::string& weight, std::int64_t count,
                      std::int64_t min_layers, std::vector<std::string> exclude) {
    const auto at_least_one = [](std::int64_t value, const char* what) {
        if (value < 1 || value > std::numeric_limits<std::uint32_t>::max()) {
            throw Error(Errc::invalid_argument,
                        std::string(what) + " is " + std::to_string(value) + "; it is at least 1");
        }
        return static_cast<std::uint32_t>(value);
    };
    return {ns, weight_from_name(weight), at_least_one(count, "count"),
            at_least_one(min_layers, "min_layers"), std::move(exclude)};
}

std::chrono::milliseconds lease_argument(const py::object& seconds) {
    if (seconds.is_none()) return std::chrono::milliseconds(-1);
    const auto value = seconds.cast<double>();
    constexpr double longest = 1e9;  // some 30 years
    if (std::isnan(value) || value < 0) {
        throw Error(
            Errc::invalid_argument,
            "lease is " + text(seconds) + "; it is a number of seconds, 0 (no lease) or None");
    }
    return std::chrono::milliseconds(
        static_cast<std::int64_t>(std::ceil(std::min(value, longest) * 1000)));
}

py::tuple leased_match(LeasedMatch match, const LayerTable& table, std::size_t server) {
    py::dict owners;
    for (const LayerLocation& location : match.layers) {
        const std::string_view name = table.name(location.layer);
        owners[py::str(name.data(), name.size())] = location.owner;
    }
    return py::make_tuple(std::move(match.match), match.lease, server, std::move(owners));
}

py::dict stats_dict(const StoreStats& stats) {
    py::dict out;
    out["memory_limit"] = stats.memory.limit;
    out["memory_used"] = stats.memory.used;
    out["memory_high_water"] = stats.memory.high_water;
    out["memory_mapped"] = stats.memory.mapped;
    out["memory_touched"] = stats.memory.touched;
    out["models"] = stats.models;
    out["retired"] = stats.retired;
    out["layers"] = stats.layers;
    out["tensors"] = stats.tensors;
    out["bytes_stored"] = stats.bytes_stored;
    out["bytes_referenced"] = stats.bytes_referenced;
    out["leases"] = stats.leases;
    out["foreign_holders"] = stats.foreign_holders;
    out["puts"] = stats.puts;
    out["reads"] = stats.reads;
    out["matches"] = stats.matches;
    out["retires"] = stats.retires;
    out["bytes_put"] = stats.bytes_put;
    out["bytes_read"] = stats.bytes_read;
    out["layers_inherited"] = stats.layers_inherited;
    out["bytes_inherited"] = stats.bytes_inherited;
    out["peers"] = stats.peers;
    out["degraded_puts"] = stats.degraded_puts;
    out["repaired"] = stats.repaired;
    out["index_layers"] = stats.index.layers;
    out["index_bytes"] = stats.index.bytes;
    out["index_namespaces"] = stats.index.namespaces;
    py::dict calls;
    for (std::uint16_t i = 0; i < wire::operation_count; ++i) {
        const CallTimes& times = stats.calls[i];
        if (times.count == 0) continue;
        py::dict each;
        each["count"] = times.count;
        each["p50_us"] = static_cast<double>(times.p50) / 1e3;
        each["p99_us"] = static_cast<double>(times.p99) / 1e3;
        calls[py::str(std::string(wire::operation_name(static_cast<wire::Operation>(i))))] = each;
    }
    out["times"] = calls;
    return out;
}

}  // namespace cpp_store::python
