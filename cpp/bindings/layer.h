#pragma once

// Layers as Python holds them: weights that are seen as they are, saved values that are used once, gradients
// by name.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <numeric>
#include <optional>
#include <set>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "bindings/arrays.h"
#include "bindings/gil.h"
#include "layers/initialiser.h"
#include "layers/low_rank.h"
#include "layers/packed_weight.h"
#include "layers/parameters.h"
#include "layers/write.h"

namespace blasformer::bindings {

using Seed = std::optional<std::uint64_t>;

// What backward will need of one forward pass.
class Saved {
 public:
  virtual ~Saved() = default;
  virtual Index nbytes() const = 0;
};

// The bytes of the tensors of a saved value; memory that several share counts once.
template <class S>
Index saved_bytes(const S& saved) {
  std::set<const void*> seen;
  Index bytes = 0;
  saved.each_tensor([&](const auto& tensor) {
    if (!tensor.empty() && seen.insert(tensor.memory().get()).second)
      bytes += tensor.size() * static_cast<Index>(sizeof(*tensor.data()));
  });
  return bytes;
}

template <class L>
class SavedOf : public Saved {
 public:
  SavedOf(const void* owner_, std::uint64_t version_) : owner(owner_), version(version_) {}
  Index nbytes() const override { return values ? saved_bytes(*values) : 0; }

  const void* const owner;                                 // the layer as Python holds it
  const std::uint64_t version;                             // of the weights of that pass
  std::optional<typename L::Saved> values{std::in_place};  // nothing after backward
  Shape output_shape;
  std::vector<py::object> arrays;  // masks that `values` looks into
};

// A layer as Python holds it. Its weights stay where they are when they change, so that views of them stay
// true; a change while other threads compute goes to new memory instead, and they finish with what they began
// with. All of this is done by those who hold the interpreter lock.
class Layer {
 public:
  virtual ~Layer() = default;
  virtual py::dict parameters() const = 0;
  // Replaces the parameters that are named by copies of these arrays, all at once. Their names, shapes and
  // types are right.
  virtual void load(const py::dict& arrays, std::optional<std::uint64_t> expected_version) = 0;
  // Views of the parameters to be written to before the interpreter lock is given up.
  virtual py::dict writeable_parameters() = 0;
  // ((the gradient of the input, or a tuple of those of several), {name: gradient} of parameters that are not
  // frozen). Uses `saved` up.
  virtual py::tuple backward(Saved& saved, const py::object& d_output) = 0;
  std::uint64_t version() const { return version_; }

  // {name: (out_features, in_features)} of the linear layers that can have a low-rank adapter.
  virtual py::dict linear_layers() const = 0;
  // Gives those that are named an adapter, in place of one that they have; merged ones are taken out first.
  virtual void adapt(const std::set<std::string>& names, Index rank, double scale, double dropout,
                     std::uint64_t seed) = 0;
  virtual void merge_adapters(bool merged) = 0;
  virtual void remove_adapters() = 0;

  // Copies of weights, packed for the kernels that read them: bytes held, and how to be without.
  virtual Index packed_nbytes() const = 0;
  virtual void release_packed() = 0;

  const std::set<std::string>& frozen() const { return frozen_; }
  void set_frozen(std::set<std::string> names) { frozen_ = std::move(names); }

