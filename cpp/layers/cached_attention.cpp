#include "layers/cached_attention.h"

#include <algorithm>
#include <functional>
#include <initializer_list>
#include <numeric>
#include <type_traits>

#include "core/array_view.h"
#include "core/require.h"
#include "core/tensor_view.h"
#include "core/thread_pool.h"
#include "layers/attention.h"

namespace blasformer {

namespace {

template <class View, class T>
View view_of(T* data, DType dtype, std::initializer_list<Index> shape, std::initializer_list<Index> stride) {
  View view;
  view.data = data;
  view.dtype = dtype;
  view.rank = static_cast<int>(shape.size());
  std::copy(shape.begin(), shape.end(), view.shape);
  std::copy(stride.begin(), stride.end(), view.stride);
  return view;
}

ArrayView per_sequence(const Tensor<std::int64_t>& values) {
  return view_of<ArrayView>(values.data(), DType::int64, {values.size()}, {1});
}

// The first `length` positions of a cache.
template <class T>
ArrayView cached(const Tensor<T>& cache, Index length) {
  const Index heads = cache.extent(1), capacity = cache.extent(2), dim = cache.extent(3);
  return view_of<ArrayView>(cache.data(), dtype_of<T>(), {cache.extent(0), heads, length, dim},
                            {heads * capacity * dim, capacity * dim, dim, 1});
}

// Heads of dense rows (batch, length, width), the first of which begins at `data`.
template <class View, class T>
View heads_of(T* data, const Shape& rows, Index heads, Index dim) {
  return view_of<View>(data, dtype_of<std::remove_const_t<T>>(), {rows[0], heads, rows[1], dim},
                       {rows[1] * rows[2], dim, rows[2], 1});
}

// Turns heads in place by their positions, (batch, length).
template <class T>
void turn(const RotaryPositions& rotary, typename MultiheadAttention<T>::Projected& projected, Index heads,
          Index head_dim, const Tensor<std::int64_t>& positions) {
  Tensor<T>& rows = projected.rows;
  const auto view =
      heads_of<MutableArrayView>(rows.data() + projected.first_column, rows.shape(), heads, head_dim);
  rotary_embedding<T>(Elements<T>(readable(view)), rows.extent(0), heads, rows.extent(1), head_dim,
                      positions.data(), true, rotary.base, rotary.pairs, rotary.dims,
                      MutableElements<T>(view));
}

// Writes the heads of the first count(b) rows of each sequence to the positions of the cache from first(b)
// on.
template <class T>
void store(const typename MultiheadAttention<T>::Projected& projected, const auto& count, const auto& first,
           Tensor<T>& cache) {
  const Tensor<T>& rows = projected.rows;
  const Index batch = cache.extent(0), heads = cache.extent(1), capacity = cache.extent(2),
              dim = cache.extent(3);
  const Index length = rows.extent(1), width = rows.extent(2);
  const double work = 0.2 * static_cast<double>(batch * length * heads * dim);
  parallel_for(batch * heads, work, [&](Index task, int) {
    const Index b = task / heads, head = task % heads;
    const T* source = rows.data() + b * length * width + projected.first_column + head * dim;
    T* target = cache.data() + (task * capacity + first(b)) * dim;
    for (Index i = 0; i < count(b); ++i, source += width, target += dim) std::copy_n(source, dim, target);
  });
}

// What the heads of `query` see in the first `length` positions of a cache, projected to the output.
template <class T>
Tensor<T> attend(const MultiheadAttention<T>& attention,
                 const typename MultiheadAttention<T>::Projected& query, const Shape& shape,
                 const KeysAndValues<T>& cache, Index length, AttentionArguments arguments) {
  arguments.query = heads_of<ArrayView>(query.rows.data() + query.first_column, query.rows.shape(),
                                        attention.num_heads, attention.head_dim);
  arguments.key = cached(cache.key, length);
  arguments.value = cached(cache.value, length);
  Tensor<T> attended(shape);
  attention_forward<T>(
      arguments, heads_of<MutableArrayView>(attended.data(), shape, attention.num_heads, attention.head_dim),
      nullptr);
  return attention.out_proj.forward(attended);
}

template <class T>
Tensor<T> rows_of(const Tensor<T>& cache, const std::vector<Index>& rows) {
  Shape shape = cache.shape();
  shape[0] = static_cast<Index>(rows.size());
  Tensor<T> result(shape);
  const Index size = shape[1] * shape[2] * shape[3];
  parallel_for(shape[0], 0.2 * static_cast<double>(result.size()), [&](Index i, int) {
    std::copy_n(cache.data() + rows[static_cast<std::size_t>(i)] * size, size, result.data() + i * size);
  });
  return result;
}

}  // namespace

template <class T>
KeysAndValues<T>::KeysAndValues(const MultiheadAttention<T>& attention, Index batch, Index capacity)
    : key({batch, attention.num_kv_heads, capacity, attention.head_dim}),
      value({batch, attention.num_kv_heads, capacity, attention.head_dim}) {}

template <class T>
KeysAndValues<T> KeysAndValues<T>::of_rows(const std::vector<Index>& rows) const {
  KeysAndValues result = *this;
  result.key = rows_of(key, rows);
  result.value = rows_of(value, rows);
  return result;
}

template <class T>
Tensor<T> attend_causally(const MultiheadAttention<T>& attention, const Tensor<T>& x,
                          const Tensor<std::int64_t>& added, const Tensor<std::int64_t>& seen,
                          KeysAndValues<T>& cache) {
  auto projected = attention.project(x, x, x, std::nullopt, Pass::inference);
  if (attention.rotary) {
    const Index length = x.extent(1);
    Tensor<std::int64_t> positions({x.extent(0), length});
    for (Index b = 0; b < x.extent(0); ++b)
      std::iota(positions.data() + b * length, positions.data() + (b + 1) * length, seen.data()[b]);
    turn<T>(*attention.rotary, projected.query, attention.num_heads, attention.head_dim, positions);
    turn<T>(*attention.rotary, projected.key, attention.num_kv_heads, attention.head_dim, positions);
  }
  const auto count = [&](Index b) { return added.data()[b]; };
  const auto first = [&](Index b) { return seen.data()[b]; };
  store<T>(projected.key, count, first, cache.key);
  store<T>(projected.value, count, first, cache.value);
  Tensor<std::int64_t> lengths(seen.shape());
  std::transform(seen.data(), seen.data() + seen.size(), added.data(), lengths.data(), std::plus<>());
  const Index longest =
      lengths.size() == 0 ? 0 : *std::max_element(lengths.data(), lengths.data() + lengths.size());
  AttentionArguments arguments;
  arguments.causal = Causal::yes;
  arguments.query_offset = per_sequence(seen);
  arguments.query_lengths = per_sequence(added);
  arguments.key_lengths = per_sequence(lengths);
  return attend(attention, projected.query, x.shape(), cache, longest, arguments);
}

template <class T>
KeysAndValues<T> keys_and_values(const MultiheadAttention<T>& attention, const Tensor<T>& memory) {
  require(!attention.rotary, "keys and values of a memory must have no rotary positions");
  const Tensor<T> no_query({memory.extent(0), 0, attention.embed_dim()});
  const auto projected = attention.project(no_query, memory, memory, std::nullopt, Pass::inference);
  const Index length = memory.extent(1);
  KeysAndValues<T> result(attention, memory.extent(0), length);
  const auto all = [length](Index) { return length; };
  const auto from_the_beginning = [](Index) { return Index{0}; };
  store<T>(projected.key, all, from_the_beginning, result.key);
  store<T>(projected.value, all, from_the_beginning, result.value);
  return result;
}

template <class T>
Tensor<T> attend_to(const MultiheadAttention<T>& attention, const Tensor<T>& x,
                    const KeysAndValues<T>& memory, const Tensor<std::int64_t>& lengths) {
  const Tensor<T> no_key({x.extent(0), 0, attention.kdim()}), no_value({x.extent(0), 0, attention.vdim()});
  const auto projected = attention.project(x, no_key, no_value, std::nullopt, Pass::inference);
  AttentionArguments arguments;
  if (!lengths.empty()) arguments.key_lengths = per_sequence(lengths);
  return attend(attention, projected.query, x.shape(), memory, memory.key.extent(2), arguments);
}

#define BLASFORMER_CACHED_ATTENTION(T)                                                                  \
  template struct KeysAndValues<T>;                                                                     \
  template Tensor<T> attend_causally(const MultiheadAttention<T>&, const Tensor<T>&,                    \
                                     const Tensor<std::int64_t>&, const Tensor<std::int64_t>&,          \
                                     KeysAndValues<T>&);                                                \
  template KeysAndValues<T> keys_and_values(const MultiheadAttention<T>&, const Tensor<T>&);            \
  template Tensor<T> attend_to(const MultiheadAttention<T>&, const Tensor<T>&, const KeysAndValues<T>&, \
                               const Tensor<std::int64_t>&);
BLASFORMER_CACHED_ATTENTION(float)
BLASFORMER_CACHED_ATTENTION(double)

}  // namespace blasformer
