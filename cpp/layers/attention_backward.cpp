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
#include "core/tensor.h"
#include "core/tensor_view.h"
#include "core/thread_pool.h"
#include "core/workspace.h"
#include "kernels/attention_kernels.h"
#include "layers/attention.h"
#include "layers/attention_problem.h"
#include "layers/attention_products.h"
#include "layers/attention_work.h"

namespace blasformer {

namespace {

// Few key heads are cut into several runs of queries, each with its own share of d_key and d_value, so that
// more than one core has something to do. By shape alone; at most four shares, so that memory stays linear in
// the length. Sums that must not depend on other sequences, nor on how long they are, are not cut.
Index query_runs(const AttentionProblem& p) {
  constexpr Index enough = 4;
  if (p.single_head_tiles) return 1;
  const Index heads = std::max<Index>(p.batch * p.key_heads, 1);
  // A cut costs time: only an odd number of heads, which leaves a core idle, is cut into short runs.
  const Index least_rows = heads % 2 == 1 ? 96 : 256;
  const Index runs = std::min(ceil_div(enough, heads), p.group() * p.query_length / least_rows);
  return runs >= enough ? enough : runs >= 2 ? 2 : 1;
}

// The gradient of keys or values, (batch, key_heads, key_length, columns), as the sum of the shares that
// several tasks compute, in their order. A single share of the type computed in is the gradient itself.
template <class T>
class KeyGradient {
 public:
  KeyGradient(const AttentionProblem& p, const MutableAttentionOperand& target, Index columns, Index shares)
      : p_(p), target_(target), columns_(columns), count_(shares) {
    if (shares > 1 || target.dtype != dtype_of<T>() || target.column_stride != 1)
      shares_ = Tensor<T>({shares, p.batch, p.key_heads, p.key_length, columns});
  }

  T* place(Index share, Index batch, Index key_head) {
    if (shares_.empty()) return static_cast<T*>(target_.data) + target_.offset(batch, key_head);
    return shares_.data() + ((share * p_.batch + batch) * p_.key_heads + key_head) * p_.key_length * columns_;
  }
  Index stride() const { return shares_.empty() ? target_.row_stride : columns_; }

  void add_shares() const {
    if (shares_.empty()) return;
    const Index rows = p_.batch * p_.key_heads * p_.key_length, size = rows * columns_;
    const Index rows_of_task = std::max<Index>(1, (1 << 14) / columns_);
    parallel_for(
        ceil_div(rows, rows_of_task), static_cast<double>(shares_.size()) * 0.5, [&](Index task, int) {
          for (Index row = task * rows_of_task; row < std::min(rows, (task + 1) * rows_of_task); ++row) {
            const Index head = row / p_.key_length;
            const Index target = target_.offset(head / p_.key_heads, head % p_.key_heads) +
                                 row % p_.key_length * target_.row_stride;
            for (Index c = 0; c < columns_; ++c) {
              T sum = shares_.data()[row * columns_ + c];
              for (Index share = 1; share < count_; ++share)
                sum += shares_.data()[share * size + row * columns_ + c];
              write_element<T>(target_.data, target_.dtype, target + c * target_.column_stride, sum);
            }
          }
        });
  }

