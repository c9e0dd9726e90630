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
void bind_forks(pybind11::module_& m);

// "layers" or "bytes"; throws Errc::invalid_argument for anything else.
[[nodiscard]] Weight weight_from_name(std::string_view name);

// What a function or a class says of arguments that it does not take: Errc::invalid_argument, in
// one line, where pybind11 has a TypeError of many.
[[noreturn]] void unfit(const char* what, const char* takes, const pybind11::args& given,
                        const pybind11::kwargs& named);

// The last overload of a method.
template <typename Class>
void refuse_others(Class& type, const char* name, const char* takes) {
    type.def(name,
             [name, takes](const pybind11::object&, const pybind11::args& given,
                           const pybind11::kwargs& named) { unfit(name, takes, given, named); });
}

// The user's names for what lives in `cpp_store._core`: `cpp_store.LayerTable`, and so on, so that
// messages and pickles do not speak of the extension.
template <typename Class>
void publish(Class& type) {
    type.attr("__module__") = "cpp_store";
}

}  // namespace cpp_store::python
