#include "layers/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "core/cpu.h"
#include "core/denormals.h"
#include "core/element.h"
#include "core/require.h"
#include "core/thread_pool.h"
#include "core/workspace.h"
#include "kernels/attention_kernels.h"
#include "layers/attention_problem.h"
#include "layers/attention_products.h"
#include "layers/attention_work.h"

namespace blasformer {

namespace {

// How forward cuts the queries that read one key head into runs of whole tiles. Results do not depend on it:
// every query sums over the blocks of keys in their order.
struct QueryCut {
  Index per_run;        // queries of a run: whole tiles, or all
  Index runs_per_head;  // when runs end with heads; else 0, and they go through the heads of the group
  Index runs_per_group;

  // Several tiles, so that a block of keys is read from the outer caches once for all of them, and more where
  // every run packs or widens keys and values anew; but few enough that every thread gets something to do.
  QueryCut(const AttentionProblem& p, Index tile) {
    const bool through = p.shares_tiles(tile);
    const Index queries = through ? p.group() * p.query_length : p.query_length;
    const Index heads = std::max<Index>(p.batch * (through ? p.key_heads : p.query_heads), 1);
    const auto tasks_of = [&](Index tiles) { return heads * ceil_div(queries, tiles * tile); };
    const int threads = planned_threads(tasks_of(1), attention_work(p));
    const bool copies = p.split != nullptr || item_size(p.key.dtype) < item_size(DType::float32);
    Index tiles = p.query_length >= 768 ? 8 : p.query_length >= 192 ? 4 : 2;
    while (copies && tiles < 16 && tasks_of(2 * tiles) >= 4 * threads) tiles *= 2;
    while (tiles > 1 && tasks_of(tiles) < threads) tiles /= 2;
    per_run = std::min(tiles * tile, std::max<Index>(queries, 1));
    runs_per_head = through ? 0 : ceil_div(queries, per_run);
    runs_per_group = through ? ceil_div(queries, per_run) : runs_per_head * p.group();
  }

  Index tasks(const AttentionProblem& p) const { return p.batch * p.key_heads * runs_per_group; }

  QueryRun run(const AttentionProblem& p, Index task) const {
    const Index group = task / runs_per_group, index = task % runs_per_group;
    const Index head = runs_per_head == 0 ? 0 : index / runs_per_head,
                run = runs_per_head == 0 ? index : index % runs_per_head;
    const Index end = runs_per_head == 0 ? p.group() * p.query_length : (head + 1) * p.query_length;
    const Index first = head * p.query_length + run * per_run;
    return {group / p.key_heads, group % p.key_heads, first, std::min(per_run, end - first)};
  }
};

// How forward cuts the keys where queries are few: one head or two, and a cache of tens of thousands of keys,
// are work for many threads. By shape alone, as the order of the sums depends on it; a sum that must not
// depend on the length of other sequences is not cut.
struct KeyCut {
  Index parts = 1, per_part;

  KeyCut(const AttentionProblem& p, Index key_block) : per_part(p.key_length) {
    constexpr Index kMost = 2048;  // some 20 us, as much as is worth waking a thread for
    if (!p.few_queries() || p.ordered_scores || p.key_length <= kMost) return;
    parts = ceil_div(p.key_length, kMost);
    per_part = round_up(ceil_div(p.key_length, parts), key_block);
  }

