#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <utility>
#include <vector>

#include "core/denormals.h"
#include "core/describe.h"
#include "core/element.h"
#include "core/require.h"
#include "core/thread_pool.h"
#include "core/workspace.h"
#include "kernels/attention_kernels.h"
#include "layers/attention.h"
#include "layers/attention_problem.h"
#include "layers/attention_work.h"

namespace blasformer {

namespace {

template <class T>
MutableArrayView view_of(Tensor<T>& tensor) {
  MutableArrayView view;
  view.data = tensor.data();
  view.dtype = dtype_of<T>();
  view.rank = static_cast<int>(tensor.rank());
  Index stride = 1;
  for (int axis = view.rank; axis-- > 0;) {
    view.shape[axis] = tensor.extent(axis);
    view.stride[axis] = stride;
    stride *= tensor.extent(axis);
  }
  return view;
}

// Few key heads are cut into several runs of queries, each with its own share of d_key and d_value, so that
// more than one core has something to do. By shape alone; at most four shares, so that memory stays linear in
// the length.
Index query_runs(const AttentionProblem& p) {
  constexpr Index enough = 4, least_rows = 256;
  const Index heads = std::max<Index>(p.batch * p.key_heads, 1);
  return std::clamp<Index>(std::min(ceil_div(enough, heads), p.group() * p.query_length / least_rows), 1,
                           enough);
}

template <class T>
void find_delta(const AttentionProblem& p, const Tensor<T>& output, const AttentionOperand& d_output,
                Tensor<T>& delta) {
  const AttentionKernels<T>& kernels = attention_kernels<T>();
  constexpr Index rows = 256;
  const Index parts = ceil_div(p.query_length, rows);
  const double work = static_cast<double>(output.size()) * 0.2;
  parallel_for(p.batch * p.query_heads * parts, work, [&](Index task, int) {
    const FlushDenormals flush;
    const Index first = task % parts * rows, head = task / parts;
    kernels.delta(p,
                  {head / p.query_heads, head % p.query_heads, first, std::min(rows, p.query_length - first)},
                  output.data(), d_output, delta.data());
  });
}

// gradient[i] = sum over runs of shares[run][i], in the order of the runs.
template <class T>
void add_shares(const Tensor<T>& shares, Index runs, const MutableArrayView& gradient) {
  const Index size = shares.size() / std::max<Index>(runs, 1);
  constexpr Index chunk = 1 << 14;
  parallel_for(ceil_div(size, chunk), static_cast<double>(shares.size()) * 0.5, [&](Index task, int) {
    for (Index i = task * chunk; i < std::min(size, (task + 1) * chunk); ++i) {
      T sum = shares.data()[i];
      for (Index run = 1; run < runs; ++run) sum += shares.data()[run * size + i];
      write_element<T>(gradient.data, gradient.dtype, i, sum);
    }
  });
}

template <class T>
void operand_gradients(const AttentionProblem& p, const BackwardInputs<T>& inputs,
                       const MutableAttentionOperand& d_query, const AttentionGradientViews& gradients) {
  const AttentionKernels<T>& kernels = attention_kernels<T>();
  const Index heads = p.batch * p.key_heads, queries = p.group() * p.query_length;
  const Index runs = query_runs(p), per_run = round_up(ceil_div(queries, runs), kernels.query_tile);
  const Index key_size = p.key_length * p.dim, value_size = p.key_length * p.value_dim;
  // One share of the type computed in can be the gradient itself.
  const bool direct = runs == 1 && gradients.key.dtype == dtype_of<T>();
  Tensor<T> key_shares, value_shares;
  if (!direct) {
    key_shares = Tensor<T>({runs, heads, key_size});
    value_shares = Tensor<T>({runs, heads, value_size});
  }
  T* const d_key = direct ? static_cast<T*>(gradients.key.data) : key_shares.data();
  T* const d_value = direct ? static_cast<T*>(gradients.value.data) : value_shares.data();
  const Index workspace = kernels.backward_workspace(p);
  parallel_for(heads * runs, 2.5 * attention_work(p), [&](Index task, int) {
    const FlushDenormals flush;
    const Index run = task / heads, head = task % heads, first = run * per_run;
    kernels.backward(
        p, {head / p.key_heads, head % p.key_heads, first, std::clamp<Index>(queries - first, 0, per_run)},
        inputs, thread_workspace(workspace), d_query, d_key + (run * heads + head) * key_size,
        d_value + (run * heads + head) * value_size);
  });
  if (!direct) {
    add_shares(key_shares, runs, gradients.key);
    add_shares(value_shares, runs, gradients.value);
  }
}

// A sink's score has the gradient weight * (0 - delta), for its value is 0.
template <class T>
void sink_gradients(const AttentionProblem& p, const BackwardInputs<T>& inputs,
                    const MutableArrayView& d_sinks) {
  for (Index head = 0; head < p.query_heads; ++head) {
    double sum = 0;
    for (Index batch = 0; batch < p.batch; ++batch) {
      const Index first = (batch * p.query_heads + head) * p.query_length;
      for (Index i = first; i < first + p.query_length; ++i) {
        const double reciprocal_sum = static_cast<double>(inputs.reciprocal_sum[i]);
        if (reciprocal_sum == 0) continue;  // attends to nothing
        const double weight =
            std::exp(p.sinks[head] - static_cast<double>(inputs.maximum[i])) * reciprocal_sum;
        sum -= weight * static_cast<double>(inputs.delta[i]);
      }
    }
    write_element<T>(d_sinks.data, d_sinks.dtype, head, static_cast<T>(sum));
  }
}

// The gradient of the bias is that of the scores, summed over everything the bias is broadcast along. Where
// that is something, it is found by a pass of its own, cut along the bias: every element is one sum in one
// order, and nothing of size query_length x key_length exists that the bias does not have itself.
template <class T>
class BiasGradient {
 public:
  BiasGradient(const AttentionProblem& p, const BackwardInputs<T>& inputs,
               const MutableAttentionOperand& gradient)
      : p_(p), inputs_(inputs), gradient_(gradient), kernels_(attention_kernels<T>()) {
    std::vector<std::pair<Index, Index>> heads;  // where its bias begins, and which head of which batch entry
    for (Index batch = 0; batch < p.batch; ++batch) {
      for (Index head = 0; head < p.query_heads; ++head) {
        heads.emplace_back(gradient.offset(batch, head), batch * p.query_heads + head);
      }
    }
    std::sort(heads.begin(), heads.end());
    for (std::size_t i = 0; i < heads.size(); ++i) {
      if (i == 0 || heads[i].first != heads[i - 1].first) group_start_.push_back(static_cast<Index>(i));
      members_.push_back(heads[i].second);
    }
    group_start_.push_back(static_cast<Index>(heads.size()));
  }

