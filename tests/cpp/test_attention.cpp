// What Python tests cannot see of attention: with the sanitizers watching, that it stays within its operands,
// each of which has memory of exactly its size, and that its tasks do not race.

#include <algorithm>
#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "check.h"
#include "core/cpu.h"
#include "core/element.h"
#include "core/thread_pool.h"
#include "layers/attention.h"
#include "layers/initialiser.h"

namespace blasformer {

namespace {

// Sizes cross the edges of tiles and blocks, and the first two are large enough for two threads.
constexpr Index kBatch = 2, kQueryHeads = 4, kDim = 19, kValueDim = 13;

struct Size {
  Index query_length, key_length, key_heads;
};
constexpr Size kTiles{37, 131, 2}, kFourQueries{1, 4301, 1}, kOneQuery{1, 131, 4};
constexpr Size kManyTiles{205, 131, 2}, kLongHead{3, 17001, 1};  // the latter more than caches hold

enum class Layout {
  dense,     // the last axis is contiguous
  reversed,  // the first axis is, and all are counted down: every stride is negative, the last one is large
  repeated,  // one batch entry and one head stand for all: strides of 0
  apart,     // of four axes: heads side by side, in rows that are a page apart
};

// An array of a type that users store.
class Array {
 public:
  Array(const Shape& shape, DType dtype, Layout layout) {
    view_.dtype = dtype;
    view_.rank = static_cast<int>(shape.size());
    std::copy(shape.begin(), shape.end(), view_.shape);
    for (int i = 0; i < view_.rank; ++i) {
      const int axis = layout == Layout::reversed ? i : view_.rank - 1 - i;
      if (layout == Layout::repeated && axis + 2 < view_.rank) continue;
      view_.stride[axis] = layout == Layout::reversed ? -size_ : size_;
      size_ *= view_.shape[axis];
    }
    if (layout == Layout::apart && view_.rank == 4) {
      view_.stride[1] = shape[3];
      view_.stride[2] = 4096 / item_size(dtype);
      view_.stride[0] = shape[2] * view_.stride[2];
      size_ = 1;
      for (int axis = 0; axis < view_.rank; ++axis) size_ += (view_.shape[axis] - 1) * view_.stride[axis];
    }
    memory_ = Tensor<char>::full({size_ * item_size(dtype)}, 0);
    view_.data = memory_.data() + (layout == Layout::reversed ? (size_ - 1) * item_size(dtype) : 0);
  }

  Index size() const { return size_; }
  const MutableArrayView& writable() const { return view_; }
  ArrayView readable() const {
    ArrayView view{view_.data, view_.dtype, view_.rank, {}, {}};
    std::copy_n(view_.shape, kMaxRank, view.shape);
    std::copy_n(view_.stride, kMaxRank, view.stride);
    return view;
  }
  // In the order of memory.
  double operator[](Index i) const {
    return view_.dtype == DType::float64
               ? read_element<double>(memory_.data(), view_.dtype, i)
               : static_cast<double>(read_element<float>(memory_.data(), view_.dtype, i));
  }
  void set(Index i, double x) {
    switch (view_.dtype) {
      case DType::boolean: reinterpret_cast<bool*>(memory_.data())[i] = x != 0; break;
      case DType::int64:
        reinterpret_cast<std::int64_t*>(memory_.data())[i] = static_cast<std::int64_t>(x);
        break;
      case DType::float64: write_element<double>(memory_.data(), view_.dtype, i, x); break;
      default: write_element<float>(memory_.data(), view_.dtype, i, static_cast<float>(x));
    }
  }

