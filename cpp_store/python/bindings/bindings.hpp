// The parts of the extension module, one file each. A part adds its classes to `cpp_store._core`.
#pragma once

#include <pybind11/pybind11.h>

#include <string_view>

#include "cpp_store/prefix_index.hpp"

namespace cpp_store::python {

// First of all: the exceptions, and the translation of cpp_store::Error into them.
void bind_errors(pybind11::module_& m);
void bind_table(pybind11::module_& m);
void bind_index(pybind11::module_& m);
void bind_digest(pybind11::module_& m);
void bind_store(pybind11::module_& m);
void bind_client(pybind11::module_& m);  // after bind_store
void bind_dlpack(pybind11::module_& m);
void bind_check(pybind11::module_& m);

// "layers" or "bytes"; throws Errc::invalid_argument for anything else.
[[nodiscard]] Weight weight_from_name(std::string_view name);

// The user's names for what lives in `cpp_store._core`: `cpp_store.LayerTable`, and so on, so that
// messages and pickles do not speak of the extension.
template <typename Class>
void publish(Class& type) {
    type.attr("__module__") = "cpp_store";
}

}  // namespace cpp_store::python
