#include <pybind11/stl.h>

#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "bindings.hpp"
#include "cpp_store/error.hpp"
#include "cpp_store/layer_table.hpp"

namespace py = pybind11;

namespace cpp_store::python {

namespace {

void check_length(std::size_t found, std::size_t layers, const char* what) {
    if (found != layers) {
        throw Error(Errc::invalid_argument, std::string(what) + " has " + std::to_string(found) +
                                                " entries for " + std::to_string(layers) +
                                                " layers");
    }
}

std::shared_ptr<LayerTable> make_table(
    std::vector<std::string> names,
    const std::optional<std::vector<std::vector<std::int64_t>>>& needs,
    const std::optional<std::vector<std::int64_t>>& nbytes) {
    if (needs) check_length(needs->size(), names.size(), "requires");
    if (nbytes) check_length(nbytes->size(), names.size(), "nbytes");
    std::vector<LayerTable::Layer> layers(names.size());
    for (std::size_t i = 0; i < names.size(); ++i) {
        LayerTable::Layer& layer = layers[i];
        layer.name = std::move(names[i]);
        if (needs) {
            for (const std::int64_t position : (*needs)[i]) {
                if (position < 0 || position > std::numeric_limits<std::uint32_t>::max()) {
                    throw Error(Errc::invalid_argument,
                                "layer '" + layer.name + "' (position " + std::to_string(i) +
                                    ") requires position " + std::to_string(position) +
                                    "; there are only " + std::to_string(names.size()) + " layers");
                }
                layer.requires_.push_back(static_cast<std::uint32_t>(position));
            }
        }
        if (nbytes) {
            if ((*nbytes)[i] < 0) {
                throw Error(Errc::invalid_argument, "layer '" + layer.name + "' (position " +
                                                        std::to_string(i) + ") has " +
                                                        std::to_string((*nbytes)[i]) + " bytes");
            }
            layer.nbytes = static_cast<std::uint64_t>((*nbytes)[i]);
        }
    }
    return std::make_shared<LayerTable>(std::move(layers));
}

py::bytes key_bytes(const LayerTable& table) {
    std::string out;
    out.reserve(table.size() * 16);
    for (const LayerKey& key : table.keys()) {
        for (const std::uint64_t half : {key.high, key.low}) {
            for (int shift = 56; shift >= 0; shift -= 8) {
                out.push_back(static_cast<char>((half >> shift) & 0xff));
            }
        }
    }
    return out;
}

py::bytes encode(const LayerTable& table) {
    const std::vector<std::byte> bytes = table.encode();
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

std::shared_ptr<LayerTable> decode(const py::bytes& bytes) {
    const std::string_view view(bytes);
    return std::make_shared<LayerTable>(
        LayerTable::decode(std::as_bytes(std::span(view.data(), view.size()))));
}

// Equal tables have equal keys. The keys are hashes already.
std::size_t hash(const LayerTable& table) noexcept {
    std::uint64_t mixed = table.size();
    for (const LayerKey& key : table.keys()) mixed = mixed * 0x9e37'79b9'7f4a'7c15 + key.low;
    return static_cast<std::size_t>(mixed);
}

}  // namespace

void bind_table(py::module_& m) {
    py::class_<LayerTable, std::shared_ptr<LayerTable>> type(m, "LayerTable", py::is_final(), R"(
What the index and the store know of a model's layers, in topological order. Immutable.

Parameters
----------
names
    Stable names, unique in the model.
requires
    For each layer the positions of the layers without which it cannot be part of a prefix, each
    smaller than its own (its inputs, for most graphs). None: nothing is required.
nbytes
    For each layer the bytes of its weights. None: zeros.

Raises
------
InvalidArgument
    Naming the layer: an empty or repeated name, a requirement that does not come before the layer
    (a cycle) or that is not there, lists of different lengths.
)");
    publish(type);
    static constexpr const char* takes =
        "names: list of str, requires: list of lists of int, nbytes: list of int";
    type.def(
        py::init([](const py::object& names, const py::object& needs, const py::object& nbytes) {
            try {
                return make_table(
                    names.cast<std::vector<std::string>>(),
                    needs.cast<std::optional<std::vector<std::vector<std::int64_t>>>>(),
                    nbytes.cast<std::optional<std::vector<std::int64_t>>>());
            } catch (const py::cast_error&) {
            } catch (py::error_already_set& error) {  // of what is a list in name only
                if (!error.matches(PyExc_TypeError)) throw;
            }
            py::list given;
            given.append(names);
            if (!needs.is_none() || !nbytes.is_none()) given.append(needs);
            if (!nbytes.is_none()) given.append(nbytes);
            unfit("LayerTable", takes, py::args(py::tuple(given)), {});
        }),
        py::arg("names"), py::arg("requires") = py::none(), py::arg("nbytes") = py::none());
    type.def(
        py::init([](const py::args& given, const py::kwargs& named) -> std::shared_ptr<LayerTable> {
            unfit("LayerTable", takes, given, named);
        }));
    type.def_property_readonly("names", [](const LayerTable& table) {
        py::list names(table.size());
        for (std::size_t i = 0; i < table.size(); ++i)
            names[i] = py::str(std::string(table.name(i)));
        return names;
    });
    type.def_property_readonly("nbytes", [](const LayerTable& table) {
        py::list sizes(table.size());
        for (std::size_t i = 0; i < table.size(); ++i) sizes[i] = py::int_(table.nbytes(i));
        return sizes;
    });
    type.def_property_readonly("total_nbytes", &LayerTable::total_nbytes);
    type.def_property_readonly("requires", [](const LayerTable& table) {
        py::list all(table.size());
        for (std::size_t i = 0; i < table.size(); ++i) {
            const auto positions = table.requires_of(i);
            py::list each(positions.size());
            for (std::size_t j = 0; j < positions.size(); ++j) each[j] = py::int_(positions[j]);
            all[i] = std::move(each);
        }
        return all;
    });
    type.def_property_readonly("keys", &key_bytes,
                               "16 bytes a layer, big-endian: XXH3-128 of the stable name.");
    type.def("__len__", &LayerTable::size);
    type.def(
        "__eq__",
        [](const LayerTable& table, const py::object& other) -> py::object {
            if (!py::isinstance<LayerTable>(other)) {
                return py::reinterpret_borrow<py::object>(Py_NotImplemented);
            }
            return py::bool_(table == other.cast<const LayerTable&>());
        },
        py::is_operator());
    type.def("__hash__", &hash);
    type.def("__repr__", [](const LayerTable& table) {
        return "<LayerTable of " + std::to_string(table.size()) + " layers, " +
               std::to_string(table.total_nbytes()) + " bytes>";
    });
    type.def("encode", &encode, "Flat, versioned bytes (docs/formats.md).");
    type.def_static("decode", &decode, py::arg("data"),
                    "The table of encode()'s bytes; ProtocolError for any others.");
    type.def_static("decode", [](const py::args& given, const py::kwargs& named) {
        unfit("decode", "data: bytes", given, named);
    });
    type.def(py::pickle([](const LayerTable& table) { return encode(table); },
                        [](const py::bytes& bytes) { return decode(bytes); }));
}

}  // namespace cpp_store::python