 private:
  const AttentionProblem& p_;
  const MutableAttentionOperand target_;
  const Index columns_, count_;
  Tensor<T> shares_;
};

struct OperandGradients {
  MutableAttentionOperand query, key, value;
};

// d_bias: for a bias whose every row belongs to one query of one head, else without data.
template <class T>
void operand_gradients(const AttentionProblem& p, const BackwardInputs<T>& inputs,
                       const OperandGradients& gradients, const MutableAttentionOperand& d_bias, T* delta) {
  const AttentionKernels<T>& kernels = attention_kernels<T>();
  const Index heads = p.batch * p.key_heads, queries = p.group() * p.query_length;
  const Index runs = query_runs(p), per_run = round_up(ceil_div(queries, runs), kernels.query_tile);
  KeyGradient<T> d_key(p, gradients.key, p.dim, runs), d_value(p, gradients.value, p.value_dim, runs);
  const Index workspace = kernels.backward_workspace(p);
  parallel_for(heads * runs, 2.5 * attention_work(p), [&](Index task, int) {
    const FlushDenormals flush;
    reserve_for_products(p);
    const Index run = task / heads, batch = task % heads / p.key_heads, head = task % p.key_heads;
    const Index first = run * per_run;
    kernels.backward(p, {batch, head, first, std::clamp<Index>(queries - first, 0, per_run)}, inputs,
                     thread_workspace(workspace),
                     {gradients.query, d_key.place(run, batch, head), d_key.stride(),
                      d_value.place(run, batch, head), d_value.stride(), false, d_bias, false, delta});
  });
  d_key.add_shares();
  d_value.add_shares();
}

// Calls visit(first, count) for parts of `size` elements, each of which is read so many times.
template <class Visit>
void each_chunk(Index size, Index times, const Visit& visit) {
  constexpr Index chunk = 1 << 11;
  const double work = 0.2 * static_cast<double>(size * times);
  parallel_for(ceil_div(size, chunk), work,
               [&](Index task, int) { visit(task * chunk, std::min(chunk, size - task * chunk)); });
}

// The same where heads share rows of the bias. A task is a run of rows and a share of the key heads, one
// after the other: runs have rows of the bias, and shares of the keys' gradients, of their own; shares of the
// heads have a gradient of the bias of their own. Whichever is smaller is kept several times. one_matrix: all
// heads share the same rows, so that the first one of a share writes what the others add to.
template <class T>
void operand_gradients_sharing_bias(const AttentionProblem& p, const BackwardInputs<T>& inputs,
                                    const OperandGradients& gradients, MutableAttentionOperand d_bias,
                                    Index bias_size, bool one_matrix, T* delta) {
  constexpr Index enough = 8, least_rows = 64;
  const AttentionKernels<T>& kernels = attention_kernels<T>();
  const Index heads = p.batch * p.key_heads;
  const bool cut_heads = bias_size <= heads * p.key_length * (p.dim + p.value_dim);
  const Index most_runs = p.single_head_tiles ? 1 : std::max<Index>(1, p.query_length / least_rows);
  const Index most_shares = cut_heads ? std::clamp<Index>(heads, 1, enough) : 1;
  const Index runs = std::min(most_runs, ceil_div(enough, most_shares));
  // As few as take no longer: of 12 heads, six shares of two instead of eight of one or two. Even, for two
  // cores.
  const Index longest = ceil_div(heads, most_shares);
  const Index shares = std::min(most_shares, round_up(ceil_div(heads, std::max<Index>(longest, 1)), 2));
  const Index per_run = round_up(ceil_div(p.query_length, runs), kernels.query_tile);
  KeyGradient<T> d_key(p, gradients.key, p.dim, runs), d_value(p, gradients.value, p.value_dim, runs);
  Tensor<T> bias_shares({shares, bias_size});
  if (!one_matrix) {
    each_chunk(bias_shares.size(), 1,
               [&](Index first, Index count) { std::fill_n(bias_shares.data() + first, count, T(0)); });
  }
  const Index workspace = kernels.backward_workspace(p);
  parallel_for(shares * runs, 2.5 * attention_work(p), [&](Index task, int) {
    const FlushDenormals flush;
    reserve_for_products(p);
    const Index share = task % shares, first = task / shares * per_run;
    const Index rows = std::clamp<Index>(p.query_length - first, 0, per_run), run = task / shares;
    MutableAttentionOperand own_bias = d_bias;
    own_bias.data = bias_shares.data() + share * bias_size;
    const Index begin = share * heads / shares, end = (share + 1) * heads / shares;
    for (Index i = begin; i < end; ++i) {
      const Index batch = i / p.key_heads, head = i % p.key_heads;
      for (Index member = 0; member < p.group(); ++member) {
        kernels.backward(
            p, {batch, head, member * p.query_length + first, rows}, inputs, thread_workspace(workspace),
            {gradients.query, d_key.place(run, batch, head), d_key.stride(), d_value.place(run, batch, head),
             d_value.stride(), member > 0, own_bias, !one_matrix || i > begin || member > 0, delta});
      }
    }
  });
  d_key.add_shares();
  d_value.add_shares();
  each_chunk(bias_size, shares, [&](Index first, Index count) {
    T* const sum = bias_shares.data() + first;
    for (Index share = 1; share < shares; ++share) {
      const T* const more = sum + share * bias_size;
      for (Index i = 0; i < count; ++i) sum[i] += more[i];
    }
    if (d_bias.dtype == dtype_of<T>()) {
      std::copy_n(sum, count, static_cast<T*>(d_bias.data) + first);
      return;
    }
    for (Index i = 0; i < count; ++i) write_element<T>(d_bias.data, d_bias.dtype, first + i, sum[i]);
  });
}

// A sink's score has the gradient weight * (0 - delta), for its value is 0.
template <class T>
void sink_gradients(const AttentionProblem& p, const BackwardInputs<T>& inputs, const T* delta,
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
        sum -= weight * static_cast<double>(delta[i]);
      }
    }
    write_element<T>(d_sinks.data, d_sinks.dtype, head, static_cast<T>(sum));
  }
}

