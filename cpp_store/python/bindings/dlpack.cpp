#include "dlpack.hpp"

#include <array>
#include <cstdint>
#include <memory>
#include <string_view>
#include <utility>
#include <vector>

#include "bindings.hpp"
#include "convert.hpp"
#include "cpp_store/error.hpp"

namespace py = pybind11;

namespace cpp_store::python {

namespace {

// The protocol's structures, of its versions 0.8 and 1.0
// (https://dmlc.github.io/dlpack/latest/c_api.html).
struct Device {
    std::int32_t type;
    std::int32_t id;
};
struct TypeCode {
    std::uint8_t code;
    std::uint8_t bits;
    std::uint16_t lanes;
    friend bool operator==(const TypeCode&, const TypeCode&) = default;
};
struct Tensor {
    void* data;
    Device device;
    std::int32_t ndim;
    TypeCode dtype;
    std::int64_t* shape;
    std::int64_t* strides;  // in elements; null: C-contiguous
    std::uint64_t byte_offset;
};
struct Managed {
    static constexpr const char* name = "dltensor";
    static constexpr const char* used_name = "used_dltensor";
    Tensor tensor;
    void* context;
    void (*deleter)(Managed*);
};
struct Version {
    std::uint32_t major;
    std::uint32_t minor;
};
struct ManagedVersioned {
    static constexpr const char* name = "dltensor_versioned";
    static constexpr const char* used_name = "used_dltensor_versioned";
    Version version;
    void* context;
    void (*deleter)(ManagedVersioned*);
    std::uint64_t flags;
    Tensor tensor;
};
constexpr Version spoken{1, 0};
constexpr std::uint64_t read_only_flag = 1, copied_flag = 2;
constexpr std::int32_t cpu = 1, cuda_host = 3, rocm_host = 11;

constexpr std::array<std::pair<DType, TypeCode>, dtype_count> type_codes{{
    {DType::boolean, {6, 8, 1}},
    {DType::int8, {0, 8, 1}},
    {DType::uint8, {1, 8, 1}},
    {DType::int16, {0, 16, 1}},
    {DType::uint16, {1, 16, 1}},
    {DType::int32, {0, 32, 1}},
    {DType::uint32, {1, 32, 1}},
    {DType::int64, {0, 64, 1}},
    {DType::uint64, {1, 64, 1}},
    {DType::float16, {2, 16, 1}},
    {DType::float32, {2, 32, 1}},
    {DType::float64, {2, 64, 1}},
    {DType::complex64, {5, 64, 1}},
    {DType::complex128, {5, 128, 1}},
    {DType::bfloat16, {4, 16, 1}},
    {DType::float8_e4m3fn, {10, 8, 1}},
    {DType::float8_e5m2, {12, 8, 1}},
}};

template <typename M>
void release(M* managed) {
    if (managed->deleter != nullptr) managed->deleter(managed);
}

template <typename M>
std::optional<py::array> view(M* managed) {
    // From here on the tensor is ours to release.
    const py::capsule owner(managed, [](void* held) { release(static_cast<M*>(held)); });
    const Tensor& tensor = managed->tensor;
    for (const auto& [dtype, code] : type_codes) {
        if (!(code == tensor.dtype)) continue;
        const py::dtype found = numpy_dtype(dtype);
        const std::vector<py::ssize_t> shape(tensor.shape, tensor.shape + tensor.ndim);
        auto* const data = static_cast<std::byte*>(tensor.data) + tensor.byte_offset;
        if (tensor.strides == nullptr) return py::array(found, shape, data, owner);
        std::vector<py::ssize_t> strides(tensor.strides, tensor.strides + tensor.ndim);
        for (py::ssize_t& stride : strides) stride *= found.itemsize();
        return py::array(found, shape, strides, data, owner);
    }
    return std::nullopt;
}

template <typename M>
std::optional<py::array> take(py::capsule capsule) {
    auto* const managed = static_cast<M*>(capsule.get_pointer());
    capsule.set_name(M::used_name);
    return view(managed);
}

// What a capsule that goes out keeps until its consumer is done with it.
template <typename M>
struct Exported {
    M managed{};
    py::array array;
    std::vector<std::int64_t> shape, strides;