 protected:
  std::uint64_t version_ = 0;
  std::set<std::string> frozen_;
  mutable int computing_ = 0;  // calls that have given up the interpreter lock
};

// The array of an argument that must be a NumPy array of T.
template <class T>
py::array array_of(const py::object& argument, const char* name) {
  constexpr DType dtype = dtype_of<T>();
  if (!py::isinstance<py::array>(argument)) {
    fail<TypeMismatch>(name, " must be a NumPy array of ", dtype_text(dtype),
                       ", the dtype of the layer, got ", type_name(argument));
  }
  auto array = py::reinterpret_borrow<py::array>(argument);
  if (dtype_of_array(array) != dtype) {
    fail<TypeMismatch>(name, " must be a NumPy array of ", dtype_text(dtype),
                       ", the dtype of the layer, got ", dtype_name(array));
  }
  return array;
}

// The input of a layer: borrowed where it lies if it is dense and the call is all that reads it, otherwise
// copied.
template <class T>
Tensor<T> input(const py::object& argument, const char* name, bool copied) {
  const py::array array = array_of<T>(argument, name);
  Shape shape(array.shape(), array.shape() + array.ndim());
  const bool aligned = reinterpret_cast<std::uintptr_t>(array.data()) % alignof(T) == 0;
  const bool dense = (array.flags() & py::array::c_style) != 0;
  if (!copied && dense && aligned) {
    auto* const data = static_cast<T*>(const_cast<void*>(array.data()));  // only ever read
    return Tensor<T>(std::shared_ptr<T[]>(std::shared_ptr<T[]>(), data), std::move(shape));
  }
  Tensor<T> tensor(std::move(shape));
  numpy_view(tensor, true).attr("__setitem__")(py::ellipsis(), array);
  return tensor;
}

// Ids of any integer type; `argument` becomes the array that the result may look into.
inline Tensor<std::int64_t> id_input(py::object& argument, const char* name, bool copied) {
  const ArrayView view = int64_view(argument, name);
  auto* const data = static_cast<std::int64_t*>(const_cast<void*>(view.data));  // only ever read
  const Tensor<std::int64_t> ids(std::shared_ptr<std::int64_t[]>(std::shared_ptr<std::int64_t[]>(), data),
                                 Shape(view.shape, view.shape + view.rank));
  return copied ? ids.copy() : ids;
}

template <class T>
py::object array_or_none(const Tensor<T>& tensor) {
  if (tensor.empty()) return py::none();
  return numpy_view(tensor, true);
}

// The part that is the same for all: a Base that holds an L. L::backward returns the gradient of its input, a
// structure with each_tensor of those of several, or nothing.
template <class Base, class L>
class Holding : public Base {
 public:
  using T = typename L::Scalar;

  explicit Holding(L layer)
      : layer_(std::make_shared<L>(std::move(layer))), size_(std::max<Index>(1, parameter_count(*layer_))) {
    keep_packed();
  }

  std::shared_ptr<const L> layer() const { return layer_; }

  py::dict parameters() const override { return views(*layer_, false); }

  py::dict writeable_parameters() override {
    prepare_change();
    return views(*layer_, true);
  }

  void load(const py::dict& arrays, std::optional<std::uint64_t> expected_version) override {
    std::map<std::string, Tensor<T>>
        given;  // gathering them may give the interpreter lock up, writing may not
    for (const auto& [name, array] : arrays) {
      const std::string key = py::str(name);
      given.emplace(key, input<T>(py::reinterpret_borrow<py::object>(array), key.c_str(), false));
    }
    if (expected_version && *expected_version != this->version_) {
      throw std::runtime_error("the weights must not be changed elsewhere while they are being edited");
    }
    prepare_change();
    L::each_parameter(*layer_, [&](const std::string& name, Tensor<T>& tensor) {
      const auto place = given.find(name);
      if (place != given.end()) std::copy_n(place->second.data(), tensor.size(), tensor.data());
    });
  }

  py::dict linear_layers() const override {
    py::dict shapes;
    each_adapter(*layer_, [&](const std::string& name, const AdaptedWeight<T>& adapted, const auto&) {
      shapes[py::str(name)] = py::make_tuple(adapted.rows, adapted.weight.extent(1));
    });
    return shapes;
  }

  void adapt(const std::set<std::string>& names, Index rank, double scale, double dropout,
             std::uint64_t seed) override {
    merge_adapters(false);
    Initialiser random(seed);
    change([&](const std::string& name, const AdaptedWeight<T>& adapted, auto& adapter) {
      if (names.contains(name))
        adapter.emplace(adapted.weight.extent(1), adapted.rows, rank, scale, dropout, random);
    });
  }

