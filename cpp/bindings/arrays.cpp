#include "bindings/arrays.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <new>
#include <string>

#include "core/memory.h"

namespace blasformer::bindings {

namespace {

constexpr int kFloat32 = py::detail::npy_api::NPY_FLOAT_;
constexpr int kFloat64 = py::detail::npy_api::NPY_DOUBLE_;
constexpr int kBool = py::detail::npy_api::NPY_BOOL_;
constexpr int kFloat16 = 23;         // NPY_HALF
constexpr int kFirstUserType = 256;  // NPY_USERDEF: where ml_dtypes' bfloat16 is registered

bool is_native(const py::dtype& dtype) {
  const char order = dtype.byteorder();
  return order == '=' || order == '|';
}

// Who has a masked array has imported numpy.ma, which NumPy itself does only then.
bool is_masked(const py::handle& array) {
  const py::object module = py::module_::import("sys").attr("modules").attr("get")("numpy.ma");
  return py::hasattr(module, "MaskedArray") && py::isinstance(array, module.attr("MaskedArray"));
}

py::array as_array(const py::object& argument, const char* name, const char* what) {
  const std::optional<py::array> array = given_array(argument, name);
  if (!array) fail<TypeMismatch>(name, " must be a NumPy array of ", what, ", got ", type_name(argument));
  return *array;
}

// Elements must lie at multiples of their size; the rare array that breaks this is read from a copy.
bool is_regular(const py::array& array) {
  const Index size = array.itemsize();
  if (reinterpret_cast<std::uintptr_t>(array.data()) % static_cast<std::uintptr_t>(size) != 0) return false;
  for (py::ssize_t axis = 0; axis < array.ndim(); ++axis) {
    if (array.shape(axis) > 1 && array.strides(axis) % size != 0) return false;
  }
  return true;
}

ArrayView view_of(py::object& argument, const py::array& array, DType dtype, const char* name) {
  if (array.ndim() > kMaxRank) {
    fail(name, " must have at most ", kMaxRank, " dimensions, got ", array.ndim());
  }
  py::array regular = array;
  if (!is_regular(array)) {
    regular = py::array(array.attr("copy")());
    argument = regular;
  }
  ArrayView view;
  view.data = regular.data();
  view.dtype = dtype;
  view.rank = static_cast<int>(regular.ndim());
  const Index size = item_size(dtype);
  for (int axis = 0; axis < view.rank; ++axis) {
    view.shape[axis] = regular.shape(axis);
    view.stride[axis] = regular.shape(axis) > 1 ? regular.strides(axis) / size : 0;
  }
  return view;
}

py::dtype numpy_dtype(DType dtype) {
  switch (dtype) {
    case DType::float32: return py::dtype(kFloat32);
    case DType::float64: return py::dtype(kFloat64);
    case DType::float16: return py::dtype(kFloat16);
    case DType::boolean: return py::dtype(kBool);
    case DType::int64: return py::dtype::of<std::int64_t>();
    case DType::bfloat16: return py::dtype::from_args(py::module_::import("ml_dtypes").attr("bfloat16"));
  }
  fail("unknown element type");
}

}  // namespace

std::string type_name(const py::handle& object) {
  return py::str(py::type::handle_of(object).attr("__name__"));
}

std::string dtype_name(const py::array& array) {
  const py::dtype dtype = array.dtype();
  std::string name = py::str(dtype.attr("name"));
  return is_native(dtype) ? name : name + " in foreign byte order";
}

std::optional<py::array> given_array(const py::handle& argument, const char* name) {
  if (!py::isinstance<py::array>(argument)) return std::nullopt;
  if (Py_TYPE(argument.ptr()) != py::detail::npy_api::get().PyArray_Type_ && is_masked(argument)) {
    fail<TypeMismatch>(name, " must be a NumPy array without a mask, which would be ignored, got ",
                       type_name(argument), "; its filled(value) is one");
  }
  return py::reinterpret_borrow<py::array>(argument);
}

std::optional<DType> dtype_of_array(const py::array& array) {
  const py::dtype dtype = array.dtype();
  const int number = dtype.num();
  if (number == kFloat32 && is_native(dtype)) return DType::float32;
  if (number == kFloat64 && is_native(dtype)) return DType::float64;
  if (number == kFloat16 && is_native(dtype)) return DType::float16;
  if (number == kBool) return DType::boolean;
  if (number >= kFirstUserType && dtype.itemsize() == 2 &&
      std::string(py::str(dtype.attr("name"))) == "bfloat16") {
    return DType::bfloat16;
  }
  return std::nullopt;
}

ArrayView float_view(py::object& argument, const char* name) {
  const py::array array = as_array(argument, name, "float32, float64, float16 or bfloat16");
  const std::optional<DType> dtype = dtype_of_array(array);
  if (!dtype || *dtype == DType::boolean) {
    fail<TypeMismatch>(name, " must be a NumPy array of float32, float64, float16 or bfloat16, got ",
                       dtype_name(array));
  }
  return view_of(argument, array, *dtype, name);
}

ArrayView bool_view(py::object& argument, const char* name) {
  const py::array array = as_array(argument, name, "bool (True = may attend)");
  if (array.dtype().num() != kBool) {
    const bool is_floating = array.dtype().kind() == 'f';  // as masks that PyTorch adds to scores
    fail<TypeMismatch>(name, " must be a NumPy array of bool (True = may attend), got ", dtype_name(array),
                       is_floating ? "; numbers to be added to scores are a bias" : "");
  }
  return view_of(argument, array, DType::boolean, name);
}

namespace {

// Which of the integers int64 cannot hold, if any, and where.
struct Beyond {
  std::string value;
  Index position;
};

// Python's integers that NumPy has no dtype for. Raises TypeError if there are others among them.
std::optional<Beyond> beyond_int64_in_objects(const py::array& array, const char* name) {
  std::optional<Beyond> first;
  Index position = 0;
  for (const py::handle value : py::array(array).attr("ravel")()) {
    if (!PyLong_Check(value.ptr())) fail<TypeMismatch>(name, " must be integers, got ", type_name(value));
    int overflow = 0;
    PyLong_AsLongLongAndOverflow(value.ptr(), &overflow);
    if (overflow != 0 && !first) first = {std::string(py::str(value)), position};
    ++position;
  }
  return first;
}

std::optional<Beyond> beyond_int64(const py::array& array, const char* name) {
  if (array.dtype().kind() == 'O') return beyond_int64_in_objects(array, name);
  if (array.dtype().kind() != 'u' || array.itemsize() < 8) return std::nullopt;
  const py::array_t<std::uint64_t, py::array::c_style | py::array::forcecast> values(array);
  const std::uint64_t *const first = values.data(), *const last = first + values.size();
  const auto* const found = std::find_if(first, last, [](std::uint64_t value) { return value > INT64_MAX; });
  if (found == last) return std::nullopt;
  return Beyond{std::to_string(*found), found - first};
}

// As int64. Numbers that it cannot hold are an Error, which says that they must be what `bounds` says.
template <class Error>
ArrayView checked_int64_view(py::object& argument, const char* name, const char* bounds) {
  py::array array;
  if (const std::optional<py::array> given = given_array(argument, name)) {
    array = *given;
  } else {
    array = py::array::ensure(argument);
    if (!array) {
      PyErr_Clear();
      const bool is_ragged = py::isinstance<py::list>(argument) || py::isinstance<py::tuple>(argument);
      fail<TypeMismatch>(name, " must be integers, got ", type_name(argument),
                         is_ragged ? " of different lengths, which data.pad fills up" : "");
    }
    if (array.size() == 0)
      array =
          py::array_t<std::int64_t>(std::vector<py::ssize_t>(array.shape(), array.shape() + array.ndim()));
  }
  if (const std::optional<Beyond> wrong = beyond_int64(array, name)) {
    fail<Error>(name, " must ", bounds, ", got ", wrong->value, " at position ", wrong->position);
  }
  const char kind = array.dtype().kind();
  if (kind != 'i' && kind != 'u') fail<TypeMismatch>(name, " must be integers, got ", dtype_name(array));
  const py::array_t<std::int64_t, py::array::c_style | py::array::forcecast> converted(array);
  argument = converted;
  return view_of(argument, converted, DType::int64, name);
}

}  // namespace

ArrayView int64_view(py::object& argument, const char* name) {
  return checked_int64_view<std::invalid_argument>(argument, name, "fit into 64-bit signed integers");
}

ArrayView id_view(py::object& argument, const char* name) {
  return checked_int64_view<std::out_of_range>(argument, name, "be in [0, 2**63)");
}

namespace {

// NumPy's C API for the memory of arrays (NEP 49), of which pybind11 has nothing: structures and places in
// its table of functions are those of numpy/ndarraytypes.h and numpy/__multiarray_api.h, and part of its ABI.
struct NumpyAllocator {
  void* context;
  void* (*allocate)(void*, std::size_t);
  void* (*allocate_zeros)(void*, std::size_t, std::size_t);
  void* (*reallocate)(void*, void*, std::size_t);
  void (*release)(void*, void*, std::size_t);
};
struct NumpyMemoryHandler {
  char name[127];
  std::uint8_t version;
  NumpyAllocator allocator;
};
constexpr std::size_t kSetHandler = 304;

void* allocate_or_null(void*, std::size_t bytes) {
  try {
    return allocate_memory(bytes);
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}
void* allocate_zeros(void* context, std::size_t count, std::size_t size) {
  std::size_t bytes = 0;
  if (__builtin_mul_overflow(count, size, &bytes)) return nullptr;
  void* const memory = allocate_or_null(context, bytes);
  if (memory != nullptr) std::memset(memory, 0, bytes);
  return memory;
}
void* reallocate(void* context, void* memory, std::size_t bytes) {
  if (memory == nullptr) return allocate_or_null(context, bytes);
  void* const moved = allocate_or_null(context, bytes);
  if (moved == nullptr) return nullptr;
  std::memcpy(moved, memory, std::min(bytes, memory_capacity(memory)));
  release_memory(memory);
  return moved;
}
void release(void*, void* memory, std::size_t) { release_memory(memory); }

// While it lives, new arrays of this thread have memory of ours: they own it, and give it back.
class OurMemory {
 public:
  OurMemory() : previous_(set(handler())) {}
  ~OurMemory() { Py_XDECREF(set(previous_)), Py_XDECREF(previous_); }
  OurMemory(const OurMemory&) = delete;
  OurMemory& operator=(const OurMemory&) = delete;

 private:
  static PyObject* handler() {
    static NumpyMemoryHandler ours = {
        "blasformer", 1, {nullptr, allocate_or_null, allocate_zeros, reallocate, release}};
    static PyObject* const capsule = PyCapsule_New(&ours, "mem_handler", nullptr);  // arrays refer to it
    return capsule;
  }
  // Returns the one before, or null and an error that pybind11 will find.
  static PyObject* set(PyObject* capsule) {
    static void** const api = [] {
      const py::object table = py::detail::import_numpy_core_submodule("multiarray").attr("_ARRAY_API");
      return static_cast<void**>(PyCapsule_GetPointer(table.ptr(), nullptr));
    }();
    return reinterpret_cast<PyObject* (*)(PyObject*)>(api[kSetHandler])(capsule);
  }

  PyObject* const previous_;
};

}  // namespace

py::array new_array(DType dtype, const Index* shape, int rank) {
  const std::vector<py::ssize_t> extents(shape, shape + rank);
  Index bytes = item_size(dtype);
  for (int axis = 0; axis < rank; ++axis) {
    if (__builtin_mul_overflow(bytes, shape[axis], &bytes)) throw std::bad_array_new_length();
  }
  if (bytes < static_cast<Index>(kLargeBlock)) return py::array(numpy_dtype(dtype), extents);
  const OurMemory ours;
  return py::array(numpy_dtype(dtype), extents);
}

MutableArrayView mutable_view(py::array& array) {
  MutableArrayView view;
  view.data = array.mutable_data();
  view.dtype = *dtype_of_array(array);
  view.rank = static_cast<int>(array.ndim());
  for (int axis = 0; axis < view.rank; ++axis) {
    view.shape[axis] = array.shape(axis);
    view.stride[axis] = array.shape(axis) > 1 ? array.strides(axis) / array.itemsize() : 0;
  }
  return view;
}

template <class T>
py::array numpy_view(const Tensor<T>& tensor, bool writeable) {
  auto* keep_alive = new std::shared_ptr<T[]>(tensor.memory());
  const py::capsule owner(keep_alive, [](void* p) { delete static_cast<std::shared_ptr<T[]>*>(p); });
  const std::vector<py::ssize_t> shape(tensor.shape().begin(), tensor.shape().end());
  py::array_t<T> array(shape, tensor.data(), owner);
  if (!writeable) py::detail::array_proxy(array.ptr())->flags &= ~py::detail::npy_api::NPY_ARRAY_WRITEABLE_;
  return array;
}

template py::array numpy_view(const Tensor<float>&, bool);
template py::array numpy_view(const Tensor<double>&, bool);
template py::array numpy_view(const Tensor<std::uint16_t>&, bool);

}  // namespace blasformer::bindings
