#include <pybind11/stl.h>

#include <string>

#include "bindings.hpp"
#include "cpp_store/digest.hpp"
#include "cpp_store/error.hpp"

namespace py = pybind11;

namespace cpp_store::python {

namespace {

py::bytes bytes_of(const Digest& digest) {
    const std::array<char, 16> raw = to_bytes(digest);
    return {raw.data(), raw.size()};
}

[[noreturn]] void malformed(const char* what) {
    throw py::type_error(std::string("name_layers: ") + what);
}

// The graph as graph_meta.graph holds it: nested tuples. Read with the C API, since a search names
// tens of thousands of graphs a second; what is not a tuple of that length is a TypeError.
PyObject* item(PyObject* tuple, Py_ssize_t index, Py_ssize_t size, const char* what) {
    if (!PyTuple_Check(tuple) || PyTuple_GET_SIZE(tuple) != size) malformed(what);
    return PyTuple_GET_ITEM(tuple, index);
}

std::uint32_t natural(PyObject* value) {
    const std::size_t number = PyLong_AsSize_t(value);
    if (number == static_cast<std::size_t>(-1) && PyErr_Occurred() != nullptr) {
        throw py::error_already_set();
    }
    if (number > UINT32_MAX) malformed("a number of an edge is over 2^32 - 1");
    return static_cast<std::uint32_t>(number);
}

void read_edges(PyObject* edges, std::vector<GraphView::Edge>& out) {
    if (!PyTuple_Check(edges)) malformed("edges are not a tuple");
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(edges); ++i) {
        PyObject* edge = PyTuple_GET_ITEM(edges, i);
        constexpr const char* what = "an edge is not (layer, call, tensor)";
        out.push_back({natural(item(edge, 0, 3, what)), natural(item(edge, 1, 3, what)),
                       natural(item(edge, 2, 3, what))});
    }
}

void read_call(PyObject* call, GraphView& graph) {
    constexpr const char* what = "a call is not (inputs, arguments)";
    read_edges(item(call, 0, 2, what), graph.edges);
    GraphView::Call& out = graph.calls.emplace_back();
    out.edges_end = static_cast<std::uint32_t>(graph.edges.size());
    PyObject* arguments = item(call, 1, 2, what);
    if (arguments == Py_None) return;
    Py_ssize_t size = 0;
    const char* text = PyUnicode_AsUTF8AndSize(arguments, &size);
    if (text == nullptr) throw py::error_already_set();
    out.arguments = {text, static_cast<std::size_t>(size)};
}

std::string_view bytes_view(PyObject* bytes, const char* what) {
    if (!PyBytes_Check(bytes)) malformed(what);
    return {PyBytes_AS_STRING(bytes), static_cast<std::size_t>(PyBytes_GET_SIZE(bytes))};
}

std::uint64_t big_endian(std::string_view bytes) noexcept {
    std::uint64_t value = 0;
    for (const char byte : bytes) value = (value << 8) | static_cast<unsigned char>(byte);
    return value;
}

// `keep` holds the specs' identities alive while the view points into them.
void read_layer(PyObject* layer, GraphView& graph, std::vector<py::object>& keep) {
    static PyObject* const identity_name = PyUnicode_InternFromString("identity");
    constexpr const char* what = "a layer is not (spec, calls)";
    py::object identity =
        py::reinterpret_steal<py::object>(PyObject_GetAttr(item(layer, 0, 2, what), identity_name));
    if (!identity) throw py::error_already_set();
    constexpr const char* parts = "the identity of a spec is not (16 bytes, label, bytes)";
    const std::string_view key = bytes_view(item(identity.ptr(), 0, 3, parts), parts);
    if (key.size() != 16) malformed(parts);
    PyObject* calls = item(layer, 1, 2, what);
    if (!PyTuple_Check(calls)) malformed(what);
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(calls); ++i) {
        read_call(PyTuple_GET_ITEM(calls, i), graph);
    }
    const unsigned long long nbytes = PyLong_AsUnsignedLongLong(item(identity.ptr(), 2, 3, parts));
    if (PyErr_Occurred() != nullptr) throw py::error_already_set();
    graph.layers.push_back({{big_endian(key.substr(0, 8)), big_endian(key.substr(8))},
                            bytes_view(item(identity.ptr(), 1, 3, parts), parts),
                            nbytes,
                            static_cast<std::uint32_t>(graph.calls.size())});
    keep.push_back(std::move(identity));
}

py::tuple name(const py::tuple& layers, const py::tuple& inputs, const py::tuple& outputs) {
    GraphView graph;
    std::vector<py::object> keep;
    graph.layers.reserve(layers.size());
    graph.calls.reserve(layers.size());
    graph.edges.reserve(2 * layers.size());
    keep.reserve(layers.size());
    for (std::size_t i = 0; i < layers.size(); ++i) {
        read_layer(PyTuple_GET_ITEM(layers.ptr(), static_cast<Py_ssize_t>(i)), graph, keep);
    }
    read_edges(inputs.ptr(), graph.inputs);
    read_edges(outputs.ptr(), graph.outputs);
    const NamedLayers named = name_layers(graph);
    py::tuple digests(named.digests.size());
    py::tuple occurrences(named.occurrences.size());
    for (std::size_t i = 0; i < named.digests.size(); ++i) {
        digests[i] = bytes_of(named.digests[i]);
        occurrences[i] = py::int_(named.occurrences[i]);
    }
    return py::make_tuple(std::move(digests), std::move(occurrences),
                          std::const_pointer_cast<LayerTable>(named.table));
}

}  // namespace

void bind_digest(py::module_& m) {
    m.def(
        "xxh3_128",
        [](const py::bytes& data, std::uint64_t seed) {
            return bytes_of(xxh3_128(std::string_view(data), seed));
        },
        py::arg("data"), py::arg("seed") = 0, "XXH3-128 of some bytes: 16 bytes, big-endian.");
    m.def("name_layers", &name, py::arg("layers"), py::arg("inputs"), py::arg("outputs"), R"(
Digests, occurrences among twins, and the table of stable names of a layer graph.

For graph_meta.graph, whose tuples it takes. Raises InvalidArgument for edges that lead nowhere or
do not come from an earlier layer, TypeError for anything but those tuples.
)");
}

}  // namespace cpp_store::python
