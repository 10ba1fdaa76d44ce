#include "layers/multihead_attention.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <string>

#include "core/describe.h"
#include "core/require.h"
#include "core/tensor_view.h"
#include "core/thread_pool.h"
#include "layers/attention_work.h"
#include "layers/dropout.h"
#include "layers/positions.h"

namespace blasformer {

namespace {

// Heads as a view of their columns: (batch, heads, length, head_dim), or (heads, length, head_dim) of rows
// without a batch. `data` is the first head's first element; each position is `width` elements long.
template <class View, class T>
View heads_of(T* data, const Shape& rows_shape, Index heads, Index head_dim) {
  const std::size_t rank = rows_shape.size();
  const Index width = rows_shape[rank - 1], length = rows_shape[rank - 2];
  View view;
  view.data = data;
  view.dtype = dtype_of<std::remove_const_t<T>>();
  const auto append = [&view](Index extent, Index stride) {
    view.shape[view.rank] = extent;
    view.stride[view.rank] = stride;
    ++view.rank;
  };
  if (rank == 3) append(rows_shape[0], length * width);
  append(heads, head_dim);
  append(length, width);
  append(head_dim, 1);
  return view;
}

Shape with_last(Shape shape, Index extent) {
  shape.back() = extent;
  return shape;
}

// Where queries stand among the keys, as the masks of attention count: (length,), or (batch, length) for
// offsets of their own.
Tensor<std::int64_t> query_positions(const AttentionArguments& arguments, Index length, Index key_length) {
  const auto from = [length](std::int64_t offset, std::int64_t* positions) {
    std::iota(positions, positions + length, offset);
  };
  Tensor<std::int64_t> positions({length});
  if (arguments.query_offset) {
    const ArrayView& offset = *arguments.query_offset;
    const auto* const offsets = static_cast<const std::int64_t*>(offset.data);
    if (offset.rank == 0) {
      from(*offsets, positions.data());
      return positions;
    }
    positions = Tensor<std::int64_t>({offset.shape[0], length});
    for (Index b = 0; b < offset.shape[0]; ++b)
      from(offsets[b * offset.stride[0]], positions.data() + b * length);
    return positions;
  }
  require(
      length == key_length || arguments.causal != Causal::no, "rotary is ambiguous for query length ", length,
      " and key length ", key_length,
      ": causal must be \"upper_left\" (key j stands where query j does) or \"lower_right\" (the last key "
      "stands where the last query does), or query_offset must be given");
  from(arguments.causal == Causal::lower_right ? key_length - length : 0, positions.data());
  return positions;
}

// Each sequence begins at 0.
Tensor<std::int64_t> packed_positions(const std::vector<Index>& starts) {
  Tensor<std::int64_t> positions({starts.back()});
  for (std::size_t i = 0; i + 1 < starts.size(); ++i)
    std::iota(positions.data() + starts[i], positions.data() + starts[i + 1], std::int64_t{0});
  return positions;
}

template <class T>
bool same_rows(const Tensor<T>& a, const Tensor<T>& b) {
  return a.data() == b.data() && a.shape() == b.shape();
}

}  // namespace

template <class T>
MultiheadAttention<T>::MultiheadAttention(Index embed_dim, Index num_heads_, Index num_kv_heads_, Index kdim,
                                          Index vdim, double dropout_p_, bool with_bias,
                                          const std::optional<RotaryPositions>& rotary_)
    : num_heads(num_heads_),
      num_kv_heads(num_kv_heads_),
      head_dim(0),
      dropout_p(dropout_p_),
      out_proj(embed_dim, embed_dim, with_bias),
      rotary(rotary_) {
  require(num_heads > 0, "num_heads must be positive, got ", num_heads);
  require(embed_dim % num_heads == 0, "embed_dim must be a multiple of num_heads = ", num_heads, ", got ",
          embed_dim);
  require(num_kv_heads > 0 && num_heads % num_kv_heads == 0,
          "num_kv_heads must divide num_heads = ", num_heads, ", got ", num_kv_heads);
  require(kdim > 0, "kdim must be positive, got ", kdim);
  require(vdim > 0, "vdim must be positive, got ", vdim);
  require_probability("dropout", dropout_p);
  head_dim = embed_dim / num_heads;
  if (rotary) {
    require(rotary->dims > 0 && rotary->dims % 2 == 0 && rotary->dims <= head_dim,
            "dims of rotary must be positive, even and at most the ", head_dim, " features of a head, got ",
            rotary->dims);
    require(std::isfinite(rotary->base) && rotary->base > 0,
            "base of rotary must be a finite number above 0, got ", rotary->base);
  }
  const Index kv_rows = num_kv_heads * head_dim, rows = embed_dim + 2 * kv_rows;
  if (kdim == embed_dim && vdim == embed_dim) {
    in_proj_weight = Tensor<T>({rows, embed_dim});
  } else {
    q_proj_weight = Tensor<T>({embed_dim, embed_dim});
    k_proj_weight = Tensor<T>({kv_rows, kdim});
    v_proj_weight = Tensor<T>({kv_rows, vdim});
  }
  if (with_bias) in_proj_bias = Tensor<T>({rows});
}

// Glorot and Bengio 2010, as PyTorch does.
template <class T>
void MultiheadAttention<T>::initialise(Initialiser& random) {
  const auto xavier_uniform = [&random](Tensor<T>& weight) {
    if (!weight.empty()) {
      random.uniform(weight, std::sqrt(6.0 / static_cast<double>(weight.extent(0) + weight.extent(1))));
    }
  };
  xavier_uniform(in_proj_weight);
  xavier_uniform(q_proj_weight);
  xavier_uniform(k_proj_weight);
  xavier_uniform(v_proj_weight);
  out_proj.initialise(random);
  for (Tensor<T>* bias : {&in_proj_bias, &out_proj.bias}) std::fill_n(bias->data(), bias->size(), T{0});
}

template <class T>
void MultiheadAttention<T>::check_inputs(const Tensor<T>& query, const Tensor<T>& key,
                                         const Tensor<T>& value) const {
  require((query.rank() == 2 || query.rank() == 3) && query.shape().back() == embed_dim(),
          "query must have the shape (batch, length, ", embed_dim(), ") or (length, ", embed_dim(), "), got ",
          shape_text(query.shape()));
  const auto fits = [&](const Tensor<T>& x, Index features) {
    return x.rank() == query.rank() && (x.rank() == 2 || x.extent(0) == query.extent(0)) &&
           x.shape().back() == features;
  };
  const auto batch = [&] {
    return query.rank() == 3 ? std::to_string(query.extent(0)) + ", " : std::string();
  };
  if (!fits(key, kdim())) {
    fail("key must have the shape (", batch(), "key_length, ", kdim(), ") to fit query ",
         shape_text(query.shape()), ", got ", shape_text(key.shape()));
  }
  const Index key_length = key.extent(key.rank() - 2);
  if (!fits(value, vdim()) || value.extent(value.rank() - 2) != key_length) {
    fail("value must have the shape (", batch(), key_length, ", ", vdim(), ") to fit key ",
         shape_text(key.shape()), ", got ", shape_text(value.shape()));
  }
}

// The rows of in_proj_weight, or of in_proj_bias, that query, key and value are projected by, and their end.
template <class T>
std::array<Index, 4> MultiheadAttention<T>::first_rows() const {
  const Index kv_rows = num_kv_heads * head_dim;
  return {0, embed_dim(), embed_dim() + kv_rows, embed_dim() + 2 * kv_rows};
}

// Projections of one input that lie next to each other in in_proj_weight are one product.
template <class T>
auto MultiheadAttention<T>::project(const Tensor<T>& query, const Tensor<T>& key, const Tensor<T>& value,
                                    std::optional<std::uint64_t> seed, Pass pass) const -> Projections {
  const Tensor<T>* const inputs[3] = {&query, &key, &value};
  const Tensor<T>* const weights[3] = {&q_proj_weight, &k_proj_weight, &v_proj_weight};
  const std::array<Index, 4> boundaries = first_rows();
  const Index* const first_row = boundaries.data();
  const bool stacked = in_proj_weight.size() > 0;

  Projected projected[3];
  for (int first = 0, last = 0; first < 3; first = last) {
    last = first + 1;
    while (stacked && last < 3 && same_rows(*inputs[last], *inputs[first])) ++last;
    const Tensor<T>& x = *inputs[first];
    const Index rows = first_row[last] - first_row[first], features = x.shape().back();
    const LayerWeight<T> weight = {stacked ? in_proj_weight.data() : weights[first]->data(),
                                   stacked ? first_row[3] : rows, stacked ? first_row[first] : 0,
                                   packed[static_cast<std::size_t>(stacked ? 0 : first)], pass};
    const T* bias = in_proj_bias.empty() ? nullptr : in_proj_bias.data() + first_row[first];
    Tensor<T> y(with_last(x.shape(), rows));
    linear(x.data(), x.size() / features, features, weight, bias, rows, y.data());
    if (in_proj_adapter) {
      require(last - first == 3, "an adapter of in_proj_weight needs query, key and value to be the same");
      in_proj_adapter->add(x.data(), x.size() / features, adapter_seed(seed, 0), y.data(), rows);
    }
    for (int i = first; i < last; ++i) {
      projected[i] = {y, first_row[i] - first_row[first]};
      if (const auto& adapter = adapters[static_cast<std::size_t>(i)]) {
        adapter->add(x.data(), x.size() / features, adapter_seed(seed, static_cast<std::uint64_t>(i)),
                     y.data() + projected[i].first_column, rows);
      }
    }
  }
  return {projected[0], projected[1], projected[2]};
}

// The arguments of attention on the projections of one packed sequence, or on all of them.
template <class T>
AttentionArguments MultiheadAttention<T>::attention_arguments(const AttentionArguments& arguments,
                                                              const Projections& projections,
                                                              const std::optional<Sequence>& sequence) const {
  AttentionArguments own = arguments;
  const auto heads = [&](const Projected& x, Index count) {
    const Index width = x.rows.shape().back();
    return heads_of<ArrayView>(x.rows.data() + (sequence ? sequence->first * width : 0) + x.first_column,
                               sequence ? Shape{sequence->length, width} : x.rows.shape(), count, head_dim);
  };
  own.query = heads(projections.query, num_heads);
  own.key = heads(projections.key, num_kv_heads);
  own.value = heads(projections.value, num_kv_heads);
  own.dropout_p = dropout_p;
  if (sequence && own.seed) own.seed = *own.seed + (sequence->number << 32);
  return own;
}

template <class T>
void MultiheadAttention<T>::turn(Turn direction, const AttentionArguments& arguments,
                                 const std::vector<Index>& starts, const Projections& projections,
                                 Tensor<T>& query_rows, Tensor<T>& key_rows) const {
  const auto turn_heads = [&](Tensor<T>& rows, Index first_column, Index heads,
                              const Tensor<std::int64_t>& positions) {
    const MutableArrayView view =
        heads_of<MutableArrayView>(rows.data() + first_column, rows.shape(), heads, head_dim);
    const Elements<T> x(readable(view));
    const MutableElements<T> y(view);
    const Index batch = rows.rank() == 3 ? rows.extent(0) : 1, length = rows.extent(rows.rank() - 2);
    const auto run = [&](auto rotate) {
      rotate(x, batch, heads, length, head_dim, positions.data(), positions.rank() == 2, rotary->base,
             rotary->pairs, rotary->dims, y);
    };
    if (direction == Turn::forward) {
      run([](const auto&... arguments) { rotary_embedding<T>(arguments...); });
    } else {
      run([](const auto&... arguments) { rotary_backward<T>(arguments...); });
    }
  };
  const Index length = query_rows.extent(query_rows.rank() - 2);
  const Index key_length = key_rows.extent(key_rows.rank() - 2);
  const bool packed = !starts.empty();
  turn_heads(query_rows, projections.query.first_column, num_heads,
             packed ? packed_positions(starts) : query_positions(arguments, length, key_length));
  turn_heads(key_rows, projections.key.first_column, num_kv_heads,
             packed ? packed_positions(starts) : consecutive_positions(key_length));
}

template <class T>
Tensor<T> MultiheadAttention<T>::forward(const Tensor<T>& query, const Tensor<T>* key_or_null,
                                         const Tensor<T>* value_or_null, AttentionArguments arguments,
                                         Saved* saved, AskedWeights<T>* asked, Tensor<T>* out) const {
  const Tensor<T>& key = key_or_null != nullptr ? *key_or_null : query;
  const Tensor<T>& value = value_or_null != nullptr ? *value_or_null : key;
  check_inputs(query, key, value);
  Projections projected =
      project(query, key, value, arguments.seed, saved != nullptr ? Pass::training : Pass::inference);
  const AttentionArguments own = attention_arguments(arguments, projected, std::nullopt);
  if (rotary) {
    attention_output_shape(own);  // throws unless the offsets fit, among others
    turn(Turn::forward, arguments, {}, projected, projected.query.rows, projected.key.rows);
  }

  Tensor<T> attended(query.shape());
  AttentionStatistics<T> statistics;
  attention_forward<T>(own,
                       heads_of<MutableArrayView>(attended.data(), attended.shape(), num_heads, head_dim),
                       saved != nullptr || asked != nullptr ? &statistics : nullptr);
  if (asked != nullptr) {
    const WeightSelection& selection = asked->selection;
    Shape shape(query.shape().begin(), query.shape().end() - 2);
    if (!selection.mean) shape.push_back(static_cast<Index>(selection.heads.size()));
    shape.push_back(static_cast<Index>(selection.rows.size()));
    shape.push_back(key.extent(key.rank() - 2));
    asked->weights = Tensor<T>(shape);
    MutableArrayView view;
    view.data = asked->weights.data();
    view.dtype = dtype_of<T>();
    attention_weights(own, statistics, selection, view);
  }
  if (saved != nullptr) {
    saved->query = query;
    if (key_or_null != nullptr) saved->key = key;
    if (value_or_null != nullptr) saved->value = value;
    saved->projections = projected;
    saved->arguments = arguments;
    saved->statistics = {statistics};
  }
  return out_proj.forward(attended, saved != nullptr ? &saved->out_proj : nullptr,
                          adapter_seed(arguments.seed, 3), out);
}

// Sequences are shared among the threads, or taken in turn, each by as many threads as it is worth: what is
// estimated to end sooner. The same bits either way.
template <class T>
template <class Attend>
void MultiheadAttention<T>::each_sequence(const std::vector<Index>& starts, const Attend& attend) const {
  const auto sequences = static_cast<Index>(starts.size()) - 1;
  const auto attend_to = [&](Index number) {
    const Index first = starts[static_cast<std::size_t>(number)];
    attend(Sequence{first, starts[static_cast<std::size_t>(number) + 1] - first,
                    static_cast<std::uint64_t>(number)});
  };
  const int threads = num_threads();
  double total = 0, longest = 0, in_turn = 0;
  for (std::size_t i = 0; i + 1 < starts.size(); ++i) {
    const Index length = starts[i + 1] - starts[i];
    const double work = attention_work(num_heads, length, length, 2 * head_dim);
    total += work;
    longest = std::max(longest, work);
    in_turn += work / planned_threads(num_heads, work, threads);
  }
  if (std::max(longest, total / threads) < in_turn) {
    parallel_for(sequences, total, [&](Index sequence, int) { attend_to(sequence); });
  } else {
    for (Index sequence = 0; sequence < sequences; ++sequence) attend_to(sequence);
  }
}

template <class T>
Tensor<T> MultiheadAttention<T>::forward_packed(const Tensor<T>& x, const std::vector<Index>& starts,
                                                const AttentionArguments& arguments, Saved* saved) const {
  require(x.rank() == 2 && x.extent(1) == embed_dim(), "x must have the shape (total, ", embed_dim(),
          "), got ", shape_text(x.shape()));
  require(!starts.empty() && starts.front() == 0 && starts.back() == x.extent(0) &&
              std::ranges::is_sorted(starts),
          "starts must rise from 0 to the ", x.extent(0), " rows of x");
  Projections projected =
      project(x, x, x, arguments.seed, saved != nullptr ? Pass::training : Pass::inference);
  if (rotary) turn(Turn::forward, arguments, starts, projected, projected.query.rows, projected.key.rows);
  Tensor<T> attended(x.shape());
  std::vector<AttentionStatistics<T>> statistics(saved != nullptr ? starts.size() - 1 : 0);
  each_sequence(starts, [&](const Sequence& sequence) {
    T* const output = attended.data() + sequence.first * embed_dim();
    attention_forward<T>(
        attention_arguments(arguments, projected, sequence),
        heads_of<MutableArrayView>(output, {sequence.length, embed_dim()}, num_heads, head_dim),
        saved != nullptr ? &statistics[sequence.number] : nullptr);
  });
  if (saved != nullptr) {
    saved->query = x;
    saved->projections = projected;
    saved->arguments = arguments;
    saved->starts = starts;
    saved->statistics = std::move(statistics);
  }
  return out_proj.forward(attended, saved != nullptr ? &saved->out_proj : nullptr,
                          adapter_seed(arguments.seed, 3));
}

// d_rows: the gradients of the projections of query, key and value, which lie as the projections do.
template <class T>
void MultiheadAttention<T>::attention_gradients(const Saved& saved, const Tensor<T>& d_attended,
                                                Tensor<T>* d_rows) const {
  const Tensor<T>& attended = saved.out_proj.input;
  const Projected* const projected[3] = {&saved.projections.query, &saved.projections.key,
                                         &saved.projections.value};
  const Index heads[3] = {num_heads, num_kv_heads, num_kv_heads};
  const auto gradients = [&](const std::optional<Sequence>& sequence,
                             const AttentionStatistics<T>& statistics) {
    MutableArrayView views[3];
    for (int i = 0; i < 3; ++i) {
      const Index width = d_rows[i].shape().back();
      views[i] = heads_of<MutableArrayView>(
          d_rows[i].data() + (sequence ? sequence->first * width : 0) + projected[i]->first_column,
          sequence ? Shape{sequence->length, width} : d_rows[i].shape(), heads[i], head_dim);
    }
    const auto outputs = [&](const Tensor<T>& x) {
      return heads_of<ArrayView>(x.data() + (sequence ? sequence->first * embed_dim() : 0),
                                 sequence ? Shape{sequence->length, embed_dim()} : x.shape(), num_heads,
                                 head_dim);
    };
    attention_backward(attention_arguments(saved.arguments, saved.projections, sequence), statistics,
                       outputs(attended), outputs(d_attended),
                       {views[0], views[1], views[2], std::nullopt, std::nullopt});
  };
  if (saved.starts.empty()) return gradients(std::nullopt, saved.statistics.front());
  each_sequence(saved.starts,
                [&](const Sequence& sequence) { gradients(sequence, saved.statistics[sequence.number]); });
}

template <class T>
auto MultiheadAttention<T>::backward(const Saved& saved, const Tensor<T>& d_y, MultiheadAttention& gradients,
                                     Write write) const -> InputGradients {
  const std::optional<std::uint64_t> seed = saved.arguments.seed;
  const Projected* const projected[3] = {&saved.projections.query, &saved.projections.key,
                                         &saved.projections.value};
  Tensor<T> d_rows[3];
  for (int i = 0; i < 3; ++i) {
    const bool stacked_on_last = i > 0 && same_rows(projected[i]->rows, projected[i - 1]->rows);
    d_rows[i] = stacked_on_last ? d_rows[i - 1] : Tensor<T>(projected[i]->rows.shape());
  }
  attention_gradients(saved, out_proj.backward(saved.out_proj, d_y, gradients.out_proj, write), d_rows);
  if (rotary) turn(Turn::back, saved.arguments, saved.starts, saved.projections, d_rows[0], d_rows[1]);

  const bool stacked = in_proj_weight.size() > 0;
  const Tensor<T>* const weights[3] = {&q_proj_weight, &k_proj_weight, &v_proj_weight};
  Tensor<T>* const d_weights[3] = {&gradients.q_proj_weight, &gradients.k_proj_weight,
                                   &gradients.v_proj_weight};
  const std::array<Index, 4> boundaries = first_rows();
  const Index* const first_row = boundaries.data();
  InputGradients d_inputs;
  Tensor<T>* const d_input[3] = {&d_inputs.query, &d_inputs.key, &d_inputs.value};
  const Tensor<T>* const given[3] = {&saved.query, &saved.key, &saved.value};
  int owner[3] = {0, 0, 0};  // the input that the projections are of
  for (int i = 1; i < 3; ++i) owner[i] = given[i]->empty() ? owner[i - 1] : i;
  for (int first = 0, last = 0; first < 3; first = last) {
    last = first + 1;
    while (stacked && last < 3 && owner[last] == owner[first]) ++last;
    const Tensor<T>& x = *given[owner[first]];
    const Index outputs = first_row[last] - first_row[first], features = x.shape().back();
    const Index rows = x.size() / features, stride = d_rows[first].shape().back();
    const T* const d_columns = d_rows[first].data() + projected[first]->first_column;
    const auto at_row = [&](auto& tensor, Index width) {
      return tensor.empty() ? nullptr : tensor.data() + first_row[first] * width;
    };
    linear_weight_gradient(x.data(), d_columns, stride, rows, features, outputs,
                           stacked ? at_row(gradients.in_proj_weight, features) : d_weights[first]->data(),
                           at_row(gradients.in_proj_bias, 1), write);
    Tensor<T>& d_x = *d_input[owner[first]];
    const Write write_input = d_x.empty() ? Write::replace : Write::add;
    if (d_x.empty()) d_x = Tensor<T>(x.shape());
    linear_input_gradient(
        d_columns, stride, rows, outputs,
        stacked ? in_proj_weight.data() + first_row[first] * features : weights[first]->data(), features,
        d_x.data(), write_input);
    if (in_proj_adapter) {
      in_proj_adapter->parameter_gradients(x.data(), rows, adapter_seed(seed, 0), d_columns, stride,
                                           *gradients.in_proj_adapter, write);
      in_proj_adapter->add_input_gradient(d_columns, stride, rows, adapter_seed(seed, 0), d_x.data());
    }
    for (int i = first; i < last; ++i) {
      if (!adapters[static_cast<std::size_t>(i)]) continue;
      const T* const d_own = d_rows[i].data() + projected[i]->first_column;
      adapters[static_cast<std::size_t>(i)]->parameter_gradients(
          x.data(), rows, adapter_seed(seed, static_cast<std::uint64_t>(i)), d_own, stride,
          *gradients.adapters[static_cast<std::size_t>(i)], write);
      adapters[static_cast<std::size_t>(i)]->add_input_gradient(
          d_own, stride, rows, adapter_seed(seed, static_cast<std::uint64_t>(i)), d_x.data());
    }
  }
  return d_inputs;
}

template struct MultiheadAttention<float>;
template struct MultiheadAttention<double>;

}  // namespace blasformer
