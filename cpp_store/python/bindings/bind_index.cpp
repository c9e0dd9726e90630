#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "bindings.hpp"
#include "cpp_store/error.hpp"
#include "cpp_store/layer_table.hpp"
#include "cpp_store/prefix_index.hpp"

namespace py = pybind11;

namespace cpp_store::python {

namespace {

std::uint32_t at_least_one(std::int64_t value, const char* what) {
    if (value < 1 || value > std::numeric_limits<std::uint32_t>::max()) {
        throw Error(Errc::invalid_argument,
                    std::string(what) + " is " + std::to_string(value) + "; it is at least 1");
    }
    return static_cast<std::uint32_t>(value);
}

std::vector<Match> best_matches(const PrefixIndex& index, const LayerTable& table,
                                std::int64_t count, const std::string& ns,
                                const std::string& weight, std::int64_t min_layers,
                                std::vector<std::string> exclude) {
    const Query query{ns, weight_from_name(weight), at_least_one(count, "count"),
                      at_least_one(min_layers, "min_layers"), std::move(exclude)};
    const py::gil_scoped_release release;
    return index.best_matches(table, query);
}

std::optional<Match> best_match(const PrefixIndex& index, const LayerTable& table,
                                const std::string& ns, const std::string& weight,
                                std::int64_t min_layers, std::vector<std::string> exclude) {
    std::vector<Match> matches =
        best_matches(index, table, 1, ns, weight, min_layers, std::move(exclude));
    if (matches.empty()) return std::nullopt;
    return std::move(matches.front());
}

py::dict stats(const PrefixIndex& index) {
    const PrefixIndex::Stats values = index.stats();
    py::dict out;
    out["models"] = values.models;
    out["layers"] = values.layers;
    out["bytes"] = values.bytes;
    out["namespaces"] = values.namespaces;
    return out;
}

void bind_match(py::module_& m) {
    py::class_<Match> type(m, "Match",
                           "A stored model and the prefix that it shares with a query.");
    publish(type);
    // For services that carry matches from one process to another.
    type.def(
        py::init([](std::string model, double score, std::uint64_t sequence, std::uint64_t layers,
                    std::uint64_t bytes, std::vector<std::uint32_t> positions) {
            return Match{std::move(model), score, sequence, layers, bytes, std::move(positions)};
        }),
        py::arg("model"), py::arg("score"), py::arg("sequence"), py::arg("layers"),
        py::arg("bytes"), py::arg("positions"));
    type.def(py::init([](const py::args& given, const py::kwargs& named) -> Match {
        unfit("Match",
              "model: str, score: float, sequence: int, layers: int, bytes: int, "
              "positions: list of int",
              given, named);
    }));
    type.def_readonly("model", &Match::model, "Id of the stored model.");
    type.def_readonly("score", &Match::score);
    type.def_readonly("sequence", &Match::sequence, "Order of registration; larger is newer.");
    type.def_readonly("layers", &Match::layers, "Layers of the prefix.");
    type.def_readonly("bytes", &Match::bytes, "Bytes of the prefix's weights.");
    type.def_readonly("positions", &Match::positions,
                      "The prefix: positions in the query's table, ascending.");
    type.def("__repr__", [](const Match& match) {
        return py::str("Match(model={!r}, score={!r}, sequence={}, layers={}, bytes={})")
            .format(match.model, match.score, match.sequence, match.layers, match.bytes);
    });
}

}  // namespace

Weight weight_from_name(std::string_view name) {
    if (name == "layers") return Weight::layers;
    if (name == "bytes") return Weight::bytes;
    throw Error(Errc::invalid_argument,
                "weight is '" + std::string(name) + "'; it is 'layers' or 'bytes'");
}

void bind_index(py::module_& m) {
    bind_match(m);
    py::class_<PrefixIndex> type(m, "PrefixIndex", R"(
Longest-shared-prefix queries over all registered models: exact, incremental, thread-safe.

The prefix of two models is the set of layers that both have. The best match of a query is the model
with the heaviest prefix, ties to the higher score (NaN counts as lowest), then to the newer.
)");
    publish(type);
    type.def(py::init<>());
    type.def(
        "add",
        [](PrefixIndex& index, const std::string& model, const LayerTable& table, double score,
           const std::string& ns, std::uint64_t sequence) {
            const py::gil_scoped_release release;
            index.add(model, ns, table, score, sequence);
        },
        py::arg("model"), py::arg("table"), py::kw_only(), py::arg("score") = 0.0,
        py::arg("namespace") = "", py::arg("sequence") = 0, R"(
Make a model findable.

Parameters
----------
model
    Its id, unique among the registered models of all namespaces.
table
    Its layers.
score
    Higher is better; NaN counts as lowest.
namespace
    Only queries of the same namespace find the model.
sequence
    Order of registration, larger is newer; 0 takes the next one.

Raises
------
AlreadyExists
    If a model of that id is registered.
InvalidArgument
    If a layer of equal name requires other layers in a stored model.
)");
    refuse_others(type, "add",
                  "model: str, table: LayerTable, *, score: float, namespace: str, sequence: int");
    type.def("remove", &PrefixIndex::remove, py::arg("model"),
             py::call_guard<py::gil_scoped_release>(),
             "Takes a model out at once. Returns whether there was one of that id.");
    refuse_others(type, "remove", "model: str");
    type.def("__contains__", &PrefixIndex::contains, py::arg("model"),
             py::call_guard<py::gil_scoped_release>());
    type.def("__contains__", [](const PrefixIndex&, const py::object&) { return false; });
    type.def(
        "__len__", [](const PrefixIndex& index) { return index.stats().models; },
        py::call_guard<py::gil_scoped_release>());
    type.def("best_match", &best_match, py::arg("table"), py::kw_only(), py::arg("namespace") = "",
             py::arg("weight") = "layers", py::arg("min_layers") = 1,
             py::arg("exclude") = std::vector<std::string>(), R"(
The stored model with the heaviest prefix, or None if nothing shares ``min_layers`` layers.

Parameters
----------
table
    The layers of the model that asks; it need not be registered.
namespace
    Models of other namespaces never match.
weight
    "layers" or "bytes": what makes a prefix heavy.
min_layers
    Prefixes of fewer layers are no match; at least 1.
exclude
    Ids of models that are not to be returned.
)");
    refuse_others(
        type, "best_match",
        "table: LayerTable, *, namespace: str, weight: str, min_layers: int, exclude: list of str");
    type.def("best_matches", &best_matches, py::arg("table"), py::kw_only(), py::arg("count"),
             py::arg("namespace") = "", py::arg("weight") = "layers", py::arg("min_layers") = 1,
             py::arg("exclude") = std::vector<std::string>(),
             "At most ``count`` matches, best first; otherwise as best_match.");
    refuse_others(type, "best_matches",
                  "table: LayerTable, *, count: int, namespace: str, weight: str, "
                  "min_layers: int, exclude: list of str");
    type.def("stats", &stats, "Numbers of models, distinct layers, bytes held and namespaces.");
}

}  // namespace cpp_store::python