  // Whether every query of every head has a row of its own, which the pass over the operands can write.
  bool has_own_rows() const {
    return members_.size() + 1 == group_start_.size() && gradient_.dtype == dtype_of<T>() &&
           gradient_.column_stride == 1 && (gradient_.row_stride != 0 || p_.query_length == 1);
  }

  void run() const {
    const Index groups = static_cast<Index>(group_start_.size()) - 1;
    const bool by_rows = gradient_.row_stride != 0 || p_.query_length == 1;
    const Index step = by_rows ? kernels_.query_tile : kernels_.key_block;
    const Index parts = ceil_div(by_rows ? p_.query_length : p_.key_length, step);
    // A bias of one column, shared by all queries, is summed over the parts below.
    const bool single = !by_rows && gradient_.column_stride == 0;
    Tensor<T> sums({groups * parts});
    parallel_for(groups * parts, 1.5 * attention_work(p_), [&](Index task, int) {
      const FlushDenormals flush;
      const Index group = task / parts, first = task % parts * step;
      if (by_rows) {
        sum_rows(group, first, std::min(step, p_.query_length - first));
      } else {
        sums.data()[task] = sum_columns(group, first, std::min(step, p_.key_length - first), !single);
      }
    });
    for (Index group = 0; single && group < groups; ++group) {
      T sum = 0;
      for (Index part = 0; part < parts; ++part) sum += sums.data()[group * parts + part];
      write_element<T>(gradient_.data, gradient_.dtype, start_of(group), sum);
    }
  }

 private:
  Index start_of(Index group) const {
    const Index member = members_[static_cast<std::size_t>(group_start_[static_cast<std::size_t>(group)])];
    return gradient_.offset(member / p_.query_heads, member % p_.query_heads);
  }

  // tile (rows, keys) += the gradients of the scores, over the heads of a group.
  void add_heads(Index group, Index first_row, Index rows, Index first_key, Index last_key, void* memory,
                 T* tile) const {
    for (Index i = group_start_[static_cast<std::size_t>(group)];
         i < group_start_[static_cast<std::size_t>(group) + 1]; ++i) {
      const Index member = members_[static_cast<std::size_t>(i)];
      kernels_.bias_gradient(p_, {member / p_.query_heads, member % p_.query_heads, first_row, rows},
                             first_key, last_key, inputs_, memory, tile);
    }
  }

  T* workspace(Index elements, void** memory) const {
    const Index scratch = round_up(kernels_.bias_gradient_workspace(p_), 64);
    *memory = thread_workspace(scratch + elements * static_cast<Index>(sizeof(T)));
    T* tile = reinterpret_cast<T*>(static_cast<char*>(*memory) + scratch);
    std::fill_n(tile, elements, T(0));
    return tile;
  }

  void sum_rows(Index group, Index first, Index rows) const {
    void* memory = nullptr;
    T* tile = workspace(rows * p_.key_length, &memory);
    add_heads(group, first, rows, 0, p_.key_length, memory, tile);
    for (Index r = 0; r < rows; ++r) {
      const Index row = start_of(group) + (first + r) * gradient_.row_stride;
      if (gradient_.column_stride == 0 && p_.key_length > 0) {
        T sum = 0;
        for (Index k = 0; k < p_.key_length; ++k) sum += tile[r * p_.key_length + k];
        write_element<T>(gradient_.data, gradient_.dtype, row, sum);
      }
      for (Index k = 0; k < p_.key_length && gradient_.column_stride != 0; ++k) {
        write_element<T>(gradient_.data, gradient_.dtype, row + k * gradient_.column_stride,
                         tile[r * p_.key_length + k]);
      }
    }
  }

