#pragma once

// Layers as Python holds them: weights that are seen as they are, saved values that are used once, gradients
// by name.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "bindings/arrays.h"
#include "bindings/gil.h"
#include "core/describe.h"
#include "core/thread_pool.h"
#include "kernels/half_kernels.h"
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
  virtual std::string text() const = 0;
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
  SavedOf(std::uint64_t owner_, std::uint64_t version_) : owner(owner_), version(version_) {}
  Index nbytes() const override { return values ? saved_bytes(*values) : 0; }
  std::string text() const override {
    std::ostringstream text;
    text << "Saved(output=" << dtype_text(dtype_of<typename L::Scalar>()) << ' ' << shape_text(output_shape);
    if (values) text << ", nbytes=" << nbytes();
    text << (values ? ")" : ", used)");
    return text.str();
  }

  const std::uint64_t owner;                               // the number of the layer
  const std::uint64_t version;                             // of the weights of that pass
  std::optional<typename L::Saved> values{std::in_place};  // nothing after backward
  Shape output_shape;
  std::vector<py::object> arrays;  // masks that `values` looks into
};

struct WriteableParameter {
  std::string name;
  void* data;
  Index size;
  DType dtype;
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
  // The parameters, to be written to before the interpreter lock is given up.
  virtual std::vector<WriteableParameter> writeable_parameters() = 0;
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

  // Whether the weights of linear layers are held in bfloat16, for inference alone; and to hold them so, or
  // not: exactly what they were then, widened. Layers without such weights stay as they are.
  virtual bool holds_bfloat16() const = 0;
  virtual void hold_bfloat16(bool wanted) = 0;

  const std::set<std::string>& frozen() const { return frozen_; }
  void set_frozen(std::set<std::string> names) { frozen_ = std::move(names); }

 protected:
  const std::uint64_t number_ = made_++;  // of this layer alone; where it lies, another one may lie later
  std::uint64_t version_ = 0;
  std::set<std::string> frozen_;
  mutable int computing_ = 0;  // calls that have given up the interpreter lock

 private:
  inline static std::uint64_t made_ = 0;
};