 private:
  Index size_ = 1;
  Tensor<char> memory_;
  MutableArrayView view_;
};

Array random(const Shape& shape, DType dtype, Layout layout, std::uint64_t seed) {
  Array array(shape, dtype, layout);
  Tensor<double> values({array.size()});
  Initialiser(seed).normal(values);
  for (Index i = 0; i < array.size(); ++i) array.set(i, values.data()[i]);
  return array;
}

Array integers(const Shape& shape, const std::function<Index(Index)>& value, DType dtype = DType::int64) {
  Array array(shape, dtype, Layout::dense);
  for (Index i = 0; i < array.size(); ++i) array.set(i, static_cast<double>(value(i)));
  return array;
}

struct Operands {
  Size size;
  DType dtype;
  Layout layout;
  Array query = random({kBatch, kQueryHeads, size.query_length, kDim}, dtype, layout, 1);
  Array key = random({kBatch, size.key_heads, size.key_length, kDim}, dtype, layout, 2);
  Array value = random({kBatch, size.key_heads, size.key_length, kValueDim}, dtype, layout, 3);
  Array d_output = random({kBatch, kQueryHeads, size.query_length, kValueDim}, dtype, layout, 4);
  Array bias = random({kQueryHeads, size.query_length, size.key_length}, dtype, layout, 5);
  Array shared_bias = random({size.query_length, 1}, dtype, layout, 6);
  Array slopes = random({kQueryHeads}, dtype, layout, 7);
  Array sinks = random({kQueryHeads}, dtype, layout, 8);
  Array mask = integers(
      {size.query_length, size.key_length}, [](Index i) { return Index{i % 3 != 0}; }, DType::boolean);
  Array query_lengths = integers({kBatch}, [this](Index b) { return b == 0 ? size.query_length : 1; });
  Array key_lengths = integers({kBatch}, [this](Index b) { return b == 0 ? size.key_length - 2 : 0; });
  Array query_segments = integers({kBatch, size.query_length}, [](Index i) { return i % 2; });
  Array key_segments = integers({kBatch, size.key_length}, [](Index i) { return i / 7 % 2; });
  AttentionArguments arguments;