// The gradient of the bias is that of the scores, summed over everything the bias is broadcast along. Where
// that is along the queries or the keys, it is found by a pass of its own, cut along the bias: every element
// is one sum in one order, and nothing of size query_length x key_length exists that the bias does not have
// itself.
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

  // Whether every query has a row with an element for each key, which the pass over the operands can add to.
  bool has_rows() const {
    return (gradient_.column_stride == 1 && (gradient_.row_stride != 0 || p_.query_length == 1));
  }
  // Whether no heads share such rows.
  bool has_own_rows() const { return members_.size() + 1 == group_start_.size(); }
  // Whether all heads share them.
  bool has_one_matrix() const { return group_start_.size() == 2; }

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
      reserve_for_products(p_);
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

Index element_count(const MutableArrayView& view) {
  Index count = 1;
  for (int axis = 0; axis < view.rank; ++axis) count *= view.shape[axis];
  return count;
}

void clear(const MutableArrayView& view) {
  const Index size = item_size(view.dtype) * element_count(view);
  if (size > 0) std::memset(view.data, 0, static_cast<std::size_t>(size));
}

}  // namespace

template <class T>
void attention_backward(const AttentionArguments& arguments, const AttentionStatistics<T>& statistics,
                        const ArrayView& output, const ArrayView& d_output,
                        const AttentionGradientViews& gradients) {
  CheckedAttention checked(computed_as(statistics, arguments));
  AttentionProblem p = checked.problem();
  p.single_head_tiles = p.ordered_scores;
  p.split = statistics.split;
  p.pairs = statistics.pairs;
  const bool same_shape =
      d_output.rank == output.rank && std::equal(output.shape, output.shape + output.rank, d_output.shape);
  require(same_shape, "d_output must have the shape of the output, ", shape_text(output), ", got ",
          shape_text(d_output));
  if (d_output.dtype != arguments.query.dtype) {
    fail<TypeMismatch>("d_output must have the dtype of the output, ", dtype_text(arguments.query.dtype),
                       ", got ", dtype_text(d_output.dtype));
  }
  Tensor<T> delta;  // of the queries, where sinks need it
  if (gradients.sinks) delta = Tensor<T>(checked.statistics_shape());
  const BackwardInputs<T> inputs = {statistics.maximum.data(), statistics.reciprocal_sum.data(),
                                    checked.operand(output), checked.operand(d_output)};
  const OperandGradients operands = {checked.operand(gradients.query), checked.operand(gradients.key),
                                     checked.operand(gradients.value)};
  std::optional<BiasGradient<T>> bias_gradient;
  MutableAttentionOperand d_bias;
  if (gradients.bias) {
    const AttentionOperand bias = checked.broadcast(readable(*gradients.bias), "bias");
    d_bias = {gradients.bias->data, bias.dtype,      bias.batch_offset,
              bias.head_stride,     bias.row_stride, bias.column_stride};
    if (p.key_length > 0 && p.query_length > 0) bias_gradient.emplace(p, inputs, d_bias);
  }
  const bool by_rows = bias_gradient && bias_gradient->has_rows();
  const bool own_rows = by_rows && bias_gradient->has_own_rows() && d_bias.dtype == dtype_of<T>();
  if (gradients.bias && (!by_rows || p.batch == 0)) clear(*gradients.bias);
  if (own_rows) {
    operand_gradients(p, inputs, operands, d_bias, delta.data());
  } else if (!by_rows) {
    operand_gradients(p, inputs, operands, {}, delta.data());
    if (bias_gradient) bias_gradient->run();
  } else {
    operand_gradients_sharing_bias(p, inputs, operands, d_bias, element_count(*gradients.bias),
                                   bias_gradient->has_one_matrix(), delta.data());
  }
  if (gradients.sinks) sink_gradients(p, inputs, delta.data(), *gradients.sinks);
}

template void attention_backward(const AttentionArguments&, const AttentionStatistics<float>&,
                                 const ArrayView&, const ArrayView&, const AttentionGradientViews&);
template void attention_backward(const AttentionArguments&, const AttentionStatistics<double>&,
                                 const ArrayView&, const ArrayView&, const AttentionGradientViews&);

}  // namespace blasformer