  T sum_columns(Index group, Index first, Index keys, bool write) const {
    void* memory = nullptr;
    T* tile = workspace((kernels_.query_tile + 1) * keys, &memory);
    T* sum = tile + kernels_.query_tile * keys;
    for (Index row = 0; row < p_.query_length; row += kernels_.query_tile) {
      const Index rows = std::min(kernels_.query_tile, p_.query_length - row);
      std::fill_n(tile, rows * keys, T(0));
      add_heads(group, row, rows, first, first + keys, memory, tile);
      for (Index r = 0; r < rows; ++r) {
        for (Index k = 0; k < keys; ++k) sum[k] += tile[r * keys + k];
      }
    }
    T total = 0;
    for (Index k = 0; k < keys; ++k) {
      total += sum[k];
      if (write) {
        write_element<T>(gradient_.data, gradient_.dtype,
                         start_of(group) + (first + k) * gradient_.column_stride, sum[k]);
      }
    }
    return total;
  }

  const AttentionProblem& p_;
  const BackwardInputs<T>& inputs_;
  const MutableAttentionOperand gradient_;
  const AttentionKernels<T>& kernels_;
  std::vector<Index> members_, group_start_;
};

void clear(const MutableArrayView& view) {
  Index size = item_size(view.dtype);
  for (int axis = 0; axis < view.rank; ++axis) size *= view.shape[axis];
  if (size > 0) std::memset(view.data, 0, static_cast<std::size_t>(size));
}

}  // namespace

template <class T>
void attention_forward_saving(const AttentionArguments& arguments, const MutableArrayView& output,
                              AttentionSaved<T>& saved) {
  saved.output = Tensor<T>(attention_output_shape(arguments));
  attention_forward(arguments, view_of(saved.output), &saved.statistics);
  for (Index i = 0; i < saved.output.size(); ++i)
    write_element<T>(output.data, output.dtype, i, saved.output.data()[i]);
}

template <class T>
void attention_backward(const AttentionArguments& arguments, const AttentionSaved<T>& saved,
                        const ArrayView& d_output, const AttentionGradientViews& gradients) {
  CheckedAttention checked(arguments);
  const AttentionProblem& p = checked.problem();
  const Shape& shape = saved.output.shape();
  const bool same_shape = d_output.rank == static_cast<int>(shape.size()) &&
                          std::equal(shape.begin(), shape.end(), d_output.shape);
  require(same_shape, "d_output must have the shape of the output, ", shape_text(shape), ", got ",
          shape_text(d_output));
  if (d_output.dtype != arguments.query.dtype) {
    fail<TypeMismatch>("d_output must have the dtype of the output, ", dtype_text(arguments.query.dtype),
                       ", got ", dtype_text(d_output.dtype));
  }
  Tensor<T> delta(checked.statistics_shape());
  BackwardInputs<T> inputs = {saved.statistics.maximum.data(),
                              saved.statistics.reciprocal_sum.data(),
                              delta.data(),
                              checked.operand(d_output),
                              {}};
  find_delta(p, saved.output, inputs.d_output, delta);
  std::optional<BiasGradient<T>> bias_gradient;
  if (gradients.bias) {
    clear(*gradients.bias);
    ArrayView same;
    same.data = gradients.bias->data;
    same.dtype = gradients.bias->dtype;
    same.rank = gradients.bias->rank;
    std::copy_n(gradients.bias->shape, kMaxRank, same.shape);
    std::copy_n(gradients.bias->stride, kMaxRank, same.stride);
    const AttentionOperand bias = checked.broadcast(same, "bias");
    const MutableAttentionOperand target = {gradients.bias->data, bias.dtype,      bias.batch_offset,
                                            bias.head_stride,     bias.row_stride, bias.column_stride};
    if (p.key_length > 0 && p.query_length > 0) bias_gradient.emplace(p, inputs, target);
    if (bias_gradient && bias_gradient->has_own_rows()) inputs.d_bias = target;
  }
  operand_gradients(p, inputs, checked.operand(gradients.query), gradients);
  if (bias_gradient && inputs.d_bias.data == nullptr) bias_gradient->run();
  if (gradients.sinks) sink_gradients(p, inputs, *gradients.sinks);
}

template void attention_forward_saving(const AttentionArguments&, const MutableArrayView&,
                                       AttentionSaved<float>&);
template void attention_forward_saving(const AttentionArguments&, const MutableArrayView&,
                                       AttentionSaved<double>&);
template void attention_backward(const AttentionArguments&, const AttentionSaved<float>&, const ArrayView&,
                                 const AttentionGradientViews&);
template void attention_backward(const AttentionArguments&, const AttentionSaved<double>&, const ArrayView&,
                                 const AttentionGradientViews&);

}  // namespace blasformer