  Operands(Size of, DType stored, Layout laid_out) : size(of), dtype(stored), layout(laid_out) {
    arguments.query = query.readable();
    arguments.key = key.readable();
    arguments.value = value.readable();
  }
  Shape shape_of_bias() const {
    return arguments.bias ? Shape(arguments.bias->shape, arguments.bias->shape + arguments.bias->rank)
                          : Shape{0};
  }
};

using Choice = std::function<void(Operands&)>;

// Each way to mask or change the scores.
const std::vector<Choice> kChoices{
    [](Operands& o) { o.arguments.causal = Causal::lower_right; },
    [](Operands& o) {
      o.arguments.causal = Causal::upper_left;
      o.arguments.window = true;
      o.arguments.window_left = 40;
    },
    [](Operands& o) { o.arguments.mask = o.mask.readable(); },
    [](Operands& o) { o.arguments.bias = o.shared_bias.readable(); },
    [](Operands& o) { o.arguments.bias = o.bias.readable(); },
    [](Operands& o) {
      o.arguments.query_lengths = o.query_lengths.readable();
      o.arguments.key_lengths = o.key_lengths.readable();
    },
    [](Operands& o) {
      o.arguments.query_segments = o.query_segments.readable();
      o.arguments.key_segments = o.key_segments.readable();
    },
    [](Operands& o) {
      o.arguments.causal = Causal::lower_right;
      o.arguments.alibi_slopes = o.slopes.readable();
    },
    [](Operands& o) {
      o.arguments.sinks = o.sinks.readable();
      o.arguments.softcap = 2.0;
    },
    [](Operands& o) {
      o.arguments.dropout_p = 0.3;
      o.arguments.seed = 8;
    },
};

void choose_nothing(Operands&) {}

void choose_everything(Operands& operands) {
  for (const Choice& choose : kChoices) choose(operands);
}

// The output, the weights and every gradient of one call, one after the other.
template <class T>
std::vector<double> results(const Operands& o) {
  std::vector<double> numbers;
  const auto keep = [&](const Array& array) {
    for (Index i = 0; i < array.size(); ++i) numbers.push_back(array[i]);
  };
  const auto dense = [&](const Shape& shape) { return Array(shape, o.dtype, Layout::dense); };
  // What is written has an element of its own for each index.
  const Layout layout = o.layout == Layout::repeated ? Layout::dense : o.layout;
  const auto gradient_of = [&](const ArrayView& x) {
    return Array(Shape(x.shape, x.shape + x.rank), o.dtype, layout);
  };

  const AttentionArguments& x = o.arguments;
  const Shape output_shape = attention_output_shape(x);
  const Array inferred(output_shape, o.dtype, layout);
  attention_forward<T>(x, inferred.writable(), nullptr);
  keep(inferred);

  const Array output(output_shape, dtype_of<T>(), Layout::dense);
  AttentionStatistics<T> statistics;
  attention_forward<T>(x, output.writable(), &statistics);
  keep(output);

  const WeightSelection selection{{1, 3}, {0, o.size.query_length - 1}, false};
  const Array weights = dense({kBatch, 2, 2, o.size.key_length});
  attention_weights<T>(x, statistics, selection, weights.writable());
  keep(weights);

  const Array d_query = gradient_of(x.query), d_key = gradient_of(x.key), d_value = gradient_of(x.value),
              d_bias = dense(o.shape_of_bias()), d_sinks = dense({kQueryHeads});
  AttentionGradientViews gradients{d_query.writable(), d_key.writable(), d_value.writable(), {}, {}};
  if (x.bias) gradients.bias = d_bias.writable();
  if (x.sinks) gradients.sinks = d_sinks.writable();
  attention_backward<T>(x, statistics, output.readable(), o.d_output.readable(), gradients);
  for (const Array* gradient : {&d_query, &d_key, &d_value, &d_bias, &d_sinks}) keep(*gradient);
  return numbers;
}

// Any number of threads gives the same bits, and every instruction set the same numbers but for rounding.
template <class T>
void check(Size size, DType dtype, Layout layout, const Choice& choose, double tolerance) {
  Operands operands(size, dtype, layout);
  choose(operands);
  const std::string isa_before = active_isa_name();
  std::vector<double> first;
  std::vector<std::string> isas = detected_isas();
  isas.emplace_back("amx_reference");
  for (const std::string& isa : isas) {
    use_isa(isa);
    std::vector<double> alone;
    for (const int threads : {1, 3}) {
      const auto threads_before = override_num_threads(threads);
      const std::vector<double> numbers = results<T>(operands);
      override_num_threads(threads_before);
      if (alone.empty()) alone = numbers;
      CHECK(numbers == alone);
    }
    if (first.empty()) first = alone;
    CHECK(std::equal(alone.begin(), alone.end(), first.begin(), first.end(),
                     [&](double a, double b) { return std::abs(a - b) <= tolerance * (1 + std::abs(b)); }));
  }
  use_isa(isa_before);
}

}  // namespace

TEST(attention_with_every_choice_has_the_same_bits_for_any_number_of_threads) {
  for (const Size size : {kTiles, kFourQueries, kOneQuery}) {
    for (const Choice& choose : kChoices) {
      check<float>(size, DType::float32, Layout::dense, choose, 1e-5);
      check<double>(size, DType::float64, Layout::dense, choose, 1e-13);
    }
  }
}

TEST(attention_of_every_type_and_layout_has_the_same_bits_for_any_number_of_threads) {
  for (const Size size : {kTiles, kFourQueries, kOneQuery}) {
    for (const Layout layout : {Layout::dense, Layout::reversed, Layout::repeated}) {
      for (const Choice& choose : {Choice(choose_nothing), Choice(choose_everything)}) {
        check<float>(size, DType::float32, layout, choose, 1e-5);
        check<float>(size, DType::float16, layout, choose, 0x1p-9);
        check<float>(size, DType::bfloat16, layout, choose, 0x1p-6);
        check<double>(size, DType::float64, layout, choose, 1e-13);
      }
    }
  }
}

TEST(attention_of_rows_a_page_apart_and_of_long_heads_has_the_same_bits_for_any_number_of_threads) {
  for (const Choice& choose : {Choice(choose_nothing), Choice(choose_everything)}) {
    check<float>(kManyTiles, DType::float32, Layout::apart, choose, 1e-5);
    check<float>(kManyTiles, DType::bfloat16, Layout::apart, choose, 0x1p-6);
    check<double>(kManyTiles, DType::float64, Layout::apart, choose, 1e-13);
    check<float>(kLongHead, DType::float32, Layout::dense, choose, 1e-5);
  }
}

}  // namespace blasformer
