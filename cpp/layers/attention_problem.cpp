#include "layers/attention_problem.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>

#include "core/batch_invariance.h"
#include "core/describe.h"
#include "core/half.h"
#include "core/require.h"

namespace blasformer {

namespace {

void require_dtype(const ArrayView& view, DType dtype, const char* name) {
  if (view.dtype != dtype) {
    fail<TypeMismatch>(name, " must have the dtype of query, ", dtype_text(dtype), ", got ",
                       dtype_text(view.dtype));
  }
}

double number_at(const ArrayView& view, Index offset) {
  switch (view.dtype) {
    case DType::float64: return static_cast<const double*>(view.data)[offset];
    case DType::float32: return static_cast<double>(static_cast<const float*>(view.data)[offset]);
    case DType::float16:
      return static_cast<double>(float16_to_float32(static_cast<const std::uint16_t*>(view.data)[offset]));
    case DType::bfloat16:
      return static_cast<double>(bfloat16_to_float32(static_cast<const std::uint16_t*>(view.data)[offset]));
    default: fail<TypeMismatch>("an array must be floating-point");
  }
}

// Sums of positions, offsets and window sides stay far from overflow.
Index bounded(Index x) {
  return std::clamp(x, -AttentionMasks::kUnbounded / 2, AttentionMasks::kUnbounded / 2);
}

}  // namespace

CheckedAttention::CheckedAttention(const AttentionArguments& arguments) {
  check_shapes(arguments);
  AttentionProblem& p = problem_;
  p.ordered_scores = arguments.batch_invariant.value_or(batch_invariant());
  p.query = operand(arguments.query);
  p.key = operand(arguments.key);
  p.value = operand(arguments.value);
  if (arguments.mask) {
    if (arguments.mask->dtype != DType::boolean) {
      fail<TypeMismatch>("mask must be bool (True = may attend), got ", dtype_text(arguments.mask->dtype));
    }
    p.masks.mask = broadcast(*arguments.mask, "mask");
  }
  if (arguments.bias) {
    require_dtype(*arguments.bias, arguments.query.dtype, "bias");
    p.bias = broadcast(*arguments.bias, "bias");
  }
  if (arguments.query_lengths) {
    p.masks.query_lengths = per_sequence(*arguments.query_lengths, "query_lengths", 0, p.query_length);
  }
  if (arguments.key_lengths) {
    p.masks.key_lengths = per_sequence(*arguments.key_lengths, "key_lengths", 0, p.key_length);
  }
  if (arguments.query_segments || arguments.key_segments) {
    if (!arguments.query_segments || !arguments.key_segments) {
      if (!arguments.query_segments || p.query_length != p.key_length) {
        fail("query_segments and key_segments must be given together, got only ",
             arguments.query_segments ? "query_segments" : "key_segments");
      }
    }
    p.masks.query_segments = segments(*arguments.query_segments, "query_segments", p.query_length);
    p.masks.key_segments = arguments.key_segments
                               ? segments(*arguments.key_segments, "key_segments", p.key_length)
                               : p.masks.query_segments;
  }
  set_positions(arguments);
  if (arguments.alibi_slopes) p.alibi_slopes = per_head(*arguments.alibi_slopes, "alibi_slopes", true);
  if (arguments.sinks) {
    require_dtype(*arguments.sinks, arguments.query.dtype, "sinks");
    p.sinks = per_head(*arguments.sinks, "sinks", false);
  }
  if (arguments.softcap) {
    require(std::isfinite(*arguments.softcap) && *arguments.softcap > 0,
            "softcap must be a finite number above 0, got ", *arguments.softcap);
    p.softcap = *arguments.softcap;
  }
  p.scale = arguments.scale ? *arguments.scale : 1 / std::sqrt(static_cast<double>(p.dim));
  require(std::isfinite(p.scale), "scale must be a finite number, got ", p.scale);
  require(arguments.dropout_p >= 0 && arguments.dropout_p <= 1, "dropout_p must lie in [0, 1], got ",
          arguments.dropout_p);
  if (arguments.seed) {
    p.dropout_p = arguments.dropout_p;
    p.seed = *arguments.seed;
  }
}

void CheckedAttention::check_shapes(const AttentionArguments& arguments) {
  const ArrayView &query = arguments.query, &key = arguments.key, &value = arguments.value;
  const auto check = [&](const ArrayView& view, const char* name) {
    require(view.rank >= 2, name, " must have the shape (..., heads, length, dim), got ", shape_text(view));
    require(view.rank == query.rank, name, " must have as many dimensions as query ", shape_text(query),
            ", got ", shape_text(view));
    require_dtype(view, query.dtype, name);
    for (int axis = 0; axis + 3 < view.rank; ++axis) {
      require(view.shape[axis] == query.shape[axis], name, " must agree with query ", shape_text(query),
              " in its leading dimensions, got ", shape_text(view));
    }
  };
  if (query.dtype == DType::boolean || query.dtype == DType::int64) {
    fail<TypeMismatch>("query must be floating-point, got ", dtype_text(query.dtype));
  }
  check(query, "query");
  check(key, "key");
  check(value, "value");
  const int rank = query.rank;
  single_head_ = rank == 2;
  AttentionProblem& p = problem_;
  p.query_heads = single_head_ ? 1 : query.shape[rank - 3];
  p.key_heads = single_head_ ? 1 : key.shape[rank - 3];
  p.query_length = query.shape[rank - 2];
  p.key_length = key.shape[rank - 2];
  p.dim = query.shape[rank - 1];
  p.value_dim = value.shape[rank - 1];
  require(p.query_heads > 0, "query must have at least one head, got ", shape_text(query));
  require(p.key_heads > 0, "key must have at least one head, got ", shape_text(key));
  require(p.dim > 0, "query must have a last dimension of at least 1, got ", shape_text(query));
  require(p.value_dim > 0, "value must have a last dimension of at least 1, got ", shape_text(value));
  require(key.shape[rank - 1] == p.dim, "key must have the last dimension of query ", shape_text(query),
          ", got ", shape_text(key));
  require(p.query_heads % p.key_heads == 0, "key must have a number of heads that divides that of query ",
          shape_text(query), ", got ", shape_text(key), ": ", p.key_heads, " does not divide ",
          p.query_heads);
  require(single_head_ || value.shape[rank - 3] == p.key_heads, "value must have as many heads as key ",
          shape_text(key), ", got ", shape_text(value));
  require(value.shape[rank - 2] == p.key_length, "value must have the length of key ", shape_text(key),
          ", got ", shape_text(value));
  batch_shape_.assign(query.shape, query.shape + std::max(rank - 3, 0));
  p.batch = element_count(batch_shape_);
}

// Offsets of each batch entry in an array whose leading axes have these shapes and strides.
const Index* CheckedAttention::batch_offsets(const Index* shape, const Index* stride, int rank) {
  Index* offsets = keep_indices(std::max<Index>(problem_.batch, 1));
  offsets[0] = 0;
  Index filled = 1;
  // Axis by axis from the last: the offsets so far, repeated for each position along the next axis out.
  for (int axis = rank - 1; axis >= 0 && problem_.batch > 0; --axis) {
    for (Index position = 1; position < shape[axis]; ++position) {
      for (Index i = 0; i < filled; ++i)
        offsets[position * filled + i] = offsets[i] + position * stride[axis];
    }
    filled *= shape[axis];
  }
  return offsets;
}

MutableAttentionOperand CheckedAttention::operand(const MutableArrayView& view) {
  const int rank = view.rank;
  MutableAttentionOperand x;
  x.data = view.data;
  x.dtype = view.dtype;
  x.column_stride = view.stride[rank - 1];
  x.row_stride = view.stride[rank - 2];
  x.head_stride = rank > 2 ? view.stride[rank - 3] : 0;
  x.batch_offset = batch_offsets(view.shape, view.stride, std::max(rank - 3, 0));
  // A last axis of one element is dense whatever its stride says: kernels take their fast path on 1.
  if (view.shape[rank - 1] == 1) x.column_stride = 1;
  return x;
}

AttentionOperand CheckedAttention::operand(const ArrayView& view) {
  MutableArrayView same;
  same.dtype = view.dtype;
  same.rank = view.rank;
  std::copy_n(view.shape, kMaxRank, same.shape);
  std::copy_n(view.stride, kMaxRank, same.stride);
  const MutableAttentionOperand x = operand(same);
  return {view.data, x.dtype, x.batch_offset, x.head_stride, x.row_stride, x.column_stride};
}

AttentionOperand CheckedAttention::broadcast(const ArrayView& view, const char* name) {
  const Shape full = weights_shape();
  const int rank = static_cast<int>(full.size());
  Index stride[kMaxRank] = {};
  bool fits = view.rank <= rank;
  for (int axis = 1; fits && axis <= view.rank; ++axis) {
    const Index extent = view.shape[view.rank - axis], target = full[static_cast<std::size_t>(rank - axis)];
    fits = extent == target || extent == 1;
    stride[rank - axis] = extent == 1 ? 0 : view.stride[view.rank - axis];
  }
  if (!fits) {
    std::string readings;
    const bool batch_first = view.rank == 3 && rank == 4 && view.shape[0] == problem_.batch &&
                             (view.shape[1] == problem_.query_length || view.shape[1] == 1) &&
                             (view.shape[2] == problem_.key_length || view.shape[2] == 1);
    if (batch_first) {
      readings = std::string(": a rank-2 ") + name +
                 " is (query_length, key_length), rank 3 is (heads, query_length, key_length), rank 4 is "
                 "(batch, heads, " +
                 "query_length, key_length); for one " + name + " per batch entry pass " + name + "[:, None]";
    }
    if (view.rank == 2 && rank == 4 && view.shape[0] == problem_.batch &&
        view.shape[1] == problem_.key_length) {
      readings = std::string(": for one row of ") + name + " per batch entry pass " + name +
                 "[:, None, None], or key_lengths for padding at the end";
    }
    fail(name, " must broadcast to (..., heads, query_length, key_length) = ", shape_text(full), ", got ",
         shape_text(view), readings);
  }
  AttentionOperand x;
  x.data = view.data;
  x.dtype = view.dtype;
  x.column_stride = stride[rank - 1];
  x.row_stride = stride[rank - 2];
  x.head_stride = rank > 2 ? stride[rank - 3] : 0;
  x.batch_offset = batch_offsets(full.data(), stride, std::max(rank - 3, 0));
  return x;
}

// Integers (batch,), or one for all, each in [lowest, highest].
const Index* CheckedAttention::per_sequence(const ArrayView& view, const char* name, Index lowest,
                                            Index highest) {
  const Index batch = problem_.batch;
  const bool leading = view.rank == static_cast<int>(batch_shape_.size()) &&
                       std::equal(batch_shape_.begin(), batch_shape_.end(), view.shape);
  require(view.rank == 0 || leading || (view.rank == 1 && view.shape[0] == batch), name,
          " must be an integer or have the shape (batch,) = (", batch, ",), got ", shape_text(view));
  Index* out = keep_indices(batch);
  const auto* values = static_cast<const std::int64_t*>(view.data);
  for (Index b = 0; b < batch; ++b) {
    out[b] = static_cast<Index>(values[view.rank == 0 ? 0 : b]);
    require(out[b] >= lowest && out[b] <= highest, name, " must lie in [", lowest, ", ", highest, "], got ",
            out[b], " for sequence ", b);
  }
  return out;
}

const Index* CheckedAttention::segments(const ArrayView& view, const char* name, Index length) {
  const Index batch = problem_.batch;
  const int leading = static_cast<int>(batch_shape_.size());
  const bool per_batch = (view.rank == 2 && view.shape[0] == batch && view.shape[1] == length) ||
                         (view.rank == leading + 1 && view.shape[leading] == length &&
                          std::equal(batch_shape_.begin(), batch_shape_.end(), view.shape));
  require(per_batch, name, " must have the shape (batch, length) = (", batch, ", ", length, "), got ",
          shape_text(view));
  Index* out = keep_indices(batch * length);
  const auto* values = static_cast<const std::int64_t*>(view.data);
  for (Index i = 0; i < batch * length; ++i) out[i] = static_cast<Index>(values[i]);
  return out;
}

// Numbers (heads,) or, where allowed, (batch, heads).
const double* CheckedAttention::per_head(const ArrayView& view, const char* name, bool per_batch) {
  const Index heads = problem_.query_heads, batch = problem_.batch;
  const int leading = static_cast<int>(batch_shape_.size());
  const bool one_row = view.rank == 1 && view.shape[0] == heads;
  const bool flat = per_batch && view.rank == 2 && view.shape[0] == batch && view.shape[1] == heads;
  const bool nested = per_batch && view.rank == leading + 1 && view.shape[leading] == heads &&
                      std::equal(batch_shape_.begin(), batch_shape_.end(), view.shape);
  require(one_row || flat || nested, name, " must have the shape (heads,) = (", heads, ",)",
          per_batch ? " or (batch, heads)" : "", ", got ", shape_text(view));
  numbers_.push_back(std::make_unique<double[]>(static_cast<std::size_t>(per_batch ? batch * heads : heads)));
  double* out = numbers_.back().get();
  const Index* row = one_row || flat ? nullptr : batch_offsets(view.shape, view.stride, leading);
  for (Index b = 0; b < (per_batch ? batch : 1); ++b) {
    const Index start = row != nullptr ? row[b] : flat && !one_row ? b * view.stride[0] : 0;
    for (Index h = 0; h < heads; ++h) {
      out[b * heads + h] = number_at(view, start + h * view.stride[view.rank - 1]);
      const double x = out[b * heads + h];
      const bool no_sink = !per_batch && x == -std::numeric_limits<double>::infinity();
      require(std::isfinite(x) || no_sink, name, " must be finite, got ", x, " for head ", h);
    }
  }
  return out;
}

// Where queries stand among the keys, and how far they see from there.
void CheckedAttention::set_positions(const AttentionArguments& arguments) {
  AttentionProblem& p = problem_;
  AttentionMasks& masks = p.masks;
  const bool square = p.query_length == p.key_length;
  Index* offset = nullptr;
  const auto set_all = [&](Index value) {
    offset = keep_indices(p.batch);
    std::fill_n(offset, p.batch, value);
    masks.offset = offset;
  };
  if (arguments.query_offset) {
    require(arguments.causal == Causal::no || arguments.causal == Causal::yes,
            "query_offset must not be given together with causal=\"upper_left\" or \"lower_right\", which "
            "say the same thing");
    masks.offset = per_sequence(*arguments.query_offset, "query_offset", -AttentionMasks::kUnbounded / 2,
                                AttentionMasks::kUnbounded / 2);
  } else if (arguments.causal == Causal::lower_right) {
    set_all(p.key_length - p.query_length);
  } else if (arguments.causal != Causal::upper_left && !square) {
    const std::string lengths =
        "query length " + std::to_string(p.query_length) + " and key length " + std::to_string(p.key_length);
    const char* readings =
        "\"upper_left\" (key j <= query i) or \"lower_right\" (key j <= query i + key length - query "
        "length), or query_offset must be given";
    require(arguments.causal == Causal::no, "causal=True is ambiguous for ", lengths, ": causal must be ",
            readings);
    const bool bounded_window = arguments.window && (arguments.window_left || arguments.window_right);
    require(!bounded_window, "window is ambiguous for ", lengths, ": causal must be ", readings);
    require(!arguments.alibi_slopes, "alibi_slopes is ambiguous for ", lengths, ": causal must be ",
            readings);
  }
  if (arguments.window) {
    if (arguments.window_left) {
      require(*arguments.window_left >= 0, "window must be (left, right) with sides >= 0 or None, got left ",
              *arguments.window_left);
      masks.left = bounded(*arguments.window_left);
    }
    if (arguments.window_right) {
      require(*arguments.window_right >= 0,
              "window must be (left, right) with sides >= 0 or None, got right ", *arguments.window_right);
      masks.right = bounded(*arguments.window_right);
    }
  }
  if (arguments.causal != Causal::no) masks.right = 0;
}

Index* CheckedAttention::keep_indices(Index count) {
  indices_.push_back(
      std::make_unique_for_overwrite<Index[]>(static_cast<std::size_t>(std::max<Index>(count, 1))));
  return indices_.back().get();
}

Shape CheckedAttention::output_shape() const {
  Shape shape = statistics_shape();
  shape.push_back(problem_.value_dim);
  return shape;
}

Shape CheckedAttention::statistics_shape() const {
  Shape shape = batch_shape_;
  if (!single_head_) shape.push_back(problem_.query_heads);
  shape.push_back(problem_.query_length);
  return shape;
}

Shape CheckedAttention::weights_shape() const {
  Shape shape = statistics_shape();
  shape.push_back(problem_.key_length);
  return shape;
}

}  // namespace blasformer