  void merge_adapters(bool merged) override {
    prepare_change();
    change([&](const std::string&, AdaptedWeight<T> adapted, auto& adapter) {
      if (!adapter) return;
      T* const weight = adapted.weight.data() + adapted.first_row * adapted.weight.extent(1);
      merged ? adapter->merge(weight) : adapter->unmerge(weight);
    });
  }

  void remove_adapters() override {
    change([](const std::string&, const auto&, auto& adapter) { adapter.reset(); });
  }

  Index packed_nbytes() const override {
    std::map<const void*, Index> bytes;  // projections of one weight share its copy
    each_packed([&](const PackedWeight<T>& packed) { bytes[&packed] = packed.nbytes(); });
    return std::accumulate(bytes.begin(), bytes.end(), Index{0},
                           [](Index sum, const auto& entry) { return sum + entry.second; });
  }

  void release_packed() override {
    each_packed([](const PackedWeight<T>& packed) { packed.forget(); });
  }

  py::tuple backward(Saved& saved, const py::object& d_output) override {
    return backward_by(saved, d_output,
                       [](const L& layer, const typename L::Saved& values, const Tensor<T>& d_y, L& gradients,
                          Write write) { return layer.backward(values, d_y, gradients, write); });
  }

 protected:
  // A value for the gradients of the parameters that are not frozen, and its arrays by name.
  struct Gradients {
    L values;
    py::dict arrays;
    Write write = Write::replace;
  };

  Gradients new_gradients() const {
    Gradients gradients{gradients_of(*layer_), {}};
    std::set<const void*> wanted;
    L::each_parameter(gradients.values, [&](const std::string& name, Tensor<T>& tensor) {
      if (this->frozen_.contains(name)) return;
      gradients.arrays[py::str(name)] = numpy_view(tensor, true);
      wanted.insert(tensor.memory().get());
    });
    release_unwanted(gradients.values, wanted);
    return gradients;
  }

  // Those in the arrays of the caller, which are added to: dense ones, of the names, shapes and type of all
  // parameters that are not frozen. For layers whose parameters are tensors of their own.
  Gradients gradients_in(const py::dict& arrays) const {
    static_assert(!requires(L& layer) { L::each_storage(layer, [](Tensor<T>&) {}); });
    Gradients gradients{*layer_, arrays, Write::add};
    L::each_parameter(gradients.values, [&](const std::string& name, Tensor<T>& tensor) {
      if (this->frozen_.contains(name)) {
        tensor = Tensor<T>();
      } else {
        auto array = py::reinterpret_borrow<py::array>(arrays[py::str(name)]);
        auto* const data = static_cast<T*>(array.mutable_data());
        tensor = Tensor<T>(std::shared_ptr<T[]>(std::shared_ptr<T[]>(), data), tensor.shape());
      }
    });
    return gradients;
  }

  // What backward does, with compute(layer, values, d_output, gradients, write) for the layer's own part.
  template <class Compute>
  py::tuple backward_by(Saved& saved, const py::object& d_output, const Compute& compute) {
    auto* const own = dynamic_cast<SavedOf<L>*>(&saved);
    if (own == nullptr)
      fail("saved must be of a forward pass of this layer, got that of another kind of layer");
    if (!own->values)
      throw std::runtime_error("saved was used already: a forward pass has one backward pass");
    if (own->owner != this) fail("saved must be of a forward pass of this layer, got that of another layer");
    if (own->version != this->version_) {
      throw std::runtime_error(
          "the weights of the layer were changed since the forward pass that saved is of: backward comes "
          "first");
    }
    const Tensor<T> d_y = input<T>(d_output, "d_output", false);
    require(d_y.shape() == own->output_shape, "d_output must have the shape of the output, ",
            shape_text(own->output_shape), ", got ", shape_text(d_y.shape()));

    Gradients gradients = new_gradients();
    const auto values = std::exchange(own->values, std::nullopt);
    try {
      const std::shared_ptr<const L> layer = layer_;
      const auto backward = [&] { return compute(*layer, *values, d_y, gradients.values, gradients.write); };
      if constexpr (std::is_void_v<decltype(backward())>) {  // the inputs are ids
        run(d_y.size(), backward);
        return py::make_tuple(py::none(), std::move(gradients.arrays));
      } else {
        const auto d_inputs = run(d_y.size(), backward);
        return py::make_tuple(python_gradients(d_inputs), std::move(gradients.arrays));
      }
    } catch (...) {
      own->values = values;
      throw;
    }
  }

