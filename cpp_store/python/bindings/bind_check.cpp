// Checking data directories: `cpp-store check`.
#include <pybind11/stl.h>

#include <string>

#include "bindings.hpp"
#include "cpp_store/check.hpp"

namespace py = pybind11;

namespace cpp_store::python {

void bind_check(py::module_& m) {
    m.def(
        "check_directory",
        [](const std::string& directory, bool repair) {
            CheckReport report;
            {
                const py::gil_scoped_release release;
                report = check_directory(directory, repair);
            }
            py::dict out;
            out["models"] = report.models;
            out["retired"] = report.retired;
            out["layers"] = report.layers;
            out["bytes"] = report.bytes;
            out["segments"] = report.segments;
            out["dead_bytes"] = report.dead_bytes;
            out["damage"] = report.damage;
            out["leaks"] = report.leaks;
            out["dropped"] = report.dropped;
            return out;
        },
        py::arg("directory"), py::arg("repair"));
}

}  // namespace cpp_store::python
