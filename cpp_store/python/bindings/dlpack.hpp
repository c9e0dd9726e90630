// DLPack, in and out: tensors of other frameworks as NumPy arrays over the same memory, and arrays
// as capsules that the frameworks take. NumPy's own way knows no bfloat16 or float8, and refuses to
// hand out read-only arrays to whoever speaks the first version of the protocol (TensorFlow, JAX).
#pragma once

#include <pybind11/numpy.h>

#include <optional>

namespace cpp_store::python {

// A view of an object that has `__dlpack__`, if its tensor is in host memory and of a dtype that
// the store has. Throws what the object's `__dlpack__` throws.
[[nodiscard]] std::optional<pybind11::array> from_dlpack(pybind11::handle object);

// A capsule over the array's memory, which it keeps alive: "dltensor_versioned" with the read-only
// flag, or "dltensor", which has no word for it.
[[nodiscard]] pybind11::capsule to_dlpack(const pybind11::array& array, bool versioned,
                                          bool copied);

}  // namespace cpp_store::python