  // Numbers that one part leaves behind.
  Index result_size(const AttentionProblem& p) const {
    return AttentionProblem::kFewQueries * (2 + p.value_dim);
  }
};

template <class T>
void forward_in_parts(const AttentionProblem& p, const QueryCut& cut, const KeyCut& keys, Index workspace,
                      const MutableAttentionOperand& output, T* maximum, T* reciprocal_sum) {
  const AttentionKernels<T>& kernels = attention_kernels<T>();
  const Index runs = cut.tasks(p), queries = AttentionProblem::kFewQueries;
  Tensor<T> results({runs * keys.parts, keys.result_size(p)});
  std::vector<AttentionPart<T>> parts(static_cast<std::size_t>(runs * keys.parts));
  parallel_for(runs * keys.parts, attention_work(p), [&](Index task, int) {
    const FlushDenormals flush;
    T* const row = results.data() + task * results.extent(1);
    AttentionPart<T>& part = parts[static_cast<std::size_t>(task)];
    part = {0, row, row + queries, row + 2 * queries};
    const Index first = task % keys.parts * keys.per_part;
    kernels.forward_part(p, cut.run(p, task / keys.parts), first,
                         std::min(first + keys.per_part, p.key_length), thread_workspace(workspace), part);
  });
  parallel_for(runs, 0.2 * static_cast<double>(results.size()), [&](Index task, int) {
    const FlushDenormals flush;
    kernels.join_parts(p, cut.run(p, task), parts.data() + task * keys.parts, keys.parts,
                       thread_workspace(workspace), output, maximum, reciprocal_sum);
  });
}

}  // namespace

Shape attention_output_shape(const AttentionArguments& arguments) {
  return CheckedAttention(arguments).output_shape();
}

template <class T>
void attention_forward(const AttentionArguments& arguments, const MutableArrayView& output,
                       AttentionStatistics<T>* statistics) {
  CheckedAttention checked(arguments);
  AttentionProblem p = checked.problem();
  p.split = attention_products(p);
  p.pairs = attention_pairs(p);
  const MutableAttentionOperand target = checked.operand(output);
  if (statistics != nullptr) {
    statistics->maximum = Tensor<T>(checked.statistics_shape());
    statistics->reciprocal_sum = Tensor<T>(checked.statistics_shape());
    statistics->unit = p.has_logits() ? 1 : p.scale;
    statistics->batch_invariant = p.ordered_scores;
    statistics->split = p.split;
    statistics->pairs = p.pairs;
  }
  const AttentionKernels<T>& kernels = attention_kernels<T>();
  const QueryCut cut(p, kernels.query_tile);
  const Index workspace = kernels.forward_workspace(p, cut.per_run);
  T* const maximum = statistics != nullptr ? statistics->maximum.data() : nullptr;
  T* const reciprocal_sum = statistics != nullptr ? statistics->reciprocal_sum.data() : nullptr;
  const KeyCut keys(p, kernels.key_block);
  if (keys.parts > 1) return forward_in_parts(p, cut, keys, workspace, target, maximum, reciprocal_sum);
  parallel_for(cut.tasks(p), attention_work(p), [&](Index task, int) {
    const FlushDenormals flush;
    reserve_for_products(p);
    kernels.forward(p, cut.run(p, task), thread_workspace(workspace), target, maximum, reciprocal_sum);
  });
}

template <class T>
void attention_weights(const AttentionArguments& arguments, const AttentionStatistics<T>& statistics,
                       const WeightSelection& selection, const MutableArrayView& weights) {
  const CheckedAttention checked(computed_as(statistics, arguments));
  AttentionProblem p = checked.problem();
  p.split = statistics.split;
  p.pairs = statistics.pairs;
  const AttentionKernels<T>& kernels = attention_kernels<T>();
  const Index heads = static_cast<Index>(selection.heads.size()),
              rows = static_cast<Index>(selection.rows.size());
  const Index groups = selection.mean ? 1 : heads;          // heads that are written separately
  const Index heads_of_group = selection.mean ? heads : 1;  // heads that are averaged
  // Rows may be asked for more than once.
  const Index step = p.few_queries() ? AttentionProblem::kFewQueries : kernels.query_tile;
  const Index parts = ceil_div(rows, step);
  const Index scratch = round_up(kernels.weights_workspace(p), 64);
  const Index buffer = step * p.key_length * static_cast<Index>(sizeof(T));
  parallel_for(p.batch * groups * parts, attention_work(p), [&](Index task, int) {
    const FlushDenormals flush;
    reserve_for_products(p);
    auto* memory = static_cast<char*>(thread_workspace(scratch + buffer));
    auto* tile = reinterpret_cast<T*>(memory + scratch);
    const Index first = task % parts * step, group = task / parts % groups, batch = task / parts / groups;
    const Index count = std::min(step, rows - first);
    for (Index i = 0; i < heads_of_group; ++i) {
      const Index head = selection.heads[static_cast<std::size_t>(group + i)];
      kernels.weights(p, batch, head, selection.rows.data() + first, count, statistics.maximum.data(),
                      statistics.reciprocal_sum.data(), memory, i > 0, tile);
    }
    const T scale = T(1) / static_cast<T>(heads_of_group);
    const Index start = ((batch * groups + group) * rows + first) * p.key_length;
    for (Index i = 0; i < count * p.key_length; ++i) {
      write_element<T>(weights.data, weights.dtype, start + i, tile[i] * scale);
    }
  });
}

template <class T>
void attention_logsumexp(const AttentionStatistics<T>& statistics, T* logsumexp) {
  for (Index i = 0; i < statistics.maximum.size(); ++i) {
    const double maximum = static_cast<double>(statistics.maximum.data()[i]);
    const double reciprocal_sum = static_cast<double>(statistics.reciprocal_sum.data()[i]);
    logsumexp[i] = reciprocal_sum == 0 ? -std::numeric_limits<T>::infinity()
                                       : static_cast<T>(maximum * statistics.unit - std::log(reciprocal_sum));
  }
}

void explain_mask(const AttentionArguments& arguments, bool* allowed) {
  const CheckedAttention checked(arguments);
  const AttentionProblem& p = checked.problem();
  const AttentionKernels<float>& kernels = attention_kernels<float>();
  const Index parts = ceil_div(p.query_length, kernels.query_tile);
  parallel_for(p.batch * p.query_heads * parts, attention_work(p), [&](Index task, int) {
    const Index first = task % parts * kernels.query_tile, head = task / parts;
    std::vector<Index> rows(static_cast<std::size_t>(std::min(kernels.query_tile, p.query_length - first)));
    std::iota(rows.begin(), rows.end(), first);
    kernels.explain(p, head / p.query_heads, head % p.query_heads, rows.data(),
                    static_cast<Index>(rows.size()),
                    allowed + (head * p.query_length + first) * p.key_length);
  });
}

AttentionPlan attention_plan(const AttentionArguments& arguments) {
  const CheckedAttention checked(arguments);
  AttentionProblem p = checked.problem();
  p.split = attention_products(p);
  p.pairs = attention_pairs(p);
  const auto plan = [&](const auto& kernels) {
    const QueryCut cut(p, kernels.query_tile);
    const KeyCut keys(p, kernels.key_block);
    const Index tasks = cut.tasks(p) * keys.parts;
    const Index results = keys.parts > 1 ? tasks * keys.result_size(p) : 0;
    return AttentionPlan{
        attention_kernel_name(p),
        kernels.query_tile,
        kernels.key_block,
        cut.per_run,
        keys.per_part,
        tasks,
        most_threads(tasks, attention_work(p)),
        kernels.forward_workspace(p, cut.per_run),
        results * item_size(arguments.query.dtype == DType::float64 ? DType::float64 : DType::float32)};
  };
  return arguments.query.dtype == DType::float64 ? plan(attention_kernels<double>())
                                                 : plan(attention_kernels<float>());
}

template void attention_forward(const AttentionArguments&, const MutableArrayView&,
                                AttentionStatistics<float>*);
template void attention_forward(const AttentionArguments&, const MutableArrayView&,
                                AttentionStatistics<double>*);
template void attention_weights(const AttentionArguments&, const AttentionStatistics<float>&,
                                const WeightSelection&, const MutableArrayView&);
template void attention_weights(const AttentionArguments&, const AttentionStatistics<double>&,
                                const WeightSelection&, const MutableArrayView&);
template void attention_logsumexp(const AttentionStatistics<float>&, float*);
template void attention_logsumexp(const AttentionStatistics<double>&, double*);

}  // namespace blasformer