  std::unique_ptr<SavedOf<L>> new_saved() const { return std::make_unique<SavedOf<L>>(this, this->version_); }

  // While it lives the weights stay as they are: changes go to new memory. The layer outlives it.
  class Computing {
   public:
    explicit Computing(const Holding& layer) : count_(layer.computing_) { ++count_; }
    ~Computing() { --count_; }
    Computing(const Computing&) = delete;
    Computing& operator=(const Computing&) = delete;

   private:
    int& count_;
  };

  // Runs compute() without the interpreter lock, unless the work is so small that handing it over would be
  // noticed.
  template <class Compute>
  auto run(Index elements, const Compute& compute) const {
    if (static_cast<double>(elements) * static_cast<double>(size_) < 1e6) {
      const ContextModes modes;
      return compute();
    }
    const Computing counted(*this);
    const ReleaseGil released;
    return compute();
  }

 private:
  template <class Self, class Visit>
  static void each_adapter(Self& layer, const Visit& visit) {
    if constexpr (requires { L::each_linear(layer, visit); }) L::each_linear(layer, visit);
  }
  template <class Visit>
  void each_packed(const Visit& visit) const {
    each_adapter(std::as_const(*layer_), [&](const std::string&, const AdaptedWeight<T>& adapted,
                                             const auto&) { visit(*adapted.packed); });
  }
  void keep_packed() {
    each_packed([](const PackedWeight<T>& packed) { packed.keep(); });
  }

  // Another layer on the same weights: calls that are running keep the adapters they began with.
  template <class Visit>
  void change(const Visit& visit) {
    const auto changed = std::make_shared<L>(*layer_);
    each_adapter(*changed, visit);
    layer_ = changed;
    keep_packed();
    size_ = std::max<Index>(1, parameter_count(*layer_));
    ++this->version_;
  }

  // Those who are computing keep the weights as they are.
  void prepare_change() {
    if (this->computing_ > 0) {
      layer_ = std::make_shared<L>(copy_of(*layer_));
      keep_packed();
    } else {
      release_packed();
    }
    ++this->version_;
  }

  static py::dict views(const L& layer, bool writeable) {
    py::dict arrays;
    L::each_parameter(layer, [&](const std::string& name, const Tensor<T>& tensor) {
      arrays[py::str(name)] = numpy_view(tensor, writeable);
    });
    return arrays;
  }

  // Gradients nobody asked for have no memory.
  static void release_unwanted(L& gradients, const std::set<const void*>& wanted) {
    each_storage(gradients, [&](Tensor<T>& tensor) {
      const T* const begin = tensor.data();
      const auto first = wanted.lower_bound(begin);
      if (first == wanted.end() || *first >= begin + std::max<Index>(tensor.size(), 1)) tensor = Tensor<T>();
    });
  }

  static py::object python_gradients(const Tensor<T>& d_input) { return array_or_none(d_input); }
  template <class Inputs>
  static py::object python_gradients(const Inputs& d_inputs) {
    py::list arrays;
    d_inputs.each_tensor([&](const Tensor<T>& tensor) { arrays.append(array_or_none(tensor)); });
    return py::tuple(arrays);
  }

  std::shared_ptr<L> layer_;
  Index size_;
};

// make(float{}) or make(double{}), whichever the dtype is.
template <class Interface, class Make>
std::unique_ptr<Interface> for_dtype(const std::string& dtype, const Make& make) {
  if (dtype == "float64") return make(double{});
  return make(float{});
}

template <template <class> class Held, class L>
std::unique_ptr<Held<L>> initialised(L layer, std::uint64_t seed) {
  Initialiser random(seed);
  layer.initialise(random);
  return std::make_unique<Held<L>>(std::move(layer));
}

}  // namespace blasformer::bindings