    static void drop(M* managed) {
        if (!Py_IsInitialized()) return;  // a consumer that outlives the interpreter
        const py::gil_scoped_acquire acquire;
        delete static_cast<Exported*>(managed->context);
    }
};

template <typename M>
M* exported(const py::array& array, TypeCode code) {
    auto held = std::make_unique<Exported<M>>();
    held->array = array;
    for (py::ssize_t i = 0; i < array.ndim(); ++i) {
        held->shape.push_back(array.shape(i));
        held->strides.push_back(array.strides(i) / array.itemsize());
    }
    held->managed.tensor = {const_cast<void*>(array.data()),
                            {cpu, 0},
                            static_cast<std::int32_t>(array.ndim()),
                            code,
                            held->shape.data(),
                            held->strides.data(),
                            0};
    held->managed.context = held.get();
    held->managed.deleter = &Exported<M>::drop;
    return &held.release()->managed;
}

template <typename M>
py::capsule capsule_of(M* managed) {
    const auto drop_unless_used = [](PyObject* capsule) {
        if (!PyCapsule_IsValid(capsule, M::name)) return;
        release(static_cast<M*>(PyCapsule_GetPointer(capsule, M::name)));
    };
    PyObject* const made = PyCapsule_New(managed, M::name, drop_unless_used);
    if (made == nullptr) {
        release(managed);
        throw py::error_already_set();
    }
    return py::reinterpret_steal<py::capsule>(made);
}

}  // namespace

std::optional<py::array> from_dlpack(py::handle object) {
    if (!py::hasattr(object, "__dlpack_device__")) return std::nullopt;
    const auto device =
        object.attr("__dlpack_device__")().cast<std::pair<py::int_, py::int_>>().first.cast<int>();
    if (device != cpu && device != cuda_host && device != rocm_host) return std::nullopt;
    py::object capsule;
    try {
        capsule = object.attr("__dlpack__")(py::arg("max_version") =
                                                py::make_tuple(spoken.major, spoken.minor));
    } catch (py::error_already_set& error) {
        if (!error.matches(PyExc_TypeError)) throw;  // one that knows no versions
        capsule = object.attr("__dlpack__")();
    }
    if (PyCapsule_IsValid(capsule.ptr(), ManagedVersioned::name)) {
        auto given = py::reinterpret_borrow<py::capsule>(capsule);
        const auto* const managed = static_cast<ManagedVersioned*>(given.get_pointer());
        if (managed->version.major != spoken.major) return std::nullopt;  // the capsule releases it
        return take<ManagedVersioned>(std::move(given));
    }
    if (PyCapsule_IsValid(capsule.ptr(), Managed::name)) {
        return take<Managed>(py::reinterpret_borrow<py::capsule>(capsule));
    }
    return std::nullopt;
}

py::capsule to_dlpack(const py::array& array, bool versioned, bool copied) {
    const std::optional<DType> dtype = dtype_of(array.dtype());
    if (!dtype) {
        throw Error(Errc::invalid_argument,
                    "DLPack has no word for dtype " + py::str(array.dtype()).cast<std::string>());
    }
    TypeCode code{};
    for (const auto& [each, its] : type_codes) {
        if (each == *dtype) code = its;
    }
    if (!versioned) return capsule_of(exported<Managed>(array, code));
    auto* const managed = exported<ManagedVersioned>(array, code);
    managed->version = spoken;
    managed->flags = (array.writeable() ? 0 : read_only_flag) | (copied ? copied_flag : 0);
    return capsule_of(managed);
}

void bind_dlpack(py::module_& m) {
    m.def("to_dlpack", &to_dlpack, py::arg("array"), py::arg("versioned"), py::arg("copied"),
          "A DLPack capsule over an array's memory.");
}

}  // namespace cpp_store::python
