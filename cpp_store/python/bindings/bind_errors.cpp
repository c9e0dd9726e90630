// cpp_store::Error in Python: one class a code, each also the built-in exception that fits it.
#include <array>
#include <exception>
#include <string>
#include <string_view>

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
        // It may name files or models of others, whose names are any bytes.
        const std::string_view said = error.what();
        const auto message = py::reinterpret_steal<py::object>(PyUnicode_DecodeUTF8(
            said.data(), static_cast<py::ssize_t>(said.size()), "surrogateescape"));
        if (!message) return;  // the interpreter has raised something: it has no memory
        PyErr_SetObject(classes[static_cast<std::size_t>(error.code())], message.ptr());
    }
}

std::string type_name(py::handle object) {
    return py::type::of(object).attr("__name__").cast<std::string>();
}

// Whether a text, or one in a list of them, has no form in UTF-8. No list in it is looked into: it
// may hold itself.
bool has_no_utf8(py::handle object, bool looks_into = true) {
    if (py::isinstance<py::str>(object)) {
        if (PyUnicode_AsUTF8(object.ptr()) != nullptr) return false;
        PyErr_Clear();
        return true;
    }
    if (!looks_into) return false;
    if (!py::isinstance<py::list>(object) && !py::isinstance<py::tuple>(object)) return false;
    const auto items = py::reinterpret_borrow<py::sequence>(object);
    for (std::size_t i = 0; i < items.size(); ++i) {
        if (has_no_utf8(items[i], false)) return true;
    }
    return false;
}

}  // namespace

void unfit(const char* what, const char* takes, const py::args& given, const py::kwargs& named) {
    std::string found;
    bool is_no_utf8 = false;
    const auto add = [&](const std::string& name, py::handle value) {
        found += (found.empty() ? "" : ", ") + name + type_name(value);
        is_no_utf8 = is_no_utf8 || has_no_utf8(value);
    };
    for (const py::handle value : given) add("", value);
    for (const auto& [name, value] : named) add(py::str(name).cast<std::string>() + ": ", value);
    throw Error(Errc::invalid_argument,
                std::string(what) + " takes (" + takes + "), found (" + found + ")" +
                    (is_no_utf8 ? ", a text of which cannot be written as UTF-8" : ""));
}

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
