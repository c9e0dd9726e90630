// The store in process: the low-level handle that cpp_store.Store works over. The client of servers
// (bind_client.cpp) has the same methods.
#include <pybind11/stl.h>

#include <cstring>
#include <map>
#include <memory>
#include <optional>

#include "bindings.hpp"
#include "convert.hpp"
#include "cpp_store/error.hpp"
#include "cpp_store/store.hpp"
#include "forks.hpp"

namespace py = pybind11;

namespace cpp_store::python {

namespace {

using StorePtr = std::shared_ptr<Store>;

StorePtr open(std::uint64_t memory, const std::string& data_dir, const std::string& durability,
              double lag) {
    Store::Options options;
    options.memory.limit = memory;
    options.data_dir = data_dir;
    if (durability != "lazy" && durability != "sync") {
        throw Error(Errc::invalid_argument,
                    "durability: expected 'lazy' or 'sync', not '" + durability + "'");
    }
    options.durability = durability == "sync" ? Durability::sync : Durability::lazy;
    if (!(lag > 0 && lag < 86'400)) {
        throw Error(Errc::invalid_argument, "lag: expected seconds of up to a day");
    }
    options.lag = std::chrono::milliseconds(static_cast<std::int64_t>(lag * 1e3));
    const py::gil_scoped_release release;
    return StorePtr(new Store(options), Forgetting());
}

std::uint64_t put(Store& store, std::string model, const py::dict& tensors,
                  std::shared_ptr<LayerTable> table, const py::list& inherited, std::string ns,
                  double score, std::string parent, std::string graph, std::string metadata) {
    PutArguments arguments =
        put_arguments(std::move(model), tensors, std::move(table), inherited, std::move(ns), score,
                      std::move(parent), std::move(graph), std::move(metadata));
    const py::gil_scoped_release release;
    PendingPut pending = store.prepare(std::move(arguments.request));
    for (std::size_t i = 0; i < arguments.sources.size(); ++i) {
        pending.fill(i, arguments.sources[i].data);
    }
    return store.commit(std::move(pending));
}

py::str name_of(const LayerTable& table, std::uint32_t layer) {
    const std::string_view name = table.name(layer);
    return {name.data(), name.size()};
}

// A put whose tensors Python writes itself. The arrays pin the memory, so that one that is kept is
// safe to touch whatever became of the put.
class Allocation {
  public:
    Allocation(StorePtr store, PutRequest request)
        : store_(std::move(store)), table_(request.table) {
        const py::gil_scoped_release release;
        pending_.emplace(store_->prepare(std::move(request)));
    }

    py::dict arrays() const {
        py::dict out;
        if (!pending_) return out;
        for (const LayerLocation& location : pending_->layers()) {
            out[name_of(*table_, location.layer)] = views(location.stored, Access::writable);
        }
        return out;
    }

    std::uint64_t publish() {
        if (!pending_) throw Error(Errc::invalid_argument, "the put is over already");
        PendingPut put = std::move(*pending_);
        pending_.reset();
        const py::gil_scoped_release release;
        return store_->commit(std::move(put));
    }

    void discard() { pending_.reset(); }

  private:
    StorePtr store_;
    LayerTablePtr table_;
    std::optional<PendingPut> pending_;
};

Ours<Allocation> allocate(StorePtr store, std::string model, const py::dict& specs,
                          std::shared_ptr<LayerTable> table, const py::list& inherited,
                          std::string ns, double score, std::string parent, std::string graph,
                          std::string metadata) {
    return Ours<Allocation>(new Allocation(
        std::move(store),
        allocate_arguments(std::move(model), specs, std::move(table), inherited, std::move(ns),
                           score, std::move(parent), std::move(graph), std::move(metadata))));
}

// A read of what is in memory is over before others could take the GIL.
std::unique_ptr<py::gil_scoped_release> release_for_disk(const Store& store) {
    return store.has_data_dir() ? std::make_unique<py::gil_scoped_release>() : nullptr;
}

// The layers of a model by name (None: all that have tensors), and its table for their names.
struct Located {
    LayerTablePtr table;
    std::vector<LayerLocation> layers;
};

Located locate(Store& store, const std::string& model, const std::optional<py::list>& names) {
    Located located;
    do {  // again if it was retired and put anew in between
        located.table = store.table(model);
        if (names && names->empty()) return located;
        std::vector<std::uint32_t> positions;
        if (names) positions = positions_of(*located.table, *names, model);
        const auto release = release_for_disk(store);
        located.layers = store.read(model, positions);
    } while (store.table(model) != located.table);
    for (const LayerLocation& location : located.layers) {
        if (!location.stored) {
            throw Error(Errc::not_found, "layer '" +
                                             std::string(located.table->name(location.layer)) +
                                             "' of model '" + model +
                                             "' is on another server; connect to all of them");
        }
    }
    return located;
}

// Copies tensors without the GIL.
class Copies {
  public:
    void add(const StoredLayer::Tensor& from, std::span<std::byte> to) {
        all_.emplace_back(from.extent.data, to);
        bytes_ += to.size();
    }
    std::uint64_t run() const {
        const py::gil_scoped_release release;
        for (const auto& [from, to] : all_) {
            if (!to.empty()) std::memcpy(to.data(), from, to.size());
        }
        return bytes_;
    }

  private:
    std::vector<std::pair<const std::byte*, std::span<std::byte>>> all_;
    std::uint64_t bytes_ = 0;
};

py::list copies(const StoredLayer& layer, Copies& pending) {
    py::list arrays(layer.tensors.size());
    for (std::size_t i = 0; i < layer.tensors.size(); ++i) {
        py::array array = empty(layer.tensors[i].spec);
        pending.add(layer.tensors[i], {static_cast<std::byte*>(array.mutable_data()),
                                       static_cast<std::size_t>(array.nbytes())});
        arrays[i] = std::move(array);
    }
    return arrays;
}

py::dict to_dict(const LayerTable& table, const std::vector<LayerLocation>& layers, bool copy) {
    py::dict out;
    Copies pending;
    for (const LayerLocation& location : layers) {
        out[name_of(table, location.layer)] =
            copy ? copies(*location.stored, pending) : views(location.stored);
    }
    pending.run();
    return out;
}

py::dict read(Store& store, const std::string& model, const std::optional<py::list>& names,
              bool copy) {
    const Located located = locate(store, model, names);
    return to_dict(*located.table, located.layers, copy);
}

std::uint64_t read_into(Store& store, const std::string& model, const py::dict& buffers) {
    py::list names;
    for (const auto& [name, arrays] : buffers) names.append(name);
    const Located located = locate(store, model, names);
    py::dict left = buffers.attr("copy")();
    Copies pending;
    std::vector<py::list> kept;  // the arrays, while the GIL is released
    for (const LayerLocation& location : located.layers) {
        const std::string_view name = located.table->name(location.layer);
        const std::vector<StoredLayer::Tensor>& tensors = location.stored->tensors;
        const py::object given = left.attr("pop")(name_of(*located.table, location.layer));
        kept.push_back(buffer_list(given, name, tensors.size()));
        for (std::size_t i = 0; i < tensors.size(); ++i) {
            pending.add(tensors[i], target(kept.back()[i], tensors[i].spec, {name, i}));
        }
    }
    for (const auto& [name, arrays] : left) {  // layers without tensors
        kept.push_back(buffer_list(arrays, name.cast<std::string>(), 0));
    }
    return pending.run();
}

py::dict fetch(Store& store, const LayerTable& table, const py::list& layers, bool copy) {
    std::vector<LayerLocation> located;
    for (const py::handle item : layers) {
        auto [name, owner] = item.cast<std::pair<std::string, std::string>>();
        const py::list names(1);
        names[0] = name;
        const std::uint32_t layer = positions_of(table, names, owner).front();
        const LayerKey key = table.key(layer);
        StoredLayerPtr stored;
        {
            const auto release = release_for_disk(store);
            stored = store.fetch(owner, {&key, 1}).front();
        }
        located.push_back({layer, std::move(owner), std::move(stored)});
    }
    return to_dict(table, located, copy);
}

py::list best_matches(Store& store, const LayerTable& table, const std::string& ns,
                      const std::string& weight, std::int64_t count, std::int64_t min_layers,
                      std::vector<std::string> exclude, std::string only, const py::object& lease) {
    Query query = query_arguments(ns, weight, count, min_layers, std::move(exclude));
    query.only = std::move(only);
    const std::chrono::milliseconds duration = lease_argument(lease);
    std::vector<LeasedMatch> matches;
    {
        const py::gil_scoped_release release;
        matches = store.best_matches(table, query, duration);
    }
    py::list out;
    for (LeasedMatch& match : matches) out.append(leased_match(std::move(match), table, 0));
    return out;
}

void bind_info(py::module_& m) {
    py::class_<ModelInfo> type(m, "ModelInfo", "What a store knows of a model.");
    publish(type);
    type.def_readonly("model", &ModelInfo::model, "Its id.");
    type.def_readonly("namespace", &ModelInfo::ns);
    type.def_property_readonly("table", [](const ModelInfo& info) {
        return std::const_pointer_cast<LayerTable>(info.table);  // immutable all the same
    });
    type.def_readonly("graph", &ModelInfo::graph, "The layer graph, as it was put.");
    type.def_readonly("score", &ModelInfo::score);
    type.def_readonly("parent", &ModelInfo::parent, "The evolutionary parent's id, or \"\".");
    type.def_property_readonly(
        "metadata",
        [](const ModelInfo& info) -> py::object {
            if (info.metadata.empty()) return py::dict();
            try {
                return py::module_::import("json").attr("loads")(info.metadata);
            } catch (const py::error_already_set& error) {  // another client may put anything
                throw Error(Errc::protocol, "the metadata of model '" + info.model +
                                                "' cannot be read as JSON: " + error.what());
            }
        },
        "The user's dict.");
    type.def_property_readonly(
        "created", [](const ModelInfo& info) { return static_cast<double>(info.created_ns) / 1e9; },
        "Seconds since the epoch.");
    type.def_property_readonly(
        "owners",
        [](const ModelInfo& info) {
            py::dict owners;
            for (const LayerLocation& location : info.layers) {
                owners[name_of(*info.table, location.layer)] = location.owner;
            }
            return owners;
        },
        "For each layer that has tensors: the model that put them.");
    type.def_readonly("bytes_own", &ModelInfo::bytes_own, "Of tensors that the model brought.");
    type.def_readonly("bytes_inherited", &ModelInfo::bytes_inherited,
                      "Of tensors that it references in others.");
    type.def("__repr__", [](const ModelInfo& info) {
        return py::str("<ModelInfo {!r}: {} layers, {} bytes own, {} inherited, score {}>")
            .format(info.model, info.table->size(), info.bytes_own, info.bytes_inherited,
                    info.score);
    });
}

}  // namespace

void bind_store(py::module_& m) {
    bind_info(m);
    py::class_<Store, StorePtr> type(m, "LocalStore",
                                     "The store in process: cpp_store.embedded().");
    type.def(py::init(&open), py::arg("memory"), py::arg("data_dir") = "",
             py::arg("durability") = "lazy", py::arg("lag") = 1.0);
    type.def("put", &put, py::arg("model"), py::arg("tensors"), py::arg("table"),
             py::arg("inherited"), py::arg("namespace"), py::arg("score"), py::arg("parent"),
             py::arg("graph"), py::arg("metadata"));
    py::class_<Allocation, Ours<Allocation>>(m, "LocalAllocation")
        .def("arrays", &Allocation::arrays)
        .def("publish", &Allocation::publish)
        .def("discard", &Allocation::discard);
    type.def("allocate", &allocate, py::arg("model"), py::arg("specs"), py::arg("table"),
             py::arg("inherited"), py::arg("namespace"), py::arg("score"), py::arg("parent"),
             py::arg("graph"), py::arg("metadata"));
    type.def("read", &read, py::arg("model"), py::arg("layers"), py::arg("copy"));
    type.def("read_into", &read_into, py::arg("model"), py::arg("buffers"));
    type.def("fetch", &fetch, py::arg("table"), py::arg("layers"), py::arg("copy"));
    type.def("best_matches", &best_matches, py::arg("table"), py::arg("namespace"),
             py::arg("weight"), py::arg("count"), py::arg("min_layers"), py::arg("exclude"),
             py::arg("only"), py::arg("lease"));
    type.def(
        "end_lease", [](Store& store, std::uint64_t lease, std::size_t) { store.end_lease(lease); },
        py::arg("lease"), py::arg("server"), py::call_guard<py::gil_scoped_release>());
    type.def("lookup", &Store::lookup, py::arg("model"), py::call_guard<py::gil_scoped_release>());
    type.def("contains", &Store::contains, py::arg("model"),
             py::call_guard<py::gil_scoped_release>());
    type.def(
        "models",
        [](const Store& store, const std::optional<std::string>& ns) {
            return store.list(ns ? &*ns : nullptr);
        },
        py::arg("namespace"), py::call_guard<py::gil_scoped_release>());
    type.def(
        "retire", [](Store& store, const std::string& model) { store.retire(model); },
        py::arg("model"), py::call_guard<py::gil_scoped_release>());
    type.def("stats", [](const Store& store) {
        py::list out;
        out.append(py::make_tuple("", stats_dict(store.stats())));
        return out;
    });
    type.def("scrub", &Store::expire_leases, py::call_guard<py::gil_scoped_release>());
    type.def("verify", &Store::verify, py::call_guard<py::gil_scoped_release>());
    type.def("transports", [](const Store&) { return std::vector<std::string>(); });
    type.def("flush", &Store::flush, py::call_guard<py::gil_scoped_release>());
    type.def("close", &Store::close, py::call_guard<py::gil_scoped_release>());
    type.def("servers", [](const Store&) { return std::vector<std::string>(); });
    type.def("absent", [](const Store&) { return std::vector<std::string>(); });
    type.def("replicas", [](const Store&) { return 1; });
}

}  // namespace cpp_store::python
