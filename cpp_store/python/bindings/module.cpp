#include "bindings.hpp"

PYBIND11_MODULE(_core, m) {
    m.doc() = "The compiled part of cpp_store; import cpp_store instead.";
    cpp_store::python::bind_errors(m);
    cpp_store::python::bind_table(m);
    cpp_store::python::bind_index(m);
    cpp_store::python::bind_digest(m);
    cpp_store::python::bind_store(m);
    cpp_store::python::bind_client(m);
    cpp_store::python::bind_dlpack(m);
    cpp_store::python::bind_check(m);
    cpp_store::python::bind_forks(m);
}
