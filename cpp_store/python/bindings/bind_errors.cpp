// cpp_store::Error in Python: one class a code, each also the built-in exception that fits it.
#include <array>
#include <exception>
#include <string>

#include "bindings.hpp"
#include "cpp_store/error.hpp"

namespace py = pybind11;

namespace cpp_store::python {

namespace {

struct ErrorClass {
    Errc code;
    const char* name;
    PyObject* base;  // beside StoreError; null: none
    const char* doc;
};

// By value of Errc; 0 is unused. The classes live as long as the interpreter.
std::array<PyObject*, errc_count> classes{};

PyObject* make_class(const char* name, const char* doc, const py::tuple& bases,
                     const py::dict& attributes) {
    const std::string qualified = std::string("cpp_store.") + name;
    PyObject* made =
        PyErr_NewExceptionWithDoc(qualified.c_str(), doc, bases.ptr(), attributes.ptr());
    if (made == nullptr) throw py::error_already_set();
    return made;
}

void translate(std::exception_ptr pointer) {
    try {
        if (pointer) std::rethrow_exception(pointer);
    } catch (const Error& error) {
        py::set_error(classes[static_cast<std::size_t>(error.code())], error.what());
    }
}

}  // namespace

void bind_errors(py::module_& m) {
    // KeyError prints the repr of its argument; ours are sentences.
    py::dict attributes;
    attributes["__str__"] = py::handle(PyExc_BaseException).attr("__str__");
    PyObject* const base =
        make_class("StoreError", "Base class of everything that cpp_store raises.",
                   py::make_tuple(py::handle(PyExc_Exception)), attributes);
    m.add_object("StoreError", base);
    classes[static_cast<std::size_t>(Errc::internal)] = base;

    const ErrorClass derived[] = {
        {Errc::invalid_argument, "InvalidArgument", PyExc_ValueError,
         "What was passed cannot be right, whatever the store holds."},
        {Errc::not_found, "NotFound", PyExc_KeyError, "There is no such model, layer or lease."},
        {Errc::already_exists, "AlreadyExists", nullptr,
         "There is a model of that id with other content."},
        {Errc::out_of_memory, "OutOfMemory", PyExc_MemoryError,
         "The store's limit would be exceeded; nothing was changed."},
        {Errc::connection, "ConnectionError", PyExc_ConnectionError,
         "A server cannot be reached or is gone."},
        {Errc::deadline, "DeadlineExceeded", PyExc_TimeoutError, "A call took longer than it may."},
        {Errc::protocol, "ProtocolError", nullptr,
         "The peer speaks another version, or bytes are not what they claim to be."},
        {Errc::permission, "PermissionDenied", PyExc_PermissionError,
         "The key is not the server's, or one of both has none."},
        {Errc::busy, "Busy", PyExc_ConnectionError,
         "More than a server lets one client do at once; it can be tried again."},
        {Errc::storage, "StorageError", PyExc_OSError,
         "A data directory cannot be read or written, or is damaged; nothing was changed."},
    };
    for (const ErrorClass& each : derived) {
        py::tuple bases = py::make_tuple(py::handle(base));
        if (each.base != nullptr) bases = py::make_tuple(py::handle(base), py::handle(each.base));
        PyObject* const made = make_class(each.name, each.doc, bases, py::dict());
        m.add_object(each.name, made);
        classes[static_cast<std::size_t>(each.code)] = made;
    }
    py::register_exception_translator(&translate);
}

}  // namespace cpp_store::python