// The array of an argument that must be a NumPy array of T.
template <class T>
py::array array_of(const py::object& argument, const char* name) {
  constexpr DType dtype = dtype_of<T>();
  const std::optional<py::array> array = given_array(argument, name);
  if (!array || dtype_of_array(*array) != dtype) {
    fail<TypeMismatch>(name, " must be a NumPy array of ", dtype_text(dtype),
                       ", the dtype of the layer, got ", array ? dtype_name(*array) : type_name(argument));
  }
  return *array;
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

inline Tensor<std::int64_t> tensor_of(const ArrayView& view, bool copied) {
  auto* const data = static_cast<std::int64_t*>(const_cast<void*>(view.data));  // only ever read
  const Tensor<std::int64_t> integers(
      std::shared_ptr<std::int64_t[]>(std::shared_ptr<std::int64_t[]>(), data),
      Shape(view.shape, view.shape + view.rank));
  return copied ? integers.copy() : integers;
}

// Ids of any integer type; `argument` becomes the array that the result may look into.
inline Tensor<std::int64_t> id_input(py::object& argument, const char* name, bool copied) {
  return tensor_of(id_view(argument, name), copied);
}

// Likewise, of lengths and other integers that select nothing.
inline Tensor<std::int64_t> integer_input(py::object& argument, const char* name) {
  return tensor_of(int64_view(argument, name), true);
}

// Numbers of bfloat16, from an array of them and as a view that is not written to.
inline Tensor<std::uint16_t> bfloat16_input(const py::object& argument, const char* name) {
  const std::optional<py::array> array = given_array(argument, name);
  if (!array || dtype_of_array(*array) != DType::bfloat16) {
    fail<TypeMismatch>(name, " must be a NumPy array of bfloat16, in which the weight is held, got ",
                       array ? dtype_name(*array) : type_name(argument));
  }
  Tensor<std::uint16_t> numbers(Shape(array->shape(), array->shape() + array->ndim()));
  numpy_view(numbers, true).attr("__setitem__")(py::ellipsis(), array->attr("view")("uint16"));
  return numbers;
}

inline py::array bfloat16_array(const Tensor<std::uint16_t>& numbers) {
  return numpy_view(numbers, false).attr("view")(py::module_::import("ml_dtypes").attr("bfloat16"));
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

  py::dict parameters() const override { return views(*layer_); }

  std::vector<WriteableParameter> writeable_parameters() override {
    require_trainable();
    prepare_change();
    std::vector<WriteableParameter> parameters;
    L::each_parameter(*layer_, [&](const std::string& name, Tensor<T>& tensor) {
      parameters.push_back({name, tensor.data(), tensor.size(), dtype_of<T>()});
    });
    return parameters;
  }

  void load(const py::dict& arrays, std::optional<std::uint64_t> expected_version) override {
    // Gathering them may give the interpreter lock up, writing may not.
    const bool in_bfloat16 = holds_bfloat16();
    std::map<std::string, Tensor<T>> given;
    std::map<std::string, Tensor<std::uint16_t>> given_bfloat16;
    for (const auto& [name, array] : arrays) {
      const std::string key = py::str(name);
      const auto object = py::reinterpret_borrow<py::object>(array);
      if (bfloat16_.contains(key)) {
        given_bfloat16.emplace(key, bfloat16_input(object, key.c_str()));
      } else {
        given.emplace(key, input<T>(object, key.c_str(), false));
      }
    }
    if (expected_version && *expected_version != this->version_) {
      throw std::runtime_error("the weights must not be changed elsewhere while they are being edited");
    }
    if (in_bfloat16 != holds_bfloat16()) {
      throw std::runtime_error("hold_weights must not be called elsewhere while weights are being loaded");
    }
    prepare_change();
    copy_own_weights(given);
    L::each_parameter(*layer_, [&](const std::string& name, Tensor<T>& tensor) {
      const auto place = given.find(name);
      if (place != given.end()) std::copy_n(place->second.data(), tensor.size(), tensor.data());
    });
    for (const auto& [name, numbers] : given_bfloat16)
      std::copy_n(numbers.data(), numbers.size(), bfloat16_.at(name).data());
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
      if (!adapter || adapter->merged == merged) return;
      require_trainable();
      T* const weight = adapted.weight.data() + adapted.first_row * adapted.weight.extent(1);
      merged ? adapter->merge(weight) : adapter->unmerge(weight);
    });
  }

  void remove_adapters() override {
    change([](const std::string&, const auto&, auto& adapter) { adapter.reset(); });
  }

  Index packed_nbytes() const override {
    Index bytes = 0;
    each_weight(*layer_, [&](const AdaptedWeight<T>& weight) { bytes += weight.packed->nbytes(); });
    return bytes;
  }

  void release_packed() override {
    each_weight(*layer_, [](const AdaptedWeight<T>& weight) { weight.packed->forget(); });
  }

  bool holds_bfloat16() const override { return !bfloat16_.empty(); }

  void hold_bfloat16(bool wanted) override {
    if (wanted == holds_bfloat16()) return;
    if constexpr (std::is_same_v<T, float>) {
      wanted ? narrow_weights() : widen_weights();
    } else {
      fail<TypeMismatch>("only layers of float32 hold weights in bfloat16, this one is of float64");
    }
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
    require_trainable();
    Gradients gradients{gradients_of(*layer_), {}};
    std::set<const void*> wanted;
    L::each_parameter(gradients.values, [&](const std::string& name, Tensor<T>& tensor) {
      if (this->frozen_.contains(name)) return;
      gradients.arrays[py::str(name)] = numpy_view(tensor, true);
      if (!this->frozen_.empty()) wanted.insert(tensor.memory().get());
    });
    if (!this->frozen_.empty()) release_unwanted(gradients.values, wanted);
    return gradients;
  }

  // Those in the arrays of the caller, which are added to: dense ones, of the names, shapes and type of all
  // parameters that are not frozen. For layers whose parameters are tensors of their own.
  Gradients gradients_in(const py::dict& arrays) const {
    require_trainable();
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
    if (own->owner != this->number_)
      fail("saved must be of a forward pass of this layer, got that of another layer");
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

  std::unique_ptr<SavedOf<L>> new_saved() const {
    require_trainable();
    return std::make_unique<SavedOf<L>>(this->number_, this->version_);
  }

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
  // The weights of linear layers, with that of an output that takes no adapter: each once, however many
  // projections are rows of it.
  template <class Visit>
  static void each_weight(const L& layer, const Visit& visit) {
    std::set<const void*> seen;
    const auto visit_once = [&](const std::string&, const AdaptedWeight<T>& weight, const auto&) {
      if (seen.insert(weight.packed).second) visit(weight);
    };
    each_adapter(layer, visit_once);
    if constexpr (requires { L::each_output(layer, visit_once); }) L::each_output(layer, visit_once);
  }
  void keep_packed() {
    each_weight(*layer_, [](const AdaptedWeight<T>& weight) { weight.packed->keep(); });
  }

  void require_trainable() const {
    if (holds_bfloat16()) {
      throw std::runtime_error(
          "weights that are held in bfloat16 are for inference: hold_weights(\"float32\") comes before "
          "training "
          "and before adapters are merged");
    }
  }

  // Another layer on the same numbers: calls that are running keep the weights they began with. Its tensors
  // of weights have no numbers, but own what has: so it is found again.
  void narrow_weights() {
    const auto changed = std::make_shared<L>(*layer_);
    std::map<const T*, Tensor<std::uint16_t>> narrowed;  // by where they lie
    each_weight(*changed, [&](const AdaptedWeight<T>& weight) {
      const Tensor<T>& wide = weight.weight;
      const Tensor<std::uint16_t> numbers(wide.shape());
      convert(wide.size(), half_kernels().narrow_bfloat16, wide.data(), numbers.memory().get());
      weight.packed->hold(numbers);
      narrowed.emplace(wide.data(), numbers);
    });
    std::map<std::string, Tensor<std::uint16_t>> named;
    L::each_parameter(*changed, [&](const std::string& name, const Tensor<T>& tensor) {
      auto weight = narrowed.upper_bound(tensor.data());
      if (weight == narrowed.begin()) return;
      --weight;
      const auto& [begin, numbers] = *weight;
      if (tensor.data() >= begin + numbers.size()) return;
      std::uint16_t* const first = numbers.memory().get() + (tensor.data() - begin);
      named.emplace(name, Tensor<std::uint16_t>(std::shared_ptr<std::uint16_t[]>(numbers.memory(), first),
                                                tensor.shape()));
    });
    each_storage(*changed, [&](Tensor<T>& tensor) {
      const auto weight = narrowed.find(tensor.data());
      if (weight == narrowed.end()) return;
      tensor =
          Tensor<T>(std::shared_ptr<T[]>(weight->second.memory(), static_cast<T*>(nullptr)), tensor.shape());
    });
    bfloat16_ = std::move(named);
    replace_layer(changed);
  }

  void widen_weights() {
    const auto changed = std::make_shared<L>(*layer_);
    std::map<std::shared_ptr<const void>, Tensor<T>, std::owner_less<>> widened;
    each_weight(*changed, [&](const AdaptedWeight<T>& weight) {
      const Tensor<std::uint16_t> numbers = weight.packed->bfloat16();
      const Tensor<T> wide(numbers.shape());
      convert(numbers.size(), half_kernels().widen_bfloat16, numbers.data(), wide.memory().get());
      widened.emplace(numbers.memory(), wide);
      weight.packed->hold({});
    });
    each_storage(*changed, [&](Tensor<T>& tensor) {
      const auto weight = widened.find(tensor.memory());
      if (weight != widened.end()) tensor = weight->second;
    });
    bfloat16_.clear();
    replace_layer(changed);
  }

  template <class Convert, class From, class To>
  static void convert(Index size, Convert convert_part, const From* from, To* to) {
    constexpr Index part = 1 << 16;
    parallel_for(ceil_div(size, part), 0.3 * static_cast<double>(size), [=](Index task, int) {
      const Index first = task * part;
      convert_part(from + first, std::min(part, size - first), to + first);
    });
  }

  void replace_layer(std::shared_ptr<L> changed) {
    layer_ = std::move(changed);
    keep_packed();
    size_ = std::max<Index>(1, parameter_count(*layer_));
    ++this->version_;
  }

  // Another layer on the same weights: calls that are running keep the adapters they began with.
  template <class Visit>
  void change(const Visit& visit) {
    const auto changed = std::make_shared<L>(*layer_);
    each_adapter(*changed, visit);
    replace_layer(changed);
  }

  // What lies in these weights, as views of them do, is to be read as it is before any of them is written.
  void copy_own_weights(std::map<std::string, Tensor<T>>& given) const {
    std::vector<std::pair<const T*, const T*>> own;  // where they begin and end
    L::each_parameter(*layer_, [&](const std::string&, const Tensor<T>& tensor) {
      own.emplace_back(tensor.data(), tensor.data() + tensor.size());
    });
    for (auto& [name, tensor] : given) {
      const T *const first = tensor.data(), *const last = first + tensor.size();
      const bool overlaps = std::ranges::any_of(
          own, [=](const auto& weight) { return first < weight.second && weight.first < last; });
      if (overlaps) tensor = tensor.copy();
    }
  }

  // Those who are computing keep the weights as they are.
  void prepare_change() {
    if (this->computing_ == 0) {
      release_packed();
    } else {
      if constexpr (std::is_same_v<T, float>) {
        if (holds_bfloat16()) {  // and back gives numbers of its own
          widen_weights();
          narrow_weights();
        }
      }
      layer_ = std::make_shared<L>(copy_of(*layer_));
      keep_packed();
    }
    ++this->version_;
  }

  py::dict views(const L& layer) const {
    py::dict arrays;
    L::each_parameter(layer, [&](const std::string& name, const Tensor<T>& tensor) {
      const auto held = bfloat16_.find(name);
      arrays[py::str(name)] =
          held == bfloat16_.end() ? numpy_view(tensor, false) : bfloat16_array(held->second);
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
  std::map<std::string, Tensor<std::uint16_t>> bfloat16_;  // the parameters that are held so
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
