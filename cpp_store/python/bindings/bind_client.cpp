// Servers and their clients: the second low-level handle that cpp_store.Store works over, with the
// same methods as the store in process (bind_store.cpp), and the server inside a process.
#include <pybind11/stl.h>

#include <cmath>
#include <memory>
#include <optional>

#include "bindings.hpp"
#include "convert.hpp"
#include "cpp_store/client.hpp"
#include "cpp_store/error.hpp"
#include "cpp_store/keys.hpp"
#include "cpp_store/libfabric.hpp"
#include "cpp_store/server.hpp"
#include "forks.hpp"

namespace py = pybind11;

namespace cpp_store::python {

namespace {

// So that Ctrl-C ends a call that waits for a server.
void check_signals() {
    const py::gil_scoped_acquire acquire;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

Ours<Cluster> open(std::vector<std::string> servers, double timeout, std::string key,
                   bool same_host, bool encrypt, std::size_t replicas) {
    if (!(timeout > 0) || timeout > 1e9) {
        throw Error(Errc::invalid_argument, "a time-out of " + std::to_string(timeout) +
                                                " s; it is a positive number of seconds");
    }
    const py::gil_scoped_release release;
    return Ours<Cluster>(new Cluster(Cluster::Options{
        std::move(servers), std::chrono::milliseconds(std::llround(std::ceil(timeout * 1000))),
        std::move(key), &check_signals, same_host, encrypt, replicas}));
}

std::uint64_t put(Cluster& cluster, std::string model, const py::dict& tensors,
                  std::shared_ptr<LayerTable> table, const py::list& inherited, std::string ns,
                  double score, std::string parent, std::string graph, std::string metadata) {
    PutArguments arguments =
        put_arguments(std::move(model), tensors, std::move(table), inherited, std::move(ns), score,
                      std::move(parent), std::move(graph), std::move(metadata));
    std::vector<std::span<const std::byte>> bytes;
    for (const Source& source : arguments.sources) {
        bytes.emplace_back(source.data, source.spec.nbytes());
    }
    const py::gil_scoped_release release;
    return cluster.put(std::move(arguments.request), bytes);
}

// Arrays for the tensors of whatever layers come: on the memory of a server on this host, if that
// is wanted, or fresh ones.
class Collector {
  public:
    // Both are called without the GIL.
    void operator()(std::string_view layer, std::span<const TensorSpec> specs,
                    std::span<const std::span<const std::byte>> tensors,
                    std::shared_ptr<const void> pin) {
        const py::gil_scoped_acquire acquire;
        layers_[py::str(layer.data(), layer.size())] = views(specs, tensors, std::move(pin));
    }
    std::vector<std::span<std::byte>> operator()(std::string_view layer,
                                                 std::span<const TensorSpec> specs) {
        const py::gil_scoped_acquire acquire;
        std::vector<std::span<std::byte>> buffers;
        py::list arrays;
        for (const TensorSpec& spec : specs) {
            py::array array = empty(spec);
            buffers.emplace_back(static_cast<std::byte*>(array.mutable_data()),
                                 static_cast<std::size_t>(array.nbytes()));
            arrays.append(std::move(array));
        }
        fresh_.append(arrays);
        layers_[py::str(layer.data(), layer.size())] = std::move(arrays);
        return buffers;
    }
    // Unless copies were asked for, read-only as in process: views of arrays that nobody writes to,
    // so that the flag cannot be set again.
    py::dict take(bool copy) {
        if (!copy) {
            for (const py::handle arrays : fresh_) {
                const auto list = py::reinterpret_borrow<py::list>(arrays);
                for (std::size_t i = 0; i < list.size(); ++i) {
                    list[i].attr("setflags")(py::arg("write") = false);
                    list[i] = list[i].attr("view")();
                }
            }
        }
        return std::move(layers_);
    }

  private:
    py::dict layers_;
    py::list fresh_;  // arrays of those layers that are the caller's own
};

std::vector<std::string> names_of(const py::handle& names) {
    std::vector<std::string> out;
    for (const py::handle name : names) out.push_back(name.cast<std::string>());
    return out;
}

py::dict read(Cluster& cluster, const std::string& model, const std::optional<py::list>& layers,
              bool copy) {
    if (layers && layers->empty()) {  // to the servers, no name means all
        bool exists = false;
        {
            const py::gil_scoped_release release;
            exists = cluster.contains(model);
        }
        if (!exists) throw Error(Errc::not_found, "there is no model '" + model + "'");
        return {};
    }
    const std::vector<std::string> names = layers ? names_of(*layers) : std::vector<std::string>{};
    Collector collector;
    {
        const py::gil_scoped_release release;
        cluster.read(model, names, std::ref(collector),
                     copy ? nullptr : Cluster::Views(std::ref(collector)));
    }
    return collector.take(copy);
}

std::uint64_t read_into(Cluster& cluster, const std::string& model, const py::dict& buffers) {
    py::dict left = buffers.attr("copy")();
    std::vector<py::list> kept;  // the arrays, while bytes come
    const auto targets = [&](std::string_view layer, std::span<const TensorSpec> specs) {
        const py::gil_scoped_acquire acquire;
        const py::object given = left.attr("pop")(py::str(layer.data(), layer.size()));
        kept.push_back(buffer_list(given, layer, specs.size()));
        std::vector<std::span<std::byte>> out;
        for (std::size_t i = 0; i < specs.size(); ++i) {
            out.push_back(target(kept.back()[i], specs[i], {layer, i}));
        }
        return out;
    };
    const std::vector<std::string> names = names_of(buffers);
    std::uint64_t bytes = 0;
    if (!names.empty()) {
        const py::gil_scoped_release release;
        bytes = cluster.read(model, names, targets);
    }
    for (const auto& [name, arrays] : left) {  // layers without tensors
        kept.push_back(buffer_list(arrays, name.cast<std::string>(), 0));
    }
    return bytes;
}

py::dict fetch(Cluster& cluster, const LayerTable& table, const py::list& layers, bool copy) {
    std::vector<OwnedLayer> wanted;
    for (const py::handle item : layers) {
        auto [name, owner] = item.cast<std::pair<std::string, std::string>>();
        py::list names(1);
        names[0] = name;
        const std::uint32_t layer = positions_of(table, names, owner).front();
        wanted.push_back({std::move(name), std::move(owner), table.key(layer)});
    }
    Collector collector;
    if (!wanted.empty()) {
        const py::gil_scoped_release release;
        cluster.fetch(wanted, std::ref(collector),
                      copy ? nullptr : Cluster::Views(std::ref(collector)));
    }
    return collector.take(copy);
}

py::list best_matches(Cluster& cluster, const LayerTable& table, const std::string& ns,
                      const std::string& weight, std::int64_t count, std::int64_t min_layers,
                      std::vector<std::string> exclude, std::string only, const py::object& lease) {
    Query query = query_arguments(ns, weight, count, min_layers, std::move(exclude));
    query.only = std::move(only);
    const std::chrono::milliseconds duration = lease_argument(lease);
    std::vector<RemoteMatch> matches;
    {
        const py::gil_scoped_release release;
        matches = cluster.best_matches(table, query, duration);
    }
    py::list out;
    for (RemoteMatch& match : matches) {
        out.append(leased_match(std::move(match.leased), table, match.server));
    }
    return out;
}

void end_lease(Cluster& cluster, std::uint64_t lease, std::size_t server) {
    RemoteMatch match;
    match.leased.lease = lease;
    match.server = server;
    cluster.end_lease(match);
}

py::list stats(Cluster& cluster) {
    std::vector<StoreStats> all;
    {
        const py::gil_scoped_release release;
        all = cluster.stats();
    }
    py::list out;
    for (std::size_t i = 0; i < all.size(); ++i) {
        out.append(py::make_tuple(cluster.servers()[i], stats_dict(all[i])));
    }
    return out;
}

Ours<Server> serve(std::string address, const std::shared_ptr<Store>& store, unsigned threads,
                   std::string key, bool insecure, bool encrypt) {
    Server::Options options;
    options.address = std::move(address);
    options.threads = threads;
    options.key = std::move(key);
    options.insecure = insecure;
    options.encrypt = encrypt;
    options.log_level = LogLevel::warning;  // it shares its process's standard error
    const py::gil_scoped_release release;
    return Ours<Server>(new Server(store, std::move(options)));
}

// A key is any bytes to a server, but a text to Python.
py::str text_of(const std::string& key) {
    PyObject* const text =
        PyUnicode_DecodeUTF8(key.data(), static_cast<py::ssize_t>(key.size()), nullptr);
    if (text == nullptr) {
        PyErr_Clear();
        throw Error(Errc::invalid_argument, "the key is not one line of text in UTF-8");
    }
    return py::reinterpret_steal<py::str>(text);
}

// Names of hosts are looked up.
template <typename Find>
py::str without_gil(const Find& find) {
    std::string key;
    {
        const py::gil_scoped_release release;
        key = find();
    }
    return text_of(key);
}

void bind_cluster(py::module_& m) {
    using Unlocked = py::call_guard<py::gil_scoped_release>;
    py::class_<Cluster, Ours<Cluster>> type(m, "RemoteStore",
                                            "The client of servers: cpp_store.connect().");
    type.def(py::init(&open), py::arg("servers"), py::arg("timeout"), py::arg("key"),
             py::arg("same_host"), py::arg("encrypt"), py::arg("replicas"));
    type.def("put", &put, py::arg("model"), py::arg("tensors"), py::arg("table"),
             py::arg("inherited"), py::arg("namespace"), py::arg("score"), py::arg("parent"),
             py::arg("graph"), py::arg("metadata"));
    type.def("read", &read, py::arg("model"), py::arg("layers"), py::arg("copy"));
    type.def("read_into", &read_into, py::arg("model"), py::arg("buffers"));
    type.def("fetch", &fetch, py::arg("table"), py::arg("layers"), py::arg("copy"));
    type.def("best_matches", &best_matches, py::arg("table"), py::arg("namespace"),
             py::arg("weight"), py::arg("count"), py::arg("min_layers"), py::arg("exclude"),
             py::arg("only"), py::arg("lease"));
    type.def("end_lease", &end_lease, py::arg("lease"), py::arg("server"), Unlocked());
    type.def("lookup", &Cluster::lookup, py::arg("model"), Unlocked());
    type.def("contains", &Cluster::contains, py::arg("model"), Unlocked());
    type.def(
        "models",
        [](Cluster& cluster, const std::optional<std::string>& ns) {
            return cluster.list(ns ? &*ns : nullptr);
        },
        py::arg("namespace"), Unlocked());
    type.def("retire", &Cluster::retire, py::arg("model"), Unlocked());
    type.def("stats", &stats);
    type.def(
        "scrub", [](Cluster& cluster) { return cluster.scrub(); }, Unlocked());
    type.def("verify", &Cluster::verify, Unlocked());
    type.def("close", [](const Cluster&) {});
    type.def("transports", &Cluster::transports, Unlocked());
    type.def("servers", &Cluster::servers);
    type.def("absent", &Cluster::absent, "Addresses of servers that did not answer a moment ago.");
    type.def("replicas", &Cluster::replicas);
    type.def("home", &Cluster::home, py::arg("model"));
    type.def("ping", &Cluster::ping, py::arg("server"), Unlocked());
    type.def("shutdown", &Cluster::shutdown, Unlocked());
}

}  // namespace

void bind_client(py::module_& m) {
    bind_cluster(m);
    py::class_<Server, Ours<Server>> server(m, "Server",
                                            "A store behind an address: cpp_store.serve().");
    server.def(py::init(&serve), py::arg("address"), py::arg("store"), py::arg("threads"),
               py::arg("key"), py::arg("insecure"), py::arg("encrypt"));
    server.def_property_readonly("address", &Server::address);
    server.def("stop", &Server::stop, py::call_guard<py::gil_scoped_release>());
    m.def(
        "read_key_file",
        [](const std::string& path) { return text_of(security::read_key_file(path)); },
        py::arg("path"), "The key in a file that only its owner can read.");
    m.def("make_key_file", &security::make_key_file, py::arg("path"),
          "Write a new key to a new file that only its owner can read.");
    m.def(
        "default_server_key",
        [](const std::string& address) {
            return without_gil([&] { return security::default_server_key(address); });
        },
        py::arg("address"), "The key of the environment, else the user's, made if need be.");
    m.def(
        "default_client_key",
        [](const std::vector<std::string>& addresses) {
            return without_gil([&] { return security::default_client_key(addresses); });
        },
        py::arg("addresses"), "The key of the environment, else the user's if there is one.");
    m.def("add_library_prefixes", &add_library_prefixes, py::arg("prefixes"),
          "Prefixes whose MPI wheels may bring the libfabric to use.");
}

}  // namespace cpp_store::python
